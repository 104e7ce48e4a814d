"""A graph of ONNX in the making: nodes, constants, and values that know the order of their axes.

JAX's models have channels last, ONNX's operations want them second. Each value carries the order in which its
axes are stored, so that a transposition costs no node until an operation asks for one order in particular:
between two convolutions there is none. In the same way a value that is repeated along an axis is stored once,
and repeated only where an operation does not do so by itself.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NoReturn

import ml_dtypes
import numpy as np
from jax.extend.core import Literal

from ghn_jax.base.errors import UserError
from ghn_jax.export.levels import ConstantLevels
from ghn_jax.models.program import Step

IMAGES = 'images'  # the input of the graph

_WIDENED = (np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16))  # for which runtimes lack operations
INTEGERS = {
    2: np.dtype(ml_dtypes.uint2),
    4: np.dtype(ml_dtypes.uint4),
    8: np.dtype(np.uint8),
    16: np.dtype(np.uint16),
    32: np.dtype(np.int32),
}  # of levels, by their bits
Sizes = tuple[Any, ...]  # integers, and a symbol for the number of images


@dataclasses.dataclass(frozen=True, eq=False)
class OnnxTensor:
    """A value of the program.

    Attributes:
      shape: as the program has it.
      dims: the same, but 1 along axes that it is not yet repeated along.
      dtype: of what is stored.
      name: in the graph; '' of a constant.
      array: a constant's numbers.
      order: axis k of what is stored is axis order[k] of the value.
      levels: integers that a constant's numbers are stored as; None: they are stored as they are.
    """

    shape: Sizes
    dims: Sizes
    dtype: np.dtype
    name: str
    order: tuple[int, ...]
    array: np.ndarray | None = None
    levels: ConstantLevels | None = None


def stored_dtype(dtype: Any) -> np.dtype:
    """Return the dtype that values have in the file: float32 in the place of 16-bit floats."""
    return np.dtype(np.float32) if np.dtype(dtype) in _WIDENED else np.dtype(dtype)


def constant(value: Any, dtype: Any = None, levels: ConstantLevels | None = None) -> OnnxTensor:
    """Return a constant."""
    array = np.asarray(value, dtype)
    array = array.astype(stored_dtype(array.dtype))
    return OnnxTensor(array.shape, array.shape, array.dtype, '', tuple(range(array.ndim)), array, levels)


def of_literal(literal: Literal) -> OnnxTensor:
    """Return a constant of the program."""
    return constant(literal.val, literal.aval.dtype)  # pyright: ignore[reportAttributeAccessIssue]


def is_scalar(tensor: OnnxTensor, value: float | None = None) -> bool:
    """Return whether a tensor is one constant number, and this one if it is given."""
    known = tensor.array is not None and tensor.array.ndim == 0
    return known and (value is None or tensor.array == value)


def refuse(step: Step, why: str) -> NoReturn:
    """Raise the error that an operation cannot be written."""
    raise UserError(f'operation {step} cannot be written as ONNX: {why}; give StableHLO, or another model')


class Nodes:
    """The nodes of a graph, in order, and its constants by name."""

    def __init__(self):
        self.nodes: list[tuple[str, list[str], list[str], dict[str, Any]]] = []
        self.constants: dict[str, np.ndarray] = {}
        self._known: dict[Any, str] = {}  # constants and transpositions that are there already

    def add(self, kind: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> list[str]:
        """Add a node; return the names of its outputs."""
        names = [f'{kind}_{len(self.nodes)}_{k}' for k in range(outputs)]
        self.nodes.append((kind, list(inputs), names, attributes))
        return names

    def constant(self, array: np.ndarray) -> str:
        """Return the name of a constant with these numbers."""
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = name = f'constant_{len(self.constants)}'
            self.constants[name] = np.ascontiguousarray(array).reshape(array.shape)
        return self._known[key]

    def integers(self, values: Sequence[int]) -> str:
        """Return the name of a constant: a list of integers, such as a shape or axes."""
        return self.constant(np.array(values, np.int64))

    def stored(self, tensor: OnnxTensor, order: Sequence[int] | None = None) -> str:
        """Return the name of a value with its axes in this order; None: its own."""
        order = tuple(range(len(tensor.shape))) if order is None else tuple(order)
        if tensor.levels is not None:
            return self._dequantized(tensor.levels.transposed(order))
        if tensor.array is not None:
            return self.constant(tensor.array.transpose(order))
        perm = [tensor.order.index(axis) for axis in order]
        if perm == sorted(perm):
            return tensor.name
        key = (tensor.name, *perm)
        if key not in self._known:
            (self._known[key],) = self.add('Transpose', [tensor.name], perm=perm)
        return self._known[key]

    def biased(self, tensor: OnnxTensor, bias: OnnxTensor) -> bool:
        """Put an integer bias into the convolution or product that was written last, if that is what has it.

        Runtimes compute these with integers when the bias is in them. Returns whether it is done.
        """
        if bias.levels is None or not self.nodes or self.nodes[-1][2] != [tensor.name]:
            return False
        kind, inputs, _, _ = node = self.nodes[-1]
        if kind not in ('Conv', 'Gemm') or len(inputs) > 2:
            return False
        self.nodes.pop()
        inputs.append(self._dequantized(bias.levels.reshaped((-1,))))
        self.nodes.append(node)
        return True

    def _dequantized(self, levels: ConstantLevels) -> str:
        """Return the name of what integers stand for; one scale for all, or along one axis."""
        axes = [axis for axis, size in enumerate(levels.scale.shape) if size > 1]
        if len(axes) > 1:  # of a product with several axes of channels
            order = [*axes, *(axis for axis in range(levels.codes.ndim) if axis not in axes)]
            moved = levels.transposed(order)
            shape = moved.codes.shape
            flat = self._dequantized(moved.reshaped((math.prod(shape[: len(axes)]), -1)))
            (whole,) = self.add('Reshape', [flat, self.integers(shape)])
            return self.add('Transpose', [whole], perm=[order.index(k) for k in range(len(order))])[0]
        dtype = INTEGERS[levels.width]
        (axis,) = axes or (0,)
        shape = (levels.codes.shape[axis],) if axes else ()
        scale = levels.scale.reshape(shape)
        inputs = [self.constant(levels.codes.astype(dtype)), self.constant(scale)]
        if levels.width < 32:
            zero = np.broadcast_to(levels.zero.ravel(), shape or (1,)).reshape(shape)
            inputs.append(self.constant(zero.astype(dtype)))
        key = ('DequantizeLinear', *inputs, axis)
        if key not in self._known:
            attributes = {'axis': axis} if axes else {}
            (self._known[key],) = self.add('DequantizeLinear', inputs, **attributes)
        return self._known[key]

    def full(self, tensor: OnnxTensor) -> OnnxTensor:
        """Return a value as it is once repeated along its axes."""
        pairs = list(zip(tensor.dims, tensor.shape))
        if all(have == want for have, want in pairs):
            return tensor
        name, order = self.stored(tensor, tensor.order), tensor.order
        wanted = [tensor.shape[axis] if tensor.dims[axis] == 1 else 1 for axis in order]
        if any(not isinstance(size, int) for size in wanted):
            number = self.add('Shape', [IMAGES], start=0, end=1)
            parts = [self.integers([size]) if isinstance(size, int) else number[0] for size in wanted]
            (shape,) = self.add('Concat', parts, axis=0)
        else:
            shape = self.integers(wanted)
        (name,) = self.add('Expand', [name, shape])
        return dataclasses.replace(tensor, dims=tensor.shape, name=name, array=None, levels=None)

    def reshaped(self, tensor: OnnxTensor, shape: Sizes, step: Step) -> OnnxTensor:
        """Return the same numbers in another shape."""
        if tensor.array is not None:
            levels = tensor.levels and tensor.levels.reshaped(shape)
            return constant(tensor.array.reshape(shape), levels=levels)
        if sum(not isinstance(size, int) for size in shape) > 1:
            refuse(step, f'two sizes of the shape {shape} depend on the number of images')
        sizes = self.integers([size if isinstance(size, int) else -1 for size in shape])
        (name,) = self.add('Reshape', [self.stored(tensor), sizes])
        return OnnxTensor(shape, shape, tensor.dtype, name, tuple(range(len(shape))))

    def map(
        self, kind: str, inputs: Sequence[OnnxTensor], shape: Sizes, dtype: Any = None, **attributes: Any
    ) -> OnnxTensor:
        """Compute number by number, with what is repeated repeated by the operation itself.

        dtype: of the result; None: that of the first input.
        """
        rank = len(shape)
        whole = [t for t in inputs if len(t.shape) == rank]
        order = next((t.order for t in whole if t.array is None), tuple(range(rank)))
        names = [self.stored(t, order if len(t.shape) == rank else None) for t in inputs]
        dims = tuple(next((t.dims[k] for t in whole if t.dims[k] != 1), 1) for k in range(rank))
        dtype = inputs[0].dtype if dtype is None else stored_dtype(dtype)
        return OnnxTensor(shape, dims, dtype, self.add(kind, names, **attributes)[0], order)


def result(step: Step, name: str, order: Sequence[int]) -> OnnxTensor:
    """Return a step's first result, stored in full."""
    dtype = stored_dtype(step.eqn.outvars[0].aval.dtype)  # pyright: ignore[reportAttributeAccessIssue]
    return OnnxTensor(step.out_shape, step.out_shape, dtype, name, tuple(order))
