"""The scores of an evaluation that is not done, in a file, so that it can be stopped and go on.

Each network is a row, written as soon as it is scored at every bit-width. The same evaluation takes the rows
that are there and scores the other networks: its result is what it would have been without a stop.
"""

import contextlib
import itertools
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from ghn_jax.base import files, jsonfile
from ghn_jax.base.errors import UserError, one_line
from ghn_jax.base.jsonlines import Records


def files_of(path: pathlib.Path | None) -> tuple[pathlib.Path | None, pathlib.Path | None]:
    """Return the files of the run that is evaluated, and of another one that it is compared with."""
    return path, path and path.with_name(f'{path.name}.against')


def remove(path: pathlib.Path) -> None:
    """Remove the files of an evaluation that is done."""
    for file in filter(None, files_of(path)):
        if file.is_file():
            file.unlink()


class Partial:
    """The scores of a run's networks, by split and place there, as `results` has those of one network.

    Where the file cannot be read or written, a line says so and the scores are in memory only: the evaluation
    goes on.

    Attributes:
      seconds: what the scores of the file took.
    """

    def __init__(self, path: pathlib.Path | None, digest: int):
        """Take what the file has.

        Args:
          path: the file, there or not yet; its rows are replaced where they are of another evaluation, which
            is said. None: there is none.
          digest: of all that the scores depend on.
        """
        self._digest, self._scores, self.seconds = digest, {}, 0.0
        self._records: Records | None = None
        with self._going_on():
            if path:
                self._records = Records(path, start_step=self._read(path))

    def _read(self, path: pathlib.Path) -> int:
        """Take the scores that the file has of this evaluation; return their number."""
        rows = [row for _, row in jsonfile.rows(path)] if files.is_file(path) else []
        ours = list(itertools.takewhile(lambda row: row.get('evaluation') == self._digest, rows))
        if rows and not ours:
            print(f'{path} is of another evaluation: this one begins anew', file=sys.stderr)
        for row in ours:
            self._scores[row['split'], row['place']] = row['scored']
            self.seconds = row['seconds']
        return len(ours)

    def of_split(self, split: str) -> dict[int, dict[str, Any]]:
        """Return the scores of a split's networks by their places."""
        return {place: scored for (of, place), scored in self._scores.items() if of == split}

    def add(self, split: str, place: int, scored: dict[str, Any], seconds: float) -> None:
        """Keep the scores of a network. seconds: what this process has taken until now."""
        self._scores[split, place] = scored
        with self._going_on():
            if self._records:
                row = {'step': len(self._scores), 'evaluation': self._digest, 'split': split, 'place': place}
                self._records.write({**row, 'seconds': round(self.seconds + seconds, 1), 'scored': scored})
                self._records.flush()

    @contextlib.contextmanager
    def _going_on(self) -> Iterator[None]:
        """Without a file, where it cannot be read or written."""
        try:
            yield
        except (OSError, UserError) as e:
            print(f'warning: a stop will lose what is scored: {one_line(e)}', file=sys.stderr)
            self._records = None
