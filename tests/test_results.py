"""Statistics of scores: paired differences, bootstrap intervals, rank correlations."""

import numpy as np
import pytest

from ghn_jax import results


def test_differences_are_paired():
    def result(values, training):
        networks = [{'split': 'test', 'scores': {'w4a4': {'top1': v, 'top5': v}}} for v in values]
        protocol = {'training': training, 'workdir': training}
        return {'rows': results.make_rows(networks, ['w4a4']), 'networks': networks, 'protocol': protocol}

    row = results.compare(result([50.0, 20.0, 80.0], 'a'), result([40.0, 10.0, 70.0], 'b'))['rows'][0]
    assert (row['difference_top1_mean'], row['difference_top1_sem'], row['against_top1_mean']) == (10, 0, 40)
    assert (row['difference_top1_low'], row['difference_top1_high']) == (10, 10)


def test_bootstrap_intervals_are_about_two_standard_errors():
    values = np.random.default_rng(0).normal(3, 2, 400)
    low, high = results.bootstrap_interval(values)
    assert (low, high) == results.bootstrap_interval(values)  # and always the same
    np.testing.assert_allclose(
        [low, high], values.mean() + np.array([-1.96, 1.96]) * 0.1 * values.std() / 2, atol=0.03
    )
    assert results.bootstrap_interval([1.0]) is None


def test_rank_correlation_is_that_of_ranks_with_ties_shared():
    assert results.rank_correlation([1, 5, 9], [0.1, 0.2, 100]) == pytest.approx(1)
    assert results.rank_correlation([1, 5, 9], [3, 2, 1]) == pytest.approx(-1)
    ranks = np.corrcoef([1.5, 1.5, 3, 4], [1, 3, 2, 4])[0, 1]
    assert results.rank_correlation([7, 7, 8, 9], [1, 3, 2, 4]) == pytest.approx(ranks)
    assert results.rank_correlation([1, 1, 1], [1, 2, 3]) is None


def test_one_network_has_no_standard_error():
    assert results.statistics([7.0], 'x') == {'x_mean': 7, 'x_sem': None, 'x_median': 7, 'x_max': 7}
