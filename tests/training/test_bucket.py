"""Real training processes in a bucket, killed and started again, end as one on a disk that was left alone.

bash launch/test.sh -m slow tests/training/test_bucket.py
"""

import contextlib
import json
import random
import time

import jax
import numpy as np
import pytest

from ghn_jax.base import files, paths
from ghn_jax.runs.checkpoint import Checkpoints
from tests.small_run import command, is_one_error_line
from tests.trainers import trainers
from tests.training.test_kill import STEPS, TINY, finish, shown

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def start(bucket, tmp_path_factory):
    """Processes that train; programs are compiled once for all."""
    with trainers(tmp_path_factory.mktemp('cache'), TINY) as start:
        yield start


@pytest.fixture(scope='module')
def whole(start, tmp_path_factory):
    """A run on a disk that was left alone."""
    workdir = tmp_path_factory.mktemp('whole')
    finish(start(workdir))
    return workdir


def assert_same(workdir, expected, steps=STEPS):
    """Metrics byte for byte, parameters, optimizer."""
    assert (workdir / 'metrics.jsonl').read_bytes() == (expected / 'metrics.jsonl').read_bytes()
    assert shown(workdir) == shown(expected)  # by TensorBoard
    for key in ('params', 'opt_state'):
        (one, meta), (two, _) = (Checkpoints(w).restore_params(key) for w in (workdir, expected))
        assert meta['step'] == steps
        jax.tree.map(np.testing.assert_array_equal, one, two)
    assert (workdir / 'lock').read_bytes() == b''  # given up
    assert len(files.names(workdir / 'checkpoints')) == 3


def kill_often(start, workdir, kills, steps=STEPS, n=1):
    """Trains to the end through so many kills after checkpoints; how many there were."""
    rng, done, length = random.Random(0), 0, f'--config.train.steps={steps}'
    for kill in range(kills):
        processes = start(workdir, length, n=n)
        wait_for_step(processes, workdir, (kill + 1) * steps // (kills + 2))
        time.sleep(rng.random() * 0.3)
        done += all(p.poll() is None for p in processes)
        for process in processes:
            process.kill()
            process.communicate()
    finish(start(workdir, length, n=n))
    return done


def wait_for_step(processes, workdir, step):
    deadline = time.monotonic() + 500
    while (Checkpoints(workdir).latest_step() or 0) < step and all(p.poll() is None for p in processes):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_run_killed_three_times_is_the_run_on_a_disk_that_was_not(start, whole, cloud):
    workdir = paths.place(cloud, 'workdir')
    assert kill_often(start, workdir, 3) >= 2  # the last may come too late
    assert_same(workdir, whole)


def test_two_processes_write_one_run_and_survive_being_killed(start, tmp_path, cloud):
    workdir, expected = paths.place(cloud, 'workdir'), tmp_path / 'disk'
    finish(start(expected, '--config.train.steps=16', n=2))
    assert kill_often(start, workdir, 1, steps=16, n=2) == 1
    assert_same(workdir, expected, steps=16)


def test_a_second_trainer_is_refused_by_the_name_of_the_first(start, cloud):
    first, *_ = start(cloud, f'--config.train.steps={100 * STEPS}')
    wait_for_step([first], cloud, 1)
    (second,) = start(cloud, f'--config.train.steps={100 * STEPS}')
    (said,) = finish([second], codes=(2,))
    line = said.splitlines()[-1]
    assert line.startswith(f'error: {cloud} is in use by process {first.pid} on ') and 'Traceback' not in said
    assert first.poll() is None
    first.terminate()
    finish([first], codes=(75,))


def test_results_and_first_parameters_are_read_and_written_in_a_bucket(start, cloud, tmp_path):
    finish(start(cloud, '--config.train.steps=4'))
    scoring = ['--num_networks=2', '--num_images=16', '--batch_size=8', '--bits=w4a4']
    given = command(
        'ghn_jax.evaluate', f'--workdir={cloud}', *scoring, f'--json={cloud}/a.json', f'--plot={cloud}/a.png'
    )
    assert given[0] == 0, given
    here = command('ghn_jax.evaluate', f'--workdir={cloud}', *scoring, f'--json={tmp_path}/a.json')
    assert here[0] == 0, here
    both = [json.loads(paths.place(f'{w}/a.json', 'json').read_text()) for w in (cloud, tmp_path)]
    assert both[0]['networks'] == both[1]['networks']
    against = command('ghn_jax.evaluate', f'--workdir={cloud}', *scoring, f'--against={cloud}/a.json')
    assert against[0] == 0 and '+0.00' in against[1], against
    report = command('ghn_jax.report', f'--workdir={cloud}', f'--result={cloud}/a.json', f'--out={cloud}/r')
    assert report[0] == 0 and f'{cloud}/r/index.html' in report[1], report
    assert 'index.html' in files.names(paths.place(f'{cloud}/r', 'out'))
    predicted = command(
        'ghn_jax.predict', f'--workdir={cloud}', '--arch=docs/none.json', f'--out={cloud}/x.safetensors'
    )
    assert is_one_error_line(predicted, 'docs/none.json')
    finish(start(tmp_path / 'next', '--config.train.steps=1', f'--config.init_from={cloud}'))
    with contextlib.suppress(FileNotFoundError):
        assert not list((tmp_path / 'gs:').iterdir())
