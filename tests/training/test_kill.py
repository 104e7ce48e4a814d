"""Real training processes, killed and stopped at random times, end as one that was left alone.

The many kills and the long run: bash launch/test.sh -m slow tests/training/test_kill.py
"""

import json
import os
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from ghn_jax.base.jsonlines import read_jsonl
from ghn_jax.runs.checkpoint import Checkpoints
from tests.runs.test_metrics import events
from tests.small_run import ROOT, is_one_error_line
from tests.streams import full, without_reader
from tests.trainers import trainers

STEPS, MANY = 30, 60  # MANY: where there are many kills
TINY = (
    '--config=configs/test.py',
    "--config.space.ops=('skip_connect','conv_1x1')", '--config.space.cells=(1,1)',
    '--config.eval.every_steps=0', '--config.log_every_steps=3', '--config.save_every_steps=4',
    f'--config.train.steps={STEPS}',
)  # fmt: skip


@pytest.fixture(scope='module')
def start(tmp_path_factory):
    """Processes that train; programs are compiled once for all."""
    with trainers(tmp_path_factory.mktemp('cache'), TINY) as start:
        yield start


def finish(processes, codes=(0,)):
    """What they say on stderr; they must end with one of the codes."""
    said = [process.communicate(timeout=500)[1] for process in processes]
    assert all(p.returncode in codes for p in processes), said
    return said


def rows(workdir):
    path = workdir / 'machine.jsonl'  # of which metrics.jsonl has as many
    return len(path.read_text().splitlines()) if path.is_file() else 0


def wait_for_rows(processes, workdir, more):
    """Until the run has written so many rows, or is over."""
    until, deadline = rows(workdir) + more, time.monotonic() + 500
    while rows(workdir) < until and all(p.poll() is None for p in processes):
        assert time.monotonic() < deadline
        time.sleep(0.002)


def shown(workdir):
    """{(step, name): value}, as a reader of TensorBoard shows it; every value once, steps rising."""
    out = {}
    for event in events(workdir):
        if event.HasField('session_log'):
            out = {key: value for key, value in out.items() if key[0] < event.step}
        for value in event.summary.value:
            key = (event.step, value.tag)
            assert key not in out and all(step <= event.step for step, tag in out if tag == value.tag)
            if value.tag.startswith(('train/', 'val/')):
                out[key] = value.simple_value
    return out


def assert_same(workdir, expected):
    """Metrics byte for byte, TensorBoard, parameters, optimizer."""
    assert (workdir / 'metrics.jsonl').read_bytes() == (expected / 'metrics.jsonl').read_bytes()
    assert shown(workdir) == shown(expected)
    for key in ('params', 'opt_state'):
        (one, meta), (two, other) = (Checkpoints(w).restore_params(key) for w in (workdir, expected))
        assert meta['step'] == other['step'] in (STEPS, MANY)
        jax.tree.map(np.testing.assert_array_equal, one, two)
    assert not list((workdir / 'checkpoints').glob('*tmp*'))


