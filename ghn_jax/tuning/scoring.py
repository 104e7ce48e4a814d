"""The accuracy of one network while it is tuned: in float and rounded, each compiled once.

Axes: K batches | B images of a batch.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ghn_jax.datasets.augment import normalize
from ghn_jax.evaluation.selection import ImageBatches
from ghn_jax.models.activation_ranges import find_ranges
from ghn_jax.models.folding import Calibrated, fold
from ghn_jax.models.model import Model
from ghn_jax.models.quantizer import FakeQuantizer
from ghn_jax.tuning.training import Apply


class Scorer:
    """Scores a network with any parameters: the percentage of images whose label is the first prediction.

    A batch norm takes the statistics, and an activation the range, of each batch.
    """

    def __init__(self, apply: Apply, quantizers: Mapping[str, Any], images: ImageBatches):
        """Make the functions; each is compiled at its first call.

        Args:
          apply: the network.
          quantizers: what the network is rounded by, by the name of its score; None: nothing.
          images: that it is scored on.
        """
        self._images = images
        self._counts = {
            name: jax.jit(
                lambda params, x, y, quantizer=quantizer: count_correct(
                    apply(params, normalize(x, images.mean, images.std), quantizer), y
                )
            )
            for name, quantizer in quantizers.items()
        }

    def __call__(self, params: Any) -> dict[str, float]:
        """Return the score of these parameters with each quantizer, in percent."""
        return {name: self._percent(count, params) for name, count in self._counts.items()}

    def _percent(self, count: Any, params: Any) -> float:
        correct = [count(params, x, y) for x, y in zip(self._images.images, self._images.labels)]
        return 100 * int(sum(map(int, correct))) / self._images.count


class CalibratedScorer:
    """Scores a network as a device runs it: statistics and ranges are fixed, by calibration images."""

    def __init__(
        self,
        model: Model,
        quantizers: Mapping[str, FakeQuantizer],
        images: ImageBatches,
        calibration: Sequence[Array],
    ):
        """Make the functions, as those of `Scorer`.

        Args:
          model: traced.
          quantizers: what the network is rounded by, by the name of its score.
          images: that it is scored on.
          calibration: batches of images, normalised.
        """
        self._model, self._quantizers, self._calibration = model, quantizers, calibration

        def apply(network: Calibrated, x: Array, quantizer: Any) -> Array:
            return network.apply(x, dataclasses.replace(quantizer, ranges=network.ranges))

        self._scorers = {
            name: Scorer(apply, {name: quantizer}, images) for name, quantizer in quantizers.items()
        }

    def __call__(self, params: Any) -> dict[str, float]:
        """Return the score of these parameters with each quantizer, in percent.

        params: of the model, or a `Calibrated` one, whose statistics stay.
        """
        folded = params
        if not isinstance(params, Calibrated):
            folded = fold(self._model, params, self._calibration)
        scores = {}
        for name, quantizer in self._quantizers.items():
            ranges = find_ranges(Calibrated.apply, folded, self._calibration, quantizer)
            scores |= self._scorers[name](dataclasses.replace(folded, ranges=ranges))
        return scores


def count_correct(logits: Array, labels: Array) -> Array:
    """Count the images whose label has the largest logit: [B, classes], int32 [B] -> int32 [].

    Ties count against the label, so that equal logits are no prediction, and nor are those that are no
    numbers.
    """
    logits = jnp.where(jnp.isnan(logits), -jnp.inf, logits)
    own = jnp.take_along_axis(logits, labels[:, None], 1)
    return jnp.sum(jnp.sum(logits >= own, 1) == 1)


def normalized(batches: ImageBatches) -> list[Array]:
    """Return the batches as a network takes them, float32 [B, H, H, 3]."""
    return [normalize(jnp.asarray(x), batches.mean, batches.std) for x in batches.images]
