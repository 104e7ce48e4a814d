"""How the executor quantizes what an instruction reads: by a range found when the value was written."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from ghn_jax.base import collectives
from ghn_jax.cnn import ops
from ghn_jax.cnn.tables import GROUP, PARTS
from ghn_jax.quant.activations import clip_range, quantize_activation
from ghn_jax.quant.grid import make_grid, quantize
from ghn_jax.quant.policy import FLOAT_BITS
from ghn_jax.quant.ranges import power
from ghn_jax.quant.scheme import Scheme


class Quantizer(NamedTuple):
    """How an instruction quantizes its inputs. scale: of the levels of relu(x), over its group's joint range.

    bits: int32 [2], of what the instruction reads and of what lies between its convolutions. key: for noise.
    axis: the mesh axis that the images are spread over, for what a batch has in common. given: [2, 2], (lo,
    hi) of the two in place of the batch's ranges, or None.
    """

    scheme: Scheme
    scale: Array
    bits: Array
    key: Array | None
    axis: str | None
    given: Array | None = None

    def rectified(self, x: Array) -> Array:
        """Fake-quantizes relu(x), relu'd already, by its group's joint range [0, hi], or the one given."""
        if self.given is not None:
            return self.own(x, 0)
        mode, bits = self.scheme.mode, self.bits[0]
        if mode == 'float':
            return x
        if mode == 'qat' and not self.scheme.clips_activations:
            return _round_rectified(x, self.scale, bits)
        levels = make_grid(0, 1, bits, self.scale.dtype)  # of which only the width is another
        levels = levels._replace(scale=self.scale, cut=self.scale / 2)
        key = jax.random.fold_in(self.key, 0) if mode == 'noise' else None
        return quantize(ops.wide(x), levels, bits, mode=mode, key=key).astype(x.dtype)

    def own(self, x: Array, which: int) -> Array:
        """Fake-quantizes x by its own range, or the one given."""
        if self.scheme.mode == 'float':
            return x
        key = jax.random.fold_in(self.key, which) if self.scheme.mode == 'noise' else None
        given = None if self.given is None else self.given[which]
        y = quantize_activation(
            ops.wide(x), self.bits[which], self.scheme, given=given, key=key, across=self.axis
        )
        return y.astype(x.dtype)


class Sizes(NamedTuple):
    """Of every slot of a class, [S] each: the maximum; of relu(x), `ranges.power`, where the scheme asks."""

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


def quantizer_of(program, scheme, key, axis, sizes: Sizes, row, bits, r, ranges=None) -> Quantizer:
    """For row r. The key is derived from r, so that the backward pass draws the same noise."""
    dtype = sizes.largest.dtype
    if scheme.mode == 'float':
        return Quantizer(scheme, jnp.zeros((), dtype), bits, None, axis)
    key = jax.random.fold_in(key, r) if scheme.mode == 'noise' else None
    if ranges is not None:
        return Quantizer(scheme, jnp.zeros((), dtype), bits, key, axis, ranges[r])
    used = jnp.arange(program.capacity.parts) < row[PARTS]
    parts = lambda x: jnp.where(used, lax.dynamic_slice(x, (row[GROUP],), used.shape), 0)
    lo, hi = jnp.zeros((), dtype), jnp.max(parts(sizes.largest), initial=0)
    size = None if sizes.squares is None else tuple(jnp.sum(parts(x)) for x in sizes[1:])
    scale = make_grid(*clip_range(lo, hi, size, bits[0], scheme), bits[0], dtype).scale
    scale = jnp.where(scale > 0, scale, 1)  # of nothing but zeros: they stay zeros on any grid
    return Quantizer(scheme, scale, bits, key, axis)


def no_sizes(program, slots: int, scheme: Scheme, dtype) -> Sizes:
    """Of a tape that nothing is written to yet."""
    zeros = jnp.zeros(max(slots, program.capacity.parts), dtype)
    squares = zeros if scheme.activation_range == 'sigma' and scheme.mode != 'float' else None
    return Sizes(zeros, squares, squares)


def with_sizes(sizes: Sizes, y: Array, slot: Array, axis: str | None) -> Sizes:
    """With those of y in a slot."""
    dtype = sizes.largest.dtype
    largest = sizes.largest.at[slot].set(collectives.largest(jnp.max(y).astype(dtype), axis))
    if sizes.squares is None:
        return sizes._replace(largest=largest)
    squares, count = collectives.total(power(ops.relu(ops.wide(y)).astype(dtype)), axis)
    return Sizes(largest, sizes.squares.at[slot].set(squares), sizes.count.at[slot].set(count))
