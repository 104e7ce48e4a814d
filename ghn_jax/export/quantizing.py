"""A calibrated model as a function of images whose integers are marked, for `freezing.freeze`."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from ghn_jax.export import levels
from ghn_jax.export.integers import Integers
from ghn_jax.models.folding import Calibrated
from ghn_jax.models.program import run


def marked(calibrated: Calibrated, integers: Integers) -> Callable[[Array], Array]:
    """Return a function from images to logits [N, classes], each image by itself.

    It computes `calibrated.apply(x, quantizer)`, but for the biases, which are rounded, too. Weights,
    activations that enter layers, and biases pass through the operations of `levels`.
    """

    def function(x: Array) -> Array:
        _, given = calibrated.model.prepared(calibrated.params, x)
        folded = calibrated.program(x.shape, x.dtype)
        steps, known = folded.program.steps, {}

        def rewrite(k: int, operands: list[Any], values: dict[int, Any]) -> list[Any]:
            if (site := folded.sites.get(k)) is not None:
                name, slot = site.layer.name, steps[k].inputs[site.activation]
                if name in integers.weights:
                    dtype = operands[site.weight].dtype
                    w = site.layout.to_operand(levels.read(integers.weights[name]))
                    operands[site.weight] = w.astype(dtype)
                if site.reader in integers.activations:
                    if slot not in known:  # which another layer may have rounded
                        grid = integers.activations[site.reader]
                        known[slot] = _rounded(operands[site.activation], grid)
                    operands[site.activation] = known[slot]
                return operands
            return [
                _bias(operand, folded.biases.get(slot), integers) if isinstance(slot, int) else operand
                for slot, operand in zip(steps[k].inputs, operands)
            ]

        return run(folded.program, given, rewrite)[0]

    return function


def _rounded(x: Array, grid: levels.Grid) -> Array:
    return levels.rounded(x.astype(jnp.promote_types(x.dtype, jnp.float32)), grid).astype(x.dtype)


def _bias(operand: Any, name: str | None, integers: Integers) -> Any:
    if name is None or name not in integers.biases:
        return operand
    return levels.read(integers.biases[name].reshaped(operand.shape)).astype(operand.dtype)
