"""Scores a model of the user's own, with predicted or given parameters, at several bit-widths.

The model runs its own operations (`models.model`). Where the protocol has calibrated statistics, batch norms
are folded into the layers before them (`models.folding`).

Axes: N images of a batch.
"""

import dataclasses
import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ghn_jax.base.errors import FieldError, UserError
from ghn_jax.datasets.augment import normalize
from ghn_jax.datasets.load import Dataset
from ghn_jax.evaluation import results
from ghn_jax.evaluation.descriptions import about_images, about_networks, about_run, in_percent
from ghn_jax.evaluation.device import judge
from ghn_jax.evaluation.evaluate import Against, make_batches
from ghn_jax.evaluation.evaluation_spec import EvaluationSpec
from ghn_jax.evaluation.protocol import Protocol
from ghn_jax.evaluation.results import Result
from ghn_jax.evaluation.score import Score
from ghn_jax.evaluation.selection import ImageBatches, image_batches
from ghn_jax.hypernet.policy_features import resolve
from ghn_jax.models.activation_ranges import find_ranges
from ghn_jax.models.folding import Calibrated, correct, fold
from ghn_jax.models.model import Model
from ghn_jax.models.quantizer import FakeQuantizer, Quantizer
from ghn_jax.models.sources import count_parameters
from ghn_jax.models.weights import predict_model
from ghn_jax.networks.graph import count_depth
from ghn_jax.networks.ops import primitives_of
from ghn_jax.quant.strategy import strategy_of
from ghn_jax.runs.calibrated_file import QuantizedNetwork
from ghn_jax.runs.run import Run
from ghn_jax.runs.task import make_space_of

GIVEN_MODEL = 'model'  # what rows call it
_judge = jax.jit(judge)


def evaluate_model(
    run: Run, model: Model, spec: EvaluationSpec | None = None, *, params: Any = None
) -> tuple[Result, Result | None]:
    """Score a model with the parameters that a run's hypernetwork predicts, or given ones, on test images.

    Args:
      run: from `load_run`.
      model: of as many classes as the data have, traced for its images.
      spec: images and bits; its networks and splits are not used. None: the defaults.
      params: a pytree as `model.params`; None: they are predicted.

    Returns:
      As `evaluate`: a result of one row for each bit-width, and what it is compared with. Another run is
      scored with the parameters that it predicts.

    Raises:
      UserError: a protocol that a model cannot be scored by, images that the model is not for, a policy that
        is of another model, what to compare with does not fit, and as `predict_model` and `fold`.
    """
    spec = spec or EvaluationSpec()
    _check_spec(spec, params)
    against, dataset = Against.of(spec.against, run), run.load_images()
    check_data(model, dataset)
    task = _Task(model, spec, dataset, *make_batches(dataset, spec))
    if spec.protocol.batch_norm == 'batch' and (why := one_value(model, spec.batch_size)):
        print(f'warning: batch_size=1: {why}', file=sys.stderr)
    if against.result is not None:
        protocol = task.protocol(run, spec.workdir)
        found = [_describe(model)], protocol['bits'], protocol
        results.check_comparable(against.result, against.path, *found)
    result = task.result_of(run, spec.workdir, params)
    other = task.result_of(against.run, against.path, None) if against.run else against.result
    return (result if other is None else results.compare(result, other)), other


@dataclasses.dataclass(frozen=True)
class _Task:
    """What is the same for all that a model is scored with."""

    model: Model
    spec: EvaluationSpec
    dataset: Dataset
    images: ImageBatches
    calibration: ImageBatches | None

    def result_of(self, run: Run, workdir: str, params: Any) -> Result:
        """Score the model with given parameters, or with those that a run predicts."""
        model, spec, how, begin = self.model, self.spec, self.spec.protocol, time.perf_counter()
        strategy, met = strategy_of(run.config), primitives_of(make_space_of(run.config).ops)
        widths = [resolve(strategy.used(policy), model.graph) for policy in spec.policies]
        told = resolve(strategy.used(spec.predicted_for), model.graph) if spec.predicted_for else None
        observed, given = self.calibration.normalized() if self.calibration else [], params is not None
        scores, runnable = [], None
        for each in widths:
            quantizer = FakeQuantizer(each, strategy.scheme.when_used())
            if params is None or (run.ghn.config.bits and told is None and not given):
                params, _ = predict_model(run.ghn, run.params, model, told or each, primitives=met)
                runnable = None
            if runnable is None or how.batch_norm == 'corrected':
                runnable = _Runnable.of(model, params, observed, how, quantizer)
            scores.append(_score_in_full(runnable, quantizer, self.images, observed, how))
        bits = [str(policy) for policy in spec.policies]
        network = _describe(model) | in_percent(bits, spec.policies, scores)
        protocol = self.protocol(run, workdir) | {
            'parameters': 'given' if given else 'predicted',
            'seconds': round(time.perf_counter() - begin, 1),
        }
        return {'rows': results.make_rows([network], bits), 'networks': [network], 'protocol': protocol}

    def protocol(self, run: Run, workdir: str) -> dict[str, Any]:
        """Return what the result says of how the model is scored."""
        of_images = about_images(self.dataset, self.images, self.calibration, self.spec)
        of_networks = about_networks(run.config, self.spec, {GIVEN_MODEL: 1}, space=None)
        return of_images | about_run(run, workdir, self.spec.predicted_for) | of_networks


