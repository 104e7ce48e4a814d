"""The lock of a run directory: one holder, by name, and none that outlives its process."""

import os
import signal
import subprocess
import sys

import pytest

from ghn_jax.base import lock
from ghn_jax.base.errors import UserError
from tests.small_run import ROOT

HOLD = """
import sys, time
from ghn_jax.base import lock
with lock.holding(sys.argv[1]):
    print('held', flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_by_the_name_of_the_first_until_that_is_killed(tmp_path):
    with subprocess.Popen(
        [sys.executable, '-c', HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as first:
        try:
            assert first.stdout is not None and first.stdout.readline() == 'held\n'
            for _ in range(2):  # being refused leaves the holder's name
                with pytest.raises(UserError, match=f'in use by process {first.pid} on .*, since 20'):
                    with lock.holding(tmp_path):
                        pass
        finally:
            first.send_signal(signal.SIGKILL)
    with lock.holding(tmp_path):
        assert str(os.getpid()) in (tmp_path / 'lock').read_text()
    assert [path.name for path in tmp_path.iterdir()] == ['lock']


def test_an_error_inside_lets_go_of_the_lock(tmp_path):
    with pytest.raises(ValueError, match='^inside$'), lock.holding(tmp_path / 'new'):
        raise ValueError('inside')
    with (
        lock.holding(tmp_path / 'new'),
        pytest.raises(UserError, match='in use'),
        lock.holding(tmp_path / 'new'),
    ):
        pass


def test_a_directory_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / 'file').touch()
    for place in (tmp_path / 'file', tmp_path / 'file' / 'run'):
        with (
            pytest.raises(UserError, match='cannot be written .*: give another workdir'),
            lock.holding(place),
        ):
            pass


def test_a_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch, capsys):
    def unsupported(file, operation):
        raise OSError(95, 'Operation not supported')

    monkeypatch.setattr('fcntl.flock', unsupported)
    with lock.holding(tmp_path):
        pass
    assert 'cannot be locked (Operation not supported)' in capsys.readouterr().err
