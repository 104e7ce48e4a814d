"""JSON lines of a run that may be killed at any time: each row once, in order, whatever was there before.

A row says of which step it is (`step`: steps done). A run that goes on from the checkpoint of step s keeps
the rows up to s; what was written beyond it is dropped, for it comes again. Rows reach the system at once,
and the disk by `flush`, before a checkpoint that counts on them.
"""

import json
import os
import pathlib

from ghn_jax.base import files, jsonfile
from ghn_jax.base.errors import UserError


class Records:
    """Appends to a file; `start_step` is where the run goes on, 0 begins a new file.

    All of it raises UserError where the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike, start_step: int = 0):
        self.path = pathlib.Path(path)
        if self.path.exists() and not self.path.is_file():
            raise UserError(f'{path} is no file: move it away, a run writes a file of that name')
        old = jsonfile.rows(self.path) if start_step and self.path.is_file() else []
        with files.replacing(self.path) as file:
            file.writelines(f'{line}\n'.encode() for line, row in old if row['step'] <= start_step)
        with files.writing(self.path):
            self._file = open(self.path, 'a', buffering=1)

    def write(self, row: dict) -> None:
        """Append a row as one line; it must be JSON, and its `step` an int."""
        line = json.dumps(row, allow_nan=False) + '\n'
        with files.writing(self.path):
            self._file.write(line)

    def flush(self) -> None:
        """Return when all rows are on the disk."""
        with files.writing(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; all rows have reached the system."""
        with files.writing(self.path):
            self._file.close()


def read_jsonl(path: str | os.PathLike, what: str = 'metrics') -> list[dict]:
    """Return the rows of a file but for a torn last line. Raises UserError if the file is absent."""
    if not os.path.isfile(path):
        raise UserError(f'there are no {what} in {path}: give the run directory of a training')
    return [row for _, row in jsonfile.rows(path)]
