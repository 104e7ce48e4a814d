"""The file of a network with predicted parameters, for another runtime."""

import os
from typing import Any

from ghn_jax.base import cli, files
from ghn_jax.base.errors import FieldError
from ghn_jax.base.paths import Place
from ghn_jax.export.freezing import freeze
from ghn_jax.export.stablehlo import to_stablehlo
from ghn_jax.models.model import Model
from ghn_jax.quant.policy import Policy
from ghn_jax.runs.hypernetwork import Hypernetwork

FORMATS = ('stablehlo',)
CALIBRATION_IMAGES = 256


def check_output(path: str | os.PathLike, format: str) -> Place:
    """Return the path of the file to be written. Raises FieldError where it cannot be, or is of the other."""
    if not path:
        raise FieldError('out', f' is missing: give a file, such as net.{format}')
    return cli.check_output(path, 'out', [f'.{format}'])


def export_model(
    hypernetwork: Hypernetwork,
    model: Model,
    *,
    policy: Policy,
    calibration_images: int = CALIBRATION_IMAGES,
) -> bytes:
    """Predict the parameters of a model, fix its statistics, and write it for another runtime.

    Statistics of batch norms and ranges of activations are those of the first training images of the run.

    Args:
      hypernetwork: that predicts the parameters, whose run has the images.
      model: traced; of a spec, too.
      policy: bits of weights and activations; they are rounded in the program itself.
      calibration_images: how many.

    Returns:
      The contents of the file.

    Raises:
      UserError: as `Hypernetwork.predict` and `freeze`.
    """
    used = hypernetwork.used(policy)
    params = hypernetwork.predict(model, policy)
    quantizer = None if policy == Policy() else model.quantizer(used, hypernetwork.scheme)
    images = hypernetwork.load_data().normalized('train', calibration_images)
    frozen = freeze(lambda x: model.apply(params, x, quantizer), images)
    return to_stablehlo(frozen)


def write_export(hypernetwork: Hypernetwork, model: Model, out: Place, *, policy: Policy, **how: Any) -> str:
    """Write what `export_model` gives to a file; return a line about it."""
    data = export_model(hypernetwork, model, policy=policy, **how)
    files.write(out, data)
    return (
        f'{out}: {model.name}, {policy}, {len(data):,} bytes; images '
        f'[N, {", ".join(map(str, model.input_shape[1:]))}] to logits [N, {model.classes}]'
    )