def evaluate_quantized(run: Run, network: QuantizedNetwork, spec: EvaluationSpec) -> Result:
    """Score a network that is quantized already, at its own bits, on the test images of a run.

    Args:
      run: from `load_run`; its images are taken.
      network: of `calibrated_file.load`.
      spec: which images; its other fields are not used.

    Returns:
      As `evaluate_model`: one row.

    Raises:
      UserError: images that the network is not for.
    """
    begin = time.perf_counter()
    calibrated, bits = network.calibrated, str(network.policy)
    fixed = Protocol(batch_norm='calibrated', ranges='calibrated')
    spec = dataclasses.replace(spec, policies=(network.policy,), protocol=fixed, predicted_for=None)
    dataset = run.load_images()
    check_data(calibrated.model, dataset)
    size, count = spec.batch_size, spec.num_images
    images = image_batches(dataset, dataset.test, batch_size=size, num_images=count, filled=True)
    score = _score(_Runnable(calibrated.model, Calibrated.apply, calibrated), network.quantizer(), images)
    scored = _describe(calibrated.model) | in_percent([bits], spec.policies, [score])
    protocol = _Task(calibrated.model, spec, dataset, images, None).protocol(run, spec.workdir) | {
        'range_rule': None,  # how it was quantized is what it says itself
        'quantized': dict(network.about),
        'seconds': round(time.perf_counter() - begin, 1),
    }
    return {'rows': results.make_rows([scored], [bits]), 'networks': [scored], 'protocol': protocol}


def one_value(model: Model, batch_size: int) -> str | None:
    """Return why statistics of batches of so many images are of no use to a model; None if they are."""
    if batch_size > 1 or not model.has_single_value_norms():
        return None
    return (
        f'a batch norm of model {model.name!r} has one value a channel, and gives the same for all images: '
        'take a larger batch_size'
    )


def check_data(model: Model, dataset: Dataset) -> None:
    """Raise UserError unless a model is for the classes of a data set, and traced for its images."""
    if model.classes != dataset.num_classes:
        raise UserError(
            f'model {model.name!r} has {model.classes} classes, {dataset.name} has {dataset.num_classes}: '
            f'give a model with {dataset.num_classes} outputs'
        )
    shape = dataset.test.images.shape[1:]
    if model.input_shape[1:] != shape:
        raise UserError(
            f'model {model.name!r} is traced for images of shape {model.input_shape[1:]}, those of '
            f'{dataset.name} have {shape}: trace it for these'
        )


@dataclasses.dataclass(frozen=True)
class _Runnable:
    """A model as it is scored. apply: (arrays, images, quantizer) -> logits.   arrays: a pytree."""

    model: Model
    apply: Callable[[Any, Array, Quantizer | None], Array]
    arrays: Any

    @classmethod
    def of(
        cls, model: Model, params: Any, batches: Sequence[Array], how: Protocol, quantizer: FakeQuantizer
    ) -> '_Runnable':
        if how.batch_norm == 'batch':
            return cls(model, model.apply, params)
        if how.batch_norm == 'corrected' and quantizer.rounds:
            return cls(model, Calibrated.apply, correct(model, params, batches, quantizer))
        return cls(model, Calibrated.apply, fold(model, params, batches))


def _check_spec(spec: EvaluationSpec, params: Any) -> None:
    if spec.predicted_for and params is not None:
        raise FieldError('predicted_for', f'={spec.predicted_for}: the parameters are given: leave it out')
    if integer := spec.protocol.integer:
        raise FieldError(
            'integer',
            f'={integer}: what a model of your own computes between its layers has no integer form: leave it '
            'out, or write its integers with ghn_jax.export and compare what onnxruntime makes of them there',
        )


