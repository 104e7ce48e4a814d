"""The first hour as a command: its parts in their order, one file of what they found, a table."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from unittest import mock

import pytest

from ghn_jax import config as configs
from ghn_jax.base.errors import Stopped
from ghn_jax.bringup import parts, settings, summary, training
from ghn_jax.bringup.flag_sets import FLAG_SETS, environments
from ghn_jax.bringup.runner import DONE, FAILED, LATE, Part
from ghn_jax.bringup.settings import Settings
from tests.small_run import ROOT, command, is_one_error_line, small_config

MODULE = 'ghn_jax.first_hour'


def make_settings(folder, **fields):
    return Settings(config=configs.freeze(small_config()), out=folder, **fields)


def test_settings_cross_to_another_process_unchanged(tmp_path):
    one = make_settings(tmp_path, train=True, unpack='/a/b', golden='/c')
    assert settings.from_json(one.to_json()) == one


def test_parts_come_in_their_order_each_by_a_function_and_flags_by_the_platform(tmp_path):
    names = [part.name for part in parts.others(make_settings(tmp_path, train=True), 'gpu', {})]
    flags = [f'flags-{name}' for name in FLAG_SETS['gpu']]
    assert names == [
        'programs', 'numbers', 'speed-float', 'speed-w4a4', 'speed-bfloat16', *flags, 'cost', 'evaluation',
        'training',
    ]  # fmt: skip
    assert all(callable(parts.function_of(name)) for name in ['machine', *names])
    untrained = parts.others(make_settings(tmp_path), '', {})
    assert [part.name for part in untrained] == [n for n in names if n not in (*flags, 'training')]


def test_flags_come_after_those_there_are():
    found = environments('gpu', {'XLA_FLAGS': '--mine=1', 'HOME': '/'})
    assert found.keys() == FLAG_SETS['gpu'].keys()
    assert all(variables['XLA_FLAGS'].startswith('--mine=1 --xla_') for variables in found.values())
    assert environments('rocm', {}) == {}


def test_the_flags_of_cpu_and_gpu_are_known_to_this_jaxlib():
    flags = {name: v['XLA_FLAGS'] for p in ('cpu', 'gpu') for name, v in FLAG_SETS[p].items()}
    code = 'import jax; jax.devices()'
    env = os.environ | {'XLA_FLAGS': ' '.join(flags.values())}
    done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]


def record(part, status=DONE, result=None, error=None):
    return {'part': part, 'status': status, 'seconds': 1.0, 'limit_s': 9.0, 'error': error, 'result': result}


def speed(steps_per_s, losses=(2.0, 1.9)):
    return {'steps_per_s': steps_per_s, 'losses': [*losses], 'meta_batch': 8, 'batch_size': 64,
            'peak_bytes': 2**30}  # fmt: skip


def test_the_fastest_flags_are_named_unless_they_compute_something_else():
    records = [
        record('speed-w4a4', result=speed(2.0)),
        record('flags-a', result=speed(3.0)),
        record('flags-b', result=speed(9.0, losses=(2.0, 5.0))),
        record('flags-c', result=speed(9.0, losses=(None, 5.0))),
        record('flags-d', FAILED, error='no such flag'),
    ]
    assert summary.best_flags(records) == ('a', 1.5)
    assert summary.best_flags(records[1:]) is None and summary.best_flags(records[:1]) is None
    text = summary.text({'parts': records})
    assert '1.50 times as fast' in text and 'no such flag' in text
    assert text.count('WRONG') == 2


def test_the_table_has_a_line_for_each_part_however_little_it_found():
    names = ['machine', 'programs', 'numbers', 'speed-float', 'flags-a', 'cost', 'evaluation', 'training']
    for result in (None, {}, {'checks': []}, {'steps_per_s': 1.0}):
        text = summary.text({'parts': [record(name, LATE, result) for name in names]})
        assert all(any(line.startswith(name) for line in text.splitlines()) for name in names)
    checks = [{'check': 'float32', 'good': True}, {'check': 'w8a8', 'good': False}]
    assert 'WRONG: w8a8' in summary.text({'parts': [record('numbers', result={'checks': checks})]})


def fake(name, code, weight=1.0):
    code = f'import pathlib, sys, time; say = pathlib.Path(sys.argv[1]).write_text; {code}'
    return Part(name=name, weight=weight, command=lambda s, result: [sys.executable, '-c', code, str(result)])


def test_numbers_that_are_wrong_are_no_success(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, 'first', lambda settings: fake('machine', 'say("{}")'))
    found = 'say(\'{"good": false, "checks": [{"check": "w8a8", "good": false}]}\')'
    monkeypatch.setattr(parts, 'others', lambda *given: [fake('numbers', found)])
    code, out, err = command(MODULE, f'--out={tmp_path}/a', '--minutes=1')
    assert '2 of 2 parts are done' in out and (code, err) == (1, 'error: wrong: numbers\n')


def test_parts_that_fail_or_hang_leave_the_results_of_the_others(tmp_path, monkeypatch):
    machine = 'say(\'{"platform": "cpu"}\')'
    others = [fake('numbers', 'raise SystemExit("boom")'), fake('cost', 'say("{}"); time.sleep(99)', 0.02),
              fake('evaluation', 'say("{}")')]  # fmt: skip
    asked = []
    monkeypatch.setattr(parts, 'first', lambda settings: fake('machine', machine))
    monkeypatch.setattr(parts, 'others', lambda settings, platform, env: asked.append(platform) or others)
    monkeypatch.setattr('ghn_jax.bringup.hour._LEAST', 0.0)
    code, out, err = command(MODULE, f'--out={tmp_path}/a', '--minutes=1', '--config=configs/test.py')
    result = json.loads((tmp_path / 'a/first_hour.json').read_text())
    assert [(r['part'], r['status'], r['result']) for r in result['parts']] == [
        ('machine', DONE, {'platform': 'cpu'}), ('numbers', FAILED, None), ('cost', LATE, {}),
        ('evaluation', DONE, {}),
    ]  # fmt: skip
    assert asked == ['cpu'] and result['parts'][1]['error'] == 'boom'
    assert result['config']['train']['meta_batch'] == 2
    assert code == 1 and err == 'error: not done: numbers, cost\n'
    assert '2 of 4 parts are done' in out


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--minutes=0'], ['--minutes']),
        (['--unpack=configs/test.py'], ['--config']),
        (['--config=test', '--unpack=/no/file'], ['--unpack=/no/file', 'does not exist']),
        (['--golden=/no/folder'], ['--golden=/no/folder']),
        (['--config=test', '--config.train.steps=-1'], ['--config.train.steps']),
        (['--write_references=/no/folder/a.json'], ['--write_references']),
        (['--out=README.md'], ['--out=README.md', 'file']),
    ],
)
def test_bad_input_is_one_line_before_anything_is_begun(tmp_path, arguments, words):
    arguments = [f'--out={tmp_path}/a', *arguments]
    assert is_one_error_line(command(MODULE, *arguments), *words)
    assert not (tmp_path / 'a').exists()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which('nvidia-smi') is not None, reason='the script would install JAX for the GPU')
def test_a_first_hour_of_a_tiny_config_on_this_cpu(tmp_path):
    """What a busy machine does not do in two minutes is out of time; nothing else goes wrong."""
    done = subprocess.run(
        ['bash', 'launch/first_hour.sh', '--minutes=2', f'--out={tmp_path}/a', '--config=configs/test.py'],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {'PYTHON': sys.executable},
        timeout=240,
    )  # fmt: skip
    result = json.loads((tmp_path / 'a/first_hour.json').read_text())
    assert {r['part'] for r in result['parts']} == {
        'machine', 'programs', 'numbers', 'speed-float', 'speed-w4a4', 'speed-bfloat16',
        'flags-no-ynn-fusion', 'cost', 'evaluation', 'training',
    }  # fmt: skip
    bad = [r for r in result['parts'] if r['status'] == FAILED and 'SIGTERM' not in r['error']]
    assert not bad, bad
    assert done.returncode in (0, 1) and 'parts are done' in done.stdout
    trained = result['parts'][-1]
    if trained['status'] == DONE:
        assert trained['result']['last']['step'] == 6
        assert (tmp_path / 'a/state.pack').stat().st_size == trained['result']['pack_bytes']
        assert (tmp_path / 'a/metrics.jsonl').read_text().count('\n') == trained['result']['metrics_rows']


@pytest.mark.slow
def test_a_training_that_is_stopped_before_its_first_step_says_so_and_has_no_pack(tmp_path, monkeypatch):
    def train(config, workdir, **_):
        workdir.mkdir()
        (workdir / 'metrics.jsonl').touch()
        raise Stopped('everything is saved')

    monkeypatch.setattr(training, 'train', train)
    monkeypatch.setattr(training, 'Stopping', mock.Mock)
    (found,) = parts.function_of('training')(make_settings(tmp_path), 60)
    assert found['ended'] == 'everything is saved' and found['pack_bytes'] == 0 and found['last'] is None
    record = {
        'part': 'training',
        'status': DONE,
        'seconds': 1.0,
        'limit_s': 2.0,
        'error': None,
        'result': found,
    }
    assert 'everything is saved; no pack' in summary.text({'parts': [record | {'result': found}]})


def test_an_hour_that_is_ended_leaves_no_process_behind(tmp_path):
    hour = subprocess.Popen(
        [sys.executable, '-m', MODULE, f'--out={tmp_path}', '--minutes=5'], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    while not (tmp_path / 'first_hour.json').exists() and hour.poll() is None:
        time.sleep(0.2)
    hour.send_signal(signal.SIGTERM)
    assert hour.wait(60) == 143, hour.communicate()[0]
    running = subprocess.run(['ps', '-eo', 'args'], capture_output=True, text=True).stdout
    assert str(tmp_path) not in running
    assert json.loads((tmp_path / 'first_hour.json').read_text())['parts'][0]['part'] == 'machine'
