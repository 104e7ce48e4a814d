"""What surrounds a command: variables, home directories, clocks and folders of several people."""

import json
import os
import pathlib
import subprocess
import sys
import time
from unittest import mock

import jax
import pytest

from ghn_jax.base import cache, environment, executables, lock
from ghn_jax.base.errors import UserError
from ghn_jax.networks.spaces import make_space
from tests.small_run import ROOT, command, is_one_error_line, write_run


def run(module, *args, **variables):
    done = subprocess.run(
        [sys.executable, '-m', module, *map(str, args)],
        cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize('platforms', ['cuda', 'cpu,wibble'])
def test_devices_that_are_not_there_are_one_line(platforms, tmp_path):
    if jax.default_backend() == 'gpu':
        pytest.skip('there is a GPU here')
    flags = '--config=test', f'--workdir={tmp_path}/run'
    result = run('ghn_jax.train', *flags, JAX_PLATFORMS=platforms)
    assert is_one_error_line(result, f'JAX_PLATFORMS={platforms}: there are no such', 'here is ')
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_is_not_called_damaged_where_a_device_is_missing(tmp_path):
    workdir = write_run(tmp_path / 'run')
    spec = make_space('convnets250k').sample('test', 0, 0)
    (tmp_path / 'net.json').write_text(spec.to_json())
    flags = f'--workdir={workdir}', f'--arch={tmp_path}/net.json', f'--out={tmp_path}/x.safetensors'
    assert is_one_error_line(run('ghn_jax.predict', *flags, JAX_PLATFORMS='wibble'), 'JAX_PLATFORMS=wibble')


def test_64_bits_are_refused_before_the_work():
    with jax.enable_x64(True):
        assert is_one_error_line(command('ghn_jax.predict'), 'JAX_ENABLE_X64', 'unset it')
        assert command('ghn_jax.predict', '--help')[0] == 0
    environment.check()


@pytest.fixture
def homeless(monkeypatch):
    def nobody(uid):
        raise KeyError(uid)

    monkeypatch.delenv('HOME', raising=False)
    monkeypatch.delenv('GHN_JAX_CACHE', raising=False)
    monkeypatch.setattr('pwd.getpwuid', nobody)
    cache._say_homeless.cache_clear()


def test_without_a_home_nothing_is_kept_and_one_line_says_so(homeless, capsys):
    assert cache.folder() is None and cache.folder() is None
    said = capsys.readouterr().err
    assert said.count('\n') == 1 and 'no home directory' in said and 'GHN_JAX_CACHE=DIR' in said


def test_the_variable_needs_no_home(homeless, monkeypatch, capsys):
    for value, folder in (('/x/y', pathlib.Path('/x/y')), ('', None)):
        monkeypatch.setenv('GHN_JAX_CACHE', value)
        assert cache.folder() == folder
    assert not capsys.readouterr().err
    monkeypatch.setenv('GHN_JAX_CACHE', '~/x')
    with pytest.raises(UserError, match='GHN_JAX_CACHE=~/x cannot be used'):
        cache.folder()


def test_the_cache_lies_in_the_home_directory(monkeypatch):
    monkeypatch.setenv('HOME', '/home/someone')
    monkeypatch.delenv('GHN_JAX_CACHE', raising=False)
    assert cache.folder() == pathlib.Path('/home/someone/.cache/ghn_jax')
    monkeypatch.setenv('GHN_JAX_CACHE', '~/x')
    assert cache.folder() == pathlib.Path('/home/someone/x')
    monkeypatch.setenv('GHN_JAX_CACHE', 'gs://bucket')
    with pytest.raises(UserError, match='GHN_JAX_CACHE=gs://bucket.*not supported here'):
        cache.folder()


@pytest.mark.parametrize('zone', ['UTC-30', 'Nowhere/At_All', 'UTC+12'])
def test_a_lock_is_taken_in_any_time_zone(zone, tmp_path, monkeypatch):
    monkeypatch.setenv('TZ', zone)
    time.tzset()
    try:
        with lock.holding(tmp_path):
            assert json.loads((tmp_path / 'lock').read_text())['since'].endswith('+00:00')
    finally:
        monkeypatch.undo()
        time.tzset()


def test_programs_of_somebody_else_in_a_shared_folder_are_left_without_a_word(tmp_path, monkeypatch, capsys):
    (tmp_path / 'theirs.executable').touch()
    monkeypatch.setattr(executables, '_MOST', 1)
    monkeypatch.setattr(executables.serialize_executable, 'serialize', lambda compiled: compiled)
    unlink = pathlib.Path.unlink

    def in_a_sticky_folder(path, missing_ok=False):
        if path.name == 'theirs.executable':
            raise PermissionError(1, 'Operation not permitted')
        unlink(path, missing_ok)

    with mock.patch.object(pathlib.Path, 'unlink', in_a_sticky_folder):
        executables._save(tmp_path / 'ours.executable', {}, 'a program')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['ours.executable', 'theirs.executable']
    assert not capsys.readouterr().err
