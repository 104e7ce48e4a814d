"""A calibrated model with integers for what is rounded: as a function of images, and as a file."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from ghn_jax.base.errors import UserError
from ghn_jax.export import levels
from ghn_jax.export.freezing import freeze
from ghn_jax.export.integers import Integers, to_integers
from ghn_jax.export.onnx_file import to_onnx
from ghn_jax.export.runtime import OPTIONS, options_for
from ghn_jax.models.folding import Calibrated
from ghn_jax.models.kept_norms import absorb, with_biases
from ghn_jax.models.program import run
from ghn_jax.models.quantizer import FakeQuantizer


def to_quantized_onnx(
    calibrated: Calibrated, quantizer: FakeQuantizer, metadata: Mapping[str, str] | None = None
) -> bytes:
    """Write a calibrated model as ONNX in QDQ form, input and output as `to_onnx`.

    Weights and biases are integers, each with a DequantizeLinear; what enters a layer passes through a
    QuantizeLinear and a DequantizeLinear. The file's metadata say which options onnxruntime needs
    (`runtime.session_options`).

    Args:
      calibrated: with the ranges of all activations that are rounded.
      quantizer: of `calibrated.quantizer`.
      metadata: for the file's own.

    Returns:
      The contents of the file.

    Raises:
      UserError: as `to_onnx` and `to_integers`; a model that is not calibrated.
    """
    if not isinstance(calibrated, Calibrated) or not isinstance(quantizer, FakeQuantizer):
        raise UserError('expected what ghn_jax.calibrate returns, and its quantizer(policy, scheme)')
    integers = to_integers(calibrated, quantizer)
    images = jnp.zeros((2, *calibrated.model.input_shape[1:]))  # of which nothing is measured
    frozen = freeze(marked(calibrated, integers), images)
    pools = any(step.primitive == 'reduce_window_max' for step in frozen.program.steps)
    options = options_for(integers, pools=pools)
    needed = {OPTIONS: json.dumps(options)} if options else {}
    return to_onnx(frozen, {**(metadata or {}), **needed})


def with_integer_biases(calibrated: Calibrated, quantizer: FakeQuantizer) -> Calibrated:
    """Return the network with the biases that its file has. Arguments as of `to_quantized_onnx`.

    Where a norm has stayed behind a layer, its shift makes up for what rounding does to their sum.
    """
    rounded = to_integers(calibrated, quantizer).biases
    return with_biases(calibrated, {name: bias.real for name, bias in rounded.items()})


def marked(calibrated: Calibrated, integers: Integers) -> Callable[[Array], Array]:
    """Return a function from images to logits [N, classes], each image by itself.

    It computes `calibrated.apply(x, quantizer)`, but for the biases, which are rounded, too. Weights,
    activations that enter layers, and biases pass through the operations of `levels`.
    """
    absorbed, _ = absorb(calibrated)

    def function(x: Array) -> Array:
        traced, given = absorbed.model.prepared(absorbed.params, x)
        folded = absorbed.folded(traced)
        steps, known = folded.program.steps, {}

        def rewrite(k: int, operands: list[Any], values: dict[int, Any]) -> list[Any]:
            if (site := folded.sites.get(k)) is not None:
                name, slot = site.layer.name, steps[k].inputs[site.activation]
                if name in integers.weights:
                    dtype = operands[site.weight].dtype
                    w = site.layout.to_operand(levels.read(integers.weights[name]))
                    operands[site.weight] = w.astype(dtype)
                if name in integers.activations:
                    if slot not in known:  # which another layer may have rounded
                        grid = integers.activations[name]
                        known[slot] = _rounded(operands[site.activation], grid)
                    operands[site.activation] = known[slot]
                return operands
            return [
                _bias(operand, folded.biases.get(slot), integers) if isinstance(slot, int) else operand
                for slot, operand in zip(steps[k].inputs, operands)
            ]

        return run(folded.program, given, rewrite)[0]

    return function


def _rounded(x: Array, grid: levels.ActivationGrid) -> Array:
    return levels.rounded(x.astype(jnp.promote_types(x.dtype, jnp.float32)), grid).astype(x.dtype)


def _bias(operand: Any, name: str | None, integers: Integers) -> Any:
    if name is None or name not in integers.biases:
        return operand
    return levels.read(integers.biases[name].reshaped(operand.shape)).astype(operand.dtype)
