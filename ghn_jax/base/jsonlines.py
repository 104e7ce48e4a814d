"""JSON lines of a run that may be killed at any time: each row once, in order, whatever was there before.

A row says of which step it is (`step`: steps done). A run that goes on from the checkpoint of step s keeps
the rows up to s; what was written beyond it is dropped, for it comes again. Rows reach the system at once
(in a bucket: after a while), and the disk or the bucket by `flush`, before a checkpoint that counts on them.
"""

import json

from ghn_jax.base import files, jsonfile
from ghn_jax.base.errors import UserError
from ghn_jax.base.paths import Place


class Records:
    """Appends to a file; `start_step` is where the run goes on, 0 begins a new file.

    All of it raises UserError where the file cannot be written.
    """

    def __init__(self, path: Place, start_step: int = 0):
        self.path = path
        if files.exists(self.path) and not files.is_file(self.path):
            raise UserError(f'{path} is no file: move it away, a run writes a file of that name')
        old = jsonfile.rows(self.path) if start_step and files.is_file(self.path) else []
        with files.replacing(self.path) as file:
            file.writelines(f'{line}\n'.encode() for line, row in old if row['step'] <= start_step)
        with files.writing(self.path):
            self._file = files.growing(self.path)

    def write(self, row: dict) -> None:
        """Append a row as one line; it must be JSON, and its `step` an int."""
        line = json.dumps(row, allow_nan=False) + '\n'
        with files.writing(self.path):
            self._file.write(line.encode())

    def flush(self) -> None:
        """Return when all rows are on the disk, or in the bucket."""
        with files.writing(self.path):
            self._file.flush()

    def close(self) -> None:
        """Close the file; all rows have reached the system, or the bucket."""
        with files.writing(self.path):
            self._file.close()


def read_jsonl(path: Place, what: str = 'metrics') -> list[dict]:
    """Return the rows of a file but for a torn last line. Raises UserError if the file is absent."""
    if not files.is_file(path):
        raise UserError(f'there are no {what} in {path}: give the run directory of a training')
    return [row for _, row in jsonfile.rows(path)]
