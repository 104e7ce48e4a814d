"""What cutting and gathering is in ONNX: at places that are known, as when a model picks `x[:, 0]`."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ghn_jax.export.onnx_nodes import Nodes, Tensor, refuse
from ghn_jax.export.onnx_rules import writes
from ghn_jax.models.program import Step


@writes('slice')
def cut(nodes: Nodes, step: Step, inputs: list[Tensor]) -> Tensor:
    """Cut out, maybe every other number."""
    x, params = nodes.full(inputs[0]), step.eqn.params
    strides = params['strides'] or (1,) * len(x.shape)
    cuts = zip(params['start_indices'], params['limit_indices'], strides)
    return _cut(nodes, step, x, list(enumerate(cuts)))


@writes('rev')
def reverse(nodes: Nodes, step: Step, inputs: list[Tensor]) -> Tensor:
    """Turn around."""
    return _cut(
        nodes,
        step,
        nodes.full(inputs[0]),
        [(axis, (-1, -(2**62), -1)) for axis in step.eqn.params['dimensions']],
    )


@writes('gather')
def gather(nodes: Nodes, step: Step, inputs: list[Tensor]) -> Tensor:
    """Cut out at one place, or pick several along one axis; other gathers have no form here."""
    x, places, params = nodes.full(inputs[0]), inputs[1].array, step.eqn.params
    numbers, sizes = params['dimension_numbers'], params['slice_sizes']
    if places is None or places.ndim > 2 or numbers.operand_batching_dims:
        refuse(step, 'it picks at places that depend on the images, or along several axes')
    rows = np.atleast_2d(places)
    if any(
        at < 0 or not isinstance(x.shape[axis], int) or at + sizes[axis] > x.shape[axis]
        for row in rows.tolist()
        for axis, at in zip(numbers.start_index_map, row)
    ):
        refuse(step, 'it picks at places that are outside of the tensor, or among the images')
    varying = [k for k in range(rows.shape[1]) if np.ptp(rows[:, k])]
    axes = [numbers.start_index_map[k] for k in varying]
    if len(axes) > 1 or not {*axes} <= {*numbers.collapsed_slice_dims}:
        refuse(step, 'it picks along several axes')
    still = [k for k in range(rows.shape[1]) if k not in varying]
    starts = {numbers.start_index_map[k]: int(rows[0, k]) for k in still}
    x = _cut(nodes, step, x, [(axis, (at, at + sizes[axis], 1)) for axis, at in starts.items()])
    if axes:
        at = nodes.constant(rows[:, varying[0]].astype(np.int64))
        (name,) = nodes.add('Gather', [x.name, at], axis=x.order.index(axes[0]))
        shape = tuple(len(rows) if axis == axes[0] else size for axis, size in enumerate(x.shape))
        x = dataclasses.replace(x, name=name, shape=shape, dims=shape)
        (new,) = {*range(len(step.out_shape))} - {*numbers.offset_dims}
        if new != sum(axis not in numbers.collapsed_slice_dims for axis in range(axes[0])):
            refuse(step, 'it puts what it picks along another axis')
    return x if x.shape == step.out_shape else nodes.reshaped(x, step.out_shape, step)


def _cut(nodes: Nodes, step: Step, x: Tensor, cuts: Sequence[tuple[int, tuple[int, int, int]]]) -> Tensor:
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
