"""Checkpoints in a bucket: as on a disk, though no folder is renamed there and an object commits a step."""

import contextlib
import itertools
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ghn_jax.base import files, paths
from ghn_jax.base.errors import UserError
from ghn_jax.runs.checkpoint import Checkpoints
from tests.runs.states import assert_same, make_state
from tests.small_run import ROOT

pytestmark = pytest.mark.filterwarnings(
    'ignore::pytest.PytestUnraisableExceptionWarning'
)  # of Orbax's threads


@pytest.fixture
def run(cloud):
    """A run directory with checkpoints at steps 1 and 2."""
    with Checkpoints(cloud) as c:
        for step in (1, 2):
            c.save(step, make_state(step), {'step': step})
    return paths.place(cloud, 'workdir')


def objects(folder):
    """The objects of a folder by their names in it."""
    start = len(str(folder).removeprefix('gs://')) + 1
    return {name[start:]: path for name in files.tree(folder) if (path := folder / name[start:]).is_file()}


def test_a_restored_state_is_the_saved_state_with_its_types(run):
    state, meta = Checkpoints(run).restore(make_state(0))
    assert_same(state, make_state(2))
    assert meta == {'step': 2} == Checkpoints(str(run)).restore_meta()
    params, _ = Checkpoints(run).restore_params(step=1)
    np.testing.assert_array_equal(params['dense']['kernel'], make_state(1).params['dense']['kernel'])
    assert Checkpoints(run / 'none').steps() == [] and Checkpoints(run).steps() == [1, 2]
    with pytest.raises(UserError, match='^no checkpoint in gs://.*/none: train first'):
        Checkpoints(run / 'none').restore(make_state(0))


def test_the_newest_those_of_an_interval_and_the_best_stay(cloud):
    with Checkpoints(cloud, keep=2, keep_every=4) as c:
        for step in range(1, 8):
            c.save(step, make_state(step), {'step': step}, best=3 if step > 2 else None)
        c.save(7, make_state(9), {})
        c.wait()
        assert c.steps() == [3, 4, 6, 7]
    assert sorted(map(int, files.names(c.folder))) == [3, 4, 6, 7]
    assert_same(Checkpoints(cloud).restore(make_state(0))[0], make_state(7))


def flip_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(bytes(data))


DAMAGE = {
    'flipped': flip_bit,
    'empty': lambda path: path.write_bytes(b''),
    'absent': lambda path: path.unlink(),
}


def check_damage(run, names, how):
    """How many of the objects were needed; whatever is damaged, a state is restored that was saved."""
    fell_back = 0
    for name in names:
        newest = run / 'checkpoints/2'
        DAMAGE[how](newest / name)
        with Checkpoints(run) as c:
            state, meta = c.restore(make_state(0))
            assert_same(state, make_state(meta['step']))
            fell_back += meta['step'] == 1
            if meta['step'] == 1:
                kept = objects(newest).keys()
                c.save(2, make_state(2), {'step': 2}, wait=True)
                if name != 'commit_success.txt' or how != 'absent':  # without it there never was a step
                    assert objects(run / 'damaged/2').keys() == kept
                    (run / 'damaged').rmtree()
            else:
                newest.rmtree()
                c.save(2, make_state(2), {'step': 2}, wait=True)
        assert_same(Checkpoints(run).restore(make_state(0))[0], make_state(2))
    return fell_back


def test_damage_gives_the_step_before_and_nothing_is_deleted(run, capsys):
    assert check_damage(run, ['meta/metadata', 'state/manifest.ocdbt'], 'flipped') == 2
    assert 'checkpoints/2 cannot be read' in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize('how', DAMAGE)
def test_no_damage_to_any_object_gives_another_state_and_nothing_is_deleted(run, how):
    stable = {
        '_CHECKPOINT_METADATA',
        'commit_success.txt',
        'meta/metadata',
        'state/_METADATA',
        'state/_sharding',
    }
    found = objects(run / 'checkpoints/2')
    assert stable <= found.keys() and any(name.startswith('state/d/') for name in found)
    arrays = next(name for name in found if name.startswith('state/ocdbt.process_0/d/'))
    assert check_damage(run, [arrays, *sorted(stable)], how) >= 2


@pytest.mark.slow
def test_killing_a_save_leaves_a_whole_checkpoint_and_the_step_can_be_saved_again(run):
    code = """
        import os, sys, threading
        from ghn_jax.runs.checkpoint import Checkpoints
        from tests.runs.states import make_state
        from orbax.checkpoint._src.path import atomicity
        async def die(self):
            os._exit(9)
        atomicity.CommitFileTemporaryPath.finalize = die
        with Checkpoints(sys.argv[1]) as c:
            c.save(3, make_state(3), {'step': 3})
    """
    done = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(code), str(run)], cwd=ROOT, capture_output=True
    )
    assert done.returncode == 9, done.stderr
    assert '3' in files.names(run / 'checkpoints')  # the beginning of it
    with Checkpoints(run) as c:
        assert c.steps() == [1, 2] and c.restore(make_state(0))[1] == {'step': 2}
        c.save(3, make_state(3), {'step': 3}, wait=True)
    assert_same(Checkpoints(run).restore(make_state(0))[0], make_state(3))
    assert not files.is_folder(run / 'damaged')


def test_readers_beside_a_training_that_keeps_one_checkpoint_never_see_damage(cloud, capsys):
    save = lambda c, step: c.save(step, {'params': {'w': np.full(3, step)}}, {'step': step})
    with Checkpoints(cloud, keep=1) as c:
        save(c, 1)
    # Each reading has what it reads replaced twice. Replacing without an end could be faster than any reader,
    # and how many tries are enough a matter of time.
    begun, done = threading.Semaphore(0), threading.Event()

    def train():
        with Checkpoints(cloud, keep=1) as c:
            for step in itertools.count(2):
                begun.acquire()
                if done.is_set():
                    return
                save(c, step)

    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(train)
        try:
            seen = []
            while len(set(seen)) < 4 and len(seen) < 100:
                begun.release(2)
                params, meta = Checkpoints(cloud).restore_params()
                assert list(params['w']) == [meta['step']] * 3
                seen.append(meta['step'])
        finally:
            done.set()
            begun.release()
        training.result()
    assert seen == sorted(seen) and len(set(seen)) >= 4
    assert capsys.readouterr().err == ''


def test_what_cannot_be_written_is_one_line_with_the_last_whole_checkpoint(run, monkeypatch):
    from etils.epath import backend

    def refuse(self, path, mode):
        raise OSError(f'Forbidden: {path}')

    c = Checkpoints(run)
    c.restore_meta()
    monkeypatch.setattr(type(backend.fsspec_backend), 'open', refuse)
    with pytest.raises(
        UserError, match=r'no checkpoint can be written in gs://.*; .* that of step 2'
    ) as raised:
        c.save(3, make_state(3), {'step': 3}, wait=True)
    assert 'Forbidden' in str(raised.value)
    with contextlib.suppress(UserError):  # told once more, or not
        c.close()
    monkeypatch.undo()  # not before: what is still at it in the background would finish the step
    assert Checkpoints(run).steps() == [1, 2]
