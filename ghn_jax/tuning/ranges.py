"""Ranges of weights and activations of a calibrated model, and weights rounded to the nearest level.

Weights have an asymmetric grid for each output channel, activations one for each tensor. A rule says what the
grid covers: all values ('minmax'), or what makes the error sum |x - x^|^2.4 least ('mse', as PD-Quant's own
table calls it; arXiv 2212.07048). Activations are searched in the order of the forward pass, each with the
weights, and the activations before it, rounded already.

Axes: G grids | n values of each.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ghn_jax.base.errors import UserError
from ghn_jax.models.folding import Calibrated
from ghn_jax.models.model import Model
from ghn_jax.quant.grid import Grid, fake_quantize, make_grid, quantize
from ghn_jax.quant.policy import FLOAT_BITS, NamedWidths
from ghn_jax.quant.ranges import min_max

POWER = 2.4
WIDTHS = 100  # of ranges that are tried: k / WIDTHS of the distance from the least to the largest value
ZEROS = 16  # zero points that are tried for each: all of 4 bits and less, else the nearest to the middle one
SAMPLES = 32_768  # values of a tensor that errors are summed over, evenly spread
Range = tuple[Array, Array]
Bits = Mapping[str, Any]


def full_range(rows: Array, bits: Array) -> Range:
    """Return (min(0, min x), max(0, max x)) [G] of rows [G, n]; the bits make no difference."""
    return min_max(rows, axis=1)


def least_error_range(rows: Array, bits: Array) -> Range:
    """Find the range of each row with the least error sum |x - x^|^2.4, by trying.

    With lo and hi the least and the largest value and 0, the step is s = k (hi - lo) / (100 n), k = 1..100,
    and the range is [-z s, (n - z) s] for zero points z: 0 or n where all values are on one side, otherwise
    all of 0..n, or, of more than 16, the 16 nearest to -lo / (hi - lo) n (arXiv 2212.07048, published code).

    Args:
      rows: [G, n]; errors are those of at most `SAMPLES` of a row.
      bits: [], 2 and more.

    Returns:
      lo and hi [G].
    """
    lo, hi = min_max(rows, axis=1)
    rows = sample(rows)
    top = (jnp.left_shift(1, jnp.clip(bits, 2, 16)) - 1).astype(rows.dtype)
    width = hi - lo
    one_sided = (lo == 0) | (hi == 0)
    middle = jnp.round(-lo / jnp.where(width > 0, width, 1) * top)
    first = jnp.where(one_sided, middle, jnp.clip(middle - ZEROS // 2, 0, jnp.maximum(top + 1 - ZEROS, 0)))
    zeros = jnp.where(jnp.all(one_sided), 1, jnp.minimum(top + 1, ZEROS)).astype(jnp.int32)

    def attempt(i: Array, best: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        step = width * ((i // zeros + 1) / WIDTHS).astype(rows.dtype) / top
        zero = jnp.where(one_sided, first, jnp.minimum(first + (i % zeros).astype(rows.dtype), top))
        error = power_error(rows, Grid(step, zero, top, jnp.zeros_like(step)))
        better = error < best[0]
        return tuple(jnp.where(better, a, b) for a, b in zip((error, step, zero), best))  # pyright: ignore

    start = jnp.full_like(lo, jnp.inf), width / top, middle
    _, step, zero = lax.fori_loop(0, WIDTHS * zeros, attempt, start)
    return -zero * step, (top - zero) * step


def power_error(rows: Array, grid: Grid) -> Array:
    """Return sum |x - x^|^2.4 [G] of rows [G, n] on grids whose parts are [G] or []."""
    each = Grid(*(jnp.expand_dims(part, -1) for part in grid))
    return jnp.sum(jnp.abs(rows - quantize(rows, each, 2)) ** POWER, 1)


def sample(rows: Array) -> Array:
    """Return at most `SAMPLES` values of each row, at even distances that visit every channel."""
    step = -(-rows.shape[1] // SAMPLES)
    while step > 1 and math.gcd(step, rows.shape[1]) > 1:
        step += 1
    return rows[:, ::step]


RANGE_FUNCTIONS = {'minmax': full_range, 'mse': least_error_range}


@functools.partial(jax.jit, static_argnames='rule')
def _weight_range(w: Array, bits: Array, rule: str) -> Range:
    """Find (lo, hi) [out] of a weight [out, ...]."""
    return RANGE_FUNCTIONS[rule](w.reshape(len(w), -1), bits)


@jax.jit
def nearest(w: Array, lo: Array, hi: Array, bits: Array) -> Array:
    """Round weights [out, ...] to the nearest levels of the grids over lo, hi [out]."""
    rows = w.reshape(len(w), -1)
    return quantize(rows, make_grid(lo[:, None], hi[:, None], bits, w.dtype), bits).reshape(w.shape)


@functools.partial(jax.jit, static_argnames='rule')
def find_activation_ranges(calibrated: Calibrated, images: Array, bits: Bits, rule: str) -> dict[str, Range]:
    """Find the range of each activation, in the order of the forward pass, on images [N, ...] all at once.

    bits: by `Site.reader`; the activations before one are rounded to theirs.
    """
    search = _Search(bits, rule, {}, {})
    calibrated.apply(images, search)
    return search.found


@dataclasses.dataclass(frozen=True)
class _Search:
    """A quantizer that finds the range of each activation when it comes, and rounds it over that range.

    Activations of one name, which the uses of one weight read, have one range: that of all values together.
    """

    bits: Bits
    rule: str
    seen: dict[str, list[Array]]
    found: dict[str, Range]

    def weight(self, name: str, w: Array) -> Array:
        return w

    def activation(self, name: str, x: Array, whole: Array) -> Array:
        if name not in self.bits:
            return x
        seen = self.seen.setdefault(name, [])
        if all(whole is not other for other in seen):  # two layers may read cuts of one tensor
            seen.append(whole)
            values = jnp.concatenate([x.ravel() for x in seen]).astype(jnp.float32)
            lo, hi = RANGE_FUNCTIONS[self.rule](values[None], self.bits[name])
            self.found[name] = lo[0], hi[0]
        return fake_quantize(x, *self.found[name], self.bits[name])


@dataclasses.dataclass(frozen=True)
class FixedRanges:
    """A quantizer of activations alone, whose ranges and bits are arrays: one program serves all of them.

    Attributes:
      ranges: by `Site.reader`, (lo, hi, bits).
    """

    ranges: Mapping[str, tuple[Any, Any, Any]]

    def weight(self, name: str, w: Array) -> Array:
        """Return a weight as it is."""
        return w

    def activation(self, name: str, x: Array, whole: Array) -> Array:
        """Round an activation over its range, if it has one."""
        return fake_quantize(x, *self.ranges[name]) if name in self.ranges else x


def layer_bits(model: Model, widths: NamedWidths) -> tuple[dict[str, int], dict[str, int]]:
    """Return the bits of weights, by the layer's name, and of activations, by reader; of those rounded."""
    weights = {layer.name: widths[layer.parameter][0] for layer in model.layers}
    activations = {name: bits for name, (_, bits) in widths.items()}
    rounded = lambda bits: {name: b for name, b in bits.items() if b < FLOAT_BITS}
    return rounded(weights), rounded(activations)


