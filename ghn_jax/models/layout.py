"""Where a predicted tensor goes: from the hypernetwork's layout to the model's, and to its parameter.

Tensors are predicted as (out, in / groups, height, width), (out, in), (channels,) or, for positions,
(1, channels, height, width).
"""

import dataclasses
import math
from typing import Any

import numpy as np

from ghn_jax.models.values import Shape, View


@dataclasses.dataclass(frozen=True)
class OperandLayout:
    """How an operand is made from a predicted tensor: reshape to `split`, then transpose by `order`.

    Attributes:
      shape: of the tensor as it is predicted.
    """

    shape: Shape
    split: Shape
    order: tuple[int, ...]

    def to_operand(self, tensor: Any) -> Any:
        """Return the operand for a tensor, both arrays of NumPy or of JAX."""
        return tensor.reshape(self.split).transpose(self.order)

    def to_tensor(self, operand: Any) -> Any:
        """Return the tensor of an operand."""
        back = tuple(self.order.index(axis) for axis in range(len(self.order)))
        return operand.transpose(back).reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class PredictedTensor:
    """A tensor that is predicted, and the view of a parameter that it is for. layout: None for 1-D ones."""

    shape: Shape
    view: View
    layout: OperandLayout | None = None

    def to_parameter(self, tensor: np.ndarray, shape: Shape) -> np.ndarray:
        """Return the parameter, of this shape, from the predicted tensor."""
        if self.layout is None:
            return tensor.reshape(shape)
        return self.view.undo(self.layout.to_operand(tensor))

    def channel_axis(self, shape: Shape) -> int | None:
        """Return the axis of the parameter that output channels lie along; None if they take several."""
        channels = np.arange(self.shape[0])
        channel_of = np.broadcast_to(channels.reshape(-1, *[1] * (len(self.shape) - 1)), self.shape)
        placed = self.to_parameter(channel_of, shape)
        for axis in range(len(shape)):
            along = [-1 if i == axis else 1 for i in range(len(shape))]
            if shape[axis] == len(channels) and np.all(placed == channels.reshape(along)):
                return axis
        return None


def of_convolution(operand: Shape, spec: tuple[int, ...]) -> OperandLayout:
    """Return the layout of a kernel; spec: which of its axes are out, in, height, width (`rhs_spec`)."""
    shape = tuple(operand[axis] for axis in spec)
    return OperandLayout(shape, shape, tuple(spec.index(axis) for axis in range(len(spec))))


def of_product(operand: Shape, contracted: tuple[int, ...]) -> OperandLayout:
    """Return the layout of a linear layer's weight; its axes `contracted` are summed over, in this order."""
    out = [axis for axis in range(len(operand)) if axis not in contracted]
    axes = (*out, *contracted)
    split = tuple(operand[axis] for axis in axes)
    shape = math.prod(split[: len(out)]), math.prod(split[len(out) :])
    return OperandLayout(shape, split, tuple(axes.index(axis) for axis in range(len(operand))))


def of_positions(operand: Shape, channels: int) -> OperandLayout | None:
    """Return the layout of position encodings of a map or of the tokens of a square one; None if neither."""
    sizes = operand[1:] if len(operand) > 2 and operand[0] == 1 else operand
    ones = (1,) * (len(operand) - len(sizes))
    if channels not in sizes:
        return None
    axis = len(sizes) - 1 - sizes[::-1].index(channels)
    space = sizes[:axis] + sizes[axis + 1 :]
    if len(space) == 1 and math.isqrt(space[0]) ** 2 == space[0]:
        height = width = math.isqrt(space[0])
    elif len(space) == 2:
        height, width = space
    else:
        return None
    split = (*ones, channels, *space)
    order = list(range(len(split)))
    order.remove(len(ones))
    order.insert(len(ones) + axis, len(ones))
    return OperandLayout((1, channels, height, width), split, tuple(order))
