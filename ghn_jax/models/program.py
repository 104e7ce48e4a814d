"""What a model computes, as a flat list of steps: its jaxpr with the calls in it written out.

Each value has a number, its slot. Calls of functions (`jit`, `remat`, ...) leave no trace; those with a
derivative of their own (`relu`, `silu`) stay calls unless a convolution or a product is inside, so that the
derivative is the one their author wrote.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jax.extend.source_info_util import SourceInfo

_CALLS = ('jit', 'pjit', 'closed_call', 'core_call', 'checkpoint', 'remat', 'remat2')
WITH_DERIVATIVES = ('custom_jvp_call', 'custom_vjp_call', 'custom_vjp_call_jaxpr')
PASSED_ON = (
    'copy', 'copy_p', 'device_put', 'name', 'optimization_barrier', 'sharding_constraint', 'stop_gradient',
)  # fmt: skip
"""Primitives whose results are their operands."""
CASTS = ('convert_element_type', 'reduce_precision')
"""Primitives whose result is their operand in another precision."""
_STRUCTURE = ('conv_general_dilated', 'dot_general', 'reduce_window_max', 'reduce_window_sum')

_NUMBERS = itertools.count()  # of slots: no two programs share one

Operand = int | Literal
Rule = TypeVar('Rule', bound=Callable[..., Any])


def new_slot() -> int:
    """Return the number of a slot that no program has."""
    return next(_NUMBERS)


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One operation: its equation of the jaxpr, the slots (or literals) it reads and the slots it fills.

    Attributes:
      callers: the calls that it was in, from outside.
    """

    eqn: JaxprEqn
    inputs: tuple[Operand, ...]
    outputs: tuple[int, ...]
    callers: tuple[JaxprEqn, ...] = ()

    @property
    def primitive(self) -> str:
        """The name of the operation, as JAX has it."""
        return self.eqn.primitive.name

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes of what it reads."""
        return [v.aval.shape for v in self.eqn.invars]  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def out_shape(self) -> tuple[int, ...]:
        """The shape of its first result."""
        return self.eqn.outvars[0].aval.shape  # pyright: ignore[reportAttributeAccessIssue]

    @functools.cached_property
    def source(self) -> SourceInfo | None:
        """Where in the source it comes from: its own line, or that of the innermost call that has one."""
        infos = (eqn.source_info for eqn in (self.eqn, *reversed(self.callers)))
        return next((info for info in infos if source_info_util.summarize(info)), None)

    def compute(self, operands: Sequence[Any]) -> Any:
        """Do the operation on JAX arrays; return its result, or a sequence of them."""
        return self.eqn.primitive.bind(*operands, **self.eqn.primitive.get_bind_params(self.eqn.params))

    def __str__(self) -> str:
        """The operation and the line of the source that it comes from."""
        line = source_info_util.summarize(self.source) if self.source else 'of an unknown line'
        return f'{self.primitive!r} ({line})'


@dataclasses.dataclass(frozen=True, eq=False)
class FlatProgram:
    """Steps in order. inputs: the slots of the arguments.   constants: slot -> array.   outputs: results."""

    steps: tuple[Step, ...]
    inputs: tuple[int, ...]
    constants: dict[int, Any]
    outputs: tuple[Operand, ...]

    def reads(self, slot: int) -> bool:
        """Return whether a step or the result reads a slot."""
        return slot in self.outputs or any(slot in step.inputs for step in self.steps)


def flatten(closed: ClosedJaxpr, *, derivatives: bool = True) -> FlatProgram:
    """Write out the calls of a jaxpr and leave out the steps that the results do not depend on.

    derivatives: keep calls of functions with a derivative of their own; otherwise they are written out, too.
    """
    steps, constants = [], {}
    inputs = tuple(next(_NUMBERS) for _ in closed.jaxpr.invars)

    def write(
        jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[Operand], callers: tuple[JaxprEqn, ...]
    ) -> list[Operand]:
        slots: dict[Any, Operand] = dict(zip(jaxpr.invars, arguments, strict=True))
        for variable, value in zip(jaxpr.constvars, consts, strict=True):
            slots[variable] = slot = next(_NUMBERS)
            constants[slot] = value
        read = lambda v: v if isinstance(v, Literal) else slots[v]
        for eqn in jaxpr.eqns:
            operands, name = tuple(map(read, eqn.invars)), eqn.primitive.name
            inner = body(eqn) if name in _CALLS or name in WITH_DERIVATIVES else None
            if inner is not None and (not derivatives or name in _CALLS or _has_structure(inner.jaxpr)):
                results: Sequence[Operand] = write(inner.jaxpr, inner.consts, operands, (*callers, eqn))
            else:
                results = outputs = tuple(next(_NUMBERS) for _ in eqn.outvars)
                steps.append(Step(eqn, operands, outputs, callers))
            slots |= zip(eqn.outvars, results, strict=True)
        return [read(v) for v in jaxpr.outvars]

    outputs = tuple(write(closed.jaxpr, closed.consts, inputs, ()))
    return FlatProgram(needed(steps, outputs), inputs, constants, outputs)


def body(eqn: JaxprEqn) -> ClosedJaxpr:
    """Return the function that an equation calls."""
    for value in eqn.params.values():
        if isinstance(value, ClosedJaxpr):
            return value
        if isinstance(value, Jaxpr):
            return ClosedJaxpr(value, ())
    raise ValueError(f'{eqn.primitive.name} calls no function')


def _has_structure(jaxpr: Jaxpr) -> bool:
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name in _STRUCTURE:
            return True
        if (name in _CALLS or name in WITH_DERIVATIVES) and _has_structure(body(eqn).jaxpr):
            return True
    return False


def needed(steps: Sequence[Step], outputs: Sequence[Operand]) -> tuple[Step, ...]:
    """Return the steps, in order, that outputs depend on."""
    wanted, kept = {slot for slot in outputs if isinstance(slot, int)}, []
    for step in reversed(steps):
        if wanted.intersection(step.outputs):
            kept.append(step)
            wanted.update(slot for slot in step.inputs if isinstance(slot, int))
    return tuple(reversed(kept))


Rewrite = Callable[[int, list[Any], dict[int, Any]], list[Any]]


def run(
    program: FlatProgram,
    arguments: Sequence[Any],
    rewrite: Rewrite = lambda k, operands, values: operands,
    seen: Callable[[int, Any], None] = lambda k, result: None,
    compute: Callable[[Step, Sequence[Any]], Any] = Step.compute,
) -> list[Any]:
    """Run the steps on JAX arrays, one for each of the program's inputs; return the results.

    rewrite(k, operands, values) gives what step k reads in place of its operands; values: by slot, so far.
    seen(k, result) is told the first result of step k.
    compute(step, operands) does a step, as `Step.compute` does.
    """
    values = dict(program.constants) | dict(zip(program.inputs, arguments, strict=True))
    read = lambda operand: operand.val if isinstance(operand, Literal) else values[operand]
    for k, step in enumerate(program.steps):
        operands = rewrite(k, [read(operand) for operand in step.inputs], values)
        # The line of the model, not this one, is what an error about the step names.
        with source_info_util.user_context(step.source.traceback if step.source else None):
            results = compute(step, operands)
        results = results if step.eqn.primitive.multiple_results else [results]
        values |= zip(step.outputs, results, strict=True)
        seen(k, results[0])
    return [read(output) for output in program.outputs]


class RuleTable(dict[str, Rule]):
    """What is done with a step, by the name of its primitive."""

    def of(self, *primitives: str) -> Callable[[Rule], Rule]:
        """Return a decorator that enters a function as the rule of primitives."""

        def enter(rule: Rule) -> Rule:
            self.update(dict.fromkeys(primitives, rule))
            return rule

        return enter
