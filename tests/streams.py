"""Screens that fail, for the tests of commands: real ones, as a shell would give."""

import io
import os
import pathlib
from typing import TextIO

import pytest


def without_reader() -> TextIO:
    """A pipe whose reader is gone, as after `| head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, 'w')


def full() -> TextIO:
    """A file on a full disk."""
    if not pathlib.Path('/dev/full').exists():
        pytest.skip('there is no /dev/full here')
    return open('/dev/full', 'w')


class Ascii(io.TextIOWrapper):
    """A terminal that knows ASCII only; `shown` is what it has got."""

    def __init__(self):
        super().__init__(io.BytesIO(), encoding='ascii')

    @property
    def shown(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode('ascii')
