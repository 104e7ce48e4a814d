"""The scalars that a run records: `metrics.jsonl`, `machine.jsonl` and TensorBoard.

A step's number is how many steps are done. A run resumed from the checkpoint of step s goes on after the
records up to s: what the run before wrote beyond it is dropped, for it will be written again.

What differs from run to run (rates, memory) is kept apart, in `machine.jsonl`: the `metrics.jsonl` of two
runs of one config are equal byte for byte, however often one of them was stopped.
"""

import contextlib
import math
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from ghn_jax.base import files, paths
from ghn_jax.base.jsonlines import Records
from ghn_jax.runs.tensorboard import Events

_FLUSH_SECONDS = 30  # TensorBoard is that far behind at most


class Metrics:
    """Writer of a run's scalars; use it as a context manager. Only one process of a run makes one.

    `metrics.jsonl` has one object a line: `step`, then values by name ('train/loss'), null where not finite;
    `machine.jsonl` likewise.
    """

    def __init__(self, workdir: str | os.PathLike, start_step: int = 0):
        workdir = paths.place(workdir, 'workdir')
        with files.writing(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
        self._values = Records(workdir / 'metrics.jsonl', start_step)
        self._machine = Records(workdir / 'machine.jsonl', start_step)
        self._tensorboard = Events(workdir / 'tensorboard', start_step)
        self._flushed = time.monotonic()

    def __enter__(self) -> 'Metrics':
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def write(self, step: int, values: Mapping[str, Any], machine: Mapping[str, Any] | None = None) -> None:
        """Record a step's scalars; call it every so many steps, not every one.

        Args:
          step: how many steps are done.
          values: numbers, or arrays of one, by name.
          machine: likewise, those that differ from run to run.
        """
        shown = {}
        for records, part in ((self._values, values), (self._machine, machine or {})):
            scalars = {name: float(np.asarray(value).item()) for name, value in part.items()}
            if scalars:
                finite = {k: v if math.isfinite(v) else None for k, v in scalars.items()}
                records.write({'step': int(step)} | finite)
            shown |= scalars
        for name, value in shown.items():
            self._tensorboard.scalar(step, name, value)
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._flush_tensorboard()

    def flush(self) -> None:
        """Return when all is on the disk: a checkpoint written after it counts on it."""
        self._values.flush()
        self._machine.flush()
        self._flush_tensorboard()

    def close(self) -> None:
        """Write what is left; twice does no harm."""
        with contextlib.ExitStack() as all_of_them:  # also where one of them fails
            for each in (self._values, self._machine, self._tensorboard):
                all_of_them.callback(each.close)

    def _flush_tensorboard(self) -> None:
        self._tensorboard.flush()
        self._flushed = time.monotonic()