def _describe(model: Model) -> dict[str, Any]:
    return {
        'split': GIVEN_MODEL,
        'name': model.name,
        'parameters': count_parameters(model.params),
        'depth': count_depth(model.graph),
        'digest': _digest(model),
    }


def _digest(model: Model) -> str:
    """16 hexadecimal digits that tell models with other layers apart."""
    layers = [dataclasses.astuple(layer) for layer in model.layers]
    return hashlib.sha256(json.dumps(layers).encode()).hexdigest()[:16]


def _score_in_full(
    runnable: _Runnable,
    quantizer: FakeQuantizer,
    images: ImageBatches,
    observed: Sequence[Array],
    how: Protocol,
) -> Score:
    """Fix the ranges if they are to be, score, and measure the noise of rounding if wanted."""
    if how.ranges == 'calibrated':
        network = runnable.model, runnable.apply, runnable.arrays
        ranges = find_ranges(*network, observed, quantizer, how.range_rule)
        quantizer = quantizer.with_ranges(ranges)
    score = _score(runnable, quantizer, images)
    if not how.sqnr or not quantizer.rounds:
        return score
    names = dict.fromkeys(layer.parameter for layer in runnable.model.layers)
    return score._replace(sqnr=_layer_sqnr(runnable, quantizer, observed, list(names)))


def _score(runnable: _Runnable, quantizer: FakeQuantizer, images: ImageBatches) -> Score:
    """Count the images whose label is the first, and among the first five, of the model's predictions."""
    logits_of = runnable.model.compiled(_logits, runnable.apply)
    used = quantizer if quantizer.rounds else None
    ranks, predicted = [], []
    for x, y in zip(images.images, images.labels):
        rank, own = _judge(logits_of(runnable.arrays, x, images.mean, images.std, used), y)
        ranks.append(np.asarray(rank))
        predicted.append(np.asarray(own))
    counted = np.ravel(images.labels) >= 0
    rank = np.concatenate(ranks)[counted]
    return Score(float(np.mean(rank < 1)), float(np.mean(rank < 5)), np.concatenate(predicted)[counted])


def _logits(
    apply: Callable[..., Array], arrays: Any, x: Array, mean: Array, std: Array, quantizer: Quantizer | None
) -> Array:
    return apply(arrays, normalize(x, mean, std), quantizer)


def _layer_sqnr(
    runnable: _Runnable, quantizer: FakeQuantizer, batches: Sequence[Array], names: Sequence[str]
) -> dict[str, tuple[float | None, float | None]]:
    """Measure the signal-to-quantization-noise ratio of each layer's weight and activation, in dB.

    None where nothing is rounded, or what is rounded is a cut of what an earlier layer reads.
    """
    sums_of = runnable.model.compiled(_sums, runnable.apply)
    each = [jax.device_get(sums_of(runnable.arrays, x, quantizer)) for x in batches]
    total: Any = jax.tree.map(lambda *sums: np.sum(sums, dtype=np.float64), *each)
    noise_of = lambda what, name: _decibels(*total[what].get(name, (0, 0)))
    return {name: (noise_of('weights', name), noise_of('activations', name)) for name in names}


def _sums(
    apply: Callable[..., Array], arrays: Any, x: Array, quantizer: FakeQuantizer
) -> dict[str, dict[str, tuple[Array, Array]]]:
    noise = _Noise(quantizer)
    apply(arrays, x, noise)
    return {'weights': noise.weights, 'activations': noise.activations}


def _decibels(signal: float, noise: float) -> float | None:
    return round(10 * math.log10(signal / noise), 2) if signal > 0 and noise > 0 else None


@dataclasses.dataclass(frozen=True)
class _Noise:
    """A quantizer that adds up squares of what it rounds, and of its rounding errors, by layer."""

    quantizer: Quantizer
    weights: dict[str, tuple[Array, Array]] = dataclasses.field(default_factory=dict)
    activations: dict[str, tuple[Array, Array]] = dataclasses.field(default_factory=dict)

    def weight(self, name: str, w: Array) -> Array:
        rounded = self.quantizer.weight(name, w)
        self.weights.setdefault(name, _squares(w, rounded))
        return rounded

    def activation(self, name: str, x: Array, whole: Array) -> Array:
        rounded = self.quantizer.activation(name, x, whole)
        self.activations.setdefault(name, _squares(x, rounded))
        return rounded


def _squares(x: Array, rounded: Array) -> tuple[Array, Array]:
    return jnp.sum(jnp.square(x)), jnp.sum(jnp.square(rounded - x))
