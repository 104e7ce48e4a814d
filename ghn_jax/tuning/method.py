"""A method of training one network: what it does, and the setup that all its trainings share."""

import abc
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from ghn_jax.base.paths import Place
from ghn_jax.hypernet.policy_features import resolve
from ghn_jax.models.activation_ranges import find_ranges
from ghn_jax.models.folding import Calibrated
from ghn_jax.models.model import Model
from ghn_jax.models.quantizer import FakeQuantizer
from ghn_jax.quant.policy import NamedWidths, Policy
from ghn_jax.quant.scheme import Scheme
from ghn_jax.runs.calibrated_file import QuantizedNetwork, save
from ghn_jax.tuning.comparison_table import FLOAT_NAME
from ghn_jax.tuning.images import TuningImages
from ghn_jax.tuning.scoring import CalibratedScorer
from ghn_jax.tuning.training import Trainer, TrainingSpec, TrainingState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """A network, and how it is trained and scored, at any bits and by any method.

    Attributes:
      model: traced.
      images: that it is trained on, scored and calibrated with.
      training: the budget.
      scheme: how tensors are quantized.
      statistics: 'batch', 'calibrated' or 'fixed' (`FinetuneSpec.batch_norm`).
      source: how the model is made, where a network is kept with its statistics (`calibrated_file`).
    """

    model: Model
    images: TuningImages
    training: TrainingSpec
    scheme: Scheme
    statistics: str
    source: Mapping[str, str] | None

    @functools.cached_property
    def calibrated_scorer(self) -> CalibratedScorer | None:
        """Scores a network with fixed statistics; None where they are those of each batch."""
        if self.statistics == 'batch':
            return None
        return CalibratedScorer(self.model, self.images.test, self.images.calibration)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(abc.ABC):
    """How a network at one bit-width is trained, scored and kept.

    Attributes:
      setup: the same for all bit-widths.
      bits: the name of the policy.
      policy: the bits that networks are trained with, after `used` of `finetune`.
      trainer: compiled for all bits, which are among the data of its states.
    """

    setup: Setup
    bits: str
    policy: Policy
    trainer: Trainer

    @abc.abstractmethod
    def begin(self, params: Any, seed: int) -> TrainingState:
        """Return the first state of a training from parameters of the model."""

    @abc.abstractmethod
    def score(self, state: TrainingState) -> dict[str, Any]:
        """Score a state: kind of statistics -> bits -> top-1 in percent."""

    @abc.abstractmethod
    def keep(self, place: Place, state: TrainingState, metadata: Mapping[str, str]) -> None:
        """Write the network of the last state."""

    @property
    def widths(self) -> NamedWidths:
        """Bits by the weight's name."""
        return resolve(self.policy, self.setup.model.graph)

    @property
    def quantizers(self) -> dict[str, FakeQuantizer]:
        """What a network is scored with, by the name of the score: in float, and at these bits."""
        model, scheme = self.setup.model, self.setup.scheme
        policies = {FLOAT_NAME: Policy(), self.bits: self.policy}
        return {name: model.quantizer(policy, scheme) for name, policy in policies.items()}

    def save_calibrated(
        self, folder: Place, network: Calibrated, scheme: Scheme, metadata: Mapping[str, str]
    ) -> None:
        """Write a quantized network with the ranges that it has on the calibration images."""
        setup, quantizer = self.setup, self.quantizers[self.bits]
        ranges = find_ranges(setup.model, Calibrated.apply, network, setup.images.calibration, quantizer)
        network = dataclasses.replace(network, ranges=ranges)
        assert setup.source is not None
        save(folder, QuantizedNetwork(network, self.policy, scheme, setup.source, metadata))


def as_data(widths: NamedWidths) -> dict[str, Any]:
    """Return bits as arrays: programs that take them serve every policy."""
    return {name: tuple(map(jnp.int32, pair)) for name, pair in widths.items()}
