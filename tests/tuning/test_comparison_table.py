"""The table of initialisations, against its definition; and what counts as correct."""

import jax.numpy as jnp
import numpy as np
import pytest

from ghn_jax.reporting.docs_tables import markdown
from ghn_jax.tuning.comparison_table import compare, marks, text
from ghn_jax.tuning.scoring import count_correct


def run(network, init, seed, floats, rounded):
    scores = {
        mark: {'batch': {'w32a32': f, 'w4a4': q}} for mark, f, q in zip(('0', '1', '2'), floats, rounded)
    }
    return {'network': network, 'bits': 'w4a4', 'init': init, 'seed': seed, 'scores': scores}


RUNS = [
    run('a', 'he', 0, (10, 20, 30), (9, 19, 29)),
    run('a', 'he', 1, (10, 40, 50), (9, 21, 31)),
    run('b', 'he', 0, (14, 60, 80), (11, 50, 70)),
    run('b', 'he', 1, (14, 80, 80), (11, 60, 70)),
    run('a', 'predicted', 0, (70, 71, 72), (60, 61, 62)),
]


def test_a_mean_is_over_networks_of_the_means_over_seeds():
    result = compare(RUNS, 2)
    assert result['columns'] == ['bits', 'from', 'networks', 'seeds', *(
        f'{kind}, {mark}' for kind in ('float', 'quantized') for mark in (0, 1, 2)
    )]  # fmt: skip
    he, predicted = result['rows']
    assert he[:4] == ['w4a4', 'he', 2, 2] and predicted[:4] == ['w4a4', 'predicted', 1, 1]
    assert he[5] == {'mean': 50.0, 'sem': pytest.approx(20.0)}  # of 30 and 70
    assert he[9] == {'mean': 50.0, 'sem': pytest.approx(20.0)}
    assert predicted[4] == {'mean': 70.0}
    over_seeds = compare(RUNS[:2], 2)['rows'][0]
    assert over_seeds[5] == {'mean': 30.0, 'sem': pytest.approx(10.0)}


def test_trainings_in_float_have_one_score_each():
    in_float = [
        {**run, 'bits': 'w32a32', 'scores': {'0': {'batch': {'w32a32': 50}}, '1': {'batch': {'w32a32': 60}}}}
        for run in RUNS[:1]
    ]
    result = compare(in_float, 1)
    assert result['columns'] == ['bits', 'from', 'networks', 'seeds', 'float, 0', 'float, 1']
    assert result['rows'] == [['w32a32', 'he', 1, 1, {'mean': 50.0}, {'mean': 60.0}]]


def test_the_table_is_shown_and_goes_on_a_page():
    result = compare(RUNS, 2) | {'about': {'seeds': '0, 1'}, 'notes': ['Top-1.']}
    assert '50.0 ± 20.0' in text(result) and text(result).endswith('Top-1.')
    assert '| w4a4 | he | 2 | 2 |' in markdown(result)


def test_scores_are_of_the_passes_there_are():
    assert marks(10) == (0, 1, 5, 10) and marks(3) == (0, 1, 3) and marks(1) == (0, 1)


def test_a_label_counts_where_its_logit_is_the_largest_by_itself():
    logits = jnp.float32([[1, 2, 0], [2, 2, 0], [0, 0, 5], [np.nan, 1, 0], [1, np.nan, 0], [np.nan] * 3])
    correct = [int(count_correct(logits[i : i + 1], jnp.array([1]))) for i in range(6)]
    assert correct == [1, 0, 0, 1, 0, 0]
    assert int(count_correct(logits, jnp.full(6, 1))) == 2
