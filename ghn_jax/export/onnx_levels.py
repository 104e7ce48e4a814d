"""What levels are in ONNX: QuantizeLinear and DequantizeLinear (the QDQ form)."""

import numpy as np

from ghn_jax.export.levels import ActivationGrid, ConstantLevels
from ghn_jax.export.onnx_nodes import INTEGERS, Nodes, OnnxTensor, constant
from ghn_jax.export.onnx_rules import writes
from ghn_jax.models.program import Step


@writes('round_to_levels')
def round_to_levels(nodes: Nodes, step: Step, inputs: list[OnnxTensor]) -> OnnxTensor:
    """Quantize and dequantize.

    Levels that are fewer than those of the integers that hold them are kept to by cutting off what lies
    beyond; those of one bit on both sides of 0 are made of signs.
    """
    (x,), grid, shape = inputs, step.eqn.params['grid'], step.out_shape
    assert isinstance(grid, ActivationGrid)
    scale, zero = constant(grid.scale, np.float32), constant(grid.zero, INTEGERS[grid.width])
    if not grid.scale:
        return nodes.map('Mul', [x, scale], shape)
    if grid.signs:
        x = nodes.map('Mul', [nodes.map('Sign', [x], shape), scale], shape)
    elif grid.top < 2**grid.width - 1:
        ends = [constant((end - grid.zero) * grid.scale, np.float32) for end in (0, grid.top)]
        x = nodes.map('Clip', [x, *ends], shape)
    q = nodes.map('QuantizeLinear', [x, scale, zero], shape, zero.dtype)
    return nodes.map('DequantizeLinear', [q, scale, zero], shape, np.float32)


@writes('read_levels')
def read_levels(nodes: Nodes, step: Step, inputs: list[OnnxTensor]) -> OnnxTensor:
    """Keep integers with the numbers that they stand for; `Nodes.stored` writes them."""
    codes, scale, zero = (t.array for t in inputs)
    assert codes is not None and scale is not None and zero is not None
    levels = ConstantLevels(codes.astype(np.int32), scale, zero.astype(np.int32), step.eqn.params['width'])
    return constant(levels.real, levels=levels)
