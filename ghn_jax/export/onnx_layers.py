"""What convolutions, products and pools are in ONNX."""

import math
from collections.abc import Sequence
from typing import Any

from ghn_jax.export.onnx_nodes import Nodes, OnnxTensor, constant, refuse, result
from ghn_jax.export.onnx_rules import writes
from ghn_jax.models.program import Step


@writes('conv_general_dilated')
def convolve(nodes: Nodes, step: Step, inputs: list[OnnxTensor]) -> OnnxTensor:
    """Convolve, with groups, strides and dilation."""
    params, numbers = step.eqn.params, step.eqn.params['dimension_numbers']
    if params['batch_group_count'] != 1 or max(params['lhs_dilation']) > 1:
        refuse(step, 'it is a transposed convolution, or the gradient of one')
    x, w = map(nodes.full, inputs)
    padding = params['padding']
    if min(min(pair) for pair in padding) < 0:
        refuse(step, 'its padding is negative')
    (name,) = nodes.add(
        'Conv',
        [nodes.stored(x, numbers.lhs_spec), nodes.stored(w, numbers.rhs_spec)],
        kernel_shape=[w.shape[axis] for axis in numbers.rhs_spec[2:]],
        strides=list(params['window_strides']),
        dilations=list(params['rhs_dilation']),
        group=params['feature_group_count'],
        pads=_sides(padding),
    )
    return result(step, name, numbers.out_spec)


@writes('dot_general')
def product(nodes: Nodes, step: Step, inputs: list[OnnxTensor]) -> OnnxTensor:
    """Multiply: a matrix product where it is one, a sum of products over any axes otherwise."""
    (of_x, of_w), (batch_x, batch_w) = step.eqn.params['dimension_numbers']
    x, w = map(nodes.full, inputs)
    if not batch_x and len(of_x) == 1 and len(w.shape) == 2:
        free = [axis for axis in range(len(x.shape)) if axis not in of_x]
        names = [nodes.stored(x, [*free, *of_x]), nodes.stored(w, [*of_w, 1 - of_w[0]])]
        # Of integers, so that their bias has a place in it (`Nodes.biased`).
        kind = 'Gemm' if w.levels is not None and len(free) == 1 else 'MatMul'
        return result(step, nodes.add(kind, names)[0], range(len(step.out_shape)))
    letters = iter('abcdefghijklmnopqrstuvwxyz')
    left = [next(letters) for _ in x.shape]
    right = ['' for _ in w.shape]
    for a, b in zip((*of_x, *batch_x), (*of_w, *batch_w)):
        right[b] = left[a]
    right = [letter or next(letters) for letter in right]
    out = [left[a] for a in batch_x]
    out += [left[a] for a in range(len(left)) if a not in (*of_x, *batch_x)]
    out += [right[b] for b in range(len(right)) if b not in (*of_w, *batch_w)]
    terms = [''.join(names[axis] for axis in t.order) for names, t in ((left, x), (right, w))]
    stored = [nodes.stored(t, t.order) for t in (x, w)]
    (name,) = nodes.add('Einsum', stored, equation=f'{",".join(terms)}->{"".join(out)}')
    return result(step, name, range(len(out)))


@writes('reduce_window_max', 'reduce_window_sum')
def pool(nodes: Nodes, step: Step, inputs: list[OnnxTensor]) -> OnnxTensor:
    """Pool over windows; a sum is a mean, zeros outside counted, times the size of the window."""
    x, params = nodes.full(inputs[0]), step.eqn.params
    window, strides, padding = (params[k] for k in ('window_dimensions', 'window_strides', 'padding'))
    still = [
        axis for axis in range(len(window)) if window[axis] == strides[axis] == 1 and padding[axis] == (0, 0)
    ]
    if len(still) < 2 or max(params['base_dilation']) > 1:
        refuse(step, 'its windows are over more than the axes of images')
    order = x.order
    if order[0] not in still or order[1] not in still:
        order = (still[0], still[-1], *(a for a in range(len(window)) if a not in (still[0], still[-1])))
    pooled_axes = lambda values: [values[axis] for axis in order[2:]]
    attributes: dict[str, Any] = {
        'kernel_shape': pooled_axes(window),
        'strides': pooled_axes(strides),
        'pads': _sides(pooled_axes(padding)),
        'dilations': pooled_axes(params['window_dilation']),
    }
    kind = 'MaxPool' if step.primitive == 'reduce_window_max' else 'AveragePool'
    if kind == 'AveragePool':
        attributes['count_include_pad'] = 1
    (name,) = nodes.add(kind, [nodes.stored(x, order)], **attributes)
    pooled = result(step, name, order)
    if kind == 'MaxPool':
        return pooled
    return nodes.map('Mul', [pooled, constant(math.prod(window), pooled.dtype)], step.out_shape)


def _sides(padding: Sequence[tuple[int, int]]) -> list[int]:
    """ONNX's way to write padding: all begins, then all ends."""
    return [int(pair[side]) for side in (0, 1) for pair in padding]
