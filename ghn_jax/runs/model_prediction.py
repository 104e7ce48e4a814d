"""The parameters of a user's own model from a run's hypernetwork, rounded, and their file."""

import json
import time
from typing import Any

import numpy as np

from ghn_jax.base.errors import FieldError
from ghn_jax.base.paths import Place
from ghn_jax.hypernet.policy_features import resolve
from ghn_jax.models.model import Model
from ghn_jax.models.names import named_leaves
from ghn_jax.models.weights import predict_model, unknown_parameters
from ghn_jax.networks.ops import primitives_of
from ghn_jax.quant.policy import Policy
from ghn_jax.quant.strategy import strategy_of
from ghn_jax.runs.prediction import about_prediction
from ghn_jax.runs.run import Run
from ghn_jax.runs.task import make_space_of
from ghn_jax.runs.weight_files import check_packed, pack, write_weights


def write_model(
    run: Run,
    model: Model,
    file: Place,
    *,
    policy: Policy,
    format: str = 'safetensors',
    packed: bool = False,
) -> str:
    """Predict the parameters of a model and write them to a file; return a line about it.

    Tensors are called by their paths in the model's pytree, joined by dots, and have the model's own layout
    and precision. The file's metadata: model, input_shape, layout ('model') and, as of `prediction.predict`,
    step, training_mode, bits, policy, predicted_for and quantization.

    policy: the bits that the weights are rounded to.   format: one of `weight_files.FORMATS`.
    packed: write integers of just their bits, which `weight_files.unpack` reads.

    Raises:
      UserError: as `predict_model`; a policy of another model; a file that cannot be written.
    """
    config: Any = run.config
    strategy = strategy_of(config)
    widths = resolve(strategy.used(policy), model.graph)
    if packed:
        check_packed(widths, str(policy), format)
    start = time.perf_counter()
    met = primitives_of(make_space_of(config).ops)
    params, quantization = predict_model(
        run.ghn, run.params, model, widths, primitives=met, rounded=strategy.scheme
    )
    seconds = time.perf_counter() - start
    weights = {name: np.asarray(leaf) for name, leaf in named_leaves(params).items()}
    metadata = {
        'model': model.name,
        'input_shape': json.dumps(model.input_shape),
        'layout': 'model',
        **about_prediction(run, policy, quantization),
    }
    size, tensors = sum(w.size for w in weights.values()), len(weights)
    if packed:
        weights, metadata = pack(weights, metadata, _channel_axes(model, weights, quantization))
    write_weights(file, weights, metadata, format)
    unpredicted = len({*model.kept, *unknown_parameters(model, met)})
    kept = f', {unpredicted} of them as initialised' if unpredicted else ''
    zeros = f', {len(model.zeros)} biases of convolutions 0' if model.zeros else ''
    return (
        f'{file}: {tensors} tensors{kept}{zeros}, {size:,} parameters, {policy}, predicted in {seconds:.2f} s'
    )


def _channel_axes(
    model: Model, weights: dict[str, np.ndarray], quantization: dict[str, Any]
) -> dict[str, int]:
    """The axis of the output channels of each rounded weight; raises FieldError for what cannot be packed."""
    axes = {}
    for name, grid in quantization.items():
        if weights[name].dtype != np.float32:
            raise FieldError('packed', f': {name} of the model is {weights[name].dtype}, expected float32')
        axis = model.tensors[name].channel_axis(weights[name].shape)
        if axis is None and isinstance(grid['scale'], list):
            raise FieldError('packed', f': output channels of {name} lie along several axes: leave it out')
        axes[name] = axis or 0
    return axes
