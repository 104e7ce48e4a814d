"""What primitives are in ONNX, number by number and in shape: one rule for each.

A rule takes the nodes so far, a step of the program and the values that it reads, and returns its first
result (or a list, of all results).
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from ghn_jax.export.onnx_nodes import Nodes, OnnxTensor, constant, is_scalar, refuse, result, stored_dtype
from ghn_jax.models.program import PASSED_ON, RuleTable, Step

Rule = Callable[[Nodes, Step, list[OnnxTensor]], OnnxTensor | list[OnnxTensor]]
RULES = RuleTable[Rule]()
writes = RULES.of


# ---- number by number

_ALIKE = {
    'abs': 'Abs', 'add': 'Add', 'add_any': 'Add', 'ceil': 'Ceil', 'cos': 'Cos', 'cosh': 'Cosh', 'div': 'Div',
    'eq': 'Equal', 'erf': 'Erf', 'exp': 'Exp', 'floor': 'Floor', 'ge': 'GreaterOrEqual', 'gt': 'Greater',
    'le': 'LessOrEqual', 'log': 'Log', 'logistic': 'Sigmoid', 'lt': 'Less', 'min': 'Min', 'mul': 'Mul',
    'neg': 'Neg', 'pow': 'Pow', 'sign': 'Sign', 'sin': 'Sin', 'sinh': 'Sinh', 'sqrt': 'Sqrt', 'tan': 'Tan',
    'tanh': 'Tanh',
}  # fmt: skip


@writes(*_ALIKE)
def alike(nodes: Nodes, step: Step, inputs: list[OnnxTensor]) -> OnnxTensor:
    """Write an operation that ONNX has; an integer bias goes into what it is added to."""
    if step.primitive == 'add':
        for x, y in (inputs, inputs[::-1]):
            if nodes.biased(x, y):
                return x
    return nodes.map(_ALIKE[step.primitive], inputs, step.out_shape, _dtype(step))


@writes('sub')
def subtract(nodes: Nodes, step: Step, inputs: list[OnnxTensor]) -> OnnxTensor:
    """Subtract; a constant is added, which runtimes fold into a convolution."""
    x, y = inputs
    if y.array is not None and y.array.dtype.kind == 'f':
        return nodes.map('Add', [x, dataclasses.replace(y, array=-y.array, levels=None)], step.out_shape)
    return nodes.map('Sub', inputs, step.out_shape)


@writes('max')
def maximum(nodes: Nodes, step: Step, inputs: list[OnnxTensor]) -> OnnxTensor:
    """Take the larger one: with 0 a relu."""
    for x, y in (inputs, inputs[::-1]):
        if is_scalar(y, 0) and x.dtype.kind == 'f':
            return nodes.map('Relu', [x], step.out_shape)
    return nodes.map('Max', inputs, step.out_shape)


@writes('clamp')
def clamp(nodes: Nodes, step: Step, inputs: list[OnnxTensor]) -> OnnxTensor:
    """Keep between two bounds."""
    lo, x, hi = inputs
    if is_scalar(lo) and is_scalar(hi):
        return nodes.map('Clip', [x, lo, hi], step.out_shape)
    return nodes.map('Min', [nodes.map('Max', [x, lo], step.out_shape), hi], step.out_shape)


@writes('and', 'or', 'xor', 'not')
def logic(nodes: Nodes, step: Step, inputs: list[OnnxTensor]) -> OnnxTensor:
    """Combine truth values."""
    if inputs[0].dtype != np.bool_:
        refuse(step, 'it is of integers')
    return nodes.map(step.primitive.capitalize(), inputs, step.out_shape)


@writes('is_finite')
def is_finite(nodes: Nodes, step: Step, inputs: list[OnnxTensor]) -> OnnxTensor:
    """Tell numbers from infinities and what is no number."""
    shape = step.out_shape
    others = [nodes.map(kind, inputs, shape, np.bool_) for kind in ('IsInf', 'IsNaN')]
    return nodes.map('Not', [nodes.map('Or', others, shape)], shape)


@writes('select_n')
def select(nodes: Nodes, step: Step, inputs: list[OnnxTensor]) -> OnnxTensor:
    """Choose by a condition."""
    which, *cases = inputs
    if which.dtype != np.bool_ or len(cases) != 2:
        refuse(step, 'it chooses among more than two values')
    return nodes.map('Where', [which, cases[1], cases[0]], step.out_shape, _dtype(step))


@writes('rsqrt')
def reciprocal_root(nodes: Nodes, step: Step, inputs: list[OnnxTensor]) -> OnnxTensor:
    """Divide 1 by the root."""
    return nodes.map('Reciprocal', [nodes.map('Sqrt', inputs, step.out_shape)], step.out_shape)


@writes('ne')
def differs(nodes: Nodes, step: Step, inputs: list[OnnxTensor]) -> OnnxTensor:
    """Compare."""
    return nodes.map('Not', [nodes.map('Equal', inputs, step.out_shape, np.bool_)], step.out_shape)


@writes('square', 'integer_pow')
def power(nodes: Nodes, step: Step, inputs: list[OnnxTensor]) -> OnnxTensor:
    """Take a power."""
    (x,), exponent = inputs, step.eqn.params.get('y', 2)
    if exponent == 2:
        return nodes.map('Mul', [x, x], step.out_shape)
    return nodes.map('Pow', [x, constant(exponent, x.dtype)], step.out_shape)


@writes('exp2')
def power_of_two(nodes: Nodes, step: Step, inputs: list[OnnxTensor]) -> OnnxTensor:
    """Take a power of 2."""
    return nodes.map('Pow', [constant(2, inputs[0].dtype), *inputs], step.out_shape)


@writes('log1p', 'expm1', 'erfc')
def around_one(nodes: Nodes, step: Step, inputs: list[OnnxTensor]) -> OnnxTensor:
    """Compute log(1 + x), exp(x) - 1 or 1 - erf(x)."""
    one, shape = constant(1, inputs[0].dtype), step.out_shape
    if step.primitive == 'log1p':
        return nodes.map('Log', [nodes.map('Add', [*inputs, one], shape)], shape)
    if step.primitive == 'expm1':
        return nodes.map('Sub', [nodes.map('Exp', inputs, shape), one], shape)
    return nodes.map('Sub', [one, nodes.map('Erf', inputs, shape)], shape)


@writes('round')
def rounded(nodes: Nodes, step: Step, inputs: list[OnnxTensor]) -> OnnxTensor:
    """Round, ties to even or away from zero."""
    if int(step.eqn.params['rounding_method']) == 1:
        return nodes.map('Round', inputs, step.out_shape)
    dtype = inputs[0].dtype.type
    half = constant(np.nextafter(dtype(0.5), dtype(0)))  # which added to the float below 0.5 does not give 1
    size = nodes.map('Add', [nodes.map('Abs', inputs, step.out_shape), half], step.out_shape)
    signs = nodes.map('Sign', inputs, step.out_shape)
    return nodes.map('Mul', [signs, nodes.map('Floor', [size], step.out_shape)], step.out_shape)


@writes('rem')
def remainder(nodes: Nodes, step: Step, inputs: list[OnnxTensor]) -> OnnxTensor:
    """Take the remainder, with the sign of the first."""
    return nodes.map('Mod', inputs, step.out_shape, fmod=1)


@writes('convert_element_type')
def convert(nodes: Nodes, step: Step, inputs: list[OnnxTensor]) -> OnnxTensor:
    """Convert; no node where the file has one dtype for both."""
    (x,), dtype = inputs, stored_dtype(_dtype(step))
    if x.dtype == dtype:
        return x
    return nodes.map('Cast', [x], step.out_shape, dtype, to=dtype)


@writes(*PASSED_ON)
def same(nodes: Nodes, step: Step, inputs: list[OnnxTensor]) -> list[OnnxTensor]:
    """Pass on what comes in."""
    return inputs


def _dtype(step: Step) -> np.dtype:
    return step.eqn.outvars[0].aval.dtype  # pyright: ignore[reportAttributeAccessIssue]


# ---- in shape


@writes('transpose')
def transpose(nodes: Nodes, step: Step, inputs: list[OnnxTensor]) -> OnnxTensor:
    """Transpose: the same numbers as stored."""
    (x,), permutation = inputs, step.eqn.params['permutation']
    dims = tuple(x.dims[axis] for axis in permutation)
    if x.array is not None:
        turned = x.array.transpose(permutation)
        levels = x.levels and x.levels.transposed(permutation)
        return dataclasses.replace(x, shape=step.out_shape, dims=dims, array=turned, levels=levels)
    order = tuple(permutation.index(axis) for axis in x.order)
    return dataclasses.replace(x, shape=step.out_shape, dims=dims, order=order)


@writes('reshape', 'squeeze', 'expand_dims')
def reshape(nodes: Nodes, step: Step, inputs: list[OnnxTensor]) -> OnnxTensor:
    """Reshape."""
    return nodes.reshaped(nodes.full(inputs[0]), step.out_shape, step)


@writes('broadcast_in_dim')
def broadcast(nodes: Nodes, step: Step, inputs: list[OnnxTensor]) -> OnnxTensor:
    """Repeat along axes, when it has to be."""
    x, dims = inputs[0], [1] * len(step.out_shape)
    for axis, target in enumerate(step.eqn.params['broadcast_dimensions']):
        dims[target] = x.dims[axis]
    if len(dims) != len(x.dims):
        x = nodes.reshaped(x, tuple(dims), step)
    return dataclasses.replace(x, shape=step.out_shape)


@writes('concatenate')
def concatenate(nodes: Nodes, step: Step, inputs: list[OnnxTensor]) -> OnnxTensor:
    """Join along an axis."""
    parts = list(map(nodes.full, inputs))
    order = next(t.order for t in parts if t.array is None)
    axis = order.index(step.eqn.params['dimension'])
    (name,) = nodes.add('Concat', [nodes.stored(t, order) for t in parts], axis=axis)
    return result(step, name, order)


@writes('stack')
def stack(nodes: Nodes, step: Step, inputs: list[OnnxTensor]) -> OnnxTensor:
    """Join along a new axis."""
    axis = step.eqn.params['axis']
    shape = tuple(1 if k == axis else size for k, size in enumerate(step.out_shape))
    parts = [nodes.stored(nodes.reshaped(nodes.full(t), shape, step)) for t in inputs]
    (name,) = nodes.add('Concat', parts, axis=axis)
    return result(step, name, range(len(shape)))


@writes('unstack')
def unstack(nodes: Nodes, step: Step, inputs: list[OnnxTensor]) -> list[OnnxTensor]:
    """Cut along an axis, which goes."""
    axis, parts = step.eqn.params['axis'], len(step.outputs)
    names = nodes.add(
        'Split', [nodes.stored(nodes.full(inputs[0])), nodes.integers([1] * parts)], outputs=parts, axis=axis
    )
    places, order = nodes.integers([axis]), range(len(step.out_shape))
    return [result(step, nodes.add('Squeeze', [name, places])[0], order) for name in names]


@writes('tile')
def tile(nodes: Nodes, step: Step, inputs: list[OnnxTensor]) -> OnnxTensor:
    """Repeat the whole along axes."""
    x, times = nodes.full(inputs[0]), step.eqn.params['reps']
    if not all(isinstance(n, int) for n in times):
        refuse(step, 'it repeats as often as there are images')
    (name,) = nodes.add('Tile', [nodes.stored(x, x.order), nodes.integers([times[axis] for axis in x.order])])
    return result(step, name, x.order)


@writes('split')
def split(nodes: Nodes, step: Step, inputs: list[OnnxTensor]) -> list[OnnxTensor]:
    """Cut along an axis, into all parts."""
    x, sizes = nodes.full(inputs[0]), step.eqn.params['sizes']
    axis = x.order.index(step.eqn.params['axis'])
    names = nodes.add('Split', [x.name, nodes.integers(sizes)], outputs=len(sizes), axis=axis)
    shapes = [v.aval.shape for v in step.eqn.outvars]  # pyright: ignore[reportAttributeAccessIssue]
    return [dataclasses.replace(x, shape=s, dims=s, name=name) for s, name in zip(shapes, names)]


@writes('pad')
def pad(nodes: Nodes, step: Step, inputs: list[OnnxTensor]) -> OnnxTensor:
    """Surround by a constant, or cut off where the width is negative."""
    x, config = nodes.full(inputs[0]), step.eqn.params['padding_config']
    if any(interior for _, _, interior in config):
        refuse(step, 'it puts numbers between numbers')
    widths = [config[axis][side] for side in (0, 1) for axis in x.order]
    (name,) = nodes.add('Pad', [x.name, nodes.integers(widths), nodes.stored(inputs[1])], mode='constant')
    return result(step, name, x.order)


@writes('reduce_sum', 'reduce_max', 'reduce_min', 'reduce_prod')
def reduce(nodes: Nodes, step: Step, inputs: list[OnnxTensor]) -> OnnxTensor:
    """Sum over axes, or find the extremes along them."""
    x, axes = nodes.full(inputs[0]), step.eqn.params['axes']
    kind = 'Reduce' + step.primitive.removeprefix('reduce_').capitalize()
    places = sorted(x.order.index(axis) for axis in axes)
    (name,) = nodes.add(kind, [x.name, nodes.integers(places)], keepdims=0)
    left = [axis for axis in x.order if axis not in axes]
    return result(step, name, [sorted(left).index(axis) for axis in left])


@writes('cumsum')
def cumulate(nodes: Nodes, step: Step, inputs: list[OnnxTensor]) -> OnnxTensor:
    """Add up along an axis."""
    x, params = nodes.full(inputs[0]), step.eqn.params
    axis = nodes.constant(np.array(x.order.index(params['axis']), np.int64))
    (name,) = nodes.add('CumSum', [x.name, axis], reverse=int(params['reverse']))
    return result(step, name, x.order)
