"""Weights by name, rounded as a network runs with them, and the scales that give their integers back.

They lie in rows of WIDTH floats, padded with zeros, each of a tensor or of one of its output channels: so a
few compiled programs, one for each power of two of rows and of grids, serve networks of all shapes.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ghn_jax.base.concrete import check_concrete
from ghn_jax.base.errors import UserError, shown
from ghn_jax.base.whole_numbers import next_power_of_two
from ghn_jax.quant.grid import Grid, quantize
from ghn_jax.quant.policy import FLOAT_BITS, NamedWidths, Policy, check_policy, quantizable
from ghn_jax.quant.scheme import QAT, Scheme, check_scheme
from ghn_jax.quant.weight_grids import fit

WIDTH = 64
_LEAST_ROWS, _LEAST_GRIDS = 1024, 64


@jax.ensure_compile_time_eval()
def round_weights(
    weights: Mapping[str, np.ndarray], policy: Policy, scheme: Scheme = QAT
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
    """Round the weights of a network to a policy's bits, on the grids of a scheme.

    A rounded weight is w = (q - zero_point) * scale in the precision of its rounding, bit for bit, and
    q = round(w / scale) + zero_point, an integer of 0 .. 2^bits - 1. With less than 2 bits zero_point is 0
    and q is a sign: -1 or 1 with 1 bit, -1, 0 or 1 of ternary weights. A weight that is exactly 0 stays 0
    with 1 bit too, as where networks run; a grid of zeros has a scale of 0.

    Args:
        weights: arrays by name, output channels first. What is rounded is taken as float32, or as float64 in
            JAX's 64-bit mode. Norms, biases and positional encodings stay as they are.
        policy: the bits of each.
        scheme: says how grids are found; its mode is not used.

    Returns:
        (weights, {name: {'bits': int, 'scale': float, 'zero_point': int}} of those that are rounded). In a
        scheme by channel scale and zero_point are lists.

    Raises:
        UserError: no policy or scheme, a rule of the policy that matches no weight, weights that are no
            arrays by name, or that JAX traces.
    """
    check_policy(policy)
    check_scheme(scheme)
    if not isinstance(weights, Mapping):
        raise UserError(f'weights are {shown(weights)}: expected arrays by name, as of Hypernetwork.predict')
    check_concrete('weights', weights, 'ghn_jax.run and Model.quantizer round such')
    for name, w in weights.items():
        if not isinstance(w, np.ndarray | Array):
            raise UserError(f'weight {name!r} is {shown(w)}: expected an array, as in a file of weights')
    names = quantizable((name, w.shape) for name, w in weights.items())
    return round_to(weights, policy.resolve(names), scheme)


def round_to(
    weights: Mapping[str, np.ndarray], widths: NamedWidths, scheme: Scheme = QAT
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
    """Round weights as `round_weights`, to the bits of each by name (`Policy.resolve`)."""
    bits_of = {name: bits for name, (bits, _) in widths.items() if bits < FLOAT_BITS}
    if not bits_of:
        return dict(weights), {}
    by_channel = scheme.granularity == 'channel'
    tiles = [_tile(weights[name], by_channel) for name in bits_of]
    rounded, quantization = dict(weights), {}
    each = zip(bits_of.items(), *_round_tiles(tiles, list(bits_of.values()), scheme), strict=True)
    for (name, bits), tile, scale, zero in each:
        size, shape = weights[name].size // len(tile), weights[name].shape
        rounded[name] = tile.reshape(len(tile), -1)[:, :size].reshape(shape)
        scale, zero = (x.tolist() if by_channel else x.item() for x in (scale, zero))
        quantization[name] = {'bits': bits, 'scale': scale, 'zero_point': zero}
    return rounded, quantization


def _round_tiles(
    tiles: Sequence[np.ndarray], widths: Sequence[int], scheme: Scheme
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Round the tiles of each weight to its width. Returns them, and scales and zero points of the grids."""
    grids = [len(tile) for tile in tiles]
    rows = np.concatenate([tile.reshape(-1, WIDTH) for tile in tiles])
    index = np.repeat(np.arange(sum(grids)), [tile.shape[1] for tile in tiles for _ in tile])
    n_rows, n_grids = _room(len(rows), _LEAST_ROWS), _room(sum(grids) + 1, _LEAST_GRIDS)
    bits = np.full(n_grids, FLOAT_BITS, np.int32)
    bits[: sum(grids)] = np.repeat(widths, grids)
    padding = (0, n_rows - len(rows))
    of_rows, *of_grids = _round(
        np.pad(rows, (padding, (0, 0))), np.pad(index, padding, constant_values=n_grids - 1), bits, scheme
    )
    ends = np.cumsum([tile.size // WIDTH for tile in tiles])
    out = [w.reshape(tile.shape) for w, tile in zip(np.split(np.asarray(of_rows), ends), tiles)]
    scale, zero = (np.split(np.asarray(x), np.cumsum(grids))[:-1] for x in of_grids)
    return out, scale, [z.astype(int) for z in zero]


def _tile(w: np.ndarray, by_channel: bool) -> np.ndarray:
    """Cut a weight into [grids, rows, WIDTH], padded with zeros."""
    w = np.asarray(w, np.promote_types(w.dtype, np.float32))  # sums of 16-bit floats would be too coarse
    groups = w.reshape(len(w) if by_channel else 1, -1)
    return np.pad(groups, ((0, 0), (0, -groups.shape[1] % WIDTH))).reshape(len(groups), -1, WIDTH)


def _room(n: int, least: int) -> int:
    return max(least, next_power_of_two(n))


class _Rows(NamedTuple):
    """Weights [R, WIDTH] as `GridWeights`. index: int32 [R], the grid of each row, of `grids`."""

    rows: Array
    index: Array
    grids: int

    def extremes(self) -> tuple[Array, Array]:
        zeros = jnp.zeros(self.grids, self.rows.dtype)
        return zeros.at[self.index].min(self.rows.min(1)), zeros.at[self.index].max(self.rows.max(1))

    def sums(self, measure: Callable, *of_grids: Array, when: Array | bool = True) -> tuple[Array, Array]:
        def add() -> tuple[Array, Array]:
            measured = measure(self.rows, *(x[self.index][:, None] for x in of_grids))
            total = lambda x: zeros.at[self.index].add(x.astype(zeros.dtype).sum(1))
            first, second = map(total, measured)
            return first, second

        zeros = jnp.zeros(self.grids, self.rows.dtype)
        return add() if when is True else lax.cond(when, add, lambda: (zeros, zeros))


@functools.partial(jax.jit, static_argnums=3)
def _round(rows: Array, index: Array, bits: Array, scheme: Scheme) -> tuple[Array, Array, Array]:
    """Round rows [R, WIDTH]. Returns them, and scale and zero point [G] of every grid."""
    grid = fit(_Rows(rows, index, len(bits)), bits, scheme)
    of_rows = Grid(*(part[index][:, None] for part in grid))
    return quantize(rows, of_rows, bits[index][:, None]), grid.scale, grid.zero