def kill_often(start, workdir, kills, seed, *args, n=1, steps=STEPS):
    """Trains to the end through so many kills at random times after the first row; how many there were."""
    args += (f'--config.train.steps={steps}',)
    rng, done = random.Random(seed), 0
    for _ in range(kills):
        processes = start(workdir, *args, n=n)
        # The end is not to come before the kills: the whole run divided among them, then any moment.
        wait_for_rows(processes, workdir, rng.randint(1, max(1, steps // 3 // (kills + 1))))
        time.sleep(rng.random() * 0.3)
        done += all(p.poll() is None for p in processes)
        for process in processes:
            process.kill()
            process.communicate()
    finish(start(workdir, *args, n=n))
    return done


@pytest.fixture(scope='module')
def whole(start, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('whole')
    finish(start(workdir))
    return workdir


def test_a_run_killed_twice_is_the_run_that_was_not(start, whole, tmp_path):
    assert kill_often(start, tmp_path, 2, 0) >= 1  # the last may come too late
    assert_same(tmp_path, whole)


@pytest.mark.slow
def test_a_run_that_moves_on_by_its_pack_after_every_kill_is_the_run_that_stayed(start, whole, tmp_path):
    """Each time on another machine: a directory of its own, and only the pack is taken along."""
    rng, pack, kills = random.Random(4), tmp_path / 'pack', 6
    for i in range(kills + 1):
        workdir = tmp_path / str(i)
        unpack = (f'--unpack={pack}',) if pack.exists() else ()
        processes = start(workdir, f'--pack={pack}', *unpack)
        if i < kills:
            wait_for_rows(processes, workdir, rng.randint(1, STEPS // 3 // (kills + 1)) + bool(unpack))
            time.sleep(rng.random() * 0.3)
            processes[0].kill()
            processes[0].communicate()
    finish(processes)
    assert (workdir / 'metrics.jsonl').read_bytes() == (whole / 'metrics.jsonl').read_bytes()
    for key in ('params', 'opt_state'):
        (one, meta), (two, _) = (Checkpoints(w).restore_params(key) for w in (workdir, whole))
        assert meta['step'] == STEPS
        jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.parametrize('number', [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_ends_training_with_a_code_of_its_own_and_nothing_is_done_twice(
    start, whole, tmp_path, number
):
    (process,) = start(tmp_path)
    wait_for_rows([process], tmp_path, 2)
    process.send_signal(number)
    (said,) = finish([process], codes=(75,))
    stopped_at = Checkpoints(tmp_path).latest_step()
    assert f'step {stopped_at} of {STEPS} is saved: start again' in said and 'Traceback' not in said
    # Where it goes on is where it was stopped, not a checkpoint before: what was written stays.
    before = (tmp_path / 'metrics.jsonl').read_bytes()
    finish(start(tmp_path))
    assert (tmp_path / 'metrics.jsonl').read_bytes().startswith(before)
    assert_same(tmp_path, whole)


def test_a_signal_before_the_first_step_ends_at_once(start, tmp_path):
    (process,) = start(tmp_path)
    deadline = time.monotonic() + 300
    while not (tmp_path / 'lock').is_file():  # by then it listens
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    finish([process], codes=(75,))


def test_a_second_signal_ends_at_once_and_leaves_a_whole_checkpoint(tmp_path):
    # Saving is made to last: what a second signal has to interrupt.
    code = f"""
import os, signal, sys, threading, time, numpy as np
from ghn_jax.runs.checkpoint import Checkpoints
from ghn_jax.training.preemption import Stopping
stopping = Stopping(); stopping.listen(); stopping.protect_steps()
c = Checkpoints({str(tmp_path)!r})
c.save(1, {{'params': {{'w': np.ones(3)}}}}, {{}}, wait=True)
os.kill(os.getpid(), signal.SIGTERM)
while not stopping.asked: time.sleep(0.01)
time.sleep(1.2)
c.save(2, {{'params': {{'w': np.ones(20_000_000)}}}}, {{}})
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(60)
"""
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )  # the main thread sleeps for longer than that if nothing ends it
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert 'the last checkpoint is whole' in done.stderr
    assert Checkpoints(tmp_path).restore_params()[0]['w'].size in (3, 20_000_000)


@pytest.mark.slow
def test_two_processes_stop_together_when_one_gets_a_signal_and_a_second_trainer_is_refused(
    start, tmp_path_factory, tmp_path
):
    expected = tmp_path_factory.mktemp('two')
    finish(start(expected, n=2))
    processes = start(tmp_path, n=2)
    wait_for_rows(processes, tmp_path, 2)
    (second,) = start(tmp_path)
    _, said = second.communicate(timeout=300)
    if all(p.poll() is None for p in processes):  # they have not come to their end meanwhile
        assert is_one_error_line((second.returncode, '', said), f'process {processes[0].pid} on')
        processes[1].send_signal(signal.SIGINT)
    finish(processes, codes=(75, 0))
    finish(start(tmp_path, n=2))
    assert_same(tmp_path, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('n', 'background', 'kills'), [(1, True, 8), (1, False, 6), (2, True, 6), (2, False, 4)]
)
def test_many_kills(start, tmp_path, n, background, kills):
    args = (f'--config.save_in_background={background}', '--config.save_every_steps=2')
    finish(start(tmp_path / 'whole', *args, f'--config.train.steps={MANY}', n=n))
    done = kill_often(start, tmp_path / 'killed', kills, n, *args, n=n, steps=MANY)
    print(f'{done} kills')
    assert done >= kills - 1
    assert_same(tmp_path / 'killed', tmp_path / 'whole')


@pytest.mark.slow
def test_two_runs_of_one_seed_are_one_run_and_another_seed_is_another(start, whole, tmp_path):
    finish(start(tmp_path / 'again') + start(tmp_path / 'other', '--config.seed=1'))
    assert_same(tmp_path / 'again', whole)
    assert (tmp_path / 'other/metrics.jsonl').read_bytes() != (whole / 'metrics.jsonl').read_bytes()


@pytest.mark.slow
def test_memory_files_threads_and_compilations_are_flat_over_2000_steps(start, tmp_path):
    args = (
        '--config.train.steps=2000', '--config.log_every_steps=20', '--config.save_every_steps=50',
        '--config.eval.every_steps=100', '--config.eval.num_networks=2',
    )  # fmt: skip
    finish(start(tmp_path, *args))
    curve = read_jsonl(tmp_path / 'machine.jsonl')
    for row in curve[4::10]:
        print(json.dumps({k.removeprefix('machine/'): v for k, v in row.items()}))
    warm = [row for row in curve if 400 <= row['step']]
    half = len(warm) // 2
    for name, room in (('resident_mib', 1.02), ('open_files', 1.1), ('threads', 1.1), ('compilations', 1.0)):
        values = [row[f'machine/{name}'] for row in warm]
        assert max(values[half:]) <= room * max(values[:half]), name


def test_a_run_whose_screen_fails_is_the_run_whose_screen_did_not(start, whole, tmp_path):
    with without_reader() as stdout, full() as stderr:
        (process,) = start(tmp_path, stdout=stdout, stderr=stderr)
        assert process.wait(timeout=500) == 0
    assert_same(tmp_path, whole)


def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays_whole(start, whole, tmp_path):
    if (
        os.geteuid()
        or subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=12m', 'none', tmp_path]).returncode
    ):
        pytest.skip('a small tmpfs takes root')
    try:
        (process,) = start(tmp_path, '--config.keep_checkpoints=100', '--config.save_every_steps=1')
        (said,) = finish([process], codes=(2,))
        assert 'Traceback' not in said and 'No space left' in said, said[-3000:]
        params, meta = Checkpoints(tmp_path).restore_params()
        assert meta['step'] >= 1
    finally:
        subprocess.run(['umount', '-l', tmp_path], check=True)


def test_a_read_only_workdir_is_one_line(start, whole, tmp_path):
    mounted = tmp_path / 'read_only'
    mounted.mkdir()
    bind = ['mount', '--bind', str(whole), str(mounted)]
    if os.geteuid() or subprocess.run(bind).returncode:
        pytest.skip('a read-only mount takes root')
    try:
        subprocess.run(['mount', '-o', 'remount,ro,bind', mounted], check=True)
        (process,) = start(mounted)
        (said,) = finish([process], codes=(2,))
        assert is_one_error_line((2, '', said), 'cannot be written')
        assert Checkpoints(mounted).restore_params()[1]['step'] == STEPS  # reading needs no more
    finally:
        subprocess.run(['umount', '-l', mounted], check=True)
