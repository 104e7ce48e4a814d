"""Ranges of tensors: the interval [lo, hi] that a quantizer spreads its levels over.

A range always includes 0, so that zero padding and absent values are exact at every bit-width. What measures
the size of values (`sigma`) leaves zeros out, for padding is zeros: of values x after a relu, it is then the
standard deviation of what was normal before it.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from ghn_jax import axes

# Half the width of the uniform grid with the least squared error for a normal distribution, in standard
# deviations, at 1, 2, .. 8 bits: levels on both sides of 0 (J. Max 1960, table II; found again in the tests),
# and on one side, of values after a relu (arXiv 1702.00953, sec. 3.3). At 1 bit on both sides the level is
# half of it, E|x|. More bits: no clipping.
TWO_SIDED = (1.596, 1.575, 2.105, 2.540, 2.925, 3.280, 3.610, 3.925)
ONE_SIDED = (1.225, 1.950, 2.475, 2.900, 3.270, 3.605, 3.920, 4.215)
# A range cut at equally many deviations on both sides would put 0 exactly halfway between two levels, and
# noise of the last digit would decide for one: so its lower end is this much nearer.
LEAN = 1 - 1 / 512
_FAR = 1e6  # not infinite: the deviation it multiplies may be 0


def min_max(
    x: Array, axis: int | Sequence[int] | None = None, *, across: str | None = None
) -> tuple[Array, Array]:
    """(min(0, min x), max(0, max x)) over `axis` (default: the whole tensor), in the dtype of x.

    No gradient flows through a range. An empty tensor has the range (0, 0). across: a mesh axis whose devices
    each hold a part of the tensor (`ghn_jax.axes`).
    """
    x = jax.lax.stop_gradient(x)
    lo, hi = jnp.min(x, axis=axis, initial=0.0), jnp.max(x, axis=axis, initial=0.0)
    if across is None:
        return lo, hi
    minus_lo, hi = axes.largest(jnp.stack([-lo, hi]), across)
    return -minus_lo, hi


def power(x: Array) -> tuple[Array, Array]:
    """(sum of squares, how many are not 0) of a tensor, [] each: `sigma` of their sums is of all tensors."""
    x = jax.lax.stop_gradient(x)
    return jnp.sum(x * x), jnp.sum(x != 0, dtype=x.dtype)


def sigma(squares: Array, count: Array) -> Array:
    """Root mean square of the values that are not 0."""
    return jnp.sqrt(squares / jnp.maximum(count, 1))


def sigmas_for(bits: Array, lo: Array, dtype, *, symmetric: bool = False) -> Array:
    """Standard deviations to each side, the best for a normal distribution; no limit above 8 bits.

    lo: 0 where nothing is negative. symmetric: half of the levels, and 0, are those of one side.
    """
    tables = jnp.asarray([[*ONE_SIDED, _FAR], [*TWO_SIDED, _FAR]], dtype)
    two_sided = (lo < 0) & (not symmetric)
    bits = jnp.asarray(bits) - int(symmetric)
    return tables[two_sided.astype(int), jnp.clip(bits, 1, 9) - 1]
