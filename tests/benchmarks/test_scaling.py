"""The ring's formula, and what devices tell each other."""

import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.benchmarks.scaling import (
    COUNTS,
    all_reduce_seconds,
    expected_efficiency,
    weak_scaling,
)
from tests.cnn.comparison import QUICK


def test_a_ring_moves_nearly_twice_the_bytes_in_twice_as_many_hops_as_there_are_others():
    assert all_reduce_seconds(1e9, 1, 1e9, 1e-3) == 0
    assert all_reduce_seconds(1e9, 2, 1e9, 0) == pytest.approx(1.0)
    assert all_reduce_seconds(1e9, 10**6, 1e9, 0) == pytest.approx(2.0, rel=1e-5)
    assert all_reduce_seconds(1, 5, 1e30, 1e-3) == pytest.approx(8e-3)


def test_efficiency_falls_with_devices_and_bytes_and_is_one_alone():
    assert expected_efficiency(1.0, 1e6, 1, 1e9, 1e-6) == 1
    assert expected_efficiency(1.0, 1e9, 2, 1e9, 0) == pytest.approx(0.5)
    found = [expected_efficiency(0.1, 1e7, n, 1e9, 1e-5) for n in (8, 64, 512)]
    assert 1 > found[0] > found[1] > found[2] > 0
    with pytest.raises(UserError, match='bandwidth=0'):
        expected_efficiency(1.0, 1e6, 8, 0, 0)


@pytest.mark.slow
def test_simulated_devices_talk_once_a_step_with_all_parameters_and_waste_nothing():
    result = weak_scaling(repeats=3, options=QUICK)
    assert [row['devices'] for row in result['rows']] == list(COUNTS)
    assert [row['all_reduces'] for row in result['rows']] == [0, 1, 1, 1]
    for row in result['rows'][1:]:
        metrics = 2 + 2 * row['devices']  # loss, accuracy, and a fault of each network, two to a device
        assert row['bytes'] == 4 * (result['parameters'] + metrics)
    assert all(0 < row['efficiency'] < 1 for row in result['expected'])
