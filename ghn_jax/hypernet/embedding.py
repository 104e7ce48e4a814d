"""What a node is, as a vector: its primitive plus the sizes of its tensor (GHN-2, arXiv 2110.13100).

Sizes are looked up in fixed vocabularies; a size without an entry takes the nearest one. Nodes without a
tensor (sums, pools of the whole image, ...) have a row of their own in each table.

Axes: B graphs | N nodes, padded | D hidden.   The four sizes of a tensor: out, in channels, kernel height,
width.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax.hypernet.layers import Params
from ghn_jax.networks.ops import PRIMITIVES

CHANNELS = np.array([1, 3, *range(8, 57, 8), 10, *range(64, 4081, 16), *range(4096, 8193, 32)])
CHANNELS.sort()
SPATIAL = np.array([1, 3, 5, 7, 9, 11, 14, 16])


def init_embedding(key: jax.Array, hid: int, dtype: jnp.dtype = jnp.float32) -> Params:
    """Draw tables with standard normal entries (PyTorch's default); the last row of the sizes' tables is "no
    tensor".
    """
    shapes = {
        'primitive': (len(PRIMITIVES), hid),
        'channel': (len(CHANNELS) + 1, hid // 4),
        'spatial': (len(SPATIAL) + 1, hid // 4),
    }
    ends = np.cumsum([rows * width for rows, width in shapes.values()])
    parts = jnp.split(jax.random.normal(key, (int(ends[-1]),), dtype), ends[:-1])
    return {name: part.reshape(shape) for part, (name, shape) in zip(parts, shapes.items(), strict=True)}


def shape_indices(shape: jax.Array) -> jax.Array:
    """Find rows of the channel, channel, spatial and spatial tables, int32 [..., 4], for raw sizes [..., 4].

    Raw sizes are padded with ones to four; 0 means no tensor. Between two entries the nearest wins, of two
    equally near ones the smaller, with two exceptions of the published tables: channels 4 to 7 count as 8, a
    kernel of 2 as 3.
    """
    channel = jnp.asarray(_CHANNEL_ROW)[jnp.clip(shape[..., :2], 0, len(_CHANNEL_ROW) - 1)]
    spatial = jnp.asarray(_SPATIAL_ROW)[jnp.clip(shape[..., 2:], 0, len(_SPATIAL_ROW) - 1)]
    return jnp.concatenate([channel, spatial], axis=-1)


def embed_nodes(params: Params, primitive: jax.Array, shape: jax.Array) -> jax.Array:
    """Embed nodes [..., D] from primitive int32 [...] and raw sizes int32 [..., 4], see `shape_indices`."""
    rows = shape_indices(shape)
    sizes = [_take(params['channel'], rows[..., i]) for i in (0, 1)]
    sizes += [_take(params['spatial'], rows[..., i]) for i in (2, 3)]
    return _take(params['primitive'], primitive) + jnp.concatenate(sizes, axis=-1)


@jax.custom_vjp
def _take(table: jax.Array, rows: jax.Array) -> jax.Array:
    return table[rows]


def _take_fwd(table, rows):
    return table[rows], (rows, table.shape[0])


def _take_bwd(residuals, grad):
    # A product with a one-hot matrix: thousands of nodes share a few rows; a scatter adds one after another.
    rows, length = residuals
    one_hot = jax.nn.one_hot(rows.reshape(-1), length, dtype=grad.dtype)
    return one_hot.T @ grad.reshape(-1, grad.shape[-1]), None


_take.defvjp(_take_fwd, _take_bwd)


def _nearest_rows(vocabulary: np.ndarray, exceptions: dict[int, int]) -> np.ndarray:
    """Row of `vocabulary` for every size from 0 (no tensor: the extra row) to the largest entry."""
    sizes = np.arange(vocabulary[-1] + 1)
    wanted = np.array([exceptions.get(size, size) for size in sizes])
    rows = np.argmin(
        np.abs(wanted[:, None] - vocabulary[None, :]), axis=1
    )  # argmin: the first, so the smaller
    rows[0] = len(vocabulary)
    return rows.astype(np.int32)


_CHANNEL_ROW = _nearest_rows(CHANNELS, {4: 8, 5: 8, 6: 8, 7: 8})  # [8193]
_SPATIAL_ROW = _nearest_rows(SPATIAL, {2: 3})  # [17]
