"""The walk through a model's program: from the image and the parameters to the logits, step by step."""

from collections.abc import Mapping, Sequence

from ghn_jax.models import layer_rules as layer_rules  # registers its rules
from ghn_jax.models.image_axes import axis_after
from ghn_jax.models.program import WITH_DERIVATIVES, FlatProgram, Operand, Step, body, flatten
from ghn_jax.models.recorder import Recorder, unknown
from ghn_jax.models.rules import RULES, elementwise
from ghn_jax.models.values import CONSTANT, Constant, Value


def walk(recorder: Recorder, program: FlatProgram, arguments: Sequence[Value]) -> list[Value]:
    """Record what a program does, and return what is known of its results.

    arguments: what is known of its inputs.
    """
    values: dict[int, Value] = dict.fromkeys(program.constants, CONSTANT)
    values |= zip(program.inputs, arguments, strict=True)
    for number, step in enumerate(program.steps):
        recorder.step_number = number
        results = _results(recorder, step, [_known(values, operand) for operand in step.inputs])
        values |= zip(step.outputs, results, strict=True)
        axis = axis_after(step, recorder.axes_of(step), recorder.images)
        recorder.axes |= dict.fromkeys(step.outputs, axis)
    recorder.values |= values
    return [_known(values, operand) for operand in program.outputs]


def _known(values: Mapping[int, Value], operand: Operand) -> Value:
    return values[operand] if isinstance(operand, int) else CONSTANT


def _results(recorder: Recorder, step: Step, values: list[Value]) -> list[Value]:
    if all(isinstance(value, Constant) for value in values):
        return [CONSTANT] * len(step.outputs)
    if step.primitive in WITH_DERIVATIVES:
        inner = flatten(body(step.eqn))
        recorder.axes |= zip(inner.inputs, recorder.axes_of(step), strict=True)
        return walk(recorder, inner, values)
    rule = RULES.get(step.primitive)
    if rule is None:
        if not recorder.keep:
            unknown(step)
        rule = elementwise
    result = rule(recorder, step, values)
    return result if isinstance(result, list) else [result] * len(step.outputs)
