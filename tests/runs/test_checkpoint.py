"""Checkpoints: what comes back is what was saved, whatever happened in between."""

import itertools
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.runs import checkpoint
from ghn_jax.runs.checkpoint import Checkpoints, Vanished
from tests.runs.states import assert_same, make_state


def test_a_restored_state_is_the_saved_state_with_its_types(run):
    state, meta = Checkpoints(run).restore(make_state(0))
    assert_same(state, make_state(2))
    assert meta == {'config': '{"a": [1]}', 'step': 2}
    shapes = jax.eval_shape(lambda: make_state(0))
    assert_same(Checkpoints(run).restore(shapes)[0], make_state(2))


def test_parameters_are_restored_without_knowing_the_rest(run):
    params, meta = Checkpoints(run).restore_params()
    chex.assert_trees_all_equal(params, jax.device_get(make_state(2).params))
    assert meta['step'] == 2 and Checkpoints(run).restore_meta() == meta


def test_the_last_few_steps_are_kept_and_saving_one_again_changes_nothing(tmp_path):
    with Checkpoints(tmp_path, keep=2) as c:
        for step in (1, 2, 3):
            c.save(step, make_state(step), {})
        c.save(3, make_state(9), {}, wait=True)
        assert c.steps() == [2, 3] and c.latest_step() == 3
        assert_same(c.restore(make_state(0))[0], make_state(3))


def test_a_state_may_be_overwritten_as_soon_as_save_returns(tmp_path):
    overwrite = jax.jit(lambda x: x * 0, donate_argnums=0)
    with Checkpoints(tmp_path) as c:
        x, y = jnp.ones((256, 256)), np.ones((256, 256), np.float32)
        c.save(1, {'params': {'x': x, 'y': y}}, {})
        overwrite(x)
        y[:] = 0
        params, _ = c.restore_params()
    assert params['x'].all() and params['y'].all()


def test_those_of_an_interval_and_the_best_stay(tmp_path):
    with Checkpoints(tmp_path, keep=2, keep_every=4) as c:
        for step in range(1, 11):
            c.save(step, make_state(step), {}, best=3 if step >= 4 else None)
        c.wait()
        assert c.steps() == [3, 4, 8, 9, 10]


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda s: make_state(0, width=4), r'dense/kernel is float32\[3, 2\], expected float32\[4, 2\]'),
        (lambda s: s.replace(step=jnp.float32(0)), r'step is int32\[\], expected float32\[\]'),
        (lambda s: s.replace(params={'other': jnp.ones(2)}), r'dense/bias is bfloat16\[2\], expected none'),
        (
            lambda s: s.replace(params=dict(s.params, new=jnp.ones(2))),
            r'new is absent, expected float32\[2\]',
        ),
    ],
)
def test_another_shape_dtype_or_structure_is_one_clear_error(run, change, message):
    with pytest.raises(UserError, match=message) as e:
        Checkpoints(run).restore(change(make_state(0)))
    assert '\n' not in str(e.value)


def test_a_directory_without_a_checkpoint_is_an_error_and_stays_as_it_was(tmp_path):
    (tmp_path / 'notes.txt').write_text('mine')
    with pytest.raises(UserError, match='no checkpoint in .*train first'):
        Checkpoints(tmp_path).restore_params()
    assert Checkpoints(tmp_path).latest_step() is None
    assert [p.name for p in tmp_path.iterdir()] == ['notes.txt']


def test_a_foreign_checkpoint_is_an_error(tmp_path):
    with ocp.CheckpointManager(tmp_path / 'checkpoints') as m:
        state, meta = ocp.args.PyTreeSave({'w': np.ones(2)}), ocp.args.JsonSave({'a': 1})
        m.save(5, args=ocp.args.Composite(state=state, meta=meta))
    with pytest.raises(UserError, match='not written by this version of ghn_jax'):
        Checkpoints(tmp_path).restore_params()
    (tmp_path / 'other' / 'checkpoints' / '7').mkdir(parents=True)
    with pytest.raises(UserError, match='damaged or not of ghn_jax'):
        Checkpoints(tmp_path / 'other').restore_meta()


