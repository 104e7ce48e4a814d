"""ONNX: a frozen network as nodes and constants, for onnxruntime and what else reads it."""

import importlib.util
from collections.abc import Mapping
from typing import Any

import numpy as np

from ghn_jax.base.errors import UserError
from ghn_jax.export import onnx_indexing as onnx_indexing  # registers its rules
from ghn_jax.export import onnx_layers as onnx_layers  # registers its rules
from ghn_jax.export import onnx_levels as onnx_levels  # registers its rules
from ghn_jax.export.freezing import BATCH, Frozen
from ghn_jax.export.onnx_nodes import IMAGES, INTEGERS, Nodes, OnnxTensor, constant, of_literal, refuse
from ghn_jax.export.onnx_rules import RULES

LOGITS = 'logits'  # the output of the graph
# Pinned: what the package takes by itself is newer than what runtimes read.
OPSET, IR_VERSION = 21, 10
OPSET_OF_2_BITS, IR_VERSION_OF_2_BITS = 25, 13
_MOST = 2**31 - 2**20  # bytes of constants: a file has 2 GiB at most


def check_onnx() -> None:
    """Raise UserError where onnx is not installed."""
    if importlib.util.find_spec('onnx') is None:
        raise UserError('ONNX needs onnx, which is not installed: pip install "ghn-jax[onnx]"')


def to_onnx(frozen: Frozen, metadata: Mapping[str, str] | None = None) -> bytes:
    """Write a frozen network as ONNX: input `images` [batch, ...], output `logits` [batch, classes].

    What is computed in 16-bit floats is written as float32, for which runtimes have all operations.

    Args:
      frozen: of `freeze`.
      metadata: for the file's own.

    Returns:
      The contents of the file.

    Raises:
      UserError: onnx is not installed; an operation that has no rule, with the line that it comes from; more
        weights than a file holds.
    """
    check_onnx()
    nodes = Nodes()
    shape = frozen.images.shape
    images = OnnxTensor(shape, shape, np.dtype(frozen.images.dtype), IMAGES, tuple(range(len(shape))))
    values: dict[int, OnnxTensor] = {
        slot: constant(array) for slot, array in frozen.program.constants.items()
    }
    values[frozen.program.inputs[0]] = images
    read = lambda operand: values[operand] if isinstance(operand, int) else of_literal(operand)
    for step in frozen.program.steps:
        rule = RULES.get(step.primitive)
        if rule is None:
            refuse(step, 'it has no rule')
        results = rule(nodes, step, [read(operand) for operand in step.inputs])
        values |= zip(step.outputs, results if isinstance(results, list) else [results])
    _check_size(nodes)
    return _serialized(nodes, images, _logits(nodes, read(frozen.program.outputs[0])), metadata or {})


def _check_size(nodes: Nodes) -> None:
    bits = {dtype: bits for bits, dtype in INTEGERS.items()}
    size = sum(
        array.size * bits.get(array.dtype, 8 * array.itemsize) // 8 for array in nodes.constants.values()
    )
    if size > _MOST:
        raise UserError(
            f'the weights take {size:,} bytes, and an ONNX file has {_MOST:,} at most: give StableHLO, or a '
            'smaller model'
        )


def _logits(nodes: Nodes, tensor: OnnxTensor) -> OnnxTensor:
    tensor = nodes.full(tensor)
    nodes.nodes.append(('Identity', [nodes.stored(tensor)], [LOGITS], {}))
    return tensor


def _serialized(nodes: Nodes, images: OnnxTensor, logits: OnnxTensor, metadata: Mapping[str, str]) -> bytes:
    import onnx  # pyright: ignore[reportMissingImports]
    from onnx import helper, numpy_helper  # pyright: ignore[reportMissingImports]

    def told(name: str, tensor: OnnxTensor) -> Any:
        kind = helper.np_dtype_to_tensor_dtype(tensor.dtype)
        return helper.make_tensor_value_info(name, kind, [BATCH, *tensor.shape[1:]])

    def written(attribute: Any) -> Any:
        return helper.np_dtype_to_tensor_dtype(attribute) if isinstance(attribute, np.dtype) else attribute

    graph = helper.make_graph(
        [
            helper.make_node(kind, inputs, outputs, **{name: written(a) for name, a in attributes.items()})
            for kind, inputs, outputs, attributes in nodes.nodes
        ],
        'network',
        [told(IMAGES, images)],
        [told(LOGITS, logits)],
        [numpy_helper.from_array(array, name) for name, array in nodes.constants.items()],
    )
    of_2_bits = any(array.dtype == INTEGERS[2] for array in nodes.constants.values())
    opset, version = (OPSET_OF_2_BITS, IR_VERSION_OF_2_BITS) if of_2_bits else (OPSET, IR_VERSION)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid('', opset)], ir_version=version, producer_name='ghn_jax'
    )
    helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()
