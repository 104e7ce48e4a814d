"""A model that no longer depends on its batch: calibration images give folded weights and ranges.

The statistics of its batch norms are fixed, and a norm that directly follows convolutions or linear layers is
folded into them: with g = scale / sqrt(variance + eps), weights are multiplied by g for each output channel,
and the bias becomes g bias + shift - g mean (arXiv 1712.05877, eq. 14). Other batch norms stay, as a scale
and a shift for each channel; norms of single images stay as they are.

A norm's g and shift are found without knowing how the norm is written: see `_affines`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from ghn_jax.base.errors import UserError
from ghn_jax.cnn.deploy.calibration import RANGE_RULE
from ghn_jax.hypernet.policy_features import resolve
from ghn_jax.models.activation_ranges import find_ranges
from ghn_jax.models.folded_program import FoldedProgram, fold_program
from ghn_jax.models.model import Model, Traced, rewriter
from ghn_jax.models.norms import BatchNorm, LayerEnd, Structure, of_batch
from ghn_jax.models.program import Operand, needed, run
from ghn_jax.models.quantizer import FakeQuantizer, Quantizer
from ghn_jax.quant.policy import Policy
from ghn_jax.quant.scheme import QAT, Scheme


class Moments(NamedTuple):
    """Of what enters a norm: mean and (biased) variance, in the norm's shape with 1 for what is averaged."""

    mean: Any
    variance: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Calibrated:
    """A model with fixed statistics, a pytree of its arrays.

    Attributes:
      model: that it is of.
      params: as given; of those that are not folded, the ones that are read.
      weights: layer's name -> float32 [out, in / groups, height, width] or [out, in]; not rounded.
      biases: layer's name -> float32 [out]; None for a layer without.
      norms: scale and shift of each batch norm in the order of the forward pass, float32 in the norm's shape
        with 1 for the axes that are averaged over; None for one that is folded.
      ranges: `Site.reader` of a layer -> (lo, hi) of the activation that enters it, float32, 0 between them;
        of those that the policy of the calibration rounds.
    """

    model: Model
    params: Any
    weights: Mapping[str, Any]
    biases: Mapping[str, Any]
    norms: Sequence[tuple[Any, Any] | None]
    ranges: Mapping[str, tuple[Any, Any]]

    def apply(
        self, x: Array, quantizer: Quantizer | None = None, capture: dict[str, Array] | None = None
    ) -> Array:
        """Compute the logits [N, classes].

        Args:
          x: images, as for `Model.apply`.
          quantizer: such as `self.quantizer(policy)`; None: nothing is rounded.
          capture: a dict that is filled with the result of each layer, without its bias, by its name.
        """
        _, given = self.model.prepared(self.params, x)
        folded = self.program(x.shape, x.dtype)

        def seen(k: int, result: Any) -> None:
            if capture is not None and k in folded.sites:
                capture[folded.sites[k].layer.name] = result

        return run(folded.program, given, rewriter(folded.sites, quantizer), seen)[0]

    def program(self, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> FoldedProgram:
        """Return what `apply` runs for images of a shape; its inputs are the model's parameters, then images.

        Between them are inputs for variables of the model that are no parameters; no step reads them.
        """
        traced = self.model.traced(tuple(shape), jnp.dtype(dtype))
        return fold_program(traced, self.weights, self.biases, self.norms)

    def quantizer(self, policy: Policy, scheme: Scheme = QAT) -> FakeQuantizer:
        """Return what rounds weights, and activations over the calibrated ranges, to a policy's bits.

        Raises:
          UserError: the policy is of another model.
        """
        return FakeQuantizer(resolve(policy, self.model.graph), scheme, self.ranges)


jax.tree_util.register_dataclass(
    Calibrated,
    data_fields=['params', 'weights', 'biases', 'norms', 'ranges'],
    meta_fields=['model'],
)


def calibrate(
    model: Model,
    params: Any,
    images: Iterable[Array],
    policy: Policy | None = None,
    *,
    scheme: Scheme = QAT,
    rule: str = RANGE_RULE,
) -> Calibrated:
    """Fix the statistics of batch norms, fold them, and find the ranges of activations.

    Args:
      model: traced.
      params: a pytree as `model.params`.
      images: batches of one size [N, ...], as the model takes them. Statistics are those of all batches, in
        float.
      policy: the bits. Ranges are those of the folded network at these bits; None: no ranges.
      scheme: how tensors are quantized.
      rule: how ranges are found (`cnn.deploy.calibration.RULES`).

    Raises:
      UserError: no images, a batch norm of an unknown form, a policy of another model.
    """
    batches = list(images)
    calibrated = fold(model, params, batches)
    if policy is None:
        return calibrated
    quantizer = model.quantizer(policy, scheme)
    ranges = find_ranges(Calibrated.apply, calibrated, batches, quantizer, rule)
    return dataclasses.replace(calibrated, ranges=ranges)


def fold(model: Model, params: Any, batches: Sequence[Array]) -> Calibrated:
    """Fix the statistics of batch norms and fold them, as `calibrate`; without ranges."""
    if not batches:
        raise UserError('there are no calibration images: give at least one batch')
    traced = model.traced((2, *model.input_shape[1:]), jnp.asarray(batches[0]).dtype)
    structure = Structure(traced.program, traced.recorder)
    affines = _affines(traced, structure, params, measure(model, params, batches))
    read = _parameters(traced, params, structure)
    weights, biases = {}, {}
    for k, end in structure.ends.items():
        site = traced.recorder.sites[k]
        w = np.asarray(read(traced.program.steps[k].inputs[site.weight]), np.float64)
        weights[k], biases[k] = site.layout.to_tensor(w), _bias(end, site.layer.shape[0], read)
    norms: list[tuple[Any, Any] | None] = []
    for layers, (scale, shift) in zip(structure.folds, affines, strict=True):
        if layers is None:
            norms.append((np.float32(scale), np.float32(shift)))
            continue
        norms.append(None)
        ends = np.cumsum([len(weights[k]) for k in layers])[:-1]
        for k, g, b in zip(layers, np.split(scale.ravel(), ends), np.split(shift.ravel(), ends)):
            weights[k] = weights[k] * g.reshape(-1, *[1] * (weights[k].ndim - 1))
            biases[k] = b if biases[k] is None else g * biases[k] + b
    name_of = {k: site.layer.name for k, site in traced.recorder.sites.items()}
    to_float32 = lambda of: {name_of[k]: None if a is None else np.float32(a) for k, a in of.items()}
    calibrated = Calibrated(model, params, to_float32(weights), to_float32(biases), tuple(norms), {})
    _check_independent(traced, calibrated)
    return calibrated


def _check_independent(traced: Traced, calibrated: Calibrated) -> None:
    known = traced.recorder.values
    for step in fold_program(traced, calibrated.weights, calibrated.biases, calibrated.norms).program.steps:
        if of_batch(known.get(step.outputs[0])):
            raise UserError(
                f'{step} sums over the images and is no part of a batch norm: such a model cannot be '
                'calibrated, score it by the statistics of each batch'
            )


def measure(model: Model, params: Any, batches: Sequence[Array]) -> list[Moments]:
    """Measure what enters each batch norm of a model in float, over all batches of one size.

    Each norm goes by the statistics of its batch meanwhile.
    """

    @jax.jit
    def observe(params: Any, x: Array) -> list[Moments]:
        traced, given = model.prepared(params, x)
        structure, values = Structure(traced.program, traced.recorder), {traced.program.inputs[-1]: x}
        wanted = {norm.source for norm in structure.norms}

        def seen(k: int, result: Any) -> None:
            if (slot := traced.program.steps[k].outputs[0]) in wanted:
                values[slot] = result

        run(traced.program, given, seen=seen)
        return [_moments(values[norm.source], norm.axes) for norm in structure.norms]

    return [_pooled(each) for each in zip(*(jax.device_get(observe(params, x)) for x in batches))]


def _moments(x: Array, axes: tuple[int, ...]) -> Moments:
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = jnp.mean(x, axes, keepdims=True)
    return Moments(mean, jnp.mean(jnp.square(x - mean), axes, keepdims=True))


def _pooled(each: Sequence[Moments]) -> Moments:
    """Join the moments of all batches from those of each."""
    means = np.stack([m.mean for m in each]).astype(np.float64)
    within = np.mean([m.variance for m in each], 0, dtype=np.float64)
    return Moments(means.mean(0), within + means.var(0))


def _affines(
    traced: Traced, structure: Structure, params: Any, moments: Sequence[Moments]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Find scale and shift of each norm with fixed moments, float64.

    The model's own steps are run on two images that have these moments, mean + deviation and mean - deviation
    everywhere, which gives the statistics; with these, again on 0 and on 1, which gives shift and scale +
    shift. So nothing needs to be known of how the norm is written.
    """

    def of_all(params: Any, moments: Sequence[Moments]) -> list[tuple[Array, Array]]:
        program = traced.program
        inputs = jax.tree.leaves(params)
        given = dict(zip(program.inputs, inputs)) | program.constants
        return [_affine(traced, norm, given, of) for norm, of in zip(structure.norms, moments, strict=True)]

    with jax.enable_x64(True):
        found = jax.device_get(jax.jit(of_all)(jax.tree.map(np.asarray, params), list(moments)))
    return found


def _affine(traced: Traced, norm: BatchNorm, given: Mapping[int, Any], of: Moments) -> tuple[Array, Array]:
    deviation = jnp.sqrt(of.variance)
    images = jnp.concatenate([of.mean + deviation, of.mean - deviation])
    values = _evaluate(traced, norm, {**given, norm.source: jnp.broadcast_to(images, norm.shape)})
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
        params = step.eqn.primitive.get_bind_params(step.eqn.params)
        is_cast = step.primitive in ('convert_element_type', 'reduce_precision')
        if is_cast and jnp.issubdtype(params.get('new_dtype', jnp.float32), jnp.floating):
            results = [jnp.asarray(operands[0], jnp.float64)]
        else:
            results = step.eqn.primitive.bind(*operands, **params)
        values |= zip(step.outputs, results if isinstance(results, list | tuple) else [results])
    return values


def _parameters(traced: Traced, params: Any, structure: Structure) -> Callable[[Any], Array]:
    """Return what reads weights and biases as they are used: slots computed from parameters alone."""
    program, sites = traced.program, traced.recorder.sites
    slots: list[Any] = [program.steps[k].inputs[site.weight] for k, site in sites.items()]
    slots += [bias for end in structure.ends.values() for _, bias in end.biases]

    part = dataclasses.replace(program, steps=needed(program.steps, slots), outputs=tuple(slots))

    @jax.jit
    def values_of(params: Any) -> list[Array]:
        leaves = jax.tree.leaves(params)
        return run(part, [*leaves, *[None] * (len(program.inputs) - len(leaves))])

    values = dict(zip(slots, jax.device_get(values_of(params))))
    return values.__getitem__


def _bias(end: LayerEnd, channels: int, read: Callable[[Operand], Array]) -> np.ndarray | None:
    """Return the sum of the biases behind a layer, [channels]."""
    total = None
    for _, slot in end.biases:
        value = np.asarray(read(slot), np.float64)
        along = tuple(slice(None) if axis == end.axis else 0 for axis in range(value.ndim))
        total = np.broadcast_to(value[along], channels) + (0 if total is None else total)
    return total
