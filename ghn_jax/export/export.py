"""The file of a network with predicted parameters, for another runtime."""

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import ghn_jax
from ghn_jax.base import cli, files
from ghn_jax.base.errors import FieldError
from ghn_jax.base.paths import Place
from ghn_jax.cnn.deploy.calibration import RANGE_RULE
from ghn_jax.datasets.load import Dataset
from ghn_jax.evaluation.model_evaluation import check_data
from ghn_jax.export.freezing import Frozen, freeze
from ghn_jax.export.onnx_file import check_onnx, to_onnx
from ghn_jax.export.quantizing import to_quantized_onnx, with_integer_biases
from ghn_jax.export.runtime import check_onnxruntime, session_options
from ghn_jax.export.runtime_comparison import Comparison, compare, count_images
from ghn_jax.export.stablehlo import check_stablehlo, to_stablehlo
from ghn_jax.hypernet.policy_features import resolve
from ghn_jax.models.folding import BATCH_NORMS, Calibrated, calibrate
from ghn_jax.models.model import Model
from ghn_jax.models.norms import DependsOnBatch
from ghn_jax.models.quantizer import FakeQuantizer
from ghn_jax.quant.policy import Policy
from ghn_jax.runs import scheme_flags
from ghn_jax.runs.calibrated_file import QuantizedNetwork
from ghn_jax.runs.hypernetwork import Hypernetwork

FORMATS = ('stablehlo', 'onnx')
CALIBRATION_IMAGES = 256
_NOT_FOLDED = 'not_folded'  # in the metadata: why batch norms are not
_BATCH = 64  # calibration images at a time, as in evaluation


@dataclasses.dataclass(frozen=True)
class ExportSpec:
    """What file is written.

    Attributes:
      policy: bits of weights and activations.
      format: one of FORMATS.
      calibration_images: statistics and ranges are those of so many training images, the first ones.
      range_rule: how ranges of activations are found (`cnn.deploy.calibration.RANGE_RULES`).
      batch_norm: one of BATCH_NORMS, as of `evaluation.protocol.Protocol`: statistics of the rounded network,
        or in float. Where nothing is rounded the two are one.
      scheme: fields of the run's `Scheme` to replace, such as granularity='channel'.
    """

    policy: Policy = Policy()
    format: str = 'stablehlo'
    calibration_images: int = CALIBRATION_IMAGES
    range_rule: str = RANGE_RULE
    batch_norm: str = BATCH_NORMS[0]
    scheme: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def of_integers(self) -> bool:
        """Whether the file holds integers."""
        return self.format == 'onnx' and not self.policy.is_float


def check_output(path: str | os.PathLike, format: str | None = None) -> tuple[Place, str]:
    """Return the path of the file to be written, and its format, which its name ends in.

    Args:
      path: of the file.
      format: one of FORMATS that it must be; None: any of them.

    Raises:
      FieldError: the file cannot be written, or its name ends otherwise.
    """
    if not path:
        raise FieldError('out', f' is missing: give a file, such as net.{format or " or net.".join(FORMATS)}')
    out = cli.check_output(path, 'out', [f'.{name}' for name in FORMATS if format in (None, name)])
    return out, out.suffix.removeprefix('.')


def check_spec(spec: ExportSpec, compared: int | None = None) -> None:
    """Raise UserError where flags do not go together, or what is needed is not installed."""
    if spec.range_rule != RANGE_RULE and spec.policy.is_float:
        raise FieldError(
            'range_rule',
            f'={spec.range_rule} with bits={spec.policy}: nothing is rounded; give bits such as w8a8',
        )
    if spec.scheme and spec.policy.is_float:
        name, value = min(spec.scheme.items())
        raise FieldError(
            name, f'={value} with bits={spec.policy}: nothing is rounded; give bits such as w8a8'
        )
    if compared is not None:
        if spec.format != 'onnx':
            raise FieldError(
                'compare', f'={compared}: format={spec.format} is not run by onnxruntime: leave it out'
            )
        check_onnxruntime()
    check_onnx() if spec.format == 'onnx' else check_stablehlo()


