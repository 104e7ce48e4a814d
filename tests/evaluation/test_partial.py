"""An evaluation that is stopped and begun again."""

import contextlib
import dataclasses
import json
from unittest import mock

import jax
import numpy as np
import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.evaluation import evaluate as evaluation
from ghn_jax.evaluation import partial
from ghn_jax.evaluation.evaluate import evaluate
from ghn_jax.evaluation.evaluation_spec import EvaluationSpec
from ghn_jax.evaluation.partial import files_of
from ghn_jax.quant.policy import Policy
from tests.evaluation.helpers import FLAGS
from tests.small_run import command, write_run

POLICIES = (Policy(), Policy(4, 4))


class _Stop(Exception):
    pass


@pytest.fixture
def spec(tmp_path):
    return EvaluationSpec(**FLAGS, policies=POLICIES, partial=tmp_path / 'result.json.partial')


@pytest.fixture(scope='module')
def whole(run, dataset):
    """The result of an evaluation that was never stopped."""
    return evaluate(run, EvaluationSpec(**FLAGS, policies=POLICIES), dataset=dataset)[0]


@pytest.fixture
def scored(monkeypatch):
    """The places of the networks that are scored, of which there are `at_most` until the evaluation stops."""

    class Scored(list):
        at_most = 100

    found, score_each = Scored(), evaluation.score_each

    def counting(*args, **how):
        for place, scores in score_each(*args, **how):
            if len(found) == found.at_most:
                raise _Stop
            found.append(place)
            yield place, scores

    monkeypatch.setattr(evaluation, 'score_each', counting)
    return found


def stopped(run, spec, dataset, scored, after):
    scored.at_most = after
    with contextlib.suppress(_Stop):
        evaluate(run, spec, dataset=dataset)
    assert len(scored) == after
    scored.clear()
    scored.at_most = 100


@pytest.mark.parametrize('torn', ['', '{"step": 3, "evalua'])
def test_what_was_scored_before_a_stop_is_not_scored_again(run, dataset, spec, whole, scored, torn):
    stopped(run, spec, dataset, scored, after=2)
    with open(spec.partial, 'a') as file:
        file.write(torn)
    found, _ = evaluate(run, spec, dataset=dataset)
    assert len(scored) == 1
    assert found['networks'] == whole['networks'] and found['rows'] == whole['rows']
    assert found['protocol'] | {'seconds': 0} == whole['protocol'] | {'seconds': 0}
    scored.clear()
    assert evaluate(run, spec, dataset=dataset)[0]['networks'] == whole['networks'] and not scored


def other_bits(run, spec):
    return run, dataclasses.replace(spec, policies=(Policy(), Policy(8, 8)))


def other_images(run, spec):
    return run, dataclasses.replace(spec, num_images=16)


def other_parameters(run, spec):
    return dataclasses.replace(run, params=jax.tree.map(lambda x: np.asarray(x) * 1.5, run.params)), spec


@pytest.mark.parametrize('change', [other_bits, other_images, other_parameters])
def test_scores_of_another_evaluation_are_not_taken(run, dataset, spec, scored, change, capsys):
    stopped(run, spec, dataset, scored, after=2)
    of, wanted = change(run, spec)
    found, _ = evaluate(of, wanted, dataset=dataset)
    assert len(scored) == 3 and 'of another evaluation: this one begins anew' in capsys.readouterr().err
    assert (
        found['networks']
        == evaluate(of, dataclasses.replace(wanted, partial=None), dataset=dataset)[0]['networks']
    )


def test_scores_on_other_labels_are_not_taken(run, dataset, spec, scored, capsys):
    stopped(run, spec, dataset, scored, after=2)
    labels = dataset.test.labels[::-1]
    evaluate(run, spec, dataset=dataclasses.replace(dataset, test=dataset.test._replace(labels=labels)))
    assert len(scored) == 3 and 'of another evaluation: this one begins anew' in capsys.readouterr().err


def test_two_runs_that_are_compared_have_a_file_each(run, dataset, spec, scored, tmp_path):
    spec = dataclasses.replace(spec, against=str(write_run(tmp_path / 'other', seed=1)))
    never, other = evaluate(run, dataclasses.replace(spec, partial=None), dataset=dataset)
    scored.clear()
    stopped(run, spec, dataset, scored, after=4)
    assert all(file.exists() for file in files_of(spec.partial))
    found, again = evaluate(run, spec, dataset=dataset)
    assert len(scored) == 2
    assert found['rows'] == never['rows'] and again['networks'] == other['networks']


def test_without_room_for_it_an_evaluation_goes_on_and_says_so(run, dataset, spec, whole, capsys):
    def fails_after(written, calls=0):
        def write(self, row):
            nonlocal calls
            calls += 1
            if calls > written:
                raise UserError('no space left')
            return real(self, row)

        return write

    real = partial.Records.write
    for written in (0, 1):
        with mock.patch.object(partial.Records, 'write', fails_after(written)):
            found, _ = evaluate(run, spec, dataset=dataset)
        assert found['networks'] == whole['networks']
        said = capsys.readouterr().err
        assert said.count('warning: a stop will lose what is scored: no space left') == 1
        spec.partial.unlink()
    spec.partial.mkdir()  # what is no file is let be
    assert evaluate(run, spec, dataset=dataset)[0]['networks'] == whole['networks']
    assert 'is no file' in capsys.readouterr().err and not list(spec.partial.iterdir())


def test_the_command_leaves_the_result_only(workdir, tmp_path):
    out = tmp_path / 'result.json'
    flags = ('--num_networks=2', '--num_images=16', '--batch_size=16', '--bits=w4a4')
    command('ghn_jax.evaluate', f'--workdir={workdir}', *flags, f'--json={out}')
    assert len(json.loads(out.read_text())['networks']) == 2
    assert [file.name for file in tmp_path.iterdir()] == ['result.json']


def test_a_report_goes_on_where_its_evaluation_was_stopped(workdir, scored, tmp_path):
    flags = (f'--workdir={workdir}', '--num_networks=2', '--num_images=16', '--batch_size=16', '--bits=w4a4')
    flags, kept = (*flags, f'--out={tmp_path}/report'), tmp_path / 'report/index.html.partial'
    scored.at_most = 1
    with pytest.raises(_Stop):
        command('ghn_jax.report', *flags)
    assert scored == [0] and kept.exists()
    scored.at_most = 100
    code, _, err = command('ghn_jax.report', *flags)
    assert code == 0, err
    assert scored == [0, 1] and not kept.exists() and (tmp_path / 'report/index.html').exists()
