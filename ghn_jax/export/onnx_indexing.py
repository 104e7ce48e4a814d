"""What cutting and gathering is in ONNX: at places that are known, as when a model picks `x[:, 0]`."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ghn_jax.export.onnx_nodes import Nodes, OnnxTensor, refuse
from ghn_jax.export.onnx_rules import writes
from ghn_jax.models.program import Step


@writes('slice')
def cut(nodes: Nodes, step: Step, inputs: list[OnnxTensor]) -> OnnxTensor:
    """Cut out, maybe every other number."""
    x, params = nodes.full(inputs[0]), step.eqn.params
    strides = params['strides'] or (1,) * len(x.shape)
    cuts = zip(params['start_indices'], params['limit_indices'], strides)
    return _cut(nodes, step, x, list(enumerate(cuts)))


@writes('rev')
def reverse(nodes: Nodes, step: Step, inputs: list[OnnxTensor]) -> OnnxTensor:
    """Turn around."""
    return _cut(
        nodes,
        step,
        nodes.full(inputs[0]),
        [(axis, (-1, -(2**62), -1)) for axis in step.eqn.params['dimensions']],
    )


@writes('gather')
def gather(nodes: Nodes, step: Step, inputs: list[OnnxTensor]) -> OnnxTensor:
    """Cut out at one place, or pick several along axes, each by itself; other gathers have no form here.

    `x[:, 1]` is one where the number of images is a symbol, and so is `x[:, ::2, ::2]`.
    """
    x, places, params = nodes.full(inputs[0]), inputs[1].array, step.eqn.params
    numbers, sizes = params['dimension_numbers'], params['slice_sizes']
    if places is None or numbers.operand_batching_dims:
        refuse(step, 'it picks at places that depend on the images')
    cuts, picked = [], {}  # axis of x -> (axis of the places that it varies along, the places)
    for axis, at in zip(numbers.start_index_map, np.moveaxis(places, -1, 0)):
        length, varying = x.shape[axis], [k for k in range(at.ndim) if np.any(at != at.take([0], k))]
        if not isinstance(length, int) or at.min() < 0 or at.max() + sizes[axis] > length:
            refuse(step, 'it picks at places that are outside of the tensor, or among the images')
        if not varying:
            cuts.append((axis, (int(at.flat[0]), int(at.flat[0]) + sizes[axis], 1)))
        elif len(varying) > 1 or axis not in numbers.collapsed_slice_dims:
            refuse(step, 'it picks along several axes at once')
        else:
            first = tuple(slice(None) if k in varying else 0 for k in range(at.ndim))
            picked[axis] = varying[0], at[first]
    _check_order(step, len(x.shape), {axis: k for axis, (k, _) in picked.items()}, places.shape[:-1])
    x = _cut(nodes, step, x, cuts)
    for axis, (_, at) in picked.items():
        (name,) = nodes.add('Gather', [x.name, nodes.constant(at.astype(np.int64))], axis=x.order.index(axis))
        shape = tuple(len(at) if other == axis else size for other, size in enumerate(x.shape))
        x = dataclasses.replace(x, name=name, shape=shape, dims=shape)
    return x if x.shape == step.out_shape else nodes.reshaped(x, step.out_shape, step)


def _check_order(step: Step, rank: int, picked: dict[int, int], batch: Sequence[int]) -> None:
    """Refuse a gather whose result has its axes in another order, or picks more than once.

    rank: of what is picked from.   picked: axis of it -> axis of the places.   batch: lengths of these.
    """
    numbers = step.eqn.params['dimension_numbers']
    kept = iter(axis for axis in range(rank) if axis not in numbers.collapsed_slice_dims)
    of_places, axis_of = iter(range(len(batch))), {k: axis for axis, k in picked.items()}
    found = []
    for place in range(len(step.out_shape)):
        if place in numbers.offset_dims:
            found.append(next(kept))
        elif (k := next(of_places)) in axis_of:
            found.append(axis_of[k])
        elif batch[k] != 1:
            refuse(step, 'it picks the same several times')
    if len(axis_of) < len(picked) or found != sorted(found):
        refuse(step, 'it puts what it picks along another axis')


def _cut(
    nodes: Nodes, step: Step, x: OnnxTensor, cuts: Sequence[tuple[int, tuple[int, int, int]]]
) -> OnnxTensor:
    """Cut along axes: (axis, (start, end, stride))."""
    cuts = [(axis, part) for axis, part in cuts if part != (0, x.shape[axis], 1)]
    if not all(isinstance(number, int) for _, part in cuts for number in part):
        refuse(step, 'it cuts at a place that depends on the number of images')
    if not cuts:
        return x
    starts, ends, strides = zip(*(part for _, part in cuts))
    places = [x.order.index(axis) for axis, _ in cuts]
    (name,) = nodes.add('Slice', [x.name, *map(nodes.integers, (starts, ends, places, strides))])
    shape = list(x.shape)
    for axis, (start, end, stride) in cuts:
        shape[axis] = shape[axis] if stride < 0 else -(-(end - start) // stride)
    return dataclasses.replace(x, name=name, shape=tuple(shape), dims=tuple(shape))
