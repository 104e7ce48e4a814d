"""`zoo:NAME` stands where a run directory is read, and gives what was stored; damage is noticed."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

import ghn_jax
from ghn_jax import config as configs
from ghn_jax.base import paths
from ghn_jax.base.errors import UserError
from ghn_jax.runs import zoo
from ghn_jax.runs.run import load_run
from tests.small_run import ROOT, command, is_one_error_line, write_run


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    return load_run(write_run(tmp_path_factory.mktemp('run'), bits=True))


def test_float32_gives_back_the_parameters_and_float16_the_nearest_to_them(run, tmp_path):
    for dtype in zoo.DTYPES:
        card = zoo.write_entry('a-b', run.params, run.meta, {'about': 'x'}, dtype=dtype, folder=tmp_path)
        assert card == zoo.write_entry(
            'a-b', run.params, run.meta, {'about': 'x'}, dtype=dtype, folder=tmp_path
        )
        params, meta = zoo.read_entry('a-b', tmp_path)
        assert meta == run.meta and zoo.read_card('a-b', tmp_path) == card
        assert jax.tree.structure(params) == jax.tree.structure(run.params)
        stored = jax.tree.map(
            lambda x, dtype=dtype: np.asarray(x).astype(dtype).astype(np.float32), run.params
        )
        jax.tree.map(np.testing.assert_array_equal, params, stored)
        assert card['parameters'] == sum(x.size for x in jax.tree.leaves(run.params))
    assert zoo.names(tmp_path) == ['a-b']


def test_an_entry_does_not_say_where_the_data_of_its_training_lay(run, tmp_path):
    config = dataclasses.replace(run.config, data_dir='/of/one/machine')
    meta = {**run.meta, 'config': configs.to_json(config)}
    zoo.write_entry('a', run.params, meta, {}, folder=tmp_path)
    assert zoo.read_entry('a', tmp_path)[1] == run.meta
    assert b'/of/one/machine' not in (tmp_path / 'a.safetensors').read_bytes()


def test_what_cannot_be_stored_is_refused_and_nothing_is_written(run, tmp_path):
    big = jax.tree.map(lambda x: x * 1e6, run.params)
    with pytest.raises(UserError, match='dtype=float16: .* has numbers beyond it: give float32'):
        zoo.write_entry('a', big, run.meta, {}, folder=tmp_path)
    for name in ('A', 'a_b', '../a', 'a-', ''):
        with pytest.raises(UserError, match='expected lower-case words with hyphens'):
            zoo.write_entry(name, run.params, run.meta, {}, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_bit_that_changes_anywhere_is_noticed(run, tmp_path):
    zoo.write_entry('a', run.params, run.meta, {}, folder=tmp_path)
    file = tmp_path / 'a.safetensors'
    whole = file.read_bytes()
    for place in (0, 30, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match='zoo:a is damaged: its digest') as error:
            zoo.read_entry('a', tmp_path)
        assert '\n' not in str(error.value)
    file.unlink()
    with pytest.raises(UserError, match='zoo:a cannot be read'):
        zoo.read_entry('a', tmp_path)


def test_every_entry_of_the_package_loads_and_all_of_them_fit_a_wheel():
    assert zoo.names()
    for name in zoo.names():
        loaded = ghn_jax.load(f'zoo:{name}', step='best')
        card = zoo.read_card(name)
        assert (loaded.step, loaded.config.seed) == (card['steps'], card['seed'])
        assert ghn_jax.load(f'zoo:{name}', card['steps']).step == card['steps']
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(loaded.run.params))
    # hatchling ships every file of the package; this is what the limit of 40 MB is about.
    package = (file for file in (ROOT / 'ghn_jax').rglob('*') if file.suffix not in ('.pyc', ''))
    assert sum(file.stat().st_size for file in package) < 40e6
    assert zoo.FOLDER == ROOT / 'ghn_jax/zoo'


def test_a_name_that_there_is_not_is_one_line_with_those_that_there_are():
    for name in ('digit-bits', '', '../zoo/digits-bits', 'x' * 300):
        with pytest.raises(UserError, match='expected zoo:.*zoo:digits-bits') as error:
            load_run(f'zoo:{name}')
        assert '\n' not in str(error.value) and len(str(error.value)) < 250
    steps = zoo.read_card('digits-bits')['steps']
    with pytest.raises(UserError, match=f'step=3: zoo:digits-bits is of step {steps}'):
        load_run('zoo:digits-bits', '3')


def test_commands_read_the_zoo_and_write_nothing_to_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ghn_jax.save_networks('net.json', [ghn_jax.load('zoo:digits-bits').space.sample('test', 0, 0)])
    code, said, _ = command(
        'ghn_jax.predict',
        '--workdir=zoo:digits-bits',
        '--arch=net.json',
        '--out=net.safetensors',
        '--bits=w4a4',
    )
    assert code == 0 and 'w4a4, predicted' in said
    for words, message in (
        (
            ('ghn_jax.predict', '--workdir=zoo:digits', '--arch=net.json', '--out=a'),
            'zoo:digits-bits',
        ),
        (('ghn_jax.evaluate', '--workdir=zoo:digits'), 'zoo:digits-bits'),
        (('ghn_jax.report', '--workdir=zoo:digits-bits'), '--out is missing'),
        (('ghn_jax.replay', '--workdir=zoo:digits-bits'), 'there are no bad networks'),
        (('ghn_jax.train', '--config=test', '--workdir=zoo:digits-bits'), 'is only read: give a directory'),
    ):
        assert is_one_error_line(command(*words), message), words
    assert sorted(pathlib.Path().iterdir()) == [pathlib.Path('net.json'), pathlib.Path('net.safetensors')]


def test_a_path_is_of_the_zoo_by_its_beginning_alone():
    assert paths.zoo_name('zoo:a') == 'a' and paths.zoo_name(pathlib.Path('zoo:a')) == 'a'
    assert paths.zoo_name('zoo/a') is None and paths.zoo_name('./zoo:a') is None
