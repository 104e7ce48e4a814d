"""Levels in a program: two operations that say where integers are, and that a file writes as such.

For JAX they compute what they stand for, so a program that has them runs anywhere. `freezing.freeze` leaves
them, and what reads them, in the program.

A level q stands for (q - zero) * scale.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import mlir

WIDTHS = (2, 4, 8, 16, 32)  # bits of the integers that files have


@dataclasses.dataclass(frozen=True, eq=False)
class ConstantLevels:
    """Integers known beforehand: levels of a weight or a bias.

    Attributes:
      codes: integers.
      scale, zero: float32 and integers, of the same rank, that broadcast to the codes.
      width: the bits that a code takes, one of WIDTHS; those of 32 bits have a sign and no zero.
    """

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    width: int

    @property
    def real(self) -> np.ndarray:
        """What the codes stand for, float32."""
        return (self.codes - self.zero).astype(np.float32) * self.scale

    def transposed(self, order: Any) -> 'ConstantLevels':
        """Return the same with its axes in another order."""
        return dataclasses.replace(
            self,
            codes=self.codes.transpose(order),
            scale=self.scale.transpose(order),
            zero=self.zero.transpose(order),
        )

    def reshaped(self, shape: Any) -> 'ConstantLevels':
        """Return the same in another shape."""
        whole = [np.broadcast_to(part, self.codes.shape).reshape(shape) for part in (self.scale, self.zero)]
        scale, zero = map(_narrowed, whole)
        return dataclasses.replace(self, codes=self.codes.reshape(shape), scale=scale, zero=zero)


@dataclasses.dataclass(frozen=True)
class ActivationGrid:
    """The grid of an activation: levels 0 .. top, static.

    Attributes:
      signs: of 1 bit on both sides of 0: values become -scale, 0 or scale by their sign alone. A scale of 0
        stands for no range: all becomes 0.
    """

    scale: float
    zero: int
    top: int
    signs: bool = False

    @property
    def width(self) -> int:
        """The bits of the integers that hold the levels, one of WIDTHS.

        Fewer levels than 4-bit integers have take 8 bits: values are cut off to have no more, and onnxruntime
        fails at that in front of 4-bit integers.
        """
        width = width_of(self.top)
        return width if self.signs or self.top == 2**width - 1 else max(width, 8)


def width_of(top: int) -> int:
    """Return the bits of the narrowest unsigned integers that hold 0 .. top, one of WIDTHS."""
    return next(width for width in WIDTHS if top < 2**width)


def rounded(x: Array, grid: ActivationGrid) -> Array:
    """Put x on the levels of a grid: float, of x's shape and dtype."""
    return _ROUND.bind(x, grid=grid)


def read(constant: ConstantLevels) -> Array:
    """Return what a constant's integers stand for, float32."""
    dtype = np.int32 if constant.width == 32 else np.uint16
    parts = (constant.codes.astype(dtype), constant.scale, constant.zero.astype(np.int32))
    return _READ.bind(*map(jnp.asarray, parts), width=constant.width)


def _narrowed(array: np.ndarray) -> np.ndarray:
    """Keep one entry along axes that an array is the same along."""
    for axis in range(array.ndim):
        first = array.take([0], axis)
        array = first if np.all(array == first) else array
    return array


def _round(x: Array, *, grid: ActivationGrid) -> Array:
    if not grid.scale:
        return jnp.zeros_like(x)
    scale = jnp.asarray(grid.scale, x.dtype)
    if grid.signs:
        return jnp.sign(x) * scale
    return (jnp.clip(jnp.round(x / scale) + grid.zero, 0, grid.top) - grid.zero) * scale


def _read(codes: Array, scale: Array, zero: Array, *, width: int) -> Array:
    return (codes.astype(jnp.int32) - zero).astype(scale.dtype) * scale


def _primitive(name: str, function: Any) -> Primitive:
    primitive = Primitive(name)
    primitive.def_impl(function)
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))
    return primitive


_ROUND, _READ = _primitive('round_to_levels', _round), _primitive('read_levels', _read)
_ROUND.def_abstract_eval(lambda x, *, grid: x)
_READ.def_abstract_eval(lambda codes, scale, zero, *, width: codes.update(dtype=scale.dtype))
MARKS = (_ROUND.name, _READ.name)
