"""The file of a network with predicted parameters, for another runtime."""

import json
import os
from typing import Any

import numpy as np

import ghn_jax
from ghn_jax.base import cli, files
from ghn_jax.base.errors import FieldError
from ghn_jax.base.paths import Place
from ghn_jax.export.freezing import freeze
from ghn_jax.export.onnx_file import check_onnx, to_onnx
from ghn_jax.export.stablehlo import check_stablehlo, to_stablehlo
from ghn_jax.models.model import Model
from ghn_jax.quant.policy import Policy
from ghn_jax.runs.hypernetwork import Hypernetwork

FORMATS = ('stablehlo', 'onnx')
CALIBRATION_IMAGES = 256


def check_output(path: str | os.PathLike, format: str) -> Place:
    """Return the path of the file to be written. Raises FieldError where it cannot be, or is of the other."""
    if not path:
        raise FieldError('out', f' is missing: give a file, such as net.{format}')
    return cli.check_output(path, 'out', [f'.{format}'])


def check_format(format: str, policy: Policy) -> None:
    """Raise UserError where a format does not go with the bits, or what writes it is not installed."""
    if format == 'onnx' and policy != Policy():
        raise FieldError(
            'format',
            f'=onnx and bits={policy}: ONNX files are float: leave out the bits, or give format=stablehlo',
        )
    check_onnx() if format == 'onnx' else check_stablehlo()


def export_model(
    hypernetwork: Hypernetwork,
    model: Model,
    *,
    policy: Policy,
    format: str,
    calibration_images: int = CALIBRATION_IMAGES,
    params: Any = None,
) -> bytes:
    """Predict the parameters of a model, fix its statistics, and write it for another runtime.

    Statistics of batch norms and ranges of activations are those of the first training images of the run.

    Args:
      hypernetwork: that predicts the parameters, whose run has the images.
      model: traced; of a spec, too.
      policy: bits of weights and activations; they are rounded in the program itself.
      format: one of FORMATS.
      calibration_images: how many.
      params: a pytree as `model.params`, in place of predicted ones.

    Returns:
      The contents of the file.

    Raises:
      UserError: as `check_format`, `Hypernetwork.predict`, `freeze` and `to_onnx`.
    """
    check_format(format, policy)
    used = hypernetwork.used(policy)
    params = hypernetwork.predict(model, policy) if params is None else params
    quantizer = None if policy == Policy() else model.quantizer(used, hypernetwork.scheme)
    data = hypernetwork.load_data()
    images = data.normalized('train', calibration_images)
    frozen = freeze(lambda x: model.apply(params, x, quantizer), images)
    if format == 'stablehlo':
        return to_stablehlo(frozen)
    metadata = {
        'model': model.name,
        'bits': str(policy),
        'calibration_images': str(len(images)),
        'step': str(hypernetwork.step),
        'mean': json.dumps(np.ravel(data.mean).tolist()),
        'std': json.dumps(np.ravel(data.std).tolist()),
        'ghn_jax': ghn_jax.__version__,
    }
    return to_onnx(frozen, metadata)


def write_export(hypernetwork: Hypernetwork, model: Model, out: Place, *, policy: Policy, **how: Any) -> str:
    """Write what `export_model` gives to a file; return a line about it."""
    data = export_model(hypernetwork, model, policy=policy, **how)
    files.write(out, data)
    return (
        f'{out}: {model.name}, {policy}, {len(data):,} bytes; images '
        f'[N, {", ".join(map(str, model.input_shape[1:]))}] to logits [N, {model.classes}]'
    )
