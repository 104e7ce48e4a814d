"""A network whose weights of few bits are searched (`slb`), while all else of it is trained.

Weights of more bits, as those of a first and a last layer may have, are rounded straight-through, and so are
activations. Batch norms take the statistics of each batch. In the end all weights are put on the levels that
were found for them, statistics and ranges are estimated anew with these on calibration images, and norms are
folded: what is kept is a quantized network, as `ghn_jax.quantize` writes it.

The logits are those of the last step; of the other parameters the moving average is scored and kept.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax.base.errors import FieldError
from ghn_jax.base.paths import Place
from ghn_jax.hypernet.policy_features import resolve
from ghn_jax.models.folding import Calibrated, fold
from ghn_jax.models.model import Model
from ghn_jax.models.names import map_named
from ghn_jax.models.quantizer import FakeQuantizer
from ghn_jax.quant.grid import Grid
from ghn_jax.quant.policy import FLOAT_BITS, Policy
from ghn_jax.tuning import slb
from ghn_jax.tuning.method import Method, Setup, as_data
from ghn_jax.tuning.ranges import nearest
from ghn_jax.tuning.slb import SearchSpec
from ghn_jax.tuning.slb_programs import Programs, Searched, Untrained
from ghn_jax.tuning.training import TrainingState


class Rounded(NamedTuple):
    """A network with its weights on their levels.

    Attributes:
      params: a pytree as `Model.params`.
      weights: the rounded weights, by name.
      grids: of these weights, by name, each part [O].
    """

    params: Any
    weights: dict[str, np.ndarray]
    grids: dict[str, Grid]


def searched_names(policy: Policy, model: Model) -> tuple[str, ...]:
    """Return the weights that are searched: those of at most 4 bits.

    Raises:
      UserError: there are none, most weights have more bits, or the policy is of another model.
    """
    widths = resolve(policy, model.graph)
    names = tuple(name for name, (bits, _) in widths.items() if bits <= slb.MOST_BITS)
    if policy.weight_bits > slb.MOST_BITS or not names:
        raise FieldError(
            'bits',
            f'={policy}: slb searches weights of at most {slb.MOST_BITS} bits, for it has 2^b numbers for '
            'each; give fewer bits, or the method straight_through',
        )
    return names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slb(Method):
    """Searching for low-bit weights (SLB).

    Attributes:
      programs: compiled for all policies.
    """

    programs: Programs

    @classmethod
    def of_each(cls, setup: Setup, policies: Mapping[str, Policy], spec: SearchSpec) -> list[Self]:
        """Return the method at each of the policies, by what they are called.

        Raises:
          UserError: as `searched_names`.
        """
        graph = setup.model.graph
        counts = [
            int(slb.count_values(resolve(policy, graph)[name][0]))
            for policy in policies.values()
            for name in searched_names(policy, setup.model)
        ]
        programs = Programs(setup, spec, max(counts))
        return [
            cls(setup=setup, bits=bits, policy=policy, trainer=programs.trainer, programs=programs)
            for bits, policy in policies.items()
        ]

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The weights that are searched."""
        return searched_names(self.policy, self.setup.model)

    @property
    def quantizers(self) -> dict[str, FakeQuantizer]:
        """As of `Method`, for weights on their levels."""
        return {name: dataclasses.replace(q, rounded=True) for name, q in super().quantizers.items()}

    def begin(self, params: Any, seed: int) -> TrainingState:
        widths = as_data(self.widths)
        logits, grids = self.programs.begin(params, widths, jnp.uint32(seed), names=self.names)
        return self.trainer.begin(Searched(params, logits), seed, Untrained(widths, grids))

    def score(self, state: TrainingState) -> dict[str, Any]:
        """Score hard weights and, by statistics of batches, 'soft' ones as in training."""
        rounded, fixed = self.rounded(state), state.fixed
        hard = {name: self.programs.hard(rounded.params, q) for name, q in self.quantizers.items()}
        tau = self.programs.temperature(state.step)
        scores: dict[str, Any] = {
            'batch': hard,
            'soft': {self.bits: self.programs.soft(_kept(state), fixed, tau)},
        }
        if self.setup.calibrated_scorer is not None:
            scores['calibrated'] = self.setup.calibrated_scorer(self._folded(rounded), self.quantizers)
        return scores

    def keep(self, place: Place, state: TrainingState, metadata: Mapping[str, str]) -> None:
        """Write a quantized network."""
        scheme = dataclasses.replace(self.setup.scheme, granularity='channel', symmetric=False)
        self.save_calibrated(place, self._folded(self.rounded(state)), scheme, metadata)

    def rounded(self, state: TrainingState) -> Rounded:
        """Return the network of a state with its weights on their levels, whatever the temperature."""
        model = self.setup.model
        others = tuple(
            name for name, (b, _) in self.widths.items() if b < FLOAT_BITS and name not in self.names
        )
        kept = _kept(state)
        weights, grids = jax.device_get(
            self.programs.round(kept, state.fixed, names=self.names, others=others)
        )

        def value(name: str, leaf: Any) -> Any:
            if name not in weights:
                return leaf
            return model.tensors[name].to_parameter(weights[name], leaf.shape).astype(leaf.dtype)

        return Rounded(map_named(value, jax.device_get(kept.params)), weights, grids)

    def _folded(self, rounded: Rounded) -> Calibrated:
        """Fold norms by their statistics with these weights, which stay on levels: a scale times another."""
        folded = fold(self.setup.model, rounded.params, self.setup.images.calibration)
        weights, ranges = dict(folded.weights), {}
        for layer in self.setup.model.layers:
            if layer.parameter in rounded.weights:
                bits, grid = self.widths[layer.parameter][0], rounded.grids[layer.parameter]
                gain = _gain(weights[layer.name], rounded.weights[layer.parameter])
                ends = np.stack([gain * end for end in slb.range_of(grid, bits)])
                ranges[layer.name] = lo, hi = ends.min(0), ends.max(0)
                weights[layer.name] = np.asarray(nearest(jnp.asarray(weights[layer.name]), lo, hi, bits))
        return dataclasses.replace(folded, weights=weights, weight_ranges=ranges)


def _kept(state: TrainingState) -> Searched:
    return Searched(state.averaged.params, state.params.logits)


def _gain(folded: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Return what folding has multiplied each channel by, [O], seen at its largest weight; 0 without one."""
    rows, folded = w.reshape(len(w), -1), folded.reshape(len(w), -1)
    at = np.argmax(np.abs(rows), 1, keepdims=True)
    largest, made = np.take_along_axis(rows, at, 1)[:, 0], np.take_along_axis(folded, at, 1)[:, 0]
    return np.divide(made, largest, out=np.zeros_like(made), where=largest != 0)
