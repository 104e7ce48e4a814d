"""Rounded weights as integers of just their bits, and back: what a packed file holds.

The codes of a tensor are unsigned integers of `width` bits, in C order, one after the other in a stream of
bits: code i takes bits i * width to (i + 1) * width - 1, its lowest bit first, and bit k of the stream is bit
k % 8 (counted from the lowest) of byte k // 8. So a byte holds two 4-bit, four 2-bit or eight 1-bit codes,
the first in its lowest bits. The last byte is filled up with zeros.

A code c means the weight (c - zero_point) * scale, computed in the dtype of the scale; a code of width 1
means its sign, (2 * c - 1) * scale. Scale and zero point are those of the tensor, or of each of its channels.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ghn_jax.base.errors import UserError, shown
from ghn_jax.quant.policy import TERNARY

SCALE, ZERO_POINT = 'quantization.scale', 'quantization.zero_point'
"""Names of the arrays that hold the grids of all packed tensors, one after the other."""

_MOST_BITS = 16


def pack_weights(
    weights: Mapping[str, np.ndarray],
    quantization: Mapping[str, Mapping[str, Any]],
    *,
    axis: int | Mapping[str, int] = 0,
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
    """Pack rounded weights.

    Args:
      weights: arrays of one dtype by name, rounded.
      quantization: what `round_weights` says of those that are: bits, scale, zero_point. The others stay as
        they are.
      axis: of the output channels, which a scale for each channel goes along; of all, or by name.

    Returns:
      (arrays, table). Arrays of packed tensors are streams of bytes, uint8 [ceil(size * width / 8)]; SCALE
      [G] has the dtype of the weights and ZERO_POINT [G] is unsigned, both of all G grids in the order of the
      table. table[name] has the shape, the width of a code and, where each channel has a grid, their axis.

    Raises:
      UserError: weights that are not finite.
      ValueError: weights that are not rounded as `quantization` says.
    """
    arrays, table, scales, zeros = dict(weights), {}, [], []
    for name, grid in quantization.items():
        w = weights[name]
        if not np.isfinite(w).all():
            raise UserError(f'the weight {name} has values that are not finite, which no code stands for')
        by_channel = isinstance(grid['scale'], list)
        scale = np.atleast_1d(np.asarray(grid['scale'], w.dtype))
        zero = np.atleast_1d(np.asarray(grid['zero_point'], np.int32))
        entry = {'shape': list(w.shape), 'width': grid['bits']}
        if by_channel:
            entry['axis'] = axis if isinstance(axis, int) else axis[name]
        codes = _signed_codes(w, _along(scale, entry))
        if grid['bits'] >= 2:
            codes += _along(zero, entry)
        elif grid['bits'] == TERNARY or not codes.all():  # a 1-bit weight of 0 stays 0: a third value
            entry['width'], zero = 2, zero + 1
            codes += 1
        else:
            codes = (codes > 0).astype(np.int32)
        arrays[name] = pack_bits(codes.reshape(-1), entry['width'])
        if not np.array_equal(_unpack(arrays[name], entry, scale, zero), w):
            raise ValueError(f'{name} is not rounded to {grid["bits"]} bits on the grid that comes with it')
        table[name] = entry
        scales.append(scale)
        zeros.append(zero)
    if table:
        zero = np.concatenate(zeros)
        arrays[SCALE] = np.concatenate(scales)
        arrays[ZERO_POINT] = zero.astype(np.min_scalar_type(zero.max()))
    return arrays, table


def unpack_weights(arrays: Mapping[str, np.ndarray], table: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the weights that `pack_weights` packed, value for value.

    Raises:
      UserError: arrays and table that do not fit together.
    """
    if not table:
        return dict(arrays)
    for name in (SCALE, ZERO_POINT):
        if name not in arrays or arrays[name].ndim != 1:
            raise UserError(f'the packed weights lack {name}: give a file of packed weights')
    scales, zeros = arrays[SCALE], arrays[ZERO_POINT]
    if scales.dtype.kind != 'f' or zeros.dtype.kind != 'u':
        raise UserError(
            f'the packed weights have scales of {scales.dtype} and zero points of {zeros.dtype}, expected '
            'floats and unsigned integers: give a whole file'
        )
    weights = {name: w for name, w in arrays.items() if name not in (SCALE, ZERO_POINT)}
    for name, entry in table.items():
        _check_entry(name, entry, weights)
    grids = [entry['shape'][entry['axis']] if 'axis' in entry else 1 for entry in table.values()]
    if not len(scales) == len(zeros) == sum(grids):
        raise UserError(
            f'the packed weights have {len(scales)} scales and {len(zeros)} zero points, expected '
            f'{sum(grids)} of each: give a whole file'
        )
    ends = np.cumsum(grids)[:-1]
    of_each = zip(table.items(), np.split(scales, ends), np.split(zeros.astype(np.int32), ends))
    return weights | {name: _unpack(weights[name], entry, *grid) for (name, entry), *grid in of_each}


def pack_bits(codes: np.ndarray, width: int) -> np.ndarray:
    """Pack unsigned integers [n], below 2^width, into a stream of bytes: uint8 [ceil(n * width / 8)]."""
    bits = np.stack([(codes >> k & 1).astype(np.uint8) for k in range(width)], axis=1)
    return np.packbits(bits.reshape(-1), bitorder='little')


def unpack_bits(stream: np.ndarray, width: int, n: int) -> np.ndarray:
    """Return the n integers that `pack_bits` packed, int32 [n]."""
    bits = np.unpackbits(stream, count=n * width, bitorder='little').reshape(n, width)
    codes = np.zeros(n, np.int32)
    for k in range(width):
        codes |= bits[:, k].astype(np.int32) << k
    return codes


def _signed_codes(w: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return w / scale as integers; 0 where the scale is 0."""
    quotient = np.divide(w, scale, out=np.zeros(w.shape), where=scale != 0, dtype=np.float64)
    return np.rint(quotient).astype(np.int32)


def _unpack(stream: np.ndarray, entry: Mapping[str, Any], scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    shape, width = entry['shape'], entry['width']
    codes = unpack_bits(stream, width, math.prod(shape)).reshape(shape)
    steps = 2 * codes - 1 if width == 1 else codes - _along(zero, entry)
    return (steps.astype(scale.dtype) * _along(scale, entry)).astype(scale.dtype)


def _along(grid: np.ndarray, entry: Mapping[str, Any]) -> np.ndarray:
    """Give an array of grids [G] the dimensions that broadcast against the tensor."""
    shape = [1] * len(entry['shape'])
    if 'axis' in entry:
        shape[entry['axis']] = -1
    return grid.reshape(shape)


def _check_entry(name: str, entry: Any, arrays: Mapping[str, np.ndarray]) -> None:
    """Raise UserError unless an entry of the table describes the stream of this name."""
    try:
        shape, width, axis = entry['shape'], entry['width'], entry.get('axis', -1)
        whole = all(type(n) is int and n >= 0 for n in (*shape, width)) and 1 <= width <= _MOST_BITS
        if not whole or type(axis) is not int or not -len(shape) <= axis < len(shape):
            raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(
            f'the packed weight {name} is described by {shown(entry)}: give a whole file'
        ) from None
    stream, size = arrays.get(name), -(-math.prod(shape) * width // 8)
    if stream is None or stream.dtype != np.uint8 or stream.shape != (size,):
        came = 'absent' if stream is None else f'{stream.dtype} {stream.shape}'
        raise UserError(f'the packed weight {name} is {came}, expected uint8 ({size},): give a whole file')
