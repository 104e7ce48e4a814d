"""How well weights and activations suit one grid for each tensor, layer by layer.

A grid covers the range of a whole tensor. Where its channels have ranges of their own, narrower by a factor,
few of its levels are left for each of them: the ratio of the two is what a grid for each tensor costs
(arXiv 2011.14578).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from ghn_jax.models.folding import Calibrated
from ghn_jax.quant.grid import fake_quantize
from ghn_jax.quant.ranges import min_max

BITS = (8, 4)
"""At which the error of rounding is measured."""
DIGITS = 4  # significant ones, of what is written


class Statistics(NamedTuple):
    """Of one tensor.

    Attributes:
      range: of all its values, with 0: what a grid has to cover.
      channel_range: the mean over channels of each one's own.
      noise: [len(BITS)], the mean square of what rounding to the nearest level of an asymmetric min-max grid
        adds, as a share of that of the values.
    """

    range: Any
    channel_range: Any
    noise: Any


def describe(channels: Array) -> Statistics:
    """Measure a tensor given as [channels, values]."""
    lo, hi = min_max(channels)
    low, high = min_max(channels, axis=1)
    unit = jnp.maximum(hi, -lo)  # squares stay finite
    scaled = channels / jnp.where(unit > 0, unit, 1)
    power = jnp.mean(jnp.square(scaled))
    errors = [scaled - fake_quantize(scaled, *min_max(scaled), bits) for bits in BITS]
    noise = jnp.stack([jnp.mean(jnp.square(e)) for e in errors]) / jnp.where(power > 0, power, 1)
    return Statistics(hi - lo, jnp.mean(high - low), noise)


class Observed(NamedTuple):
    """What is measured on some images, by layer. ranges: (lo, hi) of what enters it, 0 between them."""

    weights: dict[str, Statistics]
    activations: dict[str, Statistics]
    ranges: dict[str, tuple[Array, Array]]


def observe(network: Calibrated, x: Array) -> Observed:
    """Run a network in float on images, channels last; its norms are folded, so are its weights measured."""
    observer = _Observer(Observed({}, {}, {}))
    network.apply(x, observer)
    return observer.found


@dataclasses.dataclass(frozen=True)
class _Observer:
    """A quantizer that rounds nothing and measures what it is given."""

    found: Observed

    def weight(self, name: str, w: Array) -> Array:
        self.found.weights[name] = describe(w.reshape(len(w), -1))
        return w

    def activation(self, name: str, x: Array, whole: Array) -> Array:
        self.found.activations[name] = describe(jnp.moveaxis(whole, -1, 0).reshape(whole.shape[-1], -1))
        self.found.ranges[name] = min_max(whole)
        return x


def summarized(of: Mapping[str, Statistics]) -> dict[str, dict[str, float | None]]:
    """Return statistics as they are written, by layer: ranges, their `ratio`, and `sqnr8`, `sqnr4` in dB.

    None for what is no finite number: all of a tensor that is 0 everywhere has no ratio, and no noise.
    """
    return {name: _written(statistics) for name, statistics in of.items()}


def _written(of: Statistics) -> dict[str, float | None]:
    range_, channel_range = float(of.range), float(of.channel_range)
    found = {'range': range_, 'channel_range': channel_range}
    found['ratio'] = range_ / channel_range if channel_range > 0 else math.nan
    for bits, noise in zip(BITS, np.asarray(of.noise, np.float64), strict=True):
        found[f'sqnr{bits}'] = -10 * math.log10(noise) if noise > 0 else math.nan
    return {key: float(f'{v:.{DIGITS}g}') if math.isfinite(v) else None for key, v in found.items()}
