"""Training one network: a pure step, compiled once, on images that lie on the device.

The step rounds weights and activations and passes gradients straight through the rounding (arXiv 1308.3432),
so a network is trained as it will be run. What is trained is a pytree and a function of it: the parameters of
a `Model`, whose batch norms take the statistics of each batch, or a `Calibrated` model, whose statistics are
fixed and folded.

Which images a step reads is a function of the seed and the step alone, so a training that is taken up again
from a `TrainingState` goes on as if it had never stopped.

Axes: T training images | B images of a batch | H pixels on a side.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from ghn_jax.base.errors import FieldError
from ghn_jax.base.fields import bounded, check_fields, choice, number
from ghn_jax.datasets.augment import crop_and_flip, normalize
from ghn_jax.datasets.load import Dataset
from ghn_jax.models.quantizer import Quantizer
from ghn_jax.training.refinements import average

_MOMENTUM = 0.9  # of SGD
Apply = Callable[[Any, Array, Quantizer | None], Array]
"""(params, normalised images [B, H, H, 3], quantizer) -> logits [B, classes]."""
Loss = Callable[[Any, 'TrainingState', Array, Array], Array]
"""(params, the state before the step, normalised images [B, H, H, 3], labels [B]) -> loss []."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSpec:
    """How a network is trained.

    Attributes:
      epochs: passes over the training images; what does not fill a batch is left out of a pass.
      batch_size: images of a batch.
      optimizer: 'adamw' (arXiv 1711.05101), or 'sgd' with a momentum of 0.9.
      learning_rate: of the first step; it falls to 0 along half a cosine.
      weight_decay: times the learning rate; part of AdamW's step, of SGD's gradient after it is clipped.
      clip_norm: the most that the norm of a gradient may be; beyond it, it is scaled down.
      ema: decay of the moving average of the parameters, which is what is scored and kept; 0: no average.
      augment: crop from 4 pixels of padding, and mirror where the data set allows it.

    Raises:
      FieldError: a number out of its bounds.
    """

    epochs: int = bounded('epochs', 10)
    batch_size: int = bounded('batch_size', 64)
    optimizer: str = choice('adamw', ('adamw', 'sgd'))
    learning_rate: float = number(3e-3, 0, 10)
    weight_decay: float = number(1e-4, 0, 10)
    clip_norm: float = number(5.0, 1e-6, 1e6)
    ema: float = number(0.99, 0, 0.999999)
    augment: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def steps_per_epoch(self, images: int) -> int:
        """Return how many batches a pass has. Raises FieldError where there are fewer images than a batch."""
        if images < self.batch_size:
            raise FieldError(
                'batch_size', f'={self.batch_size}: there are {images} training images; give at most as many'
            )
        return images // self.batch_size


class TrainingImages(NamedTuple):
    """All training images, on the device: uint8 [T, H, H, 3], labels int32 [T], mean and std float32 [3]."""

    images: Array
    labels: Array
    mean: Array
    std: Array

    @classmethod
    def of(cls, dataset: Dataset) -> 'TrainingImages':
        return cls(*map(jnp.asarray, (*dataset.train, dataset.mean, dataset.std)))


class TrainingState(NamedTuple):
    """All of a training that lasts from one step to the next.

    Attributes:
      step: int32 [], steps done.
      seed: uint32 [], of the order of images and their augmentation.
      params: what is trained.
      average: the exponential moving average of these (`refinements.average`); float32 where they are
        narrower, for in bfloat16 it would stand still.
      optimizer: state of the optimizer.
      loss: float32 [], the sum over the steps of this pass so far.
      fixed: arrays that are not trained and tell one training of a program from another, such as bits.
    """

    step: Array
    seed: Array
    params: Any
    average: Any
    optimizer: Any
    loss: Array
    fixed: Any = ()

    @property
    def averaged(self) -> Any:
        """The average in the types of the parameters: what is scored and kept."""
        return jax.tree.map(lambda a, p: jnp.asarray(a, p.dtype), self.average, self.params)


