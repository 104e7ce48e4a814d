"""Along which axis of its values a model has the images: the first to begin with, until a step moves it."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from ghn_jax.models.program import RuleTable, Step

Rule = Callable[[Step, int, int], int | None]
_MOVES = RuleTable[Rule]()
moves = _MOVES.of


def axis_after(step: Step, axes: Sequence[int | None], images: Any) -> int | None:
    """Return the axis of a step's results that images lie along; None: they are summed up, or mixed.

    Args:
      axes: of what the step reads, None for what has no images.
      images: how many there are.
    """
    place = next((k for k, axis in enumerate(axes) if axis is not None), None)
    if place is None:
        return None
    axis: Any = axes[place]
    if step.primitive == 'reshape':
        return _reshaped(step, axis, images)
    return _MOVES[step.primitive](step, place, axis) if step.primitive in _MOVES else axis


def _reshaped(step: Step, axis: int, images: Any) -> int | None:
    """Find the axis that begins at the same place and is cut into as many images or multiples of them."""
    before, after = step.shapes[0], step.out_shape
    ahead = math.prod(before[:axis])
    starts = (k for k in range(len(after)) if math.prod(after[:k]) == ahead)
    return next((k for k in starts if after[k] % images == 0), None)


def _without(axis: int, gone: Sequence[int]) -> int | None:
    return None if axis in gone else axis - sum(other < axis for other in gone)


@moves('transpose')
def _transposed(step: Step, place: int, axis: int) -> int:
    return step.eqn.params['permutation'].index(axis)


@moves('broadcast_in_dim')
def _broadcast(step: Step, place: int, axis: int) -> int:
    return step.eqn.params['broadcast_dimensions'][axis]


@moves('squeeze')
def _squeezed(step: Step, place: int, axis: int) -> int | None:
    return _without(axis, step.eqn.params['dimensions'])


@moves('stack')
def _stacked(step: Step, place: int, axis: int) -> int:
    return axis + (step.eqn.params['axis'] <= axis)


@moves('unstack')
def _unstacked(step: Step, place: int, axis: int) -> int | None:
    return _without(axis, [step.eqn.params['axis']])


@moves(
    'reduce_sum', 'reduce_max', 'reduce_min', 'reduce_prod', 'reduce_and', 'reduce_or', 'argmax', 'argmin',
)  # fmt: skip
def _reduced(step: Step, place: int, axis: int) -> int | None:
    return _without(axis, step.eqn.params['axes'])


@moves('gather')
def _gathered(step: Step, place: int, axis: int) -> int | None:
    numbers, shape = step.eqn.params['dimension_numbers'], step.shapes[0]
    if len(step.out_shape) == len(shape):
        return axis
    left = _without(axis, numbers.collapsed_slice_dims)
    return None if left is None or place > 0 else numbers.offset_dims[left]


@moves('conv_general_dilated')
def _convolved(step: Step, place: int, axis: int) -> int | None:
    lhs, _, out = step.eqn.params['dimension_numbers']
    return out[0] if place == 0 and axis == lhs[0] else None


@moves('dot_general')
def _product(step: Step, place: int, axis: int) -> int | None:
    contracted, batch = step.eqn.params['dimension_numbers']
    if axis in batch[place]:
        return batch[place].index(axis)
    left = _without(axis, (*contracted[place], *batch[place]))
    if left is None:
        return None
    others = len(step.shapes[0]) - len(contracted[0]) - len(batch[0]) if place == 1 else 0
    return len(batch[0]) + others + left
