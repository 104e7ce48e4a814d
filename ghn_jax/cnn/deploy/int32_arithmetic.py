"""Fixed point: real numbers as int32, and the arithmetic of devices that have no other.

A value is x * 2^-point (`FixedReal`), a real factor an int32 multiplier and a shift (`Factor`): arXiv
1712.05877, 2.2. A bound on every value is known before the value is, and leaves room for all that is done to
it: sums that do not fit int32 are errors, never cut off.

Axes: C channels.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_INT32 = np.iinfo(np.int32)


class Factor(NamedTuple):
    """multiplier * 2^-shift, int64 arrays, 1 <= shift <= 62. The multiplier fits int32 and has 31 bits; fewer
    for factors below 2^-31, at last none.
    """

    multiplier: np.ndarray
    shift: np.ndarray


class FixedReal(NamedTuple):
    """int32 x, stands for x * 2^-point, at most `bound` in magnitude whatever the image, but for roundings.

    Without these, |x| <= 2^30: point <= point_for(bound). They have the other half of int32 to themselves.
    """

    x: np.ndarray
    point: int
    bound: float

    @property
    def real(self) -> np.ndarray:
        """What it stands for, float64."""
        return self.x * 2.0**-self.point


def make_factor(x: np.ndarray | float) -> Factor:
    """Return the nearest factor to x, |x| < 2^30."""
    x = np.asarray(x, np.float64)
    shift = np.clip(31 - np.frexp(x)[1], 1, 62).astype(np.int64)
    multiplier = np.round(np.ldexp(x, shift)).astype(np.int64)
    over = np.abs(multiplier) == 2**31  # rounded up to one bit more
    return Factor(np.where(over, multiplier // 2, multiplier), shift - over)


def rescale(x: np.ndarray, factor: Factor) -> np.ndarray:
    """Return x * factor rounded to integers, int64, halves upward: by a 32 x 32 bit product and a shift."""
    half = np.left_shift(np.int64(1), factor.shift - 1)
    return (x.astype(np.int64) * factor.multiplier + half) >> factor.shift


def int32(x: np.ndarray) -> np.ndarray:
    """Return the same numbers in int32.

    Raises:
      OverflowError: one does not fit, which bounds are there to rule out.
    """
    if x.size and not _INT32.min <= x.min() <= x.max() <= _INT32.max:
        raise OverflowError(f'{x.min()} .. {x.max()} do not fit int32: a bound is wrong')
    return x.astype(np.int32)


def point_for(bound: float) -> int:
    """Return how many bits after the point values of up to `bound` leave room for."""
    return 30 - math.frexp(bound)[1] if bound > 0 else 30


def moved(v: FixedReal, point: int) -> FixedReal:
    """Return the same value with another number of bits after the point, rounded."""
    return FixedReal(int32(rescale(v.x, make_factor(2.0 ** (point - v.point)))), point, v.bound)


def rescaled(
    sums: np.ndarray, scale: np.ndarray, bound: np.ndarray, shift: np.ndarray | None = None
) -> FixedReal:
    """Return sums * scale + shift in fixed point; |sums| <= bound; scale, bound and shift [C]."""
    shift = np.zeros(1) if shift is None else shift
    largest = float(np.max(np.abs(scale) * bound + np.abs(shift)))
    point = point_for(largest)
    factor = make_factor(np.where(bound > 0, scale, 0) * 2.0**point)  # of zeros, the scale may be anything
    shifts = np.floor(shift * 2.0**point + 0.5).astype(np.int64)
    return FixedReal(int32(rescale(sums, factor) + shifts), point, largest)


def added(a: FixedReal, b: FixedReal) -> FixedReal:
    """Return a + b."""
    bound = a.bound + b.bound
    point = point_for(bound)
    return FixedReal(int32(moved(a, point).x.astype(np.int64) + moved(b, point).x), point, bound)


def averaged(x: FixedReal, add: Callable[[np.ndarray], np.ndarray], counts: np.ndarray | int) -> FixedReal:
    """Return the mean of what `add` sums up: of `counts` elements, one number or one for each sum."""
    room = int(np.max(counts)).bit_length()
    sums = int32(add(moved(x, x.point - room).x.astype(np.int64)))
    return x._replace(x=int32(rescale(sums, make_factor(2.0**room / counts))))
