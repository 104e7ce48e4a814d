"""A file is written whole or stays as it was; pipes and devices are written to; links stay links."""

import io
import json
import os
import stat
import subprocess
import sys
import threading
from unittest import mock

import pytest

from ghn_jax.base import files
from ghn_jax.base.errors import UserError
from ghn_jax.base.jsonlines import Records
from ghn_jax.runs.tensorboard import Events
from tests.small_run import ROOT
from tests.streams import full


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_whole_or_keeps_its_old_content(tmp_path):
    path = tmp_path / 'x'
    files.write(path, 'old')
    files.write(path, b'new')
    assert path.read_text() == 'new'
    error = OSError(28, 'No space left on device')
    for function in ('replace', 'fsync'):
        with mock.patch.object(os, function, side_effect=error):
            with pytest.raises(
                UserError, match=r'x cannot be written \(No space left on device\): make room'
            ):
                files.write(path, 'newer')
        assert path.read_text() == 'new' and names(tmp_path) == ['x']
    with pytest.raises(KeyError), files.replacing(path) as file:
        file.write(b'half')
        raise KeyError
    assert path.read_text() == 'new' and names(tmp_path) == ['x']


def test_a_link_stays_and_what_it_leads_to_is_replaced_in_its_own_folder(tmp_path):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a/x').write_text('old')
    (tmp_path / 'link').symlink_to('a/x')
    (tmp_path / 'far').symlink_to('link')
    (tmp_path / 'new').symlink_to('a/y')
    with open(tmp_path / 'a/x') as reader:
        files.write(tmp_path / 'far', 'new')
        assert reader.read() == 'old'  # what one reads stays whole
    files.write(tmp_path / 'new', 'first')
    assert all((tmp_path / name).is_symlink() for name in ('link', 'far', 'new'))
    assert [(tmp_path / 'a' / name).read_text() for name in ('x', 'y')] == ['new', 'first']
    assert names(tmp_path / 'a') == ['x', 'y']


@pytest.mark.parametrize('mode', [0o600, 0o640, 0o777])
def test_a_file_keeps_its_permissions(tmp_path, mode):
    path = tmp_path / 'x'
    path.touch()
    path.chmod(mode)
    files.write(path, 'new')
    assert stat.S_IMODE(path.stat().st_mode) == mode and path.read_text() == 'new'


def test_a_read_only_file_stays_even_to_the_administrator(tmp_path):
    path = tmp_path / 'x'
    path.write_text('precious')
    path.chmod(0o444)
    for write in (lambda: files.write(path, 'new'), lambda: Records(path), lambda: Records(path, 3)):
        with pytest.raises(UserError, match=r'cannot be written \(it is read-only\)'):
            write()
    assert path.read_text() == 'precious' and names(tmp_path) == ['x']


def test_a_named_pipe_gets_the_content_and_stays_one(tmp_path):
    pipe = tmp_path / 'pipe'
    os.mkfifo(pipe)
    got = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
    reader.start()
    files.write(pipe, 'x' * 200_000)  # more than it holds
    reader.join(20)
    assert got == [b'x' * 200_000] and stat.S_ISFIFO(pipe.stat().st_mode) and names(tmp_path) == ['pipe']


def test_a_device_is_written_to_and_stays_one(tmp_path):
    full().close()
    (tmp_path / 'null').symlink_to('/dev/null')
    files.write(tmp_path / 'null', 'x')
    with pytest.raises(UserError, match=r'/dev/full cannot be written \(No space left on device\)'):
        files.write('/dev/full', 'x')
    assert all(stat.S_ISCHR(os.stat(path).st_mode) for path in ('/dev/null', '/dev/full'))


@pytest.mark.parametrize('redirection', ['> out', '| cat > out', '3> out'])
def test_names_of_open_files_are_written_through(tmp_path, redirection):
    """--json=/dev/stdout, and what bash makes of >(program)."""
    name = '/dev/fd/3' if redirection[0] == '3' else '/dev/stdout'
    code = f"from ghn_jax.base import files; print('before'); files.write('{name}', 'got\\n'); print('after')"
    shell = f'"{sys.executable}" -c "{code}" {redirection}'
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHONUNBUFFERED': ''}
    subprocess.run(['bash', '-c', shell], cwd=tmp_path, env=env, check=True)
    expected = 'got\n' if name == '/dev/fd/3' else 'before\ngot\nafter\n'
    assert (tmp_path / 'out').read_text() == expected and names(tmp_path) == ['out']


def test_a_name_of_255_bytes_can_be_written(tmp_path):
    files.write(tmp_path / ('é' * 127), 'x')
    assert (tmp_path / ('é' * 127)).read_text() == 'x'


def test_a_result_is_json_without_nan(tmp_path):
    files.write_json(tmp_path / 'x', {'a': [1.5, None]})
    assert json.loads((tmp_path / 'x').read_text()) == {'a': [1.5, None]}
    with pytest.raises(ValueError):
        files.write_json(tmp_path / 'x', {'a': float('nan')})
    assert json.loads((tmp_path / 'x').read_text()) == {'a': [1.5, None]}


@pytest.mark.parametrize('name', ['metrics.jsonl', 'tensorboard'])
def test_a_full_disk_under_the_records_of_a_run_is_one_line(tmp_path, name):
    """Also when they are closed, which writes what is left once more."""

    class Full(io.RawIOBase):
        def writable(self):
            return True

        def write(self, data):
            raise OSError(28, 'No space left on device')

    full = io.BufferedWriter(Full())
    if name == 'metrics.jsonl':
        records = Records(tmp_path / name)
        records._file._file.close()
        records._file._file = full
        operations = (lambda: records.write({'step': 1}), records.flush, records.close)
    else:
        events = Events(tmp_path / name)
        events._writer.close()
        events._writer._writer = full
        operations = (lambda: events.scalar(1, 'x' * 9000, 1.0), events.flush, events.close)
    for operation in operations:
        with pytest.raises(UserError, match=rf'{name} cannot be written \(No space left on device\)'):
            operation()


def test_records_go_into_no_pipe(tmp_path):
    os.mkfifo(tmp_path / 'metrics.jsonl')
    with pytest.raises(UserError, match='is no file'):
        Records(tmp_path / 'metrics.jsonl')
