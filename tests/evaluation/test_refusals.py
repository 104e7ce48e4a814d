"""What an evaluation refuses, before any work and in one line."""

import dataclasses

import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.evaluation.descriptions import about_run
from ghn_jax.evaluation.evaluate import evaluate
from ghn_jax.evaluation.evaluation_flags import EvaluationFlags, parse_policies, parse_splits
from ghn_jax.evaluation.evaluation_spec import EvaluationSpec
from ghn_jax.evaluation.protocol import Protocol
from ghn_jax.quant.policy import parse_bits
from ghn_jax.quant.strategy import strategy_of
from ghn_jax.runs.scheme_flags import FIELDS
from tests.evaluation.helpers import FLAGS, INTEGER
from tests.hypernet.helpers import small_spec
from tests.small_run import command, is_one_error_line

CALIBRATED = {'protocol': Protocol(batch_norm='calibrated', ranges='calibrated'), 'calibration_batches': 4}


def test_a_run_is_scored_on_other_grids_than_those_of_its_training(workdir, run):
    asked = EvaluationFlags(
        workdir=workdir, step='latest', data_dir=None, spec=EvaluationSpec(), scheme={}, given=frozenset()
    )
    assert asked.load_run().config == run.config
    other = dataclasses.replace(asked, scheme={'weight_range': 'sigma', 'granularity': 'channel'}).load_run()
    scheme = strategy_of(other.config).scheme
    assert scheme == dataclasses.replace(
        strategy_of(run.config).scheme, weight_range='sigma', granularity='channel'
    )
    said = about_run(other, '', None)['quantization']
    assert {key: said[key] for key in FIELDS} == {
        'granularity': 'channel', 'weight_range': 'sigma', 'activation_range': 'minmax',
    }  # fmt: skip
    wrong = command('ghn_jax.evaluate', f'--workdir={workdir}', '--weight_range=median')
    assert is_one_error_line(wrong, '--weight_range')


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'batch_norm': 'folded'}, "batch_norm='folded': expected one of batch, calibrated, corrected"),
        ({'range_rule': 'max'}, "range_rule='max'"),
        ({'integer': -1}, 'integer=-1'),
        ({'integer': 1, 'batch_norm': 'calibrated'}, '^integer=1: .* ranges=calibrated'),
    ],
)
def test_impossible_protocols_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        Protocol(**fields)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'batch_size': 41}, 'batch_size=41 is more than the 40 images'),
        ({'batch_size': 0}, 'batch_size=0'),
        ({'num_images': 257}, 'num_images=257: synthetic has 256'),
        ({'num_images': -1}, 'num_images=-1'),
        ({'num_networks': 501}, 'num_networks=501: the split test has 500'),
        ({'splits': ['tset']}, "split 'tset' is unknown"),
        ({'against': 'absent.json'}, "absent.json' cannot be read"),
        (
            CALIBRATED | {'calibration_batches': 65},
            'calibration_batches=65 of 16 .* 1024 .*: give at most 64',
        ),
        (CALIBRATED | {'calibration_batches': 0}, 'calibration_batches=0'),
        (INTEGER | {'policies': [parse_bits('w4a16')]}, 'policy w4a16 has tensors of 16 bits'),
        (
            {'protocol': Protocol(batch_norm='corrected', ranges='calibrated', integer=33)},
            'there are 32 test images',
        ),
        (
            {'networks': [small_spec('conv_1x1', 'conv_1x1', C=16, fc_dim=16, num_classes=7, name='x')]},
            "'x' has 7 classes",
        ),
    ],
)
def test_bad_values_are_refused_before_any_work(run, dataset, changes, message):
    with pytest.raises(UserError, match=message):
        evaluate(run, EvaluationSpec(**FLAGS | changes), dataset=dataset)


@pytest.mark.parametrize(
    ('args', 'words'),
    [
        (['--bits=w0a4'], ['w0a4', '1 to 16']),
        (['--bits='], ['--bits is empty']),
        (['--splits=test,tset'], ['--splits=tset', 'bnfree']),
        (['--range_rule=mse'], ['--range_rule=mse is for --ranges=calibrated']),
        (['--calibration_batches=2'], ['--calibration_batches=2: nothing is calibrated', '--sqnr']),
        (['--integer=8', '--bn=calibrated'], ['--integer=8', '--ranges=calibrated']),
        (['--integer=8', '--ranges=calibrated'], ['--integer=8', '--bn=corrected']),
        (['--ranges=fixed'], ['fixed', 'calibrated']),
        (['--bn=running'], ['running', 'batch']),
        (['--json=absent/x.json'], ['--json=absent/x.json', 'does not exist']),
        (['--plot=x.gif'], ['--plot=x.gif', '.png']),
        (['--archs=absent.json'], ['absent.json']),
        (['--seed=-1'], ['--seed=-1']),
        (['--num_networks=many'], ['num_networks']),
        (['more'], ["unexpected argument 'more'"]),
    ],
)
def test_bad_flags_are_one_line(workdir, args, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_one_error_line(command('ghn_jax.evaluate', f'--workdir={workdir}', *args), *words)


def test_a_workdir_without_a_run_is_one_line(tmp_path):
    (tmp_path / 'file').touch()
    for workdir, words in (
        (tmp_path / 'absent', 'does not exist'),
        (tmp_path, 'no checkpoint'),
        (tmp_path / 'file', 'file'),
    ):
        assert is_one_error_line(command('ghn_jax.evaluate', f'--workdir={workdir}'), words)
    assert is_one_error_line(command('ghn_jax.evaluate'), '--workdir and --dataset are missing')


def test_lists_of_splits_and_bits_lose_repetitions():
    assert parse_splits(['test', ' deep', 'test']) == ('test', 'deep')
    assert [str(p) for p in parse_policies(['w4a4', 'float', 'W4/A4'])] == ['w4a4', 'w32a32']
