"""How the executor quantizes what an instruction reads: by a range found when the value was written."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

from ghn_jax.base import collectives
from ghn_jax.cnn import ops
from ghn_jax.cnn.tables import GROUP, PARTS
from ghn_jax.quant.activations import clip_range, quantize_activation
from ghn_jax.quant.grid import make_grid, quantize
from ghn_jax.quant.policy import FLOAT_BITS
from ghn_jax.quant.ranges import power
from ghn_jax.quant.scheme import Scheme


class Quantizer(NamedTuple):
    """How an instruction quantizes its inputs.

    Attributes:
      scheme: how tensors are quantized.
      scale: of the levels of relu(x), over its group's joint range.
      bits: int32 [2], of what the instruction reads and of what lies between its convolutions.
      key: for noise.
      axis: the mesh axis that the images are spread over, for what a batch has in common.
      ranges: [2, 2], (lo, hi) of the two in place of the batch's, or None.
    """

    scheme: Scheme
    scale: Array
    bits: Array
    key: Any  # there is one in mode noise
    axis: str | None
    ranges: Array | None = None

    def quantize_relu(self, x: Array) -> Array:
        """Fake-quantize relu(x), relu'd already, by its group's joint range [0, hi], or that of `ranges`."""
        if self.ranges is not None:
            return self.quantize(x, 0)
        mode, bits = self.scheme.mode, self.bits[0]
        if mode == 'float':
            return x
        if mode == 'qat' and not self.scheme.clips_activations:
            return _round_rectified(x, self.scale, bits)
        levels = make_grid(0, 1, bits, self.scale.dtype)  # of which only the width is another
        levels = levels._replace(scale=self.scale, cut=self.scale / 2)
        key = jax.random.fold_in(self.key, 0) if mode == 'noise' else None
        return quantize(ops.wide(x), levels, bits, mode=mode, key=key).astype(x.dtype)

    def quantize(self, x: Array, which: int) -> Array:
        """Fake-quantize x, number `which` of the two, by its range in this batch, or that of `ranges`."""
        if self.scheme.mode == 'float':
            return x
        key = jax.random.fold_in(self.key, which) if self.scheme.mode == 'noise' else None
        ends = None if self.ranges is None else self.ranges[which]
        y = quantize_activation(
            ops.wide(x), self.bits[which], self.scheme, ends=ends, key=key, across=self.axis
        )
        return y.astype(x.dtype)


class ValueSizes(NamedTuple):
    """How large the values in each slot of a tape are, [S] each.

    Attributes:
      largest: the maximum.
      squares, count: `ranges.power` of relu(x); None where the scheme does not ask for it.
    """

    largest: Array
    squares: Array | None
    count: Array | None


@jax.custom_vjp
def _round_rectified(x: Array, scale: Array, bits: Array) -> Array:
    """`fake_quantize` where 0 <= x <= max and the range is [0, max]: the zero point is 0, no value is
    clipped, and the gradient is that of the identity. A third of the code, in nearly every op of every
    program.
    """
    return jnp.where(bits < FLOAT_BITS, jnp.round(x / scale) * scale, x).astype(x.dtype)


_round_rectified.defvjp(
    lambda x, scale, bits: (_round_rectified(x, scale, bits), None), lambda _, g: (g, None, None)
)


class Quantization(NamedTuple):
    """How one run of a network quantizes its activations.

    Attributes:
      bits: int32 [R, 2], of each instruction.
      parts: the most that a group of slots has.
      key: for noise.
      axis: as in `Quantizer`.
      ranges: [R, 2, 2], in place of those of this batch, or None.
    """

    scheme: Scheme
    bits: Array | np.ndarray
    parts: int
    key: Any = None  # there is one in mode noise
    axis: str | None = None
    ranges: Array | np.ndarray | None = None

    @property
    def measures(self) -> bool:
        """Whether the sizes of values are needed, for ranges of this batch."""
        return self.scheme.mode != 'float' and self.ranges is None

    def quantizer(self, r: Array, row: Array, sizes: ValueSizes) -> Quantizer:
        """Make the quantizer of instruction r, which reads what has `sizes`; row: r's in the table.

        The key is derived from r, so that the backward pass draws the same noise.
        """
        scheme, bits, dtype = self.scheme, self.bits[r], sizes.largest.dtype
        if scheme.mode == 'float':
            return Quantizer(scheme, jnp.zeros((), dtype), bits, None, self.axis)
        key = jax.random.fold_in(self.key, r) if scheme.mode == 'noise' else None
        if self.ranges is not None:
            return Quantizer(scheme, jnp.zeros((), dtype), bits, key, self.axis, self.ranges[r])
        used = jnp.arange(self.parts) < row[PARTS]
        of_parts = lambda x: jnp.where(used, lax.dynamic_slice(x, (row[GROUP],), used.shape), 0)
        lo = jnp.zeros((), dtype)
        hi = functools.reduce(jnp.maximum, of_parts(sizes.largest), lo)  # no reduction, which a GPU launches
        total = lambda x: jnp.sum(of_parts(x))
        size = None if sizes.squares is None else (total(sizes.squares), total(sizes.count))
        scale = make_grid(*clip_range(lo, hi, size, bits[0], scheme), bits[0], dtype).scale
        if scheme.mode == 'qat':  # of nothing but zeros: they stay zeros on any grid. Of noise they get none.
            scale = jnp.where(scale > 0, scale, 1)
        return Quantizer(scheme, scale, bits, key, self.axis)

    def no_sizes(self, slots: int, dtype: DTypeLike) -> ValueSizes:
        """Return the sizes of a tape of so many slots that nothing is written to yet."""
        zeros = jnp.zeros(max(slots, self.parts), dtype)
        squares = zeros if self.scheme.activation_range == 'sigma' and self.scheme.mode != 'float' else None
        return ValueSizes(zeros, squares, squares)


def with_sizes(sizes: ValueSizes, y: Array, slot: Array, axis: str | None) -> ValueSizes:
    """Return the sizes with those of y [N, H, H, C], which was written to a slot."""
    return with_size(sizes, size_of(y, sizes), slot, axis)


def size_of(y: Array, sizes: ValueSizes) -> ValueSizes:
    """Return the size of y [N, H, H, C], or of some of its images, [] each; of what `sizes` has."""
    dtype = sizes.largest.dtype
    largest = jnp.max(y).astype(dtype)
    if sizes.squares is None:
        return ValueSizes(largest, None, None)
    return ValueSizes(largest, *power(ops.relu(ops.wide(y)).astype(dtype)))


def no_size(sizes: ValueSizes) -> ValueSizes:
    """Return the size of no values; of what `sizes` has."""
    zero = None if sizes.squares is None else jnp.zeros((), sizes.largest.dtype)
    return ValueSizes(jnp.full((), -jnp.inf, sizes.largest.dtype), zero, zero)


def joined_size(a: ValueSizes, b: ValueSizes) -> ValueSizes:
    """Return the size of two parts of a value together."""
    largest = jnp.maximum(a.largest, b.largest)
    if a.squares is None or b.squares is None or a.count is None or b.count is None:
        return ValueSizes(largest, None, None)
    return ValueSizes(largest, a.squares + b.squares, a.count + b.count)


def with_size(sizes: ValueSizes, size: ValueSizes, slot: Array, axis: str | None) -> ValueSizes:
    """Return the sizes with one of a value [] each, which was written to a slot."""
    largest = sizes.largest.at[slot].set(collectives.largest(size.largest, axis))
    if sizes.squares is None or sizes.count is None:
        return sizes._replace(largest=largest)
    squares, count = collectives.total((size.squares, size.count), axis)
    return ValueSizes(largest, sizes.squares.at[slot].set(squares), sizes.count.at[slot].set(count))
