"""A model that no longer depends on its batch: calibration images give statistics, and ranges.

The statistics of its batch norms are fixed, and a norm that directly follows convolutions or linear layers is
folded into them: with g = scale / sqrt(variance + eps), weights are multiplied by g for each output channel,
and the bias becomes g bias + shift - g mean (arXiv 1712.05877, eq. 14). Other batch norms stay, as a scale
and a shift for each channel; norms of single images stay as they are.

With few bits folded weights are on other levels than in training, and rounding moves what norms have seen.
`correct` therefore leaves weights as they are, and norms beside them, by the statistics of the rounded model.

A norm's g and shift are found without knowing how the norm is written: see `norm_statistics`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from ghn_jax.base.concrete import check_concrete
from ghn_jax.base.errors import UserError, shown
from ghn_jax.cnn.deploy.calibration import RANGE_RULE, check_rule
from ghn_jax.hypernet.policy_features import resolve
from ghn_jax.models import small_images
from ghn_jax.models.activation_ranges import find_ranges
from ghn_jax.models.folded_program import BatchStatistics, FoldedProgram, NormForm, fold_program
from ghn_jax.models.model import Model, Traced, capturer, rewriter
from ghn_jax.models.norm_statistics import NormMoments, affines_of, measure, observed, pooled
from ghn_jax.models.norms import DependsOnBatch, LayerEnd, of_batch
from ghn_jax.models.program import Operand, Step, needed, run
from ghn_jax.models.quantizer import FakeQuantizer, Quantizer
from ghn_jax.models.tracing import images_like
from ghn_jax.quant.policy import Policy
from ghn_jax.quant.scheme import QAT, Scheme, check_scheme

BATCH_NORMS = ('corrected', 'calibrated')


@dataclasses.dataclass(frozen=True, eq=False)
class Calibrated:
    """A model with fixed statistics, a pytree of its arrays.

    Attributes:
      model: that it is of.
      params: as given; of those that are not folded, the ones that are read.
      weights: layer's name -> [out, in / groups, height, width] or [out, in]; not rounded. These and the
        next two are float32, of images in float64 float64.
      biases: layer's name -> [out]; None for a layer without.
      norms: scale and shift of each batch norm in the order of the forward pass, in the norm's shape with 1
        for the axes that are averaged over; None for one that is folded.
      ranges: `Site.reader` of a layer -> (lo, hi) of the activation that enters it, float32, 0 between them;
        of those that the policy of the calibration rounds.
      weight_ranges: layer's name -> (lo, hi), float32 [out], 0 between them, of the grids that its weights
        are on already, one for each output channel (`grid.make_grid`); none of them: no weight is rounded.
    """

    model: Model
    params: Any
    weights: Mapping[str, Any]
    biases: Mapping[str, Any]
    norms: Sequence[NormForm]
    ranges: Mapping[str, tuple[Any, Any]]
    weight_ranges: Mapping[str, tuple[Any, Any]] = dataclasses.field(default_factory=dict)

    def apply(
        self,
        x: Array,
        quantizer: Quantizer | None = None,
        capture: dict[str, Array] | None = None,
        *,
        as_written: bool = False,
    ) -> Array:
        """Compute the logits [N, classes].

        Args:
          x: images, as for `Model.apply`.
          quantizer: such as `self.quantizer(policy)`; None: nothing is rounded.
          capture: a dict that is filled with the result of each layer, without its bias, by its name.
          as_written: each convolution is one, for another runtime, also where a product is faster here
            (`small_images`).
        """
        traced, given = self.model.prepared(self.params, x)
        folded = self.folded(traced)
        sites, compute = folded.sites, Step.compute if as_written else small_images.compute
        return run(folded.program, given, rewriter(sites, quantizer), capturer(sites, capture), compute)[0]

    def program(self, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> FoldedProgram:
        """Return what `apply` runs for images of a shape; its inputs are the model's parameters, then images.

        Between them are inputs for variables of the model that are no parameters; no step reads them.

        Raises:
          UserError: no shape of images, the number of images first, or one that the model cannot be run on.
        """
        images = images_like('shape', shape, dtype)
        return self.folded(self.model.traced(images.shape, images.dtype))

    def folded(self, traced: Traced) -> FoldedProgram:
        """Return what `apply` runs, from a program of the model."""
        return fold_program(traced, self.weights, self.biases, self.norms)

    def quantizer(self, policy: Policy, scheme: Scheme = QAT) -> FakeQuantizer:
        """Return what rounds weights, and activations over the calibrated ranges, to a policy's bits.

        Weights that are on their grids already stay as they are.

        Raises:
          UserError: the policy is of another model; no policy, or no scheme.
        """
        check_scheme(scheme)
        widths = resolve(policy, self.model.graph)
        return FakeQuantizer(widths, scheme, self.ranges, rounded=bool(self.weight_ranges))


jax.tree_util.register_dataclass(
    Calibrated,
    data_fields=['params', 'weights', 'biases', 'norms', 'ranges', 'weight_ranges'],
    meta_fields=['model'],
)


@jax.ensure_compile_time_eval()
def calibrate(
    model: Model,
    params: Any,
    images: Iterable[Array],
    policy: Policy | None = None,
    *,
    scheme: Scheme = QAT,
    rule: str = RANGE_RULE,
    batch_norm: str = BATCH_NORMS[0],
) -> Calibrated:
    """Fix the statistics of batch norms, and find the ranges of activations.

    Args:
      model: traced.
      params: a pytree as `model.params`.
      images: batches of one size [N, ...], as the model takes them. Statistics are those of all batches.
      policy: the bits. Ranges are those of the network with fixed statistics at these bits; None: no ranges.
      scheme: how tensors are quantized.
      rule: how ranges are found (`cnn.deploy.calibration.RANGE_RULES`).
      batch_norm: 'corrected': statistics of the rounded network, whose norms stay beside its weights
        (`correct`); 'calibrated': of the network in float, folded into them (`fold`), as always where the
        policy rounds nothing.

    Returns:
      The model with fixed statistics; its weights are not rounded.

    Raises:
      UserError: no images, batches of several sizes, images or parameters of other shapes or that are not
        finite, a policy of another model, another `batch_norm`.
      DependsOnBatch: a batch norm of an unknown form, another sum over the images.
    """
    if batch_norm not in BATCH_NORMS:
        raise UserError(f'batch_norm={batch_norm!r} is unknown: expected one of {", ".join(BATCH_NORMS)}')
    check_scheme(scheme)
    check_rule(rule)
    batches = _check_given(model, params, images)
    if policy is None:
        return fold(model, params, batches)
    quantizer = model.quantizer(policy, scheme)
    if batch_norm == 'corrected' and quantizer.rounds:
        calibrated = correct(model, params, batches, quantizer)
    else:
        calibrated = fold(model, params, batches)
    ranges = find_ranges(model, Calibrated.apply, calibrated, batches, quantizer, rule)
    return dataclasses.replace(calibrated, ranges=ranges)


def _check_given(model: Model, params: Any, images: Iterable[Any]) -> list[Any]:
    """Return the batches as arrays; raise UserError for what cannot be calibrated, or gives no numbers."""
    if not isinstance(model, Model):
        raise UserError(f'the model is {shown(model)}: expected one of ghn_jax.trace')
    try:
        batches: list[Any] = [x if isinstance(x, np.ndarray) else jnp.asarray(x) for x in images]
    except (TypeError, ValueError):
        raise UserError(f'images are {shown(images)}: expected a list of batches, arrays') from None
    check_concrete('params and images', (params, batches), 'calibrate outside')
    for batch in batches:
        if np.ndim(batch) != len(model.input_shape):
            raise UserError(
                f'a batch of images has the shape {np.shape(batch)}: expected a list of batches (N, '
                f'{", ".join(map(str, model.input_shape[1:]))})'
            )
    if batches:
        model.prepared(params, batches[0])
    for what, arrays in (('params', params), ('images', batches)):
        if not all(jnp.all(jnp.isfinite(array)) for array in jax.tree.leaves(arrays)):
            raise UserError(f'{what} have values that are no numbers: give finite ones')
    return batches


def fold(model: Model, params: Any, batches: Sequence[Array]) -> Calibrated:
    """Fix the statistics of batch norms and fold them, as `calibrate`; without ranges."""
    found = _find(model, batches)
    affines = affines_of(model, found.traced, params, measure(model, params, batches))
    weights, biases = _layers(model, found, params, affines)
    norms = tuple(
        (scale.astype(found.dtype), shift.astype(found.dtype)) if layers is None else None
        for layers, (scale, shift) in zip(found.traced.structure.folds, affines)
    )
    calibrated = Calibrated(model, params, weights, biases, norms, {})
    _check_independent(found.traced, calibrated)
    return calibrated


def correct(model: Model, params: Any, batches: Sequence[Array], quantizer: FakeQuantizer) -> Calibrated:
    """Fix the statistics of batch norms as they are with rounded weights and activations.

    Nothing is folded: weights are rounded on the grids that they were trained on, and each norm stays as a
    scale and a shift for each channel. A device multiplies every channel by a factor of its own anyway when
    it rescales an accumulator. Arguments as of `fold`.

    quantizer: its ranges are those of each batch.
    """
    found = _find(model, batches)
    weights, biases = _layers(model, found, params)
    unfixed = [BatchStatistics()] * len(found.traced.structure.norms)
    by_batch = Calibrated(model, params, weights, biases, unfixed, {})
    observe = model.compiled(_observe, found.traced)
    each_batch = [jax.device_get(observe(by_batch, x, quantizer)) for x in batches]
    affines = affines_of(model, found.traced, params, [pooled(each) for each in zip(*each_batch)])
    norms = tuple((scale.astype(found.dtype), shift.astype(found.dtype)) for scale, shift in affines)
    calibrated = dataclasses.replace(by_batch, norms=norms)
    _check_independent(found.traced, calibrated)
    return calibrated


def _observe(traced: Traced, by_batch: Calibrated, x: Array, quantizer: FakeQuantizer) -> list[NormMoments]:
    of_batch_size, given = by_batch.model.prepared(by_batch.params, x)
    folded = by_batch.folded(of_batch_size)
    axes = [norm.axes for norm in traced.structure.norms]
    return observed(folded.program, given, folded.sources, axes, rewriter(folded.sites, quantizer))


class _Found(NamedTuple):
    """What is found of a model: its program for two images, and the dtype of what is folded."""

    traced: Traced
    dtype: Any


def _find(model: Model, batches: Sequence[Array]) -> _Found:
    if not batches:
        raise UserError('there are no calibration images: give at least one batch')
    sizes = sorted({len(x) for x in batches})
    if len(sizes) > 1:
        raise UserError(f'the batches have {shown(sizes)} images: give batches of one size')
    of_images = jnp.asarray(batches[0]).dtype
    traced = model.traced((2, *model.input_shape[1:]), of_images)
    return _Found(traced, jnp.promote_types(of_images, jnp.float32))


def _layers(
    model: Model, found: _Found, params: Any, affines: Sequence[tuple[np.ndarray, np.ndarray]] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return weights and biases of the layers, with scales and shifts of the norms folded in, if given."""
    traced, dtype = found
    structure, read = traced.structure, _parameters(model, traced, params)
    weights, biases = {}, {}
    for k, end in structure.ends.items():
        site = traced.recorder.sites[k]
        w = np.asarray(read(traced.program.steps[k].inputs[site.weight]), np.float64)
        weights[k], biases[k] = site.layout.to_tensor(w), _bias(end, site.layer.shape[0], read)
    for layers, (scale, shift) in zip(structure.folds, affines, strict=True) if affines else ():
        ends = np.cumsum([len(weights[k]) for k in layers or ()])[:-1]
        for k, g, b in zip(layers or (), np.split(scale.ravel(), ends), np.split(shift.ravel(), ends)):
            weights[k] = weights[k] * g.reshape(-1, *[1] * (weights[k].ndim - 1))
            biases[k] = b if biases[k] is None else g * biases[k] + b
    name_of = {k: site.layer.name for k, site in traced.recorder.sites.items()}
    cast = lambda of: {name_of[k]: None if a is None else a.astype(dtype) for k, a in of.items()}
    return cast(weights), cast(biases)


