"""The ranges of a model's activations on calibration images."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ghn_jax.cnn.deploy import calibration, observer
from ghn_jax.cnn.deploy.calibration import RANGE_RULE
from ghn_jax.cnn.deploy.observer import Activations
from ghn_jax.models.model import Model
from ghn_jax.models.quantizer import FakeQuantizer, stays_float
from ghn_jax.quant.policy import FLOAT_BITS


def find_ranges(
    model: Model,
    apply: Callable[[Any, Array, Any], Array],
    network: Any,
    batches: Sequence[Array],
    quantizer: FakeQuantizer,
    rule: str = RANGE_RULE,
) -> dict[str, tuple[np.float32, np.float32]]:
    """Find the range of each activation that is rounded, while weights and activations are rounded.

    What is compiled for a model serves all networks of it and all bits.

    Args:
      model: whose network it is.
      apply: (network, images, quantizer) -> logits; of `Model.compiled`.
      network: a pytree.
      batches: images, as the network takes them.
      quantizer: its ranges are those of each batch.
      rule: of `calibration.activation_ranges`.

    Returns:
      the name that the quantizer knows an activation by -> (lo, hi), 0 between them.

    Raises:
      UserError: an unknown rule.
    """
    calibration.check_rule(rule)
    if all(bits == FLOAT_BITS for _, bits in quantizer.widths.values()):
        return {}
    seen = model.compiled(_extremes, apply)
    each = [jax.device_get(seen(network, x, quantizer)) for x in batches]
    names = list(each[0])  # of all activations, whatever is rounded: arrays of one shape compile nothing anew
    stacked = _stacked(each, names)
    bounds = np.stack([stacked.lo.min(0), stacked.hi.max(0)], -1)
    if rule in calibration.HISTOGRAM_RULES:
        by_name = dict(zip(names, bounds))
        counted = model.compiled(_histograms, apply)
        each = [jax.device_get(counted(network, x, quantizer, by_name)) for x in batches]
        stacked = _stacked(each, names)
    bits = np.array([quantizer.widths[name][1] for name in names])
    lo, hi = calibration.activation_ranges(rule, stacked, bits, bounds, quantizer.scheme)
    return {name: (a, b) for name, a, b, n in zip(names, lo, hi, bits) if n < FLOAT_BITS}


def _extremes(apply: Callable[..., Array], network: Any, x: Array, quantizer: FakeQuantizer) -> Any:
    """Return what `_histograms` does, but nothing is counted, which takes longer than all else."""
    seen = _histograms(apply, network, x, quantizer, {})
    return {name: of._replace(histogram=jnp.zeros(())) for name, of in seen.items()}


def _histograms(
    apply: Callable[..., Array], network: Any, x: Array, quantizer: FakeQuantizer, bounds: dict[str, Array]
) -> dict[str, Activations]:
    """Describe each activation of a batch, in the order of the names, over bounds of their histograms."""
    notes = _Notes(quantizer, bounds, {})
    apply(network, x, notes)
    return notes.seen


def _stacked(each: Sequence[dict[str, Activations]], names: Sequence[str]) -> Activations:
    """Each field [K, T, ...], of batches and tensors."""
    of_batches = [[batch[name] for name in names] for batch in each]
    return Activations(*(np.array([[t[i] for t in b] for b in of_batches]) for i in range(6)))


@dataclasses.dataclass(frozen=True)
class _Notes:
    """A quantizer that remembers what it rounds. bounds: of histograms, by name; those missing are (0, 0)."""

    quantizer: FakeQuantizer
    bounds: dict[str, Array]
    seen: dict[str, Activations]

    def weight(self, name: str, w: Array) -> Array:
        return self.quantizer.weight(name, w)

    def activation(self, name: str, x: Array, whole: Array) -> Array:
        if not stays_float(self.quantizer.widths.get(name, (FLOAT_BITS, FLOAT_BITS))[1]):
            bounds = self.bounds.get(name, jnp.zeros(2))
            found = Activations(*observer.describe(whole, whole, bounds))
            self.seen[name] = found if name not in self.seen else _joined(self.seen[name], found)
        return self.quantizer.activation(name, x, whole)


def _joined(a: Activations, b: Activations) -> Activations:
    sums = (x + y for x, y in zip(a[2:], b[2:]))
    return Activations(jnp.minimum(a.lo, b.lo), jnp.maximum(a.hi, b.hi), *sums)
