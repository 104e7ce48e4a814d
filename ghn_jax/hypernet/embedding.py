"""What a node is, as a vector: its primitive plus the sizes of its tensor (GHN-2, arXiv 2110.13100).

Sizes are looked up in fixed vocabularies; a size without an entry takes the nearest one. Nodes without a
tensor (sums, pools of the whole image, ...) have a row of their own in each table.

Axes: B graphs | N nodes, padded | D hidden.   The four sizes of a tensor: out, in channels, kernel height,
width.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax.hypernet.layers import Params
from ghn_jax.networks.layers import PRIMITIVES


class Vocabulary(NamedTuple):
    """The sizes that have a row of their own, ascending: of channels and of kernels."""

    channels: np.ndarray
    kernels: np.ndarray


def vocabulary(num_classes: int = 10, window: int = 11) -> Vocabulary:
    """Return the published sizes of a hypernetwork for so many classes, with a kernel window of this size."""
    channels = {1, 3, num_classes, *range(8, 57, 8), *range(64, 4081, 16), *range(4096, 8193, 32)}
    kernels = {*range(1, max(12, window), 2), 14, 16}
    return Vocabulary(np.array(sorted(channels)), np.array(sorted(kernels)))


def init_embedding(key: jax.Array, hid: int, sizes: Vocabulary, *, narrow: bool = False) -> Params:
    """Draw tables with standard normal entries (PyTorch's default); the last row of the sizes' tables is "no
    tensor".

    narrow: entries have a variance of 1 / width of the table instead, as GHN-3's.
    """
    shapes = {
        'primitive': (len(PRIMITIVES), hid),
        'channel': (len(sizes.channels) + 1, hid // 4),
        'spatial': (len(sizes.kernels) + 1, hid // 4),
    }
    return init_tables(key, shapes, narrow=narrow)


def init_tables(
    key: jax.Array,
    shapes: Mapping[str, tuple[int, int]],
    *,
    narrow: bool,
    dtype: jnp.dtype = jnp.float32,
) -> Params:
    """Draw tables by name from (rows, width) as `init_embedding`, all in one draw."""
    ends = np.cumsum([rows * width for rows, width in shapes.values()])
    parts = jnp.split(jax.random.normal(key, (int(ends[-1]),), dtype), ends[:-1])
    tables = {name: part.reshape(shape) for part, (name, shape) in zip(parts, shapes.items(), strict=True)}
    return {name: table * table.shape[1] ** -0.5 for name, table in tables.items()} if narrow else tables


def shape_indices(shape: jax.Array, sizes: Vocabulary) -> jax.Array:
    """Find rows of the channel, channel, spatial and spatial tables, int32 [..., 4], for raw sizes [..., 4].

    Raw sizes are padded with ones to four; 0 means no tensor. Between two entries the nearest wins, of two
    equally near ones the smaller, with two exceptions of the published tables: channels 4 to 7 count as 8, a
    kernel of 2 as 3.
    """
    channels = _nearest_rows(tuple(sizes.channels.tolist()), ((4, 8), (5, 8), (6, 8), (7, 8)))
    kernels = _nearest_rows(tuple(sizes.kernels.tolist()), ((2, 3),))
    channel = jnp.asarray(channels)[jnp.clip(shape[..., :2], 0, len(channels) - 1)]
    spatial = jnp.asarray(kernels)[jnp.clip(shape[..., 2:], 0, len(kernels) - 1)]
    return jnp.concatenate([channel, spatial], axis=-1)


def embed_nodes(params: Params, primitive: jax.Array, shape: jax.Array, sizes: Vocabulary) -> jax.Array:
    """Embed nodes [..., D] from primitive int32 [...] and raw sizes int32 [..., 4], see `shape_indices`."""
    rows = shape_indices(shape, sizes)
    of_sizes = [take_rows(params['channel'], rows[..., i]) for i in (0, 1)]
    of_sizes += [take_rows(params['spatial'], rows[..., i]) for i in (2, 3)]
    return take_rows(params['primitive'], primitive) + jnp.concatenate(of_sizes, axis=-1)


@jax.custom_vjp
def take_rows(table: jax.Array, rows: jax.Array) -> jax.Array:
    """Look up rows int [...] of a table [R, D]: [..., D]."""
    return table[rows]


def _take_fwd(table, rows):
    return table[rows], (rows, table.shape[0])


def _take_bwd(residuals, grad):
    # A product with a one-hot matrix: thousands of nodes share a few rows; a scatter adds one after another.
    rows, length = residuals
    one_hot = jax.nn.one_hot(rows.reshape(-1), length, dtype=grad.dtype)
    return one_hot.T @ grad.reshape(-1, grad.shape[-1]), None


take_rows.defvjp(_take_fwd, _take_bwd)


@functools.cache
def _nearest_rows(sizes: tuple[int, ...], exceptions: tuple[tuple[int, int], ...]) -> np.ndarray:
    """Row of `sizes` for every size from 0 (no tensor: the extra row) to the largest entry."""
    known, counts_as = np.array(sizes), dict(exceptions)
    wanted = np.array([counts_as.get(size, size) for size in range(known[-1] + 1)])
    rows = np.argmin(np.abs(wanted[:, None] - known[None, :]), axis=1)  # the first, so the smaller
    rows[0] = len(known)
    return rows.astype(np.int32)