def _check_independent(traced: Traced, calibrated: Calibrated) -> None:
    known = traced.recorder.values
    for step in fold_program(traced, calibrated.weights, calibrated.biases, calibrated.norms).program.steps:
        if of_batch(known.get(step.outputs[0])):
            raise DependsOnBatch(
                f'{step} sums over the images and is no part of a batch norm: such a model cannot be '
                'calibrated, score it by the statistics of each batch'
            )


def _parameters(model: Model, traced: Traced, params: Any) -> Callable[[Any], Array]:
    """Return what reads weights and biases as they are used: slots computed from parameters alone."""
    program, sites = traced.program, traced.recorder.sites
    slots: list[Any] = [program.steps[k].inputs[site.weight] for k, site in sites.items()]
    slots += [bias for end in traced.structure.ends.values() for _, bias in end.biases]
    values_of = model.compiled(_values, traced, tuple(slots))
    values = dict(zip(slots, jax.device_get(values_of(params))))
    return values.__getitem__


def _values(traced: Traced, slots: tuple[int, ...], params: Any) -> list[Array]:
    program, leaves = traced.program, jax.tree.leaves(params)
    part = dataclasses.replace(program, steps=needed(program.steps, slots), outputs=slots)
    return run(part, [*leaves, *[None] * (len(program.inputs) - len(leaves))])


def _bias(end: LayerEnd, channels: int, read: Callable[[Operand], Array]) -> np.ndarray | None:
    """Return the sum of the biases behind a layer, [channels]."""
    total = None
    for _, slot in end.biases:
        value = np.asarray(read(slot), np.float64)
        along = tuple(slice(None) if axis == end.axis else 0 for axis in range(value.ndim))
        total = np.broadcast_to(value[along], channels) + (0 if total is None else total)
    return total
