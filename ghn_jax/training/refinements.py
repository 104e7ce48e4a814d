"""What a training step may do beside what GHN-2 published; by default it does none of it."""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

if TYPE_CHECKING:  # an edit of the config compiles no step anew (`base.source_files`)
    from ghn_jax.config import RunConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refinements:
    """Static parts of a step, each left out of the program where it is 0.

    Attributes:
      label_smoothing: share of each label that is spread over all classes (arXiv 1512.00567).
      network_clip_norm: the most that the norm of one network's gradient by the decoder's parameters may be;
        beyond it, all of the network's gradient is scaled down.
      loss_power: a network's gradient is divided by its loss to this power, so that those with the largest
        losses do not rule the mean; 1 trains the geometric mean of the losses.
      distillation: share of each label that is replaced by what the same network, its weights and values
        unrounded, makes of the image (arXiv 1503.02531 at temperature 1, the network its own teacher).
      weight_penalty: times the sum of the Frobenius norms of a network's predicted convolutions and linear
        weights, added to its loss: GHN-3's (arXiv 2303.04143), which takes 3e-5 and norms and biases too.
      ema: decay of the moving average of the parameters.
    """

    label_smoothing: float = 0.0
    network_clip_norm: float = 0.0
    loss_power: float = 0.0
    distillation: float = 0.0
    weight_penalty: float = 0.0
    ema: float = 0.0


AS_PUBLISHED = Refinements()


def refinements_of(config: 'RunConfig') -> Refinements:
    """Return what a config says of each."""
    return Refinements(**{f.name: getattr(config.train, f.name) for f in dataclasses.fields(Refinements)})


def targets(labels: Array, classes: int, smoothing: float) -> Array:
    """Return labels [N] as they are, or smoothed: the probability of each class [N, L]."""
    if not smoothing:
        return labels
    return optax.smooth_labels(jax.nn.one_hot(labels, classes), smoothing)


def distilled(labels: Array, teacher: Array, share: float) -> Array:
    """Return the probability of each class [N, L], a share of it as the teacher's logits [N, L] say.

    labels: int [N], or [N, L]. No gradient goes to the teacher.
    """
    teacher = jax.nn.softmax(jax.lax.stop_gradient(teacher))
    if labels.ndim == 1:
        labels = jax.nn.one_hot(labels, teacher.shape[-1], dtype=teacher.dtype)
    return (1 - share) * labels + share * teacher


def average(decay: float, step: Array, before: Any, params: Any) -> Any:
    """Return the moving average of parameters after one more step.

    Args:
      decay: that of long trainings.
      step: int32 [], steps done before. While (1 + step) / (10 + step) is less than the decay, it takes its
        place, as in TensorFlow's ExponentialMovingAverage: the average soon forgets where training began.
      before: the average before.
      params: after the step.
    """
    kept = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda a, p: kept * a + (1 - kept) * p, before, params)
