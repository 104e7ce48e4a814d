"""Ranges of tensors: the interval [lo, hi] that a quantizer spreads its levels over.

A range always includes 0, so that zero padding and absent values are exact at every bit-width. What measures
the size of values (`sigma`) leaves zeros out, for padding is zeros: of values x after a relu, it is then the
standard deviation of what was normal before it.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from ghn_jax.base import collectives

# Half the width of the uniform grid with the least squared error for a normal distribution, in standard
# deviations, at 1, 2, .. 8 bits: levels on both sides of 0 (J. Max 1960, table II; found again in the tests),
# and on one side, of values after a relu (arXiv 1702.00953, sec. 3.3). At 1 bit on both sides the level is
# half of it, E|x|. More bits: no clipping.
TWO_SIDED = (1.596, 1.575, 2.105, 2.540, 2.925, 3.280, 3.610, 3.925)
ONE_SIDED = (1.225, 1.950, 2.475, 2.900, 3.270, 3.605, 3.920, 4.215)
# A range cut at equally many deviations on both sides would put 0 exactly halfway between two levels, and
# noise of the last digit would decide for one: so its lower end is this much nearer. No such range has a
# mirror: its levels are even in number, one of them is 0, and one side has one more than the other.
LEAN = 1 - 1 / 512
_FAR = 1e6  # not infinite: the deviation it multiplies may be 0


def min_max(
    x: Array, axis: int | Sequence[int] | None = None, *, across: str | None = None
) -> tuple[Array, Array]:
    """Return (min(0, min x), max(0, max x)) over `axis` (default: the whole tensor), in the dtype of x.

    No gradient flows through a range. An empty tensor has the range (0, 0).

    Args:
      x: the tensor.
      axis: the axes that the range is taken over; None: all.
      across: a mesh axis whose devices each hold a part of the tensor (`ghn_jax.base.collectives`).
    """
    x = jax.lax.stop_gradient(x)
    lo, hi = jnp.min(x, axis=axis, initial=0.0), jnp.max(x, axis=axis, initial=0.0)
    if across is None:
        return lo, hi
    minus_lo, hi = collectives.largest(jnp.stack([-lo, hi]), across)
    return -minus_lo, hi


def power(x: Array) -> tuple[Array, Array]:
    """Return the sum of squares, and how many are not 0, [] each; `sigma` of their sums is of all tensors.

    Squares of values beyond the root of the largest float are infinite, and those below the root of the
    smallest are 0: `sigma` is then as large as a float can be, which cuts no range.
    """
    x = jax.lax.stop_gradient(x)
    return jnp.sum(x * x), jnp.sum(x != 0, dtype=x.dtype)


def sigma(squares: Array, count: Array) -> Array:
    """Return the root mean square of the values that are not 0; the largest float where there are none."""
    largest = jnp.finfo(squares.dtype).max
    return jnp.where(squares > 0, jnp.minimum(jnp.sqrt(squares / jnp.maximum(count, 1)), largest), largest)


def sigma_range(
    lo: Array, hi: Array, bits: Array, size: Array, *, sigmas: float, symmetric: bool = False
) -> tuple[Array, Array]:
    """Cut [lo, hi] at `sigmas` times `size` on either side of 0.

    Args:
        lo, hi: the least and the largest value, lo <= 0 <= hi.
        bits: integers that broadcast to lo.
        size: the standard deviation, see `sigma`.
        sigmas: 0 for the best for a normal distribution: values on both sides of 0, or on one, whichever it
            is. Above 8 bits nothing is cut then.
        symmetric: -lo = hi, and of the levels those of one side, with 0, are one bit less.

    Returns:
        (lo, hi). The range of the negative values is its mirror image where one of them is 0, or -lo = hi.
    """
    two_sided = (lo < 0) & (hi > 0) & (not symmetric)
    factor: float | Array = sigmas
    if not sigmas:
        tables = jnp.asarray([[*ONE_SIDED, _FAR], [*TWO_SIDED, _FAR]], lo.dtype)
        bits = jnp.asarray(bits) - int(symmetric)
        factor = tables[two_sided.astype(int), jnp.clip(bits, 1, 9) - 1]
    far = factor * size
    return jnp.maximum(lo, -jnp.where(two_sided, LEAN, 1) * far), jnp.minimum(hi, far)
