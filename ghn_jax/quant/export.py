"""Weights by name, rounded as a network runs with them, and the scales that give their integers back.

They lie in rows of WIDTH floats, padded with zeros, each of a tensor or of one of its output channels: so a
few compiled programs, one for each power of two of rows and of grids, serve networks of all shapes.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ghn_jax.quant.fake_quant import Grid, quantize
from ghn_jax.quant.policy import FLOAT_BITS, Policy, edges_of, quantizable
from ghn_jax.quant.scheme import QAT, Scheme
from ghn_jax.quant.weight_grids import fit

WIDTH = 64
_LEAST_ROWS, _LEAST_GRIDS = 1024, 64


def round_weights(
    weights: Mapping[str, np.ndarray], policy: Policy, scheme: Scheme = QAT
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
    """The weights of a network rounded to a policy's bits, on the grids of a scheme.

    A rounded weight is w = (q - zero_point) * scale in its own precision, bit for bit, and
    q = round(w / scale) + zero_point, an integer of 0 .. 2^bits - 1. With less than 2 bits zero_point is 0
    and q is a sign: -1 or 1 with 1 bit, -1, 0 or 1 of ternary weights. A weight that is exactly 0 stays 0
    with 1 bit too, as where networks run; a grid of zeros has a scale of 0.

    Args:
        weights: arrays of one dtype by name, output channels first. Norms, biases and positional encodings
            stay as they are.
        policy: the bits of each.
        scheme: how grids are found; its mode is of no account.

    Returns:
        (weights, {name: {'bits': int, 'scale': float, 'zero_point': int}} of those that are rounded). In a
        scheme by channel scale and zero_point are lists.

    Raises:
        UserError: a rule of the policy matches none of the weights.
    """
    names = quantizable((name, w.shape) for name, w in weights.items())
    policy.check(names)
    widths = {name: policy.weights(name, edge=name in edges_of(names)) for name in names}
    widths = {name: bits for name, bits in widths.items() if bits < FLOAT_BITS}
    rounded = dict(weights)
    if not widths:
        return rounded, {}
    by_channel = scheme.granularity == 'channel'
    tiles = [_tile(weights[name], by_channel) for name in widths]  # [grids, rows, WIDTH] each
    rows = np.concatenate([tile.reshape(-1, WIDTH) for tile in tiles])
    index = np.repeat(np.arange(sum(map(len, tiles))), [tile.shape[1] for tile in tiles for _ in tile])
    bits = np.repeat(list(widths.values()), [len(tile) for tile in tiles])
    n_rows, n_grids = _room(len(rows), _LEAST_ROWS), _room(len(bits) + 1, _LEAST_GRIDS)
    out, scale, zero = _round(
        np.pad(rows, ((0, n_rows - len(rows)), (0, 0))),
        np.pad(index, (0, n_rows - len(rows)), constant_values=n_grids - 1),
        np.pad(bits, (0, n_grids - len(bits)), constant_values=FLOAT_BITS).astype(np.int32),
        scheme,
    )
    last_rows = np.cumsum([len(tile) * tile.shape[1] for tile in tiles])[:-1]
    last_grids = np.cumsum([len(tile) for tile in tiles])[:-1]
    out = np.split(np.asarray(out)[: len(rows)], last_rows)
    grids = (np.split(np.asarray(x)[: len(bits)], last_grids) for x in (scale, zero.astype(int)))
    how = {}
    for name, tile, w, s, z in zip(widths, tiles, out, *grids, strict=True):
        own = w.reshape(len(tile), -1)
        rounded[name] = own[:, : weights[name].size // len(tile)].reshape(weights[name].shape)
        s, z = (x.tolist() if by_channel else x[0].item() for x in (s, z))
        how[name] = {'bits': widths[name], 'scale': s, 'zero_point': z}
    return rounded, how


def _tile(w: np.ndarray, by_channel: bool) -> np.ndarray:
    """A weight as [grids, rows, WIDTH], padded with zeros."""
    groups = w.reshape(len(w) if by_channel else 1, -1)
    return np.pad(groups, ((0, 0), (0, -groups.shape[1] % WIDTH))).reshape(len(groups), -1, WIDTH)


def _room(n: int, least: int) -> int:
    return max(least, 1 << (n - 1).bit_length())


class _Rows(NamedTuple):
    """Weights [R, WIDTH] as `weight_grids.Weights`. index: int32 [R], the grid of each row, of `grids`."""

    rows: Array
    index: Array
    grids: int

    def extremes(self) -> tuple[Array, Array]:
        zeros = jnp.zeros(self.grids, self.rows.dtype)
        return zeros.at[self.index].min(self.rows.min(1)), zeros.at[self.index].max(self.rows.max(1))

    def sums(self, measure: Callable, *of_grids: Array, when: Array | bool = True) -> tuple[Array, Array]:
        def add():
            measured = measure(self.rows, *(x[self.index][:, None] for x in of_grids))
            total = lambda x: zeros.at[self.index].add(x.astype(zeros.dtype).sum(1))
            return tuple(map(total, measured))

        zeros = jnp.zeros(self.grids, self.rows.dtype)
        return add() if when is True else lax.cond(when, add, lambda: (zeros, zeros))


@functools.partial(jax.jit, static_argnums=3)
def _round(rows: Array, index: Array, bits: Array, scheme: Scheme) -> tuple[Array, Array, Array]:
    """(rows rounded, scale and zero point of every grid)."""
    grid = fit(_Rows(rows, index, len(bits)), bits, scheme)
    own = Grid(*(part[index][:, None] for part in grid))
    return quantize(rows, own, bits[index][:, None]), grid.scale, grid.zero
