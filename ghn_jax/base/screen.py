"""The screen is no result: what it cannot show is lost, and the work goes on.

A command's stdout and stderr may be a pipe that nobody reads any more (`| head -1`), a file on a full disk, a
terminal that is gone or knows ASCII only. `install` wraps both once, so that no `print` anywhere needs care.
"""

import io
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, TextIO

from ghn_jax.base.errors import UserError


class Screen:
    """A stream whose writing never fails. What it cannot encode becomes a question mark.

    That nobody reads is no error: the reader had enough.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._error: OSError | None = None  # the last one, if something was lost
        # Errors of stderr are 'backslashreplace' from the start.
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ('strict', 'surrogateescape'):
            stream.reconfigure(errors='replace')

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        self.write(''.join(lines))

    def flush(self) -> None:
        self._try(self._stream.flush)

    def lost(self) -> str:
        """Return why something was lost, '' if all was shown so far.

        Where something was, what follows is lost, too: Python flushes its streams once more at the end, and
        must not fail then.
        """
        self.flush()
        error, self._error = self._error, None
        if error is None:
            return ''
        self._discard()
        return error.strerror or str(error)

    def forget(self) -> None:
        """Take nothing for lost so far."""
        self._error = None

    def _try(self, operation: Callable[[], object]) -> None:
        try:
            operation()
        except BrokenPipeError:
            self._discard()
        except OSError as e:  # a disk that is full now may have room for the next line
            self._error = e
        except ValueError:  # somebody has closed it
            pass

    def _discard(self) -> None:
        """Discard what is left, and all that follows: what libraries of C write there, too."""
        nowhere = open(os.devnull, 'w')
        try:
            os.dup2(nowhere.fileno(), self._stream.fileno())
        except (OSError, ValueError):  # a stream in memory
            self._stream = nowhere
        else:
            nowhere.close()


def install() -> None:
    """Wrap sys.stdout and sys.stderr, for good: threads and the end of Python use them, too."""
    _occupy()
    for name in ('stdout', 'stderr'):
        stream = getattr(sys, name)
        if not isinstance(stream, Screen):
            # A process that was started with its stdout closed has none.
            setattr(sys, name, Screen(stream or open(os.devnull, 'w')))


def show(text: str, *, kept: bool) -> None:
    """Print what a command was asked for. kept: whether it is in a file, too.

    Raises:
      UserError: it is in no file, and cannot be printed either.
    """
    print(text, flush=True)
    if not kept and isinstance(sys.stdout, Screen) and (reason := sys.stdout.lost()):
        raise UserError(
            f'stdout cannot be written ({reason}), and the result is in no file: write stdout to another '
            'place, or name a file for it where the command takes one (see --help)'
        )


def finish() -> None:
    """Show what is left, at the end of a command; say in a line if stdout has lost anything."""
    if isinstance(sys.stdout, Screen) and (reason := sys.stdout.lost()):
        print(f'stdout cannot be written ({reason}): part of it is lost', file=sys.stderr)
    if isinstance(sys.stderr, Screen):
        sys.stderr.forget()  # a traceback may come yet: it is lost only where stderr fails now
        sys.stderr.lost()


def _occupy() -> None:
    """Open those of 0, 1 and 2 that are closed: the next file opened would have the number, and receive what
    libraries print.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
