"""Fixed point and quantized levels: the int32 arithmetic that lies between the layers of an integer network.

A real factor is an int32 multiplier and a shift (`Factor`, as in gemmlowp); a value is int32 with a point
whose place is known before any image is (`Fixed`): from the largest sum that the weights allow, so that
nothing can overflow.
"""

import math
from typing import NamedTuple

import numpy as np

INT32 = np.iinfo(np.int32)


class Factor(NamedTuple):
    """multiplier * 2^-shift, int64 arrays, 1 <= shift <= 62. The multiplier fits int32 and has 31 bits; fewer
    for factors below 2^-31, at last none.
    """

    multiplier: np.ndarray
    shift: np.ndarray


class Levels(NamedTuple):
    """A quantized tensor: uint8 q, stands for (q - zero) * scale.

    Of a weight zero and scale are arrays, [O, 1, ..] and [O].
    """

    q: np.ndarray
    zero: int | np.ndarray
    scale: float | np.ndarray

    @property
    def centred(self) -> np.ndarray:
        """q - zero, int32."""
        return self.q.astype(np.int32) - self.zero


class Fixed(NamedTuple):
    """int32 x, stands for x * 2^-point, at most `bound` in magnitude whatever the image."""

    x: np.ndarray
    point: int
    bound: float

    @property
    def real(self) -> np.ndarray:
        """The real numbers it stands for, float64."""
        return self.x * 2.0**-self.point


class Sums(NamedTuple):
    """int32 accumulators [N, ..., C], stand for x * scale; |x| <= bound; scale and bound [C]."""

    x: np.ndarray
    scale: np.ndarray
    bound: np.ndarray


def make_factor(x: np.ndarray | float) -> Factor:
    """Return the nearest factor to x, |x| < 2^30; of the shape of x."""
    x = np.asarray(x, np.float64)
    shift = np.clip(31 - np.frexp(x)[1], 1, 62).astype(np.int64)
    multiplier = np.round(np.ldexp(x, shift)).astype(np.int64)
    over = np.abs(multiplier) == 2**31  # rounded up to one bit more
    return Factor(np.where(over, multiplier // 2, multiplier), shift - over)


def rescale(x: np.ndarray, factor: Factor) -> np.ndarray:
    """Return x * factor to the nearest int32, halves upward: a 32 x 32 bit product and a rounding shift."""
    half = np.left_shift(np.int64(1), factor.shift - 1)
    return saturate((x.astype(np.int64) * factor.multiplier + half) >> factor.shift)


def saturate(x: np.ndarray) -> np.ndarray:
    """Convert int64 to int32, what does not fit to the nearest that does."""
    return np.clip(x, INT32.min, INT32.max).astype(np.int32)


def point_for(bound: float) -> int:
    """Return the bits after the point that values of up to `bound` leave."""
    return 30 - math.frexp(bound)[1] if bound > 0 else 30


def moved(v: Fixed, point: int) -> Fixed:
    """Return the same values with the point elsewhere, rounded."""
    return Fixed(rescale(v.x, make_factor(2.0 ** (point - v.point))), point, v.bound)


def rescaled(
    sums: np.ndarray, scale: np.ndarray, bound: np.ndarray, shift: np.ndarray | None = None
) -> Fixed:
    """Return sums * scale + shift as fixed point; |sums| <= bound; scale, bound and shift [C]."""
    shift = np.zeros(1) if shift is None else shift
    largest = float(np.max(np.abs(scale) * bound + np.abs(shift)))
    point = point_for(largest)
    x = rescale(sums, make_factor(scale * 2.0**point)).astype(np.int64)
    return Fixed(saturate(x + np.floor(shift * 2.0**point + 0.5).astype(np.int64)), point, largest)


def rectified(x: Fixed) -> Fixed:
    """Return max(x, 0), its point and bound as they were."""
    return x._replace(x=np.maximum(x.x, 0))
