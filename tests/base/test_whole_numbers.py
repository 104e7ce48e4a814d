"""Whole numbers: what counts as one, and the next multiple and power of two."""

import numpy as np
import pytest

from ghn_jax.base.whole_numbers import is_int, next_power_of_two, round_up


@pytest.mark.parametrize('value', [0, -3, 10**30, np.int32(4), np.uint8(0)])
def test_ints_of_python_and_numpy_are_whole_numbers(value):
    assert is_int(value)


@pytest.mark.parametrize('value', [True, np.True_, 1.0, np.float32(1), '1', None, [1]])
def test_nothing_else_is_a_whole_number(value):
    assert not is_int(value)


def test_the_next_multiple_is_the_nearest_that_is_not_less():
    for n in range(40):
        for multiple in (1, 2, 7, 8):
            found = round_up(n, multiple)
            assert found % multiple == 0 and n <= found < n + multiple
    assert round_up(10**18 + 1, 256) == 10**18 + 256  # exact where floats are not


def test_the_next_power_of_two_is_the_nearest_that_is_not_less():
    for n in range(1, 70):
        found = next_power_of_two(n)
        assert found.bit_count() == 1 and n <= found < 2 * n
