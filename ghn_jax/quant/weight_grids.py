"""The grids of weights: one for each tensor or output channel, fitted to its weights as the scheme says.

This is the one definition, wherever the weights lie: in the executor's buffer (`cnn.weight_quantization`) or
by name, for a file (`quant.rounding`). They are only read through `GridWeights`. Zeros, padding among them,
count in no sum.

Sums of magnitudes and of squares are taken of weights divided by a power of two near the farthest: that is
exact, and they stay finite up to the largest float.
"""

from collections.abc import Callable
from typing import Protocol

import jax.numpy as jnp
from jax import Array, lax

from ghn_jax.quant.grid import Grid, largest_level, make_grid, quantize
from ghn_jax.quant.policy import TERNARY
from ghn_jax.quant.ranges import sigma, sigma_range
from ghn_jax.quant.scheme import Scheme

TERNARY_CUT = 0.7  # times the mean magnitude (arXiv 1605.04711, eq. 6)
PERCENTILE_STEPS, MSE_STEPS, MSE_LEAST = 256, 16, 3  # fractions of a range that are tried: k / steps


class GridWeights(Protocol):
    """Weights, each of which belongs to a grid. Arrays of all grids have one shape, which is their own."""

    def extremes(self) -> tuple[Array, Array]:
        """Return (min(0, min w), max(0, max w)) of each grid."""
        ...

    def sums(self, measure: Callable, *of_grids: Array, when: Array | bool = True) -> tuple[Array, Array]:
        """Sum, over each grid, the two arrays that measure(w, *of_grids) returns; of the shape of all grids.

        Args:
            measure: what is added up; it is called with weights and with what `of_grids` holds for theirs.
            of_grids: arrays of all grids.
            when: whether the sums are needed; else they may be zeros.
        """
        ...


def fit(weights: GridWeights, bits: Array, scheme: Scheme) -> Grid:
    """Fit the grid of every tensor or channel. bits: broadcasts to arrays of all grids."""
    lo, hi = weights.extremes()
    bits = jnp.broadcast_to(bits, lo.shape)
    unit = _power_of_two(jnp.maximum(-lo, hi))
    if scheme.symmetric:
        hi = jnp.maximum(-lo, hi)
        lo = -hi
    grid_of = lambda lo, hi: make_grid(lo, hi, bits, lo.dtype, symmetric=scheme.symmetric)
    if scheme.weight_range == 'sigma':
        size = unit * sigma(*weights.sums(lambda w, unit: (jnp.square(w / unit), w != 0), unit))
        sigmas, symmetric = scheme.weight_sigmas, scheme.symmetric
        lo, hi = sigma_range(lo, hi, bits, size, sigmas=sigmas, symmetric=symmetric)
    elif scheme.weight_range == 'percentile':
        fraction = _percentile_fraction(weights, lo, hi, scheme.percentile)
        lo, hi = fraction * lo, fraction * hi
    elif scheme.weight_range == 'mse':
        fraction = _mse_fraction(weights, lo, hi, unit, bits, grid_of)
        lo, hi = fraction * lo, fraction * hi
    grid = grid_of(lo, hi)
    scale, cut = _signs(weights, unit, bits)
    return grid._replace(scale=jnp.where(bits < 2, scale, grid.scale), cut=jnp.where(bits < 2, cut, 0))


def _power_of_two(x: Array) -> Array:
    """Return a power of two near a quarter of x, whose inverse is a normal number then; 1 for 0."""
    power = lax.reduce_precision(x / 4, jnp.finfo(x.dtype).nexp, 0)
    return jnp.where(power > 0, power, 1)


def _signs(weights: GridWeights, unit: Array, bits: Array) -> tuple[Array, Array]:
    """Find (scale, cut) of 1 bit (arXiv 1603.05279, eq. 6) and of ternary weights (arXiv 1605.04711).

    The scale is the mean magnitude of the weights beyond the cut: 0, or TERNARY_CUT mean magnitudes.
    """
    some = jnp.any(bits < 2)  # no pass over the weights where there are none
    sized = lambda w, unit: (jnp.abs(w / unit), w != 0)
    total, count = weights.sums(sized, unit, when=some)
    cut = jnp.where(bits == TERNARY, TERNARY_CUT, 0) * total / jnp.maximum(count, 1) * unit

    def beyond(w, unit, cut):
        far = jnp.abs(w) > cut
        return jnp.where(far, jnp.abs(w / unit), 0), far

    total, count = weights.sums(beyond, unit, cut, when=some)
    scale = total / jnp.maximum(count, 1) * unit
    return jnp.minimum(scale, largest_level(scale.dtype)), cut


def _percentile_fraction(weights: GridWeights, lo: Array, hi: Array, percentile: float) -> Array:
    """Bisect for the least k / 256 of a range outside of which lie no more than 100 - percentile percent."""
    outside = lambda w, low, high: ((w < low) | (w > high), w != 0)

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) // 2
        fraction = middle.astype(lo.dtype) / PERCENTILE_STEPS
        beyond, count = weights.sums(outside, fraction * lo, fraction * hi)
        fits = beyond <= (1 - percentile / 100) * count
        return jnp.where(fits, low, middle), jnp.where(fits, middle, high)

    none = jnp.zeros(lo.shape, jnp.int32)
    halvings = PERCENTILE_STEPS.bit_length() - 1
    _, k = lax.fori_loop(0, halvings, halve, (none, none + PERCENTILE_STEPS))
    return k.astype(lo.dtype) / PERCENTILE_STEPS


def _mse_fraction(
    weights: GridWeights, lo: Array, hi: Array, unit: Array, bits: Array, grid_of: Callable
) -> Array:
    """Find the k / 16 of a range with the least squared error of rounding; of equal ones the largest."""

    def error(w, unit, bits, *grid):
        off = (w - quantize(w, Grid(*grid), bits)) / unit
        return jnp.square(off), w != 0

    def attempt(i, best):
        least, fraction = best
        f = (MSE_STEPS - i).astype(lo.dtype) / MSE_STEPS
        e, _ = weights.sums(error, unit, bits, *grid_of(f * lo, f * hi))
        return jnp.where(e < least, e, least), jnp.where(e < least, f, fraction)

    start = jnp.full_like(lo, jnp.inf), jnp.ones_like(lo)
    return lax.fori_loop(0, MSE_STEPS - MSE_LEAST + 1, attempt, start)[1]
