"""The accuracy of one network while it is tuned: in float and rounded.

Axes: K batches | B images of a batch.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ghn_jax.datasets.augment import normalize
from ghn_jax.evaluation.device import judge
from ghn_jax.evaluation.selection import ImageBatches
from ghn_jax.models.activation_ranges import find_ranges
from ghn_jax.models.folding import Calibrated, correct
from ghn_jax.models.model import Model
from ghn_jax.models.quantizer import FakeQuantizer


class Accuracy:
    """Scores a network: the percentage of images whose label is the first prediction."""

    def __init__(self, apply: Callable[..., Array], images: ImageBatches):
        """Make the function, which is compiled at its first call.

        Args:
          apply: (a network, normalised images [B, H, H, 3], *arguments) -> logits [B, classes], such as
            `Model.apply`; network and arguments are pytrees.
          images: that it is scored on.
        """
        self._images = images
        self._count = jax.jit(
            lambda x, y, network, *arguments: count_correct(
                apply(network, normalize(x, images.mean, images.std), *arguments), y
            )
        )

    def __call__(self, network: Any, *arguments: Any) -> float:
        """Return the score of a network in percent. arguments: further ones of `apply`."""
        each = zip(self._images.images, self._images.labels)
        correct = [self._count(x, y, network, *arguments) for x, y in each]
        return 100 * sum(map(int, correct)) / self._images.count


class CalibratedScorer:
    """Scores a network as a device runs it: with the statistics and ranges of the rounded network, fixed.

    What it compiles serves all parameters and all bits.
    """

    def __init__(self, model: Model, images: ImageBatches, calibration: Sequence[Array]):
        """Make the functions, as those of `Accuracy`.

        Args:
          model: traced.
          images: that it is scored on.
          calibration: batches of images, normalised.
        """
        self._model, self._calibration = model, calibration
        self._accuracy = Accuracy(Calibrated.apply, images)

    def __call__(self, params: Any, quantizers: Mapping[str, FakeQuantizer]) -> dict[str, float]:
        """Return the score of these parameters with each quantizer, in percent.

        Args:
          params: of the model, or a `Calibrated` one, whose statistics stay.
          quantizers: what the network is rounded by, by the name of its score.
        """
        scores = {}
        for name, quantizer in quantizers.items():
            network = params
            if not isinstance(params, Calibrated):
                network = correct(self._model, params, self._calibration, quantizer)
            ranges = find_ranges(self._model, Calibrated.apply, network, self._calibration, quantizer)
            scores[name] = self._accuracy(network, quantizer.with_ranges(ranges))
        return scores


def count_correct(logits: Array, labels: Array) -> Array:
    """Count the images whose label is the prediction (`judge`): [B, classes], int32 [B] -> int32 [].

    Those whose label is -1 are not counted.
    """
    rank, _ = judge(logits, labels)
    return jnp.sum((rank == 0) & (labels >= 0))
