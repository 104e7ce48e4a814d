"""What a run tells: `metrics.jsonl`, TensorBoard, lines on stdout, and a progress bar on stderr.

A step's number is how many steps are done. A run resumed from the checkpoint of step s goes on after the
records up to s: what the run before wrote beyond it is dropped, for it will be written again.

What differs from run to run (rates, memory) is kept apart, in `machine.jsonl`: the `metrics.jsonl` of two
runs of one config are equal byte for byte, however often one of them was stopped.
"""

import collections
import contextlib
import io
import math
import os
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

import numpy as np
from tqdm import tqdm

from ghn_jax.base import files
from ghn_jax.base.jsonlines import Records
from ghn_jax.base.jsonlines import read_jsonl as read_jsonl
from ghn_jax.runs.tensorboard import Events

_FLUSH_SECONDS = 30  # TensorBoard is that far behind at most


class Metrics:
    """Writer of a run's scalars; use it as a context manager. Only one process of a run makes one.

    `metrics.jsonl` has one object a line: `step`, then values by name ('train/loss'), null where not finite;
    `machine.jsonl` likewise.
    """

    def __init__(self, workdir: str | os.PathLike, start_step: int = 0, *, stdout: bool = True):
        workdir = pathlib.Path(workdir)
        with files.writing(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
        self._stdout = stdout
        self._values = Records(workdir / 'metrics.jsonl', start_step)
        self._machine = Records(workdir / 'machine.jsonl', start_step)
        self._tensorboard = Events(workdir / 'tensorboard', start_step)
        self._flushed = time.monotonic()

    def __enter__(self) -> 'Metrics':
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def write(self, step: int, values: Mapping[str, Any], machine: Mapping[str, Any] | None = None) -> None:
        """Records a step's scalars (numbers or arrays of one); call it every so many steps, not every one.

        machine: those that differ from run to run.
        """
        said = {}
        for records, part in ((self._values, values), (self._machine, machine or {})):
            scalars = {name: float(np.asarray(value).item()) for name, value in part.items()}
            if scalars:
                finite = {k: v if math.isfinite(v) else None for k, v in scalars.items()}
                records.write({'step': int(step)} | finite)
            said |= scalars
        for name, value in said.items():
            self._tensorboard.scalar(step, name, value)
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._flush_tensorboard()
        if self._stdout:
            shown = {name: value for name, value in said.items() if not name.startswith('machine/')}
            text = f'step {step}  ' + '  '.join(f'{name} {value:.4g}' for name, value in shown.items())
            tqdm.write(text, file=sys.stdout)  # above the bar, where there is one
            sys.stdout.flush()

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Shows uint8 [H, W, 3] in TensorBoard."""
        self._tensorboard.image(step, name, image)

    def flush(self) -> None:
        """Returns when all is on the disk: a checkpoint written after it counts on it."""
        self._values.flush()
        self._machine.flush()
        self._flush_tensorboard()

    def close(self) -> None:
        """Writes what is left; twice does no harm."""
        with contextlib.ExitStack() as all_of_them:  # also where one of them fails
            for each in (self._values, self._machine, self._tensorboard):
                all_of_them.callback(each.close)

    def _flush_tensorboard(self) -> None:
        self._tensorboard.flush()
        self._flushed = time.monotonic()


class Progress:
    """A bar on a terminal; elsewhere a plain line every 30 s. With ETA, networks/s, images/s, last values.

    total: steps. initial: steps done before (they count for the bar and not for the rates). The rates are
    those of the last `window` finished updates; the clock starts at the first, which has paid for the
    compilation.
    """

    def __init__(
        self,
        total: int,
        *,
        initial: int = 0,
        desc: str = '',
        unit: str = 'step',
        window: int = 50,
        file: TextIO | None = None,
    ):
        out: TextIO = file or sys.stderr
        terminal = out.isatty()
        self._marks: collections.deque[tuple[float, float, float]] = collections.deque(maxlen=window)
        self._networks = self._images = 0.0
        self._values: dict[str, float] = {}
        self._bar = tqdm(
            total=total,
            initial=initial,
            desc=desc,
            unit=unit,
            file=out if terminal else _Lines(out),
            mininterval=0.2 if terminal else 30,
            maxinterval=10 if terminal else float('inf'),
            ascii=None if terminal else True,  # as the terminal can
            dynamic_ncols=terminal,
            ncols=None if terminal else 150,
        )

    def __enter__(self) -> 'Progress':
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def update(
        self, steps: int = 1, *, networks: int = 0, images: int = 0, finished: bool = True, **values: float
    ) -> None:
        """Counts steps, with so many networks and images; values (loss=...) stay until replaced.

        finished: the device has done all that was counted, not only been told to: others set no clock.
        """
        self._networks += networks
        self._images += images
        if finished:
            self._mark()
        self._values |= values
        self._bar.set_postfix_str(self._text(), refresh=False)
        self._bar.update(steps)

    def restart_clock(self) -> None:
        """Call after a break (an evaluation), which would count as slow steps."""
        self._marks.clear()
        self._mark()

    def rates(self) -> dict[str, float]:
        """{'networks_per_sec': ..., 'images_per_sec': ...}; empty before the second update."""
        if len(self._marks) < 2:
            return {}
        seconds, networks, images = (b - a for a, b in zip(self._marks[0], self._marks[-1]))
        seconds = max(seconds, 1e-9)
        return {'networks_per_sec': networks / seconds, 'images_per_sec': images / seconds}

    def close(self) -> None:
        """Shows the last state."""
        self._bar.close()

    def _mark(self) -> None:
        self._marks.append((time.perf_counter(), self._networks, self._images))

    def _text(self) -> str:
        shown = {'networks/s': 'networks_per_sec', 'images/s': 'images_per_sec'}
        rates = self.rates()
        parts = [f'{rates[key]:.3g} {name}' for name, key in shown.items() if rates.get(key)]
        return ', '.join(parts + [f'{name} {value:.3g}' for name, value in self._values.items()])


class _Lines(io.TextIOBase):
    """Where there is no terminal a redraw becomes a line of its own."""

    def __init__(self, file: TextIO):
        self._file = file
        self._last = ''

    def write(self, text: str) -> int:
        line = text.strip()
        if line and line != self._last:
            self._last = line
            self._file.write(line + '\n')
            self._file.flush()
        return len(text)
