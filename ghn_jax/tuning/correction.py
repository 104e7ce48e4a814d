"""Distribution correction: the input of a block moved so that its batch norms see the statistics they know.

A batch of calibration images has its own mean and deviation in every channel, those of all training images
are others. With x the float input of a block, what is sought is (arXiv 2212.07048, sec. 3.3)

    argmin over x'  of  sum |mean(x') - mean|^2 + |deviation(x') - deviation|^2  +  |x' - x|^2 / pull

with mean(x') and deviation(x') of what a norm reads, for each channel, when the block runs on x'; the sum is
over the batch norms of the block.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from ghn_jax.models.folding import Calibrated
from ghn_jax.models.model import Model
from ghn_jax.models.norm_statistics import affines_of, measure
from ghn_jax.tuning.blocks import Block, Values, blocks_of
from ghn_jax.tuning.repeating import repeat, steps_at_once

RATE = 1e-3  # of Adam, in the beginning; it falls along a cosine


class NormStatistics(NamedTuple):
    """What a batch norm knows, float32, in the norm's shape with 1 for what is averaged.

    Attributes:
      mean, deviation: of x, what the norm reads.
      scale, shift: where the float model has x, the folded one has scale x + shift; 1 and 0 if it is not
        folded.
    """

    mean: Any
    deviation: Any
    scale: Any
    shift: Any


def norm_statistics(model: Model, params: Any, batches: Sequence[Array]) -> tuple[NormStatistics, ...]:
    """Measure what each batch norm of a model reads, over all batches, as `folding.fold` fixes it."""
    moments = measure(model, params, batches)
    traced = model.traced((2, *model.input_shape[1:]), jnp.asarray(batches[0]).dtype)
    found = []
    for read, layers, (scale, shift) in zip(
        moments, traced.structure.folds, affines_of(model, traced, params, moments), strict=True
    ):
        if layers is None:
            scale, shift = np.ones_like(scale), np.zeros_like(shift)
        found.append(NormStatistics(*map(np.float32, (read.mean, np.sqrt(read.variance), scale, shift))))
    return tuple(found)


def corrected(
    calibrated: Calibrated,
    statistics: Sequence[NormStatistics],
    entering: Values,
    *,
    k: int,
    steps: int,
    pull: float,
) -> Values:
    """Return the input of block k after so many steps of Adam; as it was for a block without batch norms.

    entering: [N, ...], of one batch.   pull: lambda_c, the smaller the nearer x' stays to x.
    """
    state, most = (entering, optax.scale_by_adam().init(entering)), steps_at_once(steps)
    for i in range(0, steps, most):
        state = _descend(
            calibrated, statistics, entering, state, i, pull=pull, all_steps=steps, steps=most, k=k
        )
    return state[0]


@functools.partial(jax.jit, static_argnames=('steps', 'k'))
def _descend(
    calibrated: Calibrated,
    statistics: Sequence[NormStatistics],
    entering: Values,
    state: tuple[Values, Any],
    first: Array | int,
    *,
    pull: Array | float,
    all_steps: Array | int,
    steps: int,
    k: int,
) -> tuple[Values, Any]:
    """Do `steps` of all steps, from `first` on. state: x' and the optimizer's memory."""
    block = blocks_of(calibrated, len(entering[0]))[k]

    def loss(x: Values) -> Array:
        away = sum(squared_error(a, b) for a, b in zip(x, entering))
        return mismatch(calibrated, block, statistics, x) + away / pull

    def step(i: Array, state: tuple[Values, Any]) -> tuple[Values, Any]:
        x, memory = state
        updates: Any
        updates, memory = optax.scale_by_adam().update(jax.grad(loss)(x), memory)
        rate = RATE * (1 + jnp.cos(math.pi * i / all_steps)) / 2
        return tuple(a - rate * u for a, u in zip(x, updates)), memory

    return repeat(step, first, steps, state)


def mismatch(
    calibrated: Calibrated, block: Block, statistics: Sequence[NormStatistics], entering: Values
) -> Array:
    """Return sum |mean(x) - mean|^2 + |deviation(x) - deviation|^2 over the batch norms of a block."""
    traced = calibrated.model.traced((len(entering[0]), *calibrated.model.input_shape[1:]), jnp.float32)
    norms = traced.structure.norms
    total = jnp.zeros(())
    for k, value in zip(block.norms, block.run_to_norms(entering), strict=True):
        known, axes = statistics[k], norms[k].axes
        live = jnp.abs(known.scale) > 1e-6  # of the others nothing can be seen
        x = (value - known.shift) / jnp.where(live, known.scale, 1)
        mean = x.mean(axes, keepdims=True)
        deviation = jnp.sqrt(jnp.mean(jnp.square(x - mean), axes, keepdims=True) + 1e-8)
        off = jnp.square(mean - known.mean) + jnp.square(deviation - known.deviation)
        total += jnp.sum(jnp.where(live, off, 0))
    return total


def squared_error(a: Array, b: Array) -> Array:
    """Return the squared difference, summed over channels (the last axis) and averaged over the others."""
    return jnp.mean(jnp.sum(jnp.square(a - b), -1))
