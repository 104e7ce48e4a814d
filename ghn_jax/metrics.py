"""What a run tells: `metrics.jsonl`, TensorBoard, lines on stdout, and a progress bar on stderr.

A step's number is how many steps are done. A run resumed from the checkpoint of step s goes on after the
records up to s: what the run before wrote beyond it is dropped, for it will be written again.
"""

import collections
import io
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

import numpy as np
import tensorboardX
from tqdm import tqdm

from ghn_jax import jsonfile
from ghn_jax.errors import UserError


class Metrics:
    """Writer of a run's scalars; use it as a context manager. Only one process of a run makes one.

    `metrics.jsonl` has one object a line: `step`, then values by name ('train/loss'), null where not finite.
    """

    def __init__(self, workdir: str | os.PathLike, start_step: int = 0, *, stdout: bool = True):
        workdir = pathlib.Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        self._stdout = stdout
        self._file = _open_jsonl(workdir / 'metrics.jsonl', start_step)
        # File names have a resolution of one second: without a suffix a second run in the same second would
        # overwrite the first one's. Readers drop what older files say from purge_step on.
        self._tensorboard = tensorboardX.SummaryWriter(
            str(workdir / 'tensorboard'),
            purge_step=start_step + 1 if start_step else 0,
            filename_suffix=f'.{start_step}.{os.getpid()}.{time.time_ns()}',
            flush_secs=30,
        )

    def __enter__(self) -> 'Metrics':
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Records a step's scalars (numbers or arrays of one); call it every so many steps, not every one."""
        scalars = {name: float(np.asarray(value).item()) for name, value in values.items()}
        record = {'step': int(step)} | {k: v if math.isfinite(v) else None for k, v in scalars.items()}
        self._file.write(json.dumps(record, allow_nan=False) + '\n')
        for name, value in scalars.items():
            self._tensorboard.add_scalar(name, value, step)
        if self._stdout:
            text = f'step {step}  ' + '  '.join(f'{name} {value:.4g}' for name, value in scalars.items())
            tqdm.write(text, file=sys.stdout)  # above the bar, where there is one
            sys.stdout.flush()

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Shows uint8 [H, W, 3] in TensorBoard."""
        self._tensorboard.add_image(name, image, step, dataformats='HWC')

    def close(self) -> None:
        """Writes what is left; twice does no harm."""
        self._file.close()
        self._tensorboard.close()


class Silent:
    """In the place of `Metrics` and `Progress` where another process of the run speaks."""

    def __enter__(self) -> 'Silent':
        return self

    def __exit__(self, *exc) -> None:
        pass

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        pass

    def update(self, steps: int = 1, **what: Any) -> None:
        pass

    def restart_clock(self) -> None:
        pass

    def rates(self) -> dict[str, float]:
        return {}


def read_jsonl(path: str | os.PathLike) -> list[dict]:
    """The records of a `metrics.jsonl` but for a torn last line; raises UserError if the file is absent."""
    if not os.path.isfile(path):
        raise UserError(f'there are no metrics in {path}: give the run directory of a training')
    return [record for _, record in jsonfile.rows(path)]


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
            ascii=not terminal,
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


def _open_jsonl(path: pathlib.Path, start_step: int) -> TextIO:
    if path.is_dir():
        raise UserError(f'{path} is a directory: move it away, metrics are written to a file of that name')
    # A fresh run (0) starts an empty file: a record of step 0 would be written again, too.
    old = jsonfile.rows(path) if start_step and path.is_file() else ()
    part = path.with_name(path.name + '.part')
    part.unlink(missing_ok=True)  # it may be a link to somewhere else
    with open(part, 'x') as file:
        file.writelines(line + '\n' for line, record in old if record['step'] <= start_step)
    os.replace(part, path)
    return open(path, 'a', buffering=1)
