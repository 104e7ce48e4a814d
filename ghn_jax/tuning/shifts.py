"""Integers with a binary point, and what the operations of a network do to them with shifts alone.

Values that are added or compared are shifted to the left to one point; a product with a power of two moves
the point and nothing else. Where the point lies and how large a value may get is known before any value is:
what could leave int32 is an error, never cut off.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from ghn_jax.base.errors import UserError
from ghn_jax.models.program import PASSED_ON, RuleTable, Step

INT32_MAX = 2**31 - 1
_FINEST = 48  # bits behind the point of a constant


@dataclasses.dataclass(frozen=True)
class ScaledInteger:
    """int32 x, stands for x * 2^-point; |x| <= bound. A pytree of x."""

    x: Any
    point: int
    bound: int

    @property
    def real(self) -> np.ndarray:
        """What it stands for, float64."""
        return np.asarray(self.x, np.float64) * 2.0**-self.point


jax.tree_util.register_dataclass(ScaledInteger, data_fields=['x'], meta_fields=['point', 'bound'])

Rule = Callable[[Step, Sequence[Any]], Any]
RULES = RuleTable[Rule]()
"""By a primitive's name: (step, operands) -> its result. One operand or more is a `ScaledInteger`."""


def apply(step: Step, operands: Sequence[Any]) -> Any:
    """Do a step on operands of which one or more are `ScaledInteger`.

    Returns:
      a `ScaledInteger`, or of comparisons an array of bool.

    Raises:
      UserError: an operation that is none of shifts, sums and comparisons; numbers that may leave int32.
    """
    if step.primitive not in RULES:
        raise UserError(f'{step} is none of shifts, sums and comparisons: {_ADVICE}')
    made = RULES[step.primitive](step, operands)
    if isinstance(made, ScaledInteger):
        check(made.bound, step)
    return made


_ADVICE = 'the network is not run with shifts alone'


def check(bound: int, step: Step) -> None:
    """Raise UserError where numbers as large as this are too large."""
    if bound > INT32_MAX:
        raise UserError(f'{step} may make numbers of {bound.bit_length() + 1} bits, int32 has 32: {_ADVICE}')


def shift_right(x: Array, places: int) -> Array:
    """Return x * 2^-places to the nearest integer, half to even: int32, places >= 0. Nothing leaves int32."""
    if places > 31:
        return jnp.zeros_like(x)
    if places == 0:
        return x
    down, rest, half = jnp.right_shift(x, places), x & jnp.int32(2**places - 1), 2 ** (places - 1)
    return down + ((rest > half) | ((rest == half) & (down & 1 == 1))).astype(jnp.int32)


def to_format(v: ScaledInteger, bits: int, point: int) -> ScaledInteger:
    """Round to a format of at most 16 bits (`fixed_point.round_to`): by a shift, and cut off at its ends."""
    top = 2 ** (bits - 1) - 1
    if point <= v.point:
        x = shift_right(v.x, v.point - point)
    else:  # Cut off first, so that nothing leaves int32: after `bits` places no number but 0 is inside.
        x = jnp.left_shift(jnp.clip(v.x, -top - 1, top), min(point - v.point, bits))
    return ScaledInteger(jnp.clip(x, -top - 1, top), point, top + 1)


def exact(value: Any, step: Step) -> ScaledInteger:
    """Return constants as fixed point, with the fewest bits behind the point, of 0 or more.

    Raises:
      UserError: they take more than int32, or depend on an image that is not rounded.
    """
    if isinstance(value, Tracer):
        raise UserError(f'{step} reads an image as no layer does, not rounded: {_ADVICE}')
    real = np.asarray(value, np.float64)
    for point in range(_FINEST + 1):
        levels = real * 2.0**point
        bound = np.max(np.abs(levels), initial=0)
        if bound <= INT32_MAX and np.all(levels == np.rint(levels)):
            return ScaledInteger(jnp.asarray(levels.astype(np.int32)), point, int(bound))
    raise UserError(f'{step} reads a constant that is no fixed-point number of 32 bits: {_ADVICE}')


