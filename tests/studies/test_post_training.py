"""The table of the study of post-training quantization: a row for each kind of weights and method."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.reporting.docs_tables import markdown
from ghn_jax.studies import post_training
from ghn_jax.studies.post_training import BITS, NETWORKS, PLANS, WITHOUT, study, table


def found(kind: str, top1: float) -> dict:
    scores = {method: dict.fromkeys(BITS, top1) for method in ('minmax', 'mse', 'pd_quant')}
    scores |= {name: {'w2a2': top1 - 1} for name in WITHOUT.values()}
    return {'kind': kind, 'network': 'net', 'float': 90.0, 'scores': scores}


def test_networks_of_one_kind_become_means_with_errors_and_parts_left_out_stand_at_2_bits_alone():
    made = table([found('trained', 80), found('trained', 84), found('predicted', 60)], {'seed': 0})
    rows = {tuple(row[:3]): row[3:] for row in made['rows']}
    assert len(rows) == 2 * (3 + len(WITHOUT))
    assert rows['trained', 2, 'PD-Quant'] == [{'mean': 90, 'sem': 0}, *[{'mean': 82, 'sem': 2}] * 4]
    alone = [{'mean': 90}, *[{'mean': 60}] * 4]
    assert rows['predicted', 1, 'PD-Quant'] == alone, 'of one network there is no error'
    assert rows['predicted', 1, 'PD-Quant without drop'] == [{'mean': 90}, None, None, None, {'mean': 59}]
    assert '| trained | 2 | PD-Quant | 90.0 ± 0.0 | 82.0 ± 2.0 |' in markdown(made)


def test_a_plan_without_ablations_has_a_row_for_each_method():
    one = found('trained', 80)
    one['scores'] = {method: one['scores'][method] for method in ('minmax', 'mse', 'pd_quant')}
    assert [row[2] for row in table([one], {})['rows']] == [
        'ranges of all values', 'ranges of the least L2.4 error', 'PD-Quant',
    ]  # fmt: skip


def test_training_begins_with_random_or_with_predicted_weights(monkeypatch):
    predicted, begun, nothing = np.full((2, 3), 7.0), [], cast(Any, None)
    monkeypatch.setattr(post_training, 'train', lambda model, params, dataset, steps: begun.append(params))
    monkeypatch.setattr(post_training, '_random_params', lambda model: 'random')
    ghn = cast(Any, SimpleNamespace(predict=lambda model: predicted))
    for plan in PLANS.values():
        assert post_training._weights('predicted', nothing, ghn, nothing, plan) is predicted and not begun
        post_training._weights('trained', nothing, ghn, nothing, plan)
        assert begun.pop() is (predicted if plan.begin == 'predicted' else 'random')


def test_what_is_done_is_not_done_again_and_other_settings_are_refused(tmp_path, monkeypatch):
    space = SimpleNamespace(sample=lambda split, seed, index: SimpleNamespace(name=f'net-{index}'))
    monkeypatch.setattr(post_training.hypernetworks, 'load', lambda name: SimpleNamespace(space=space))
    for name in ('trace', '_weights', '_count_layers'):
        monkeypatch.setattr(post_training, name, lambda *args: 0)
    monkeypatch.setattr(post_training.jax, 'clear_caches', lambda: None)
    monkeypatch.setattr(post_training, 'quantized', lambda *args: {'float': 90.0, 'scores': {}})
    digits, plan = cast(Any, SimpleNamespace(name='digits')), PLANS['digits']
    found = list(study(digits, plan, tmp_path))[-1]
    assert len(found) == 2 * NETWORKS
    monkeypatch.setattr(post_training, 'quantized', None)
    assert list(study(digits, plan, tmp_path))[-1] == found
    with pytest.raises(UserError, match='other settings .plan differ'):
        list(study(digits, PLANS['cifar10'], tmp_path))
