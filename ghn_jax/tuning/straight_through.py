"""Training through rounding: weights are rounded wherever they are used, and gradients pass straight through.

The plain method (arXiv 1308.3432). What is kept are the weights as they are before rounding or, with fixed
statistics, a calibrated network with the ranges of its activations.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import jax
from jax import Array

from ghn_jax.base.paths import Place
from ghn_jax.models.folding import Calibrated, correct
from ghn_jax.models.kept_norms import balance
from ghn_jax.models.quantizer import FakeQuantizer
from ghn_jax.quant.policy import Policy
from ghn_jax.runs.model_parameters import write_params
from ghn_jax.tuning.method import Method, Setup, as_data
from ghn_jax.tuning.scoring import Accuracy
from ghn_jax.tuning.training import TrainingState, cross_entropy, trainer_of_loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class StraightThrough(Method):
    """Training through rounding with straight-through gradients.

    Attributes:
      batch: (parameters, quantizer) -> the score by batch statistics.
    """

    batch: Accuracy

    @classmethod
    def of_each(cls, setup: Setup, policies: Mapping[str, Policy]) -> list[Self]:
        """Return the method at each of the policies, by what they are called."""
        model, images = setup.model, setup.images
        trained = Calibrated.apply if setup.statistics == 'fixed' else model.apply

        # A program without rounding is compiled in a third of the time, and a fifth faster.
        is_float = all(policy.is_float for policy in policies.values())

        def loss(params: Any, state: TrainingState, x: Array, labels: Array) -> Array:
            quantizer = None if is_float else FakeQuantizer(state.fixed, setup.scheme)
            return cross_entropy(trained(params, x, quantizer), labels)

        trainer = trainer_of_loss(loss, setup.training, images.dataset)
        batch = Accuracy(model.apply, images.test)
        return [
            cls(setup=setup, bits=bits, policy=policy, trainer=trainer, batch=batch)
            for bits, policy in policies.items()
        ]

    def begin(self, params: Any, seed: int) -> TrainingState:
        if self._is_fixed:
            images, quantizer = self.setup.images.calibration, self.quantizers[self.bits]
            params = balance(correct(self.setup.model, params, images, quantizer))
        return self.trainer.begin(params, seed, as_data(self.widths))

    def score(self, state: TrainingState) -> dict[str, Any]:
        """Score the average of the parameters."""
        params, scores = state.averaged, dict[str, Any]()
        if not self._is_fixed:
            scores['batch'] = {name: self.batch(params, q) for name, q in self.quantizers.items()}
        if self.setup.calibrated_scorer is not None:
            scores['calibrated'] = self.setup.calibrated_scorer(params, self.quantizers)
        return scores

    def keep(self, place: Place, state: TrainingState, metadata: Mapping[str, str]) -> None:
        """Write the average of the parameters."""
        params = jax.device_get(state.averaged)
        if not self._is_fixed:
            return write_params(place, self.setup.model, params, metadata)
        self.save_calibrated(place, params, self.setup.scheme, metadata)

    @property
    def _is_fixed(self) -> bool:
        return self.setup.statistics == 'fixed'
