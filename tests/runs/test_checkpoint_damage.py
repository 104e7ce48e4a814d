"""Damaged checkpoints: damage is noticed and told, the checkpoint before is read, and nothing is deleted."""

import pathlib
import shutil

import numpy as np
import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.runs.checkpoint import Checkpoints
from tests.runs.states import assert_same, make_state


def damage(run: pathlib.Path, step: int) -> None:
    for file in (run / 'checkpoints' / str(step) / 'state').rglob('*'):
        if file.is_file() and file.parent.name == 'd':
            file.write_bytes(b'x' * 10)


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')  # of Orbax's threads
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(run, capsys):
    damage(run, 2)
    c = Checkpoints(run)
    state, meta = c.restore(make_state(0))
    assert_same(state, make_state(1))
    assert meta['step'] == 1
    err = capsys.readouterr().err
    assert 'checkpoints/2 cannot be read' in err and len(err.splitlines()) == 1
    with c:  # training goes on from step 1 and comes by step 2 again
        c.save(2, make_state(2), {'step': 2})
    assert_same(Checkpoints(run).restore(make_state(0))[0], make_state(2))


def flip_bit(file: pathlib.Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 16
    file.write_bytes(data)


DAMAGE = {
    'flipped': flip_bit,
    'empty': lambda file: file.write_bytes(b''),
    'cut': lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    'absent': pathlib.Path.unlink,
}


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize('how', DAMAGE)
def test_no_damage_to_any_file_gives_another_state_and_nothing_is_deleted(run, tmp_path_factory, how):
    newest = run / 'checkpoints/2'
    files = [f.relative_to(newest) for f in newest.rglob('*') if f.is_file() and f.stat().st_size]
    fell_back = 0
    for name in files:
        copy = tmp_path_factory.mktemp('copy')
        shutil.copytree(run, copy, dirs_exist_ok=True)
        DAMAGE[how](copy / 'checkpoints/2' / name)
        c = Checkpoints(copy)
        state, meta = c.restore(make_state(0))
        assert_same(state, make_state(meta['step']))
        if meta['step'] == 1:
            fell_back += 1
            kept = sorted(f.relative_to(newest) for f in newest.rglob('*'))
            with c:
                c.save(2, make_state(2), {'step': 2})
            assert_same(Checkpoints(copy).restore(make_state(0))[0], make_state(2))
            aside = copy / 'damaged/2'
            assert sorted(f.relative_to(aside) for f in aside.rglob('*')) in (kept, sorted({*kept} - {name}))
    assert fell_back >= 3  # the arrays, their index, the record


def test_a_bit_that_changes_an_array_is_noticed_by_the_name_of_the_array(tmp_path, capsys):
    with Checkpoints(tmp_path) as c:
        for step in (1, 2):
            c.save(step, {'params': {'w': np.random.default_rng(step).normal(size=5000)}}, {'step': step})
    (file,) = sorted(tmp_path.glob('checkpoints/2/state/**/d/*'), key=lambda f: f.stat().st_size)[-1:]
    flip_bit(file)
    params, meta = Checkpoints(tmp_path).restore_params()
    assert meta['step'] == 1
    assert 'params/w is not what was written' in capsys.readouterr().err


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_where_every_checkpoint_is_damaged_the_error_says_so(run):
    damage(run, 1)
    damage(run, 2)
    with pytest.raises(UserError, match=r'none of the checkpoints \[1, 2\]'):
        Checkpoints(run).restore_params()


def test_a_bit_of_the_saved_config_that_changes_falls_back_to_the_checkpoint_before(run, capsys):
    file = run / 'checkpoints/2/meta/metadata'
    text = file.read_text()
    assert text.count('[1]') == 1
    file.write_text(text.replace('[1]', '[3]'))  # as good a record as before
    state, meta = Checkpoints(run).restore(make_state(0))
    assert_same(state, make_state(1))
    assert meta == {'config': '{"a": [1]}', 'step': 1} == Checkpoints(run).restore_meta()
    assert 'its record was changed after it was written' in capsys.readouterr().err


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_damage_is_told_once(run, capsys):
    damage(run, 2)
    checkpoints = Checkpoints(run)
    for _ in range(3):
        assert checkpoints.restore_params()[1]['step'] == 1
    assert capsys.readouterr().err.count('cannot be read') == 1
