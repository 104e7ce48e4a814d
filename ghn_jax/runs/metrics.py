"""What a run tells: `metrics.jsonl`, TensorBoard, and how far it is on the screen.

A step's number is how many steps are done. A run resumed from the checkpoint of step s goes on after the
records up to s: what the run before wrote beyond it is dropped, for it will be written again.

What differs from run to run (rates, memory) is kept apart, in `machine.jsonl`: the `metrics.jsonl` of two
runs of one config are equal byte for byte, however often one of them was stopped.
"""

import collections
import contextlib
import math
import os
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, TextIO

import numpy as np
from tqdm import tqdm

from ghn_jax.base import files, paths
from ghn_jax.base.jsonlines import Records
from ghn_jax.base.jsonlines import read_jsonl as read_jsonl
from ghn_jax.runs.tensorboard import Events

_FLUSH_SECONDS = 30  # TensorBoard is that far behind at most
_SILENCE = 30  # seconds without a line on a screen that is no terminal


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
        """Records a step's scalars (numbers or arrays of one); call it every so many steps, not every one.

        machine: those that differ from run to run.
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


class _Mark(NamedTuple):
    """What was done at a time."""

    seconds: float
    steps: int
    networks: float
    images: float


class Progress:
    """How far something is: a bar on a terminal, and plain lines elsewhere. With rates and time left.

    Lines from elsewhere (`say`) go to stdout, above the bar. Where there is no bar, a line of its own comes
    only where nothing was said for `_SILENCE` seconds: into a file go whole lines and no carriage returns.

    The rates are those of the last `marks` finished updates; the clock starts at the first, which has paid
    for the compilation.
    """

    def __init__(
        self,
        total: int,
        *,
        initial: int = 0,
        desc: str = '',
        unit: str = 'step',
        marks: int = 50,
        file: TextIO | None = None,
    ):
        """Begins to show it.

        Args:
          total: how many steps there are.
          initial: steps done before; they have no part in the rates.
          desc: what is being done.
          unit: what a step is called.
          marks: how many finished updates the rates are of.
          file: in place of stderr.
        """
        self._total, self._done, self._desc, self._unit = total, initial, desc, unit
        self._file: TextIO = file or sys.stderr
        self._marks: collections.deque[_Mark] = collections.deque(maxlen=marks)
        self._networks = self._images = 0.0
        self._values: dict[str, float] = {}
        self._said_at, self._said_of = time.monotonic(), initial
        self._bar = None
        if self._file.isatty():
            self._bar = tqdm(
                total=total, initial=initial, desc=desc, unit=unit, file=self._file, mininterval=0.2,
                dynamic_ncols=True,
            )  # fmt: skip

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
        self._done += steps
        self._networks += networks
        self._images += images
        if finished:
            self._mark()
        self._values |= values
        if self._bar is not None:
            self._bar.set_postfix_str(', '.join(self._parts()), refresh=False)
            self._bar.update(steps)
        elif time.monotonic() - self._said_at > _SILENCE:
            self._show()

    def say(self, text: str) -> None:
        """Prints a line to stdout that says how far it is, above the bar where there is one."""
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()
        self._said_at, self._said_of = time.monotonic(), self._done

    def restart_clock(self) -> None:
        """Call after a break (an evaluation), which would count as slow steps."""
        self._marks.clear()
        self._mark()

    def rates(self) -> dict[str, float]:
        """{'networks_per_sec': ..., 'images_per_sec': ...}; empty before the second update."""
        if (since := self._since_first_mark()) is None:
            return {}
        return {
            'networks_per_sec': since.networks / since.seconds,
            'images_per_sec': since.images / since.seconds,
        }

    def seconds_left(self) -> float | None:
        """At the pace of the marks; None before the second update."""
        if (since := self._since_first_mark()) is None:
            return None
        return (self._total - self._done) * since.seconds / max(since.steps, 1)

    def close(self) -> None:
        """Shows the last state."""
        if self._bar is not None:
            self._bar.close()
        elif self._done > self._said_of:
            self._show()

    def _mark(self) -> None:
        self._marks.append(_Mark(time.perf_counter(), self._done, self._networks, self._images))

    def _since_first_mark(self) -> _Mark | None:
        if len(self._marks) < 2:
            return None
        first, last = self._marks[0], self._marks[-1]
        return _Mark(
            seconds=max(last.seconds - first.seconds, 1e-9),
            steps=last.steps - first.steps,
            networks=last.networks - first.networks,
            images=last.images - first.images,
        )

    def _show(self) -> None:
        how_far = f'{self._desc} {self._done}/{self._total} {self._unit}s'.strip()
        left = self.seconds_left()
        parts = [how_far, *self._parts()] + ([] if left is None else [f'{tqdm.format_interval(left)} left'])
        print(', '.join(parts), file=self._file, flush=True)
        self._said_at, self._said_of = time.monotonic(), self._done

    def _parts(self) -> list[str]:
        shown = {'networks/s': 'networks_per_sec', 'images/s': 'images_per_sec'}
        rates = self.rates()
        parts = [f'{rates[key]:.3g} {name}' for name, key in shown.items() if rates.get(key)]
        return parts + [f'{name} {value:.3g}' for name, value in self._values.items()]
