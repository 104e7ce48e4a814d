"""The table of the study of fixed point: a row for each network and way to find widths."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.reporting.docs_tables import markdown
from ghn_jax.studies import fixed_point
from ghn_jax.studies.fixed_point import METHODS, SAVED, SEEDS, about, study, table


def found(method: str, top1: float, agree: bool = True, seed: int = 0) -> dict:
    return {
        'dataset': 'digits',
        'network': 'plain',
        'seed': seed,
        'method': method,
        'float': 99.0,
        'top1': top1,
        'lost_in_choice': 0.5,
        'lost_in_check': 0.7,
        'saved': dict.fromkeys(SAVED, 50.04),
        'mean_bits': {'activation': 4, 'weight': 5.25, 'bias': 6},
        'integers_agree': agree,
        'cpu_seconds': 4.2,
    }


def test_points_lost_are_those_of_the_float_network_and_disagreeing_integers_are_told():
    made = table([found('a', 98.5), found('b', 60.0)], {'seed': 0})
    assert [row[:4] for row in made['rows']] == [['digits', 'plain', m, '5.2/4.0/6.0'] for m in 'ab']
    lost = made['columns'].index('points lost')
    assert [row[lost] for row in made['rows']] == [{'mean': 0.5}, {'mean': 39.0}] and not made['notes']
    row = '| b | 5.2/4.0/6.0 | 99.0 | 60.0 | 39.0 | 0.5 | 0.7 | 50.0 | 50.0 | 50.0 | 50.0 | 4.2 |'
    assert f'| digits | plain {row}' in markdown(made)
    assert 'do not agree' in markdown(table([found('a', 98.5), found('b', 98.5, agree=False)], {'seed': 0}))


def test_rows_are_means_over_seeds_with_the_standard_error():
    made = table([found('a', 98.5), found('b', 60.0), found('a', 97.5, seed=1)], {})
    assert [row[2] for row in made['rows']] == ['a', 'b'] and len(made['found']) == 3
    lost = made['rows'][0][made['columns'].index('points lost')]
    assert lost == pytest.approx({'mean': 1.0, 'sem': 0.5})


def test_what_is_done_is_not_done_again_and_other_settings_are_refused(tmp_path, monkeypatch):
    network, digits = SimpleNamespace(quantized=lambda find: {'top1': 98.5}), cast(Any, SimpleNamespace)
    monkeypatch.setattr(fixed_point._Trained, 'of', lambda *args: network)
    found = list(study(digits(name='digits'), tmp_path))[-1]
    assert len(found) == 2 * len(SEEDS) * len(METHODS)
    monkeypatch.setattr(fixed_point._Trained, 'of', None)
    assert list(study(digits(name='digits'), tmp_path))[-1] == found
    monkeypatch.setattr(fixed_point, 'BUDGET', 2.0)
    with pytest.raises(UserError, match='other settings .budget differ'):
        list(study(digits(name='digits'), tmp_path))


def test_what_is_said_of_the_images_stands_below_the_table():
    data = [SimpleNamespace(name='digits', note=''), SimpleNamespace(name='cifar10', note='They are lossy.')]
    said = about(cast(Any, data), 'python')
    assert said['note'] == 'cifar10: They are lossy.' and '20 passes over cifar10' in said['training']
    assert 'note' not in about(cast(Any, data[:1]), 'python')