class Trainer(NamedTuple):
    """A training, compiled.

    Attributes:
      begin: (params, seed, fixed=()) -> the first state.
      step: (state, order, images) -> the next state; the state given is used up.
      order: (seed, epoch) -> int32 [T], the images in the order of that pass.
      epochs, steps_per_epoch, batch_size: passes, batches of a pass, images of a batch.
    """

    begin: Callable[..., TrainingState]
    step: Callable[[TrainingState, Array, TrainingImages], TrainingState]
    order: Callable[[Any, int], Array]
    epochs: int
    steps_per_epoch: int
    batch_size: int

    @property
    def steps(self) -> int:
        """Steps of all passes."""
        return self.epochs * self.steps_per_epoch


def make_trainer(apply: Apply, quantizer: Quantizer | None, spec: TrainingSpec, dataset: Dataset) -> Trainer:
    """Return the functions that train a network by its cross-entropy.

    Args:
      apply: the network, such as `model.apply`.
      quantizer: what rounds it; None: it is trained in float.
      spec, dataset: as for `trainer_of_loss`.

    Raises:
      FieldError: fewer images than a batch.
    """
    loss = lambda params, state, x, labels: cross_entropy(apply(params, x, quantizer), labels)
    return trainer_of_loss(loss, spec, dataset)


def trainer_of_loss(
    loss: Loss, spec: TrainingSpec, dataset: Dataset, optimizer: optax.GradientTransformation | None = None
) -> Trainer:
    """Return the functions of a training; each is compiled at its first call, and once.

    Args:
      loss: what training lowers.
      spec: how it is trained.
      dataset: whose images are trained on: how many there are, and whether they may be mirrored.
      optimizer: None: `make_optimizer`.

    Raises:
      FieldError: fewer images than a batch.
    """
    images = len(dataset.train.labels)
    per_epoch = spec.steps_per_epoch(images)
    optimizer = optimizer or make_optimizer(spec, per_epoch * spec.epochs)

    def begin(params: Any, seed: int, fixed: Any = ()) -> TrainingState:
        params, fixed = jax.tree.map(jnp.array, (params, fixed))  # copies: a step uses them up
        mean = jax.tree.map(lambda p: jnp.array(p, jnp.promote_types(p.dtype, jnp.float32)), params)
        moments, zero = optimizer.init(params), jnp.int32(0)
        return TrainingState(zero, jnp.uint32(seed), params, mean, moments, jnp.float32(0), fixed)

    # A call for each step, and no loop over steps within a program: on CPUs, XLA runs the convolutions of a
    # loop's body three times as slowly. The calls return at once, so no device waits for the host.
    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: TrainingState, order: Array, data: TrainingImages) -> TrainingState:
        place = state.step % per_epoch
        chosen = lax.dynamic_slice_in_dim(order, place * spec.batch_size, spec.batch_size)
        x = data.images[chosen]
        if spec.augment:
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(state.seed), 1), state.step)
            x = crop_and_flip(key, x, flip=dataset.flip)
        x = normalize(x, data.mean, data.std)
        value, gradients = jax.value_and_grad(loss)(state.params, state, x, data.labels[chosen])
        updates, moments = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainingState(
            step=state.step + 1,
            seed=state.seed,
            params=params,
            average=average(spec.ema, state.step, state.average, params),
            optimizer=moments,
            loss=jnp.where(place == 0, 0.0, state.loss) + value,
            fixed=state.fixed,
        )

    @jax.jit
    def order(seed: Any, epoch: Any) -> Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 0), epoch)
        return jax.random.permutation(key, jnp.arange(images, dtype=jnp.int32))

    return Trainer(begin, step, order, spec.epochs, per_epoch, spec.batch_size)


def make_optimizer(spec: TrainingSpec, steps: int) -> optax.GradientTransformation:
    """Return the optimizer, whose rate falls along half a cosine, after clipping by the global norm."""
    rate = optax.cosine_decay_schedule(spec.learning_rate, steps)
    if spec.optimizer == 'adamw':
        parts = [optax.adamw(rate, weight_decay=spec.weight_decay)]
    else:
        parts = [optax.add_decayed_weights(spec.weight_decay), optax.sgd(rate, momentum=_MOMENTUM)]
    return optax.chain(optax.clip_by_global_norm(spec.clip_norm), *parts)


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Return the mean over a batch [] in nats: logits [B, classes], labels int32 [B]."""
    logits = logits.astype(jnp.float32)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
