"""What primitives without structure do: reshaping, arithmetic, functions of single numbers.

A rule takes a recorder, a step and what is known of the values it reads, and says what is known of its
results (or a list, of each). Steps that read constants only need none.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from jax.extend.core import Literal

from ghn_jax.models.program import CASTS, PASSED_ON, RuleTable, Step
from ghn_jax.models.recorder import Recorder
from ghn_jax.models.values import Flow, Mixed, Statistic, Value, View, leaves_of

Rule = Callable[[Recorder, Step, Sequence[Value]], Value | list[Value]]
RULES = RuleTable[Rule]()
rule = RULES.of


# ---- the same numbers in another shape


@rule(*PASSED_ON, *CASTS, 'real')
def same(recorder: Recorder, step: Step, values: Sequence[Value]) -> list[Value]:
    """Pass on what comes in: a parameter is the same one in another precision."""
    return list(values)


@rule('reshape', 'squeeze', 'expand_dims', 'transpose', 'broadcast_in_dim', 'rev', 'slice')
def rearrange(recorder: Recorder, step: Step, values: Sequence[Value]) -> Value:
    """Rearrange, repeat or cut."""
    value, before, after = values[0], step.shapes[0], step.out_shape
    if isinstance(step.inputs[0], int):
        recorder.cut[step.outputs[0]] = step.inputs[0]
    if not isinstance(value, View):
        return value
    params = step.eqn.params
    if step.primitive == 'transpose':
        return value.moved('transpose', params['permutation'])
    if step.primitive == 'rev':
        return value.moved('rev', params['dimensions'])
    if math.prod(before) == math.prod(after):
        return value.moved('reshape', before)
    if step.primitive == 'broadcast_in_dim':
        return replace(value, repeated=True)
    return Mixed(leaves_of(value), step)


@rule('pad')
def pad(recorder: Recorder, step: Step, values: Sequence[Value]) -> Value:
    """Surround by a constant; zeros are in the range of every tensor."""
    operand, filling = step.inputs
    if isinstance(operand, int) and isinstance(filling, Literal) and filling.val == 0:
        recorder.cut[step.outputs[0]] = operand
    return elementwise(recorder, step, values)


@rule('split', 'unstack', 'dynamic_slice', 'gather')
def cut(recorder: Recorder, step: Step, values: Sequence[Value]) -> Value:
    """Cut; a slice with a step becomes a gather where the number of images is a symbol."""
    if isinstance(operand := step.inputs[0], int):
        recorder.cut |= dict.fromkeys(step.outputs, operand)
    return elementwise(recorder, step, values)


# ---- arithmetic


def elementwise(recorder: Recorder, step: Step, values: Sequence[Value]) -> Value:
    """Compute something that is no node, such as a relu; values of several nodes meet in a sum."""
    leaves = frozenset[int]().union(*map(leaves_of, values))
    flows = [v for v in values if isinstance(v, Flow | Statistic)]
    if not flows:
        return Mixed(leaves, _cause(step, values))
    if leaves:
        recorder.refuse_mixed(values, step)
    return recorder.join('sum', flows)


# Not as a decorator: other rules call it, and it never returns a list.
rule(
    'abs', 'acos', 'acosh', 'add_any', 'and', 'asin', 'asinh', 'atan', 'atan2', 'atanh', 'cbrt', 'ceil',
    'clamp', 'cos', 'cosh', 'cumlogsumexp', 'cummax', 'cummin', 'cumprod', 'cumsum', 'digamma', 'eq', 'erf',
    'erf_inv', 'erfc', 'exp', 'exp2', 'expm1', 'floor', 'ge', 'gt', 'is_finite', 'le', 'lgamma', 'log',
    'log1p', 'logistic', 'lt', 'max', 'min', 'ne', 'neg', 'nextafter', 'not', 'or', 'rem', 'round',
    'select_n', 'sign', 'sin', 'sinh', 'tan', 'tanh', 'xor', 'argmax', 'argmin', 'sort', 'top_k',
    'scatter', 'scatter-add', 'dynamic_update_slice', 'reduce_and', 'reduce_or',
    'reduce_prod', 'imag', 'fft', 'threefry2x32', 'random_bits', 'bitcast_convert_type', 'complex',
    'conj', 'log2', 'one_minus_square', 'population_count', 'scatter-max', 'scatter-min', 'scatter-mul',
    'scatter-sub', 'shift_left', 'shift_right_arithmetic', 'shift_right_logical', 'tile',
)(elementwise)  # fmt: skip


@rule('square', 'integer_pow')
def power(recorder: Recorder, step: Step, values: Sequence[Value]) -> Value:
    """Take a power; an even one, summed up, may be a variance."""
    value = elementwise(recorder, step, values)
    if step.eqn.params.get('y', 2) != 2:
        return value
    if isinstance(value, Statistic):
        return replace(value, power=True)
    return replace(value, squared=True) if isinstance(value, Flow) else value


@rule('sqrt', 'rsqrt', 'pow')
def root(recorder: Recorder, step: Step, values: Sequence[Value]) -> Value:
    """Take a root: of a variance, a standard deviation."""
    value = elementwise(recorder, step, values)
    return replace(value, root=value.squared) if isinstance(value, Statistic) else value


@rule('mul', 'div')
def multiply(recorder: Recorder, step: Step, values: Sequence[Value]) -> Value:
    """Normalise, scale by a parameter, gate one tensor by another, or none of these."""
    a, b = values
    for x, y in ((a, b), (b, a)) if step.primitive == 'mul' else ((a, b),):
        if isinstance(y, Statistic) and y.root:
            if isinstance(x, View):
                return replace(y, scale=x)
            if isinstance(x, Statistic) and x.origin in recorder.pools:
                x = recorder.as_flow(x)
            if isinstance(x, Flow) and x.op == y.op:
                return recorder.norm(x, y, step)
        if isinstance(y, View) and isinstance(x, Flow | Statistic) and step.primitive == 'mul':
            if isinstance(x, Statistic) and x.root:
                return replace(x, scale=y)
            return recorder.scale(recorder.as_flow(x), y, step)
    if isinstance(a, Flow | Statistic) and isinstance(b, Flow | Statistic):
        value = recorder.join('cse', [a, b])
        same = isinstance(value, Flow) and isinstance(a, Flow) and isinstance(b, Flow) and a.op == b.op
        return replace(value, squared=True) if same else value
    return elementwise(recorder, step, values)


@rule('add', 'sub')
def add(recorder: Recorder, step: Step, values: Sequence[Value]) -> Value:
    """Centre, shift by a parameter, add one tensor to another, or none of these."""
    for k in (0, 1):
        x, y = values[k], values[1 - k]
        if isinstance(y, View) and isinstance(x, Flow | Statistic):
            if isinstance(x, Statistic) and x.root:
                return replace(x, shift=y)
            if step.primitive == 'add' or k == 0:
                return recorder.shift(recorder.as_flow(x), y, step.shapes[1 - k], step)
        if isinstance(x, Flow) and isinstance(y, Statistic) and recorder.is_centre(y, x):
            return x if y.shift is None else recorder.shift(x, y.shift, step.shapes[1 - k], step)
    return elementwise(recorder, step, values)


def _cause(step: Step, values: Sequence[Value]) -> Step:
    return next((v.step for v in values if isinstance(v, Mixed)), step)
