"""Two real processes on this machine train one run together, write it once, and survive being killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from ghn_jax.base.jsonlines import read_jsonl
from ghn_jax.runs.checkpoint import Checkpoints
from tests.small_run import ROOT, command, is_one_error_line
from tests.trainers import trainers

STEPS = 16
TINY = (
    '--config=configs/test.py',
    "--config.space.ops=('skip_connect','conv_1x1')", '--config.space.cells=(1,1)',
    # With rounding, sums in another order may take other branches.
    '--config.quant.mode=float', '--config.eval.every_steps=0', '--config.save_every_steps=4',
    f'--config.train.steps={STEPS}',
)  # fmt: skip


@pytest.fixture(scope='module')
def start(tmp_path_factory):
    """Processes that train together; programs are compiled once for all tests."""
    with trainers(tmp_path_factory.mktemp('cache'), TINY, stdout=subprocess.PIPE) as start:
        yield start


def finish(processes):
    """Their outputs; they must succeed."""
    outputs = [process.communicate(timeout=500) for process in processes]
    assert [p.returncode for p in processes] == [0] * len(processes), outputs
    return outputs


def results(workdir):
    """(parameters, per-step training metrics)."""
    params, meta = Checkpoints(workdir).restore_params()  # by one process, this one
    assert meta['step'] == STEPS
    records = read_jsonl(workdir / 'metrics.jsonl')
    train = [{k: v for k, v in r.items() if not k.startswith('time/')} for r in records]
    return params, train


@pytest.fixture(scope='module')
def uninterrupted(start, tmp_path_factory):
    """(outputs of the processes, workdir)."""
    workdir = tmp_path_factory.mktemp('uninterrupted')
    return finish(start(workdir, n=2)), workdir


def test_two_processes_write_one_run(uninterrupted):
    outputs, workdir = uninterrupted
    _, train = results(workdir)
    assert [r['step'] for r in train] == list(range(1, STEPS + 1))
    assert len(list(workdir.rglob('metrics.jsonl'))) == len(list(workdir.rglob('events.out.*'))) == 1
    printed, *others = (
        [line for line in text.splitlines() if not line.startswith('[Gloo]')]
        for text in (outputs[0][0], *outputs[1])
    )  # the CPUs' network greets everywhere
    for line, row in zip(printed, train, strict=True):  # through pipes: a line for each row, none redrawn
        accuracy = 100 * row['train/accuracy']
        wanted = f'step {row["step"]:2}/{STEPS}   loss {row["train/loss"]:.3f}   accuracy {accuracy:.1f} %'
        assert line.startswith(wanted) and '\r' not in line
    assert printed[-1].endswith(' networks/s   00:00 left')
    assert others == [[], []]


def test_two_killed_processes_go_on_as_if_nothing_had_happened(start, uninterrupted, tmp_path):
    processes = start(tmp_path, n=2)
    deadline = time.monotonic() + 500
    while Checkpoints(tmp_path).latest_step() is None:
        assert time.monotonic() < deadline and all(p.poll() is None for p in processes)
        time.sleep(0.02)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    assert [p.wait() for p in processes] == [-signal.SIGKILL] * 2
    assert Checkpoints(tmp_path).latest_step() < STEPS
    finish(start(tmp_path, n=2))
    (params, train), (expected, expected_train) = results(tmp_path), results(uninterrupted[1])
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert train == expected_train


@pytest.mark.slow
def test_two_processes_are_one_process_up_to_the_order_of_sums(start, uninterrupted, tmp_path):
    finish(start(tmp_path, n=1))
    train, expected_train = results(tmp_path)[1], results(uninterrupted[1])[1]
    for one, two in zip(train, expected_train, strict=True):
        np.testing.assert_allclose(one['train/loss'], two['train/loss'], rtol=2e-3)
        assert one['train/accuracy'] == pytest.approx(two['train/accuracy'], abs=0.13)  # of 8 images
    np.testing.assert_allclose(
        train[0]['train/gradient_norm'], expected_train[0]['train/gradient_norm'], 1e-4
    )


@pytest.mark.slow
def test_validation_by_all_processes_is_written_once(start, tmp_path):
    finish(start(tmp_path, '--config.eval.every_steps=8', '--config.eval.num_networks=1', n=2))
    records = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert [r['step'] for r in records if 'val/top1_w32a32' in r] == [8, 16]


def test_processes_with_different_configs_are_refused(start, tmp_path):
    processes = start(tmp_path / 'run', n=2, each=('--config.seed=0', '--config.seed=1'))
    for process in processes:
        out, err = process.communicate(timeout=500)
        assert process.returncode == 2 and 'differ in the config' in err and 'step' not in out
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('process', [0, 1])
def test_where_the_others_are_missing_one_line_says_so_in_time(start, tmp_path, process):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    done = subprocess.run(
        [sys.executable, '-m', 'ghn_jax.train', *TINY, f'--workdir={tmp_path}/run', '--distributed_timeout=2',
         f'--coordinator=127.0.0.1:{port}', '--num_processes=2', f'--process_id={process}'],
        cwd=ROOT, env={**os.environ, 'JAX_PLATFORMS': 'cpu'}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert is_one_error_line((done.returncode, done.stdout, done.stderr), 'did not answer within 2 s')
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    'args, word',
    [
        (['--coordinator=10.0.0.2'], 'HOST:PORT'),
        (['--coordinator=10.0.0.2:99999', '--num_processes=2', '--process_id=0'], 'HOST:PORT'),
        (['--coordinator=10.0.0.2:1234'], 'num_processes=N'),
        (['--coordinator=10.0.0.2:1234', '--num_processes=2', '--process_id=2'], 'expected 0..1'),
        (['--coordinator=auto', '--process_id=1'], 'auto'),
        (['--num_processes=2'], '--coordinator'),
        (['--coordinator=auto', '--distributed_timeout=0'], 'distributed_timeout'),
    ],
)
def test_bad_addresses_and_numbers_are_refused_in_one_line(tmp_path, args, word):
    result = command('ghn_jax.train', f'--config={ROOT}/configs/test.py', f'--workdir={tmp_path}/run', *args)
    assert is_one_error_line(result, word)
    assert not (tmp_path / 'run').exists()
