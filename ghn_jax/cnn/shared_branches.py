"""Which ops of a segment share a branch of its switch: kernels that differ in the zeros around their taps.

Compiling a convolution and its gradients for a TPU takes up to ten seconds, and a program of the full space
has 150 of them. There, dense kernels of any size lie in the largest one of their segment, and a dilated
depthwise kernel in the one that reaches as far. What the zeros cost is little where these ops are few of
many, so only segments of many ops share. Elsewhere each op has a branch of its own. Strided kernels are one
in a hundred instructions, so there 1x1 lies in the largest dense one, and depthwise 3x3 in 5x5.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from ghn_jax.base import backends
from ghn_jax.cnn.capacity import Segment
from ghn_jax.cnn.dispatch import read_weights
from ghn_jax.cnn.instructions import Conv, Depthwise, Kind
from ghn_jax.cnn.packing import block_floats
from ghn_jax.cnn.tables import OP, WEIGHTS

_MANY = 12  # ops of a segment; those of the full space have as many where resolution falls, and 16 elsewhere
_STRIDED_REACH = 5  # pixels; strided depthwise kernels that reach less far lie in those that do


class Branch(NamedTuple):
    """What runs one op of a segment, or some.

    Attributes:
      numbers: of these ops in the segment.
      kind: what is run; it has the kernels of all of them.
    """

    numbers: tuple[int, ...]
    kind: Kind

    def read_weights(self, segment: Segment, flat: Array, row: Array) -> list[Array]:
        """Read the weights of the instruction of a row from the buffer [F], in the shapes of `kind`."""
        each = [read_weights(segment.ops[n], segment, flat, row[WEIGHTS]) for n in self.numbers]
        if len(each) == 1:
            return each[0]
        wide = [self._widened(kernel, segment.ops[n]) for n, (kernel,) in zip(self.numbers, each)]
        return [lax.select_n(self._which(row), *wide)]

    def flat_gradient(
        self, segment: Segment, gradients: Sequence[Array], row: Array, floats: int, dtype: DTypeLike
    ) -> Array:
        """Lay gradients of the weights of `kind` as the op's own lie in the buffer, padded to `floats`."""
        if len(self.numbers) == 1:
            return _flat(gradients, floats, dtype)
        (g,) = gradients
        each = [_flat([self._narrowed(g, segment.ops[n])], floats, dtype) for n in self.numbers]
        return lax.select_n(self._which(row), *each)

    def _which(self, row: Array) -> Array:
        """Return the place of the row's op among the numbers, []."""
        places = [self.numbers.index(n) if n in self.numbers else 0 for n in range(max(self.numbers) + 1)]
        return jnp.asarray(places, jnp.int32)[row[OP]]

    def _widened(self, kernel: Array, op: Kind) -> Array:
        """Return a kernel [K, K, ...] of an op with zeros around and between its taps."""
        around, dilation = _around(self.kind, op)
        spread = (around, around, dilation - 1)
        rest = ((0, 0, 0),) * (kernel.ndim - 2)
        return lax.pad(kernel, jnp.zeros((), kernel.dtype), (spread, spread, *rest))

    def _narrowed(self, kernel: Array, op: Kind) -> Array:
        """Return the taps of an op: what `_widened` was given."""
        around, dilation = _around(self.kind, op)
        taps = slice(around, around + _extent(op), dilation)
        return kernel[taps, taps]


def branches_of(segment: Segment, numbers: Sequence[int]) -> list[Branch]:
    """Divide ops of a segment, by their numbers, among branches, in the order of their first ops."""
    share = backends.current() == 'tpu' and len(segment.ops) >= _MANY
    groups: dict[object, list[int]] = {}
    for n in numbers:
        groups.setdefault(_form(segment.ops[n]) if share else n, []).append(n)
    return [Branch(tuple(group), _widest([segment.ops[n] for n in group])) for group in groups.values()]


def count_branches(segments: Iterable[Segment]) -> int:
    """Count the branches of all segments in one direction, forward or backward."""
    return sum(len(branches_of(segment, range(len(segment.ops)))) for segment in segments)


def _form(op: Kind) -> object:
    """Return what is the same for ops that can share a branch."""
    match op:
        case Conv() if op.height == op.width and (op.height > 1 or op.stride > 1):
            return Conv, op.stride, op.rectify
        case Depthwise():
            reach = max(_extent(op), _STRIDED_REACH if op.stride > 1 else 0)
            return Depthwise, op.stride, op.rectify, reach
    return op


def _widest(ops: Sequence[Kind]) -> Kind:
    """Return the op that has the kernels of all."""
    first, extent = ops[0], max(map(_extent, ops))
    if len(ops) == 1:
        return first
    match first:
        case Conv():
            return dataclasses.replace(first, height=extent, width=extent, dilation=1)
        case Depthwise():
            return dataclasses.replace(first, size=extent, dilation=1)
    raise TypeError(f'{first} shares no branch')


def _extent(op: Kind) -> int:
    """Return the pixels from the first to the last tap of a kernel, along its rows; 0 of what has none."""
    match op:
        case Conv():
            return (op.height - 1) * op.dilation + 1
        case Depthwise():
            return (op.size - 1) * op.dilation + 1
    return 0


def _around(wide: Kind, op: Kind) -> tuple[int, int]:
    """Return the zeros on each side of an op's kernel in the wide one, and the op's dilation."""
    return (_extent(wide) - _extent(op)) // 2, getattr(op, 'dilation', 1)


def _flat(gradients: Sequence[Array], floats: int, dtype: DTypeLike) -> Array:
    parts = [jnp.pad(g.ravel(), (0, block_floats(g.shape) - g.size)) for g in gradients]
    return jnp.concatenate([*parts, jnp.zeros(floats - sum(part.size for part in parts), dtype)])
