"""How far something is, on the screen: a bar on a terminal, plain lines elsewhere."""

import collections
import sys
import time
from typing import NamedTuple, TextIO

from tqdm import tqdm

_SILENCE = 30  # seconds without a line on a screen that is no terminal


class _Mark(NamedTuple):
    """What was done at a time."""

    seconds: float
    steps: float
    networks: float
    images: float


class Progress:
    """Shows how far something is, with rates and the time left: a bar on a terminal, plain lines elsewhere.

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
        """Begin to show it.

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
        """Count steps that are done.

        Args:
          steps: how many.
          networks, images: that they had in all.
          finished: whether the device has done all that was counted; if it has only been told to, the update
            has no part in the rates until one that is finished.
          values: shown by name (loss=...), each until it is replaced.
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
        """Print a line that says how far it is to stdout, above the bar where there is one."""
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()
        self._said_at, self._said_of = time.monotonic(), self._done

    def restart_clock(self) -> None:
        """Leave a break (an evaluation) out of the rates; called after it."""
        self._marks.clear()
        self._mark()

    def rates(self) -> dict[str, float]:
        """Return {'networks_per_sec': ..., 'images_per_sec': ...}; empty before the second update."""
        if (since := self._since_first_mark()) is None:
            return {}
        return {
            'networks_per_sec': since.networks / since.seconds,
            'images_per_sec': since.images / since.seconds,
        }

    def seconds_left(self) -> float | None:
        """Return the seconds that the rest takes at the pace of the marks; None before the second update."""
        if (since := self._since_first_mark()) is None:
            return None
        return (self._total - self._done) * since.seconds / max(since.steps, 1)

    def close(self) -> None:
        """Show the last state."""
        if self._bar is not None:
            self._bar.close()
        elif self._done > self._said_of:
            self._show()

    def _mark(self) -> None:
        self._marks.append(_Mark(time.perf_counter(), self._done, self._networks, self._images))

    def _since_first_mark(self) -> _Mark | None:
        if len(self._marks) < 2:
            return None
        since = _Mark(*(last - first for first, last in zip(self._marks[0], self._marks[-1])))
        return since._replace(seconds=max(since.seconds, 1e-9))

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
