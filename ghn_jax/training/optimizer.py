"""The optimizer of a run."""

import functools
from typing import TYPE_CHECKING

import optax

if TYPE_CHECKING:  # an edit of the config compiles no step anew (`base.source_files`)
    from ghn_jax.config import RunConfig


def make_optimizer(config: 'RunConfig') -> optax.GradientTransformation:
    """Make Adam with L2 regularisation after clipping by the global norm, as GHN-2 (arXiv 2110.13100).

    config: of a run; `config.train` says all. Equal settings give the same object.
    """
    t = config.train
    return _optimizer(t.schedule, t.steps, t.warmup_steps, t.learning_rate, t.weight_decay, t.clip_norm)


@functools.cache  # one object for equal settings, so that compiled steps are found again
def _optimizer(
    schedule: str, steps: int, warmup_steps: int, learning_rate: float, weight_decay: float, clip_norm: float
) -> optax.GradientTransformation:
    if schedule == 'step':
        drops = {max(1, steps * 2 // 3): 0.1, max(2, steps * 5 // 6): 0.1}
        rate = optax.piecewise_constant_schedule(learning_rate, drops)
    elif schedule == 'cosine':
        rate = optax.cosine_decay_schedule(learning_rate, max(1, steps))
    else:
        rate = optax.constant_schedule(learning_rate)
    warmup = optax.linear_schedule(0.0, 1.0, warmup_steps) if warmup_steps else lambda step: 1.0
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.add_decayed_weights(weight_decay),
        optax.adam(lambda step: warmup(step) * rate(step)),
    )