def round_nearest(calibrated: Calibrated, images: Array, widths: NamedWidths, rule: str) -> Calibrated:
    """Find all ranges by a rule, and round weights to the nearest levels.

    Args:
      calibrated: folded, not rounded.
      images: [N, ...], calibration images as the model takes them; they pass through it all at once.
      widths: bits of weight and activation, by the weight's name (`Policy.resolve`).
      rule: of `RANGE_FUNCTIONS`.

    Raises:
      UserError: bits that the rule has no grid for.
    """
    check_bits(widths, rule, least=1 if rule == 'minmax' else 2)
    weight_bits, activation_bits = layer_bits(calibrated.model, widths)
    weights, ranges = dict(calibrated.weights), {}
    for name, bits in weight_bits.items():
        w = jnp.asarray(weights[name])
        ranges[name] = _weight_range(w, jnp.int32(bits), rule)
        weights[name] = np.asarray(nearest(w, *ranges[name], bits))
    rounded = dataclasses.replace(calibrated, weights=weights, weight_ranges=jax.device_get(ranges))
    found = find_activation_ranges(rounded, images, activation_bits, rule) if activation_bits else {}
    return dataclasses.replace(rounded, ranges=jax.device_get(found))


def check_bits(widths: NamedWidths, method: str, least: int) -> None:
    """Raise UserError for bits of fewer than `least`, which a method has no grid for; ternary ones, too."""
    for name, each in widths.items():
        if min(each) < least:
            what, bits = ('weight', each[0]) if each[0] < least else ('activation', each[1])
            shown = f'{bits} bits' if bits else 'ternary'
            raise UserError(
                f'the {what} of {name!r} is {shown}: method {method} takes {least} to 16 bits, or 32'
            )
