"""What enters the batch norms of a model, and what each is by fixed statistics: a scale and a shift."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ghn_jax.models import small_images
from ghn_jax.models.model import Model, Traced
from ghn_jax.models.norms import BatchNorm, of_batch
from ghn_jax.models.program import CASTS, FlatProgram, Rewrite, run


class NormMoments(NamedTuple):
    """Of what enters a norm: mean and (biased) variance, in the norm's shape with 1 for what is averaged."""

    mean: Any
    variance: Any


def measure(model: Model, params: Any, batches: Sequence[Array]) -> list[NormMoments]:
    """Measure what enters each batch norm of a model in float, over all batches of one size.

    Each norm goes by the statistics of its batch meanwhile.
    """
    observe = model.compiled(_observe, model)
    return [pooled(each) for each in zip(*(jax.device_get(observe(params, x)) for x in batches))]


def _observe(model: Model, params: Any, x: Array) -> list[NormMoments]:
    traced, given = model.prepared(params, x)
    norms = traced.structure.norms
    return observed(traced.program, given, [n.source for n in norms], [n.axes for n in norms])


def observed(
    program: FlatProgram,
    given: Sequence[Any],
    slots: Sequence[int],
    axes: Sequence[tuple[int, ...]],
    rewrite: Rewrite = lambda k, operands, values: operands,
) -> list[NormMoments]:
    """Run a program and return the moments of what is in some slots, each over its axes."""
    part = dataclasses.replace(program, outputs=tuple(slots))
    found = run(part, given, rewrite, compute=small_images.compute)
    return [_moments(x, over) for x, over in zip(found, axes, strict=True)]


def _moments(x: Array, axes: tuple[int, ...]) -> NormMoments:
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = jnp.mean(x, axes, keepdims=True)
    return NormMoments(mean, jnp.mean(jnp.square(x - mean), axes, keepdims=True))


def pooled(each: Sequence[NormMoments]) -> NormMoments:
    """Join the moments of all batches from those of each."""
    means = np.stack([m.mean for m in each]).astype(np.float64)
    within = np.mean([m.variance for m in each], 0, dtype=np.float64)
    return NormMoments(means.mean(0), within + means.var(0))


def affines_of(
    model: Model, traced: Traced, params: Any, moments: Sequence[NormMoments]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Find scale and shift of each norm with fixed moments, float64.

    The model's own steps are run on two images that have these moments, mean + deviation and mean - deviation
    everywhere, which gives the statistics; with these, again on 0 and on 1, which gives shift and scale +
    shift. So nothing needs to be known of how the norm is written.

    traced: of the model, for two images.
    """
    with jax.enable_x64(True):
        of_all = model.compiled(_affines, traced)
        return jax.device_get(of_all(jax.tree.map(np.asarray, params), list(moments)))


def _affines(traced: Traced, params: Any, moments: Sequence[NormMoments]) -> list[tuple[Array, Array]]:
    program, norms = traced.program, traced.structure.norms
    given = dict(zip(program.inputs, jax.tree.leaves(params))) | program.constants
    return [_affine(traced, norm, given, of) for norm, of in zip(norms, moments, strict=True)]


def _affine(
    traced: Traced, norm: BatchNorm, given: Mapping[int, Any], of: NormMoments
) -> tuple[Array, Array]:
    place = lax.broadcasted_iota(int, norm.shape, norm.images)
    sign = jnp.where(2 * place < norm.shape[norm.images], 1, -1)
    values = _evaluate(traced, norm, {**given, norm.source: of.mean + sign * jnp.sqrt(of.variance)})
    known = traced.recorder.values
    fixed = {s: v for s, v in values.items() if of_batch(known.get(s))}
    at = lambda x: _evaluate(traced, norm, {**given, **fixed, norm.source: jnp.full(norm.shape, x)})[
        norm.result
    ]
    first = tuple(slice(0, 1) if axis in norm.axes else slice(None) for axis in range(len(norm.shape)))
    shift = at(0.0)[first]
    return at(1.0)[first] - shift, shift


def _evaluate(traced: Traced, norm: BatchNorm, values: dict[int, Any]) -> dict[int, Any]:
    """Run the steps of a norm in float64, but for those whose results are in `values`; return all values."""
    wide = lambda a: jnp.asarray(a, jnp.float64) if jnp.issubdtype(jnp.result_type(a), jnp.floating) else a
    read = lambda operand: wide(values[operand] if isinstance(operand, int) else operand.val)
    for k in norm.steps:
        step = traced.program.steps[k]
        if step.outputs[0] in values:
            continue
        operands = list(map(read, step.inputs))
        if step.primitive in CASTS and jnp.issubdtype(
            step.eqn.params.get('new_dtype', jnp.float32), jnp.floating
        ):
            results = [jnp.asarray(operands[0], jnp.float64)]
        else:
            results = step.compute(operands)
        values |= zip(step.outputs, results if isinstance(results, list | tuple) else [results])
    return values