class _File(NamedTuple):
    """The file of a network.

    Attributes:
      contents: of the file.
      apply: the evaluation of the network here, from images to logits, compiled.
      metadata: in the contents.
      with_biases: as `apply` with biases that are rounded as in the file, where these are integers.
    """

    contents: bytes
    apply: Callable[[Array], Array]
    metadata: dict[str, str]
    with_biases: Callable[[Array], Array] | None = None


def export_model(hypernetwork: Hypernetwork, model: Model, spec: ExportSpec, *, params: Any = None) -> bytes:
    """Predict the parameters of a model, fix its statistics, and write it for another runtime.

    Statistics of batch norms and ranges of activations are those of the first training images of the run, and
    batch norms are folded (`calibrate`). In StableHLO weights and activations are rounded in the program
    itself. ONNX has integers, in QDQ form. A model that depends on its batch by something that is no known
    batch norm has that, and ranges, fixed on these images as one batch, unless it is to be integers.

    Args:
      hypernetwork: that predicts the parameters, whose run has the images.
      model: traced; of a spec, too.
      spec: what is written.
      params: a pytree as `model.params`, in place of predicted ones.

    Returns:
      The contents of the file.

    Raises:
      UserError: as `check_spec`, `Hypernetwork.predict`, `freeze`, `calibrate` and `to_onnx`.
    """
    check_spec(spec)
    return _file(hypernetwork, model, spec, hypernetwork.load_data(), params).contents


def write_export(
    hypernetwork: Hypernetwork,
    model: Model,
    out: Place,
    spec: ExportSpec,
    compared: int | None = None,
    *,
    params: Any = None,
    quantized: QuantizedNetwork | None = None,
) -> str:
    """Write what `export_model` gives to a file; return lines about it.

    compared: images that onnxruntime runs the file on, if any (`runtime_comparison.compare`).
    quantized: write this network of the model as it is, at its own bits, which are those of `spec`.
    """
    check_spec(spec, compared)
    data = hypernetwork.load_data()
    if compared is not None:  # before the work
        check_data(model, data)
        count_images(data, compared)
    file = _file(hypernetwork, model, spec, data, params, quantized)
    files.write(out, file.contents)
    said = (
        f'{out}: {model.name}, {spec.policy}, {len(file.contents):,} bytes; images '
        f'[N, {", ".join(map(str, model.input_shape[1:]))}] to logits [N, {model.classes}]'
    )
    if why := file.metadata.get(_NOT_FOLDED):
        said += f'\nfixed as in one batch of the calibration images, for {why}'
    if quantized is None and (used := file.metadata['calibration_images']) != str(spec.calibration_images):
        said += f'\nstatistics are those of {used} calibration images, whole batches of {_BATCH}'
    if options := session_options(file.contents) if spec.of_integers else {}:
        said += f'\nonnxruntime needs {" and ".join(f"{name}={value}" for name, value in options.items())}'
    of_few_bits = min(map(min, resolve(spec.policy, model.graph).values())) < 8
    if of_few_bits and file.metadata.get('batch_norm') == 'calibrated':
        said += '\nstatistics of batch norms are those in float: with few bits --bn=corrected loses less'
    if compared is not None:
        said += f'\n{compare(file.contents, file.apply, data, compared, file.with_biases)}'
    return said


def compare_export(
    hypernetwork: Hypernetwork, model: Model, spec: ExportSpec, count: int, *, params: Any = None
) -> Comparison:
    """Compare what onnxruntime computes from the file of `export_model` with the evaluation here.

    count: of images, as of `runtime_comparison.compare`.
    """
    check_spec(spec, count)
    data = hypernetwork.load_data()
    file = _file(hypernetwork, model, spec, data, params)
    return compare(file.contents, file.apply, data, count, file.with_biases)