def aligned(step: Step, operands: Sequence[Any]) -> tuple[list[Array], int, list[int]]:
    """Shift values to the left to the finest point among them; return integers, the point, and bounds."""
    values = [v if isinstance(v, ScaledInteger) else exact(v, step) for v in operands]
    point = max(v.point for v in values)
    integers, bounds = [], []
    for v in values:
        places = point - v.point if v.bound else 0
        check(v.bound << places, step)
        integers.append(jnp.left_shift(v.x, places) if places else v.x)
        bounds.append(v.bound << places)
    return integers, point, bounds


def bind(step: Step, *operands: Any, **changes: Any) -> Any:
    """Do a step's own operation on other operands."""
    return step.eqn.primitive.bind(
        *operands, **(step.eqn.primitive.get_bind_params(step.eqn.params) | changes)
    )


@RULES.of(*PASSED_ON)
def _same(step: Step, operands: Sequence[Any]) -> Any:
    return operands if step.eqn.primitive.multiple_results else operands[0]


@RULES.of(
    'reshape', 'transpose', 'broadcast_in_dim', 'slice', 'squeeze', 'expand_dims', 'rev', 'reduce_max',
    'reduce_min', 'reduce_window_max', 'reduce_window_min', 'dynamic_slice',
)  # fmt: skip
def _same_values(step: Step, operands: Sequence[Any]) -> ScaledInteger:
    v, *others = operands
    return dataclasses.replace(v, x=bind(step, v.x, *others))


@RULES.of('convert_element_type')
def _convert(step: Step, operands: Sequence[Any]) -> ScaledInteger:
    if not jnp.issubdtype(step.eqn.params['new_dtype'], jnp.floating):
        raise UserError(f'{step} makes no real numbers: {_ADVICE}')
    return operands[0]


@RULES.of('add', 'sub', 'add_any')
def _add(step: Step, operands: Sequence[Any]) -> ScaledInteger:
    integers, point, bounds = aligned(step, operands)
    check(sum(bounds), step)
    return ScaledInteger(bind(step, *integers), point, sum(bounds))


@RULES.of('max', 'min', 'clamp', 'concatenate', 'pad')
def _join(step: Step, operands: Sequence[Any]) -> ScaledInteger:
    integers, point, bounds = aligned(step, operands)
    return ScaledInteger(bind(step, *integers), point, max(bounds))


@RULES.of('select_n')
def _select(step: Step, operands: Sequence[Any]) -> ScaledInteger:
    which, *cases = operands
    integers, point, bounds = aligned(step, cases)
    return ScaledInteger(bind(step, which, *integers), point, max(bounds))


@RULES.of('gt', 'ge', 'lt', 'le', 'eq', 'ne')
def _compare(step: Step, operands: Sequence[Any]) -> Array:
    return bind(step, *aligned(step, operands)[0])


@RULES.of('neg', 'abs')
def _flip(step: Step, operands: Sequence[Any]) -> ScaledInteger:
    return dataclasses.replace(operands[0], x=bind(step, operands[0].x))


@RULES.of('reduce_sum', 'reduce_window_sum')
def _sum(step: Step, operands: Sequence[Any]) -> ScaledInteger:
    params, v = step.eqn.params, operands[0]
    count = math.prod(params.get('window_dimensions') or [step.shapes[0][axis] for axis in params['axes']])
    check(v.bound * count, step)
    return ScaledInteger(bind(step, v.x), v.point, v.bound * count)


@RULES.of('mul', 'div')
def _scale(step: Step, operands: Sequence[Any]) -> ScaledInteger:
    """Multiply with a power of two, or divide by it: the point moves."""
    v, factor = operands if isinstance(operands[0], ScaledInteger) else operands[::-1]
    whole = isinstance(factor, ScaledInteger | Tracer) or (step.primitive == 'div' and v is not operands[0])
    factors = [] if whole else np.unique(np.asarray(factor, np.float64))
    mantissa, exponent = math.frexp(factors[0]) if len(factors) == 1 else (0.0, 0)
    if mantissa != 0.5:
        raise UserError(f'{step} is no product with a power of two: {_ADVICE}')
    places = exponent - 1
    return dataclasses.replace(v, point=v.point + (places if step.primitive == 'div' else -places))