def test_killing_a_save_leaves_a_whole_checkpoint_and_the_step_can_be_saved_again(tmp_path):
    code = f"""
        import os, signal, numpy as np
        from ghn_jax.runs.checkpoint import Checkpoints
        c = Checkpoints({str(tmp_path)!r})
        state = lambda s: {{'params': {{'w': np.full(20_000_000, s, np.float32)}}}}   # 80 MB: not yet on disk
        c.save(1, state(1), {{'step': 1}}, wait=True)
        c.save(2, state(2), {{'step': 2}})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    root = pathlib.Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(code)],
        env={**os.environ, 'PYTHONPATH': str(root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    params, meta = Checkpoints(tmp_path).restore_params()
    assert meta['step'] in (1, 2) and (params['w'] == meta['step']).all()
    with Checkpoints(tmp_path) as c:
        c.save(2, {'params': {'w': np.full(3, 7, np.float32)}}, {'step': 2})
    assert not list((tmp_path / 'checkpoints').glob('*tmp*'))
    assert Checkpoints(tmp_path).latest_step() == 2


def test_a_state_comes_back_in_the_shardings_of_the_one_given(run):
    mesh = jax.make_mesh((1,), ('i',), devices=jax.devices()[:1])
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    like = jax.device_put(make_state(0), sharding)
    state, _ = Checkpoints(run).restore(like)
    assert {x.sharding for x in jax.tree.leaves(state.params)} == {sharding}
    plain, _ = Checkpoints(run).restore(make_state(0))
    assert {x.sharding for x in jax.tree.leaves(plain.params)} == {make_state(0).step.sharding}


def test_two_checkpoints_have_one_digest_only_if_they_are_the_same(tmp_path):
    digests = set()
    for name, value, meta in (('a', 1, {'a': 1}), ('b', 2, {'a': 1}), ('c', 1, {'a': 2})):
        with Checkpoints(tmp_path / name) as c:
            c.save(1, make_state(value), meta)
        digests.add(Checkpoints(tmp_path / name).restore_record()[1])
    with Checkpoints(tmp_path / 'again') as c:
        c.save(1, make_state(1), {'a': 1})
    assert len(digests) == 3 and Checkpoints(tmp_path / 'again').restore_record()[1] in digests


def test_what_cannot_be_written_is_one_line_with_the_last_whole_checkpoint(tmp_path, monkeypatch):
    advice = 'make room, or make the directory writable, and start again'
    folder = tmp_path / 'new/checkpoints'
    folder.parent.mkdir()
    folder.write_text('')
    with pytest.raises(UserError) as e:
        Checkpoints(tmp_path / 'new').save(1, make_state(1), {})
    assert str(e.value) == (
        f"no checkpoint can be written in {folder} ([Errno 17] File exists: '{folder}'); there is none yet: "
        f'{advice}'
    )
    error = RuntimeError(
        'Error in a thread:\n  UNKNOWN: write failed: No space left on device [errno 28]\n  at x'
    )
    with Checkpoints(tmp_path, background=False) as c:
        c.save(2, make_state(2), {})
        with monkeypatch.context() as m, pytest.raises(UserError) as e:
            m.setattr(type(c._writer), 'save', lambda *_, **__: (_ for _ in ()).throw(error))
            c.save(3, make_state(3), {})
    assert str(e.value) == (
        f'no checkpoint can be written in {tmp_path}/checkpoints (No space left on device); the last whole '
        f'one is that of step 2: {advice}'
    )


@pytest.mark.parametrize(
    ('text', 'reason'),
    [
        ('a\nb: Read-only file system: c', 'Read-only file system'),
        ('a\nb: Permission denied: c', 'Permission denied'),
        ('a \n  b', 'a b'),
        ('x' * 400, 'x' * 300),
        ('', 'OSError'),
    ],
)
def test_the_reason_of_a_failure_is_a_few_words(text, reason):
    assert checkpoint._reason(OSError(text)) == reason


def save_keeping_one(workdir: pathlib.Path, *steps: int) -> None:
    with Checkpoints(workdir, keep=1) as c:
        for step in steps:
            c.save(step, {'params': {'w': np.full(3, step)}}, {'step': step})


@pytest.mark.parametrize('how', ['whole', 'in part', 'in part, at rest'])
def test_a_checkpoint_that_is_deleted_while_it_is_read_is_no_damage(tmp_path, monkeypatch, capsys, how):
    save_keeping_one(tmp_path, 1)
    whole = shutil.copytree(tmp_path / 'checkpoints/1', tmp_path / 'whole')
    restore, calls = ocp.CheckpointManager.restore, []

    def rotate_then_restore(manager, step, **options):
        calls.append(step)
        if len(calls) == 1:
            if how != 'in part':
                save_keeping_one(tmp_path, 2)
            if how == 'in part, at rest':
                shutil.copytree(whole, tmp_path / 'checkpoints/1')
            if how != 'whole':  # as a reader sees it in the middle of its deletion
                shutil.rmtree(tmp_path / 'checkpoints/1/meta')
        elif how == 'in part' and len(calls) == 2:
            save_keeping_one(tmp_path, 2)
        return restore(manager, step, **options)

    monkeypatch.setattr(ocp.CheckpointManager, 'restore', rotate_then_restore)
    params, meta = Checkpoints(tmp_path).restore_params()
    assert meta == {'step': 2} and list(params['w']) == [2, 2, 2]
    assert capsys.readouterr().err == ''


def test_a_checkpoint_that_somebody_deletes_while_it_is_read_gives_the_one_before(run, monkeypatch, capsys):
    restore = ocp.CheckpointManager.restore

    def delete_then_restore(manager, step, **options):
        shutil.rmtree(run / 'checkpoints/2', ignore_errors=True)
        return restore(manager, step, **options)

    monkeypatch.setattr(ocp.CheckpointManager, 'restore', delete_then_restore)
    assert Checkpoints(run).restore_meta()['step'] == 1
    assert capsys.readouterr().err == ''


def test_a_step_that_is_deleted_while_it_is_read_is_told_as_such(tmp_path, monkeypatch):
    save_keeping_one(tmp_path, 1)
    restore = ocp.CheckpointManager.restore

    def rotate_then_restore(manager, step, **options):
        save_keeping_one(tmp_path, 2)
        return restore(manager, step, **options)

    monkeypatch.setattr(ocp.CheckpointManager, 'restore', rotate_then_restore)
    with pytest.raises(Vanished, match=r'step 1 in .* was deleted while it was read: .* choose from \[2\]$'):
        Checkpoints(tmp_path).restore_params(step=1)
    with pytest.raises(UserError, match=r'has no checkpoint of step 1: choose from \[2\]$'):
        Checkpoints(tmp_path).restore_params(step=1)


def test_readers_beside_a_training_that_keeps_one_checkpoint_never_see_damage(tmp_path, capsys):
    save_keeping_one(tmp_path, 1)
    done = threading.Event()

    def train():
        with Checkpoints(tmp_path, keep=1) as c:
            for step in itertools.count(2):
                if done.is_set():
                    return
                c.save(step, {'params': {'w': np.full(3, step)}}, {'step': step})

    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(train)
        try:
            seen = []
            while len(seen) < 40 or seen[-1] < seen[0] + 3:
                assert not training.done()
                params, meta = Checkpoints(tmp_path).restore_params()
                assert list(params['w']) == [meta['step']] * 3
                seen.append(meta['step'])
        finally:
            done.set()
        training.result()
    assert seen == sorted(seen)
    assert 'cannot be read' not in capsys.readouterr().err
