"""The programs of a search for low-bit weights (`slb_method`), each compiled once for all bits.

Bits and grids are data, and a layer with fewer values than K leaves out the last ones.

Axes: O output channels | K values, the most of any layer.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ghn_jax.models.quantizer import FakeQuantizer
from ghn_jax.quant.grid import Grid
from ghn_jax.tuning import slb
from ghn_jax.tuning.method import Setup
from ghn_jax.tuning.scoring import Accuracy
from ghn_jax.tuning.slb import SearchSpec
from ghn_jax.tuning.training import TrainingState, cross_entropy, make_optimizer, trainer_of_loss


class Searched(NamedTuple):
    """What is trained.

    Attributes:
      params: a pytree as `Model.params`; the searched weights among them are not used.
      logits: of these, by name, float32 [O, ..., K].
    """

    params: Any
    logits: dict[str, Array]


class Untrained(NamedTuple):
    """What is not trained.

    Attributes:
      widths: bits of all weights and activations, as data.
      grids: of the weights that are searched.
    """

    widths: dict[str, tuple[Array, Array]]
    grids: dict[str, Grid]


class Programs:
    """What is compiled for a network: each once, for all bits with which the same weights are searched."""

    def __init__(self, setup: Setup, spec: SearchSpec, most: int):
        """Make the functions. most: K."""
        self._model, self._scheme = setup.model, setup.scheme
        self._spec, self._most, self._epochs = spec, most, setup.training.epochs
        data = setup.images.dataset
        self._per_epoch = setup.training.steps_per_epoch(len(data.train.labels))
        self.trainer = trainer_of_loss(self._loss, setup.training, data, self._optimizer(setup))
        self.soft = Accuracy(self._apply, setup.images.test)
        self.hard = Accuracy(self._model.apply, setup.images.test)
        self.begin = jax.jit(self._begin, static_argnames='names')
        self.round = jax.jit(self._round, static_argnames=('names', 'others'))

    def temperature(self, step: Any) -> Array:
        """Return tau after so many steps."""
        return slb.temperature(self._spec, step / self._per_epoch, self._epochs)

    def _begin(
        self, params: Any, widths: dict[str, Any], seed: Array, *, names: tuple[str, ...]
    ) -> tuple[dict[str, Array], dict[str, Grid]]:
        """Return the logits that training begins with, and the grids of the weights, by name."""
        weights, rounding = self._weights(params), self._by_channel(widths)
        grids = {name: rounding.weight_and_grid(name, weights[name])[1] for name in names}
        if self._spec.logits == 'random':
            key = lambda i: jax.random.fold_in(jax.random.key(seed), i)
            draw = lambda i, name: slb.random_logits(key(i), weights[name].shape, self._most)
            return {name: draw(i, name) for i, name in enumerate(names)}, grids
        fixed = Untrained(widths, grids)
        return {name: slb.logits_of(weights[name], *self._values(fixed, name)) for name in names}, grids

    def _round(
        self, searched: Searched, fixed: Untrained, *, names: tuple[str, ...], others: tuple[str, ...]
    ) -> tuple[dict[str, Array], dict[str, Grid]]:
        """Return the weights on their levels, and their grids: those that are searched, and others."""
        weights, rounding = self._weights(searched.params), self._by_channel(fixed.widths)
        found = {name: rounding.weight_and_grid(name, weights[name]) for name in others}
        hard, grids = {name: w for name, (w, _) in found.items()}, {name: g for name, (_, g) in found.items()}
        for name in names:
            values, count = self._values(fixed, name)
            hard[name] = slb.hard_weights(searched.logits[name], values, count)
        return hard, grids | fixed.grids

    def _loss(self, searched: Searched, state: TrainingState, x: Array, labels: Array) -> Array:
        logits = self._apply(searched, x, state.fixed, self.temperature(state.step))
        return cross_entropy(logits, labels)

    def _apply(self, searched: Searched, x: Array, fixed: Untrained, tau: Array) -> Array:
        weights = {
            name: slb.soft_weights(logits, *self._values(fixed, name), tau)
            for name, logits in searched.logits.items()
        }
        quantizer = _Mixing(self._by_channel(fixed.widths), weights)
        return self._model.apply(searched.params, x, quantizer)

    def _values(self, fixed: Untrained, name: str) -> tuple[Array, Array]:
        bits, _ = fixed.widths[name]
        return slb.values_of(fixed.grids[name], bits, self._most), slb.count_values(bits)

    def _by_channel(self, widths: Any) -> FakeQuantizer:
        return FakeQuantizer(widths, dataclasses.replace(self._scheme, granularity='channel'))

    def _weights(self, params: Any) -> dict[str, Array]:
        """Return the weights of all layers by name, output channels first, in float32."""
        reader = _Reader({})
        self._model.apply(params, jnp.zeros((2, *self._model.input_shape[1:])), reader)
        return {name: w.astype(jnp.float32) for name, w in reader.found.items()}

    def _optimizer(self, setup: Setup) -> optax.GradientTransformation:
        """Return Adam for the logits, at rest from the end of the schedule on, and AdamW for all else."""
        steps = self._per_epoch * self._epochs
        falling = optax.cosine_decay_schedule(self._spec.rate, steps)
        rate = lambda step: jnp.where(jnp.isinf(self.temperature(step)), 0, falling(step))
        of_logits = optax.chain(optax.clip_by_global_norm(setup.training.clip_norm), optax.adam(rate))
        transforms = {'params': make_optimizer(setup.training, steps), 'logits': of_logits}
        return optax.partition(transforms, Searched('params', 'logits'))  # pyright: ignore[reportArgumentType]


@dataclasses.dataclass(frozen=True)
class _Mixing:
    """A quantizer with weights of its own for some layers; all else is rounded."""

    rounding: FakeQuantizer
    weights: Mapping[str, Array]

    def weight(self, name: str, w: Array) -> Array:
        return self.weights[name].astype(w.dtype) if name in self.weights else self.rounding.weight(name, w)

    def activation(self, name: str, x: Array, whole: Array) -> Array:
        return self.rounding.activation(name, x, whole)


@dataclasses.dataclass(frozen=True)
class _Reader:
    """A quantizer that takes down the weights and rounds nothing."""

    found: dict[str, Array]

    def weight(self, name: str, w: Array) -> Array:
        self.found[name] = w
        return w

    def activation(self, name: str, x: Array, whole: Array) -> Array:
        return x
