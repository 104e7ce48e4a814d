"""A screen that fails loses what it was to show, and nothing else."""

import contextlib
import io
import os
import subprocess
import sys
from unittest import mock

import pytest

from ghn_jax.base import screen
from ghn_jax.base.errors import UserError
from ghn_jax.runs.metrics import Metrics
from ghn_jax.runs.progress import Progress
from ghn_jax.training import preemption
from tests.small_run import ROOT
from tests.streams import Ascii, full, without_reader


@contextlib.contextmanager
def installed(stdout=None, stderr=None):
    """(stdout, stderr) as commands have them."""
    out, err = stdout or io.StringIO(), stderr or io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        screen.install()
        yield out, err


@pytest.mark.parametrize('make', [without_reader, full])
def test_lines_and_bars_on_a_screen_that_fails_end_nothing(make, tmp_path):
    with make() as out, make() as err, installed(out, err):
        with Metrics(tmp_path) as metrics, Progress(200, desc='train') as progress:
            for step in range(200):
                progress.update(networks=1)
                metrics.write(step, {'loss': 1.0})
                progress.say(f'step {step}, loss 1')
                print('a warning', 'x' * 100, file=sys.stderr)
        screen.finish()
    assert len((tmp_path / 'metrics.jsonl').read_text().splitlines()) == 200


def test_what_a_screen_cannot_encode_is_replaced():
    with installed(Ascii()) as (out, _):
        screen.show('12.50 ± 0.25 \udcff', kept=False)
        screen.finish()
        assert out.shown == '12.50 ? 0.25 ?\n'


def test_a_full_disk_behind_stdout_is_told_once_and_fails_only_what_is_in_no_file():
    with full() as out, installed(out) as (_, err):
        screen.show('a table', kept=True)
        screen.finish()
        assert err.getvalue().count('\n') == 1 and 'No space left on device' in err.getvalue()
    with full() as out, installed(out) as (_, err):
        with pytest.raises(UserError, match=r'No space left on device.*in no file'):
            screen.show('a table', kept=False)
        screen.finish()
        assert not err.getvalue()


def test_a_reader_who_has_had_enough_is_no_fault():
    with without_reader() as out, installed(out) as (_, err):
        screen.show('a table', kept=False)
        screen.finish()
        assert not err.getvalue()


def test_a_disk_that_was_full_shows_what_comes_after():
    class Sometimes(io.StringIO):
        full = True

        def write(self, text):
            if self.full:
                raise OSError(28, 'No space left on device')
            return super().write(text)

    with installed(Sometimes()) as (out, err):
        print('lost')
        out.full = False
        print('shown')
        screen.finish()
        assert out.getvalue() == 'shown\n' and 'part of it is lost' in err.getvalue()


def test_a_signal_ends_the_process_though_it_cannot_be_said():
    with mock.patch('os.write', side_effect=BrokenPipeError), mock.patch('os._exit') as left:
        preemption._leave('stopped', 75)
    left.assert_called_once_with(75)


TOOL = """
import contextlib, os
from ghn_jax.base import cli
def main():
    for i in range(5000):
        print('line', i, '±')
    with open('result', 'w') as f:
        with contextlib.suppress(OSError):
            os.write(2, b'what a library says\\n')
        f.write('done')
cli.run(main)
"""


@pytest.mark.parametrize(
    ('redirection', 'said'),
    [
        ('| head -1 > first', ''),
        ('> /dev/full', 'stdout cannot be written (No space left on device): part of it is lost\n'),
        ('> /dev/full 2> /dev/full', ''),
        ('<&- >&- 2>&-', ''),
    ],
)
def test_a_command_ends_with_code_0_whatever_becomes_of_its_screen(tmp_path, redirection, said):
    """In a process of its own, for Python flushes the streams once more when it ends."""
    full().close()
    (tmp_path / 'tool.py').write_text(TOOL)
    shell = f'set -o pipefail; ({sys.executable} tool.py; echo $? > code) {redirection}'
    done = subprocess.run(
        ['bash', '-c', shell], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHONIOENCODING': 'ascii', 'PYTHONUNBUFFERED': ''},
    )  # fmt: skip
    assert (tmp_path / 'code').read_text() == '0\n', done.stderr
    assert (tmp_path / 'result').read_text() == 'done'
    assert done.stderr.removeprefix('what a library says\n') == said