def _file(
    hypernetwork: Hypernetwork,
    model: Model,
    spec: ExportSpec,
    data: Dataset,
    params: Any,
    quantized: QuantizedNetwork | None = None,
) -> _File:
    metadata = {
        'model': model.name,
        'bits': str(spec.policy),
        **({} if hypernetwork.run.params is None else {'step': str(hypernetwork.step)}),
        'mean': json.dumps(np.ravel(data.mean).tolist()),
        'std': json.dumps(np.ravel(data.std).tolist()),
        'ghn_jax': ghn_jax.__version__,
    }
    if quantized is not None:
        metadata |= quantized.about
        return _calibrated_file(quantized.calibrated, quantized.quantizer(), spec, metadata)
    policy, available = hypernetwork.used(spec.policy), len(data.train.labels)
    scheme = dataclasses.replace(hypernetwork.scheme, **spec.scheme)
    if spec.calibration_images > available:
        raise FieldError(
            'calibration_images',
            f'={spec.calibration_images}: {data.name} has {available:,} training images: give no more',
        )
    params = hypernetwork.predict(model, spec.policy) if params is None else params
    images = data.normalized('train', spec.calibration_images)
    size = min(_BATCH, len(images))
    images = images[: len(images) // size * size]
    batches = list(map(jnp.asarray, images.reshape(-1, size, *images.shape[1:])))
    metadata['calibration_images'] = str(len(images))
    try:
        calibrated = calibrate(
            model, params, batches, None if policy.is_float else policy, scheme=scheme, rule=spec.range_rule,
            batch_norm=spec.batch_norm,
        )  # fmt: skip
    except DependsOnBatch as e:
        if spec.of_integers or spec.range_rule != RANGE_RULE:
            raise
        quantizer = None if policy.is_float else model.quantizer(policy, scheme)
        frozen = freeze(lambda x: model.apply(params, x, quantizer), images)
        return _frozen_file(frozen, spec, metadata | {_NOT_FOLDED: str(e)})
    fixed = None if policy.is_float else calibrated.quantizer(policy, scheme)
    if fixed is not None:
        metadata |= {'range_rule': spec.range_rule, 'batch_norm': spec.batch_norm}
        metadata |= {name: str(getattr(scheme, name)) for name in scheme_flags.FIELDS}
    return _calibrated_file(calibrated, fixed, spec, metadata)


def _calibrated_file(
    calibrated: Calibrated, quantizer: FakeQuantizer | None, spec: ExportSpec, metadata: dict[str, str]
) -> _File:
    # Arrays are arguments: with constants XLA would compute while it compiles, one number after another.
    logits_of = calibrated.model.compiled(Calibrated.apply)  # the same for all bits
    fixed = None if quantizer is None else quantizer.with_ranges(calibrated.ranges)
    apply = lambda x: logits_of(calibrated, x, fixed)
    if quantizer is None or not spec.of_integers:
        written = jax.jit(lambda arrays, x: arrays.apply(x, quantizer, as_written=True))
        images = jnp.zeros((2, *calibrated.model.input_shape[1:]))  # of which nothing is measured
        frozen = freeze(functools.partial(written, calibrated), images)
        return _frozen_file(frozen, spec, metadata)._replace(apply=apply)
    contents = to_quantized_onnx(calibrated, quantizer, metadata)
    as_written = functools.cache(lambda: with_integer_biases(calibrated, quantizer))
    return _File(contents, apply, metadata, lambda x: logits_of(as_written(), x, fixed))


def _frozen_file(frozen: Frozen, spec: ExportSpec, metadata: dict[str, str]) -> _File:
    contents = to_onnx(frozen, metadata) if spec.format == 'onnx' else to_stablehlo(frozen)
    return _File(contents, frozen.apply, metadata)
