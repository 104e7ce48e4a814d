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
from ghn_jax.hypernet.policy_features import resolve
from ghn_jax.models.folding import Calibrated, calibrate
from ghn_jax.models.model import Model
from ghn_jax.models.quantizer import FakeQuantizer
from ghn_jax.quant.policy import Policy
from ghn_jax.quant.scheme import Scheme
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


@dataclasses.dataclass(frozen=True)
class CalibratedScorer:
    """Scores a model as a device runs it: statistics and ranges are fixed, by calibration images.

    policies: by the name of the score; one that rounds nothing needs no ranges.
    calibration: batches of images, normalised.
    """

    model: Model
    policies: Mapping[str, Policy]
    scheme: Scheme
    images: ImageBatches
    calibration: Sequence[Array]

    def __call__(self, params: Any) -> dict[str, float]:
        """Return the score of these parameters with each policy, in percent."""
        scores = {}
        for name, policy in self.policies.items():
            calibrated = calibrate(self.model, params, self.calibration, policy, scheme=self.scheme)
            widths = resolve(policy, self.model.graph)

            def apply(network: Calibrated, x: Array, _: Any, widths: Any = widths) -> Array:
                return network.apply(x, FakeQuantizer(widths, self.scheme, network.ranges))

            scores |= Scorer(apply, {name: None}, self.images)(calibrated)
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
