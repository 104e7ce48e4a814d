"""Networks trained one by one: the table is of pairs, and what is done is not done again."""

import dataclasses
import json

import pytest

from ghn_jax.studies import one_by_one
from ghn_jax.studies.one_by_one import CASES, table
from ghn_jax.tuning.comparison_table import FLOAT_NAME as FLOAT
from tests.small_run import write_run

FOUND = {
    'predicted': {FLOAT: {'a': 50.0, 'b': 60.0, 'c': 70.0}, 'w2a2': {'a': 30.0, 'b': 30.0, 'c': 30.0}},
    'trained, 1 pass': {
        FLOAT: {'b': 55.0, 'a': 45.0, 'c': 71.0},
        'w2a2': {'a': 31.0, 'b': 32.0, 'c': 33.0},
    },
}


def test_differences_are_of_the_same_networks_whatever_their_order():
    made = table(FOUND, {'seed': 0})
    predicted, trained = made['rows']
    assert len(made['columns']) == len(predicted) == len(trained) == 6
    assert made['columns'][:3] == ['weights', 'float', 'W2/A2']
    assert predicted[1] == {'mean': 60.0, 'sem': pytest.approx(5.77), 'median': 60.0, 'max': 70.0}
    assert predicted[3:] == [None, None, None]
    assert trained[3]['difference'] == pytest.approx(-3.0) and trained[4]['difference'] == pytest.approx(2.0)
    low, high = trained[4]['interval']
    assert 1.0 <= low < 2.0 < high <= 3.0
    assert trained[5] == 1.0  # the order is the same


def test_budgets_are_as_published_and_all_of_a_case_share_them():
    for case in CASES.values():
        assert case.bits[0] == FLOAT
        for passes in case.passes:
            spec = case.training(passes)
            found = (
                spec.epochs,
                spec.optimizer,
                spec.learning_rate,
                spec.weight_decay,
                spec.batch_size,
                spec.ema,
            )
            assert found == (passes, 'sgd', 0.025, 3e-4, 96, 0.0)


@pytest.mark.slow
def test_a_study_is_of_the_networks_of_the_split_and_not_done_again(tmp_path, monkeypatch, capsys):
    run = write_run(tmp_path / 'run')
    case = dataclasses.replace(CASES['digits'], workdir=str(run), passes=(1,), bits=(FLOAT,), batch=16)
    monkeypatch.setitem(CASES, 'digits', case)
    monkeypatch.setattr(one_by_one, 'NETWORKS', 2)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'docs/results').mkdir(parents=True)
    one_by_one.main(['digits', 'out'])
    file = tmp_path / 'docs/results/one_by_one_digits.json'
    first = json.loads(file.read_text())
    assert [row[0] for row in first['rows']] == ['predicted', 'trained, 1 pass']
    assert first['about']['networks'] == 'the first 2 of the test split'
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / 'out').rglob('*.json')}
    one_by_one.main(['digits', 'out'])
    assert json.loads(file.read_text()) == first
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / 'out').rglob('*.json')}
    with pytest.raises(SystemExit):
        monkeypatch.setitem(CASES, 'digits', dataclasses.replace(case, batch=8))
        one_by_one.main(['digits', 'out'])
    assert 'other settings' in capsys.readouterr().err
