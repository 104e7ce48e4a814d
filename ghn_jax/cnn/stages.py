"""From an operation's layers to the instructions that run them."""

import functools
from typing import NamedTuple

from ghn_jax.cnn.instructions import (
    Attention,
    AvgPool,
    Conv,
    Copy,
    Depthwise,
    Excite,
    Kind,
    MaxPool,
    Mlp,
    Norm,
    Reduce,
    Split,
)
from ghn_jax.networks import layers
from ghn_jax.networks.ops import OPERATIONS


class Stage(NamedTuple):
    """One step of an operation, and what it makes.

    Attributes:
      kind: what runs it, once for each part of its result; a dense convolution for each part that it reads,
        too.
      parts: of its result, each with the channels of the operation; together they are one tensor.
      strided: whether its result has the resolution of the operation's, or still that of what this reads.
    """

    kind: Kind
    parts: int
    strided: bool


@functools.cache
def stages_of(op: str, stride: int) -> tuple[Stage, ...]:
    """Return the steps that run an operation in a row, each reading what the one before gives.

    Together they take the operation's parameters, in order.
    """
    operation, stages, rectify, parts, strided = OPERATIONS[op], [], False, 1, False
    for i, layer in enumerate(operation.layers):
        its_stride = stride if i in operation.strided_layers else 1
        parts, strided = layer.channels(parts, 1), strided or i in operation.strided_layers
        stages += [Stage(kind, parts, strided) for kind in _kinds_of_layer(layer, its_stride, rectify)]
        rectify = isinstance(layer, layers.Relu)
    match stages:
        case [
            Stage(Conv(1, columns, over, True, 1)),
            Stage(Conv(rows, 1, dilation=1)),
            *rest,
        ] if over > 1 and columns == rows:
            stages = [Stage(Split(over, columns), 1, True), *rest]
    kinds = [stage.kind for stage in stages]
    if any(isinstance(kind, Conv) and len(set(kind.strides)) > 1 for kind in kinds):
        raise TypeError(f'no instruction runs the strided op {op}: between {kinds} height and width differ')
    return tuple(stages)


def _kinds_of_layer(layer: layers.Layer, stride: int, rectify: bool) -> tuple[Kind, ...]:
    """rectify: a relu stands before the layer."""
    match layer:
        case layers.Relu():
            return ()
        case layers.Conv((height, width), dilation):
            return (Conv(height, width, stride, rectify, dilation),)
        case layers.Depthwise(size, dilation):
            return (Depthwise(size, dilation, stride, rectify),)
        case layers.Norm():
            return (Norm(),)
        case layers.Pool('max'):
            return (MaxPool(stride),)
        case layers.Pool('avg'):
            return (AvgPool(stride),)
        case layers.Skip():
            return (Copy(),) if stride == 1 else (Reduce(), Norm())
        case layers.Gate():
            return (Excite(stride),)
        case layers.TransformerBlock():
            return Attention(), Mlp()
    raise TypeError(f'no instruction runs the layer {layer}: add one to _kinds_of_layer')
