"""Steps that are repeated come to the same, however they are divided among calls."""

import jax
import numpy as np
import pytest
from jax import Array

from ghn_jax.tuning.repeating import repeat


def step(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
    count, total = state
    return count + 1, 3 * total + i


@pytest.mark.parametrize('parts', [(5,), (1, 1, 1, 1, 1), (2, 1, 2)], ids=str)
def test_each_step_is_done_once_and_in_order_with_its_number(parts):
    state, first = (np.int32(0), np.int32(1)), 7
    for steps in parts:
        state, first = jax.jit(repeat, static_argnums=(0, 2))(step, first, steps, state), first + steps
    expected = 1
    for i in range(7, 12):
        expected = 3 * expected + i
    assert (int(state[0]), int(state[1])) == (5, expected)


def test_one_step_makes_no_loop():
    text = lambda steps: str(jax.make_jaxpr(lambda state: repeat(step, 0, steps, state))((0, 0)))
    loops = ('scan', 'while')
    assert not any(loop in text(1) for loop in loops) and any(loop in text(2) for loop in loops)
