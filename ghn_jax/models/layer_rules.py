"""What primitives with structure do: convolutions, products, sums, windows, concatenation, loops."""

import math
from collections.abc import Sequence
from dataclasses import replace

from ghn_jax.models.layout import of_convolution, of_product
from ghn_jax.models.program import Step
from ghn_jax.models.recorder import Recorder
from ghn_jax.models.rules import elementwise, rule
from ghn_jax.models.values import Constant, Flow, Mixed, Shape, Statistic, Value, View, leaves_of


@rule('conv_general_dilated')
def convolve(recorder: Recorder, step: Step, values: Sequence[Value]) -> Value:
    """Convolve with a parameter: a layer; with a constant (a blur): no node."""
    x, w = values
    if not isinstance(x, Flow | Statistic) or not isinstance(w, View) or w.repeated:
        return elementwise(recorder, step, values)
    params, value = step.eqn.params, recorder.as_flow(x)
    layout = of_convolution(step.shapes[1], params['dimension_numbers'].rhs_spec)
    if len(layout.shape) != 4 or params['batch_group_count'] != 1:
        recorder.refuse([w.leaf], step, 'which is no convolution of the two axes of images')
        return Flow(value.op)
    groups, dilation = params['feature_group_count'], tuple(params['rhs_dilation'])
    depthwise = groups > 1 and layout.shape[1] == 1
    kind = 'conv' if not depthwise else 'sep_conv' if max(dilation) == 1 else 'dil_conv'
    of = {'stride': tuple(params['window_strides']), 'groups': groups, 'dilation': dilation}
    return recorder.layer(kind, value, w, layout, (0, 1), step, **of)


@rule('dot_general')
def product(recorder: Recorder, step: Step, values: Sequence[Value]) -> Value:
    """Multiply with a parameter: a linear layer; tensors with each other: attention; a constant: no node."""
    contracting, batch = step.eqn.params['dimension_numbers']
    x, w = values
    if isinstance(x, Flow | Statistic) and isinstance(w, Flow | Statistic):
        return _attend(recorder, recorder.as_flow(x), recorder.as_flow(w))
    side = 1 if isinstance(w, View) else 0
    weight, other = values[side], values[1 - side]
    if not isinstance(weight, View) or not isinstance(other, Flow | Statistic) or weight.repeated:
        return elementwise(recorder, step, values)
    value = recorder.as_flow(other)
    if batch[side]:
        recorder.refuse([weight.leaf], step, 'a product for each entry of an axis, which is no linear layer')
        return Flow(value.op)
    layout = of_product(step.shapes[side], tuple(contracting[side]))
    return recorder.layer('conv', value, weight, layout, (1 - side, side), step)


def _attend(recorder: Recorder, x: Flow, y: Flow) -> Flow:
    """Queries times keys make scores, scores times values attention."""
    if not x.scores and not y.scores:
        return Flow(x.op, scores=(x.op, y.op))
    ops = list(dict.fromkeys((*x.scores, *y.scores, *(f.op for f in (x, y) if not f.scores))))
    return Flow(recorder.add('msa', ops, channels=recorder.channels[ops[-1]]))


@rule('reduce_sum', 'reduce_max', 'reduce_min')
def reduce(recorder: Recorder, step: Step, values: Sequence[Value]) -> Value:
    """Sum over axes: part of a norm, or a global pool."""
    (value,) = values
    axes, shape = step.eqn.params['axes'], step.shapes[0]
    if isinstance(value, Statistic) and recorder.is_pool(value):
        value = replace(recorder.as_flow(value), squared=value.power)
    (images,) = recorder.axes_of(step)
    batch = images is None or images in axes or (isinstance(value, Statistic) and value.batch)
    left = math.prod(step.out_shape) // (1 if batch else recorder.images)
    if isinstance(value, Statistic):
        return replace(value, batch=batch, origin=step.outputs[0], left=left)
    if not isinstance(value, Flow):
        return Mixed(leaves_of(value), value.step if isinstance(value, Mixed) else step)
    window = None if step.primitive == 'reduce_sum' else _two(shape[axis] for axis in axes)
    return Statistic(value.op, batch, value.squared, step.outputs[0], left, window)


@rule('reduce_window_sum', 'reduce_window_max', 'reduce_window_min', 'reduce_window')
def pool(recorder: Recorder, step: Step, values: Sequence[Value]) -> Value:
    """Pool over windows."""
    value = values[0]
    window = step.eqn.params['window_dimensions']
    if not isinstance(value, Flow | Statistic) or max(window) == 1:
        return elementwise(recorder, step, values)
    flow = recorder.as_flow(value)
    C, mean = recorder.channels[flow.op], step.primitive == 'reduce_window_sum'
    if mean and math.prod(step.out_shape) == C * recorder.images:
        return Flow(recorder.add('glob_avg', [flow.op], channels=C))
    shape = (1, 1, *_two(size for size in window if size > 1))
    return Flow(recorder.add('avg_pool' if mean else 'max_pool', [flow.op], channels=C, shape=shape))


def _two(sizes) -> Shape:
    """Two sizes of a window, whatever its axes."""
    height, width = (*sizes, 1, 1)[:2]
    return height, width


@rule('concatenate')
def concatenate(recorder: Recorder, step: Step, values: Sequence[Value]) -> Value:
    """Join tensors along an axis, their channels or another."""
    flows = [v for v in values if isinstance(v, Flow | Statistic)]
    if any(map(leaves_of, values)) or not flows:
        return elementwise(recorder, step, values)
    if all(
        isinstance(v, Statistic) and v.op == flows[0].op and v.left != recorder.channels[v.op] for v in flows
    ):
        return recorder.join('concat', flows)
    if len({v.op for v in flows}) == 1 and all(isinstance(v, Statistic) and v.batch for v in flows):
        return recorder.join('concat', flows)
    flows = [recorder.as_flow(v) for v in flows]
    axis, channels = step.eqn.params['dimension'], [recorder.channels[f.op] for f in flows]
    sizes = [shape[axis] for shape, v in zip(step.shapes, values) if not isinstance(v, Constant)]
    if sizes == channels:
        return Flow(recorder.add('concat', [f.op for f in flows], channels=step.out_shape[axis]))
    return recorder.join('concat', flows)


@rule('stack')
def stack(recorder: Recorder, step: Step, values: Sequence[Value]) -> Value:
    """Join tensors along a new axis."""
    if any(map(leaves_of, values)):
        return elementwise(recorder, step, values)
    return recorder.join('concat', values)


@rule('scan', 'while', 'cond')
def loop(recorder: Recorder, step: Step, values: Sequence[Value]) -> list[Value]:
    """Run a loop or a branch: no node as long as no parameter enters it."""
    leaves = sorted(frozenset[int]().union(*map(leaves_of, values)))
    flows = [v for v in values if isinstance(v, Flow | Statistic)]
    if not flows:
        return [Mixed(frozenset(leaves), step)] * len(step.outputs)
    if leaves:
        recorder.refuse(leaves, step, 'a loop or a branch, inside of which nothing is predicted')
    return [recorder.join('sum', [recorder.as_flow(v) for v in flows])] * len(step.outputs)
