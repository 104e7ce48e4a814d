"""Calls a target with many hostile inputs and sees that it does what it should.

A call returns, or raises UserError with one line, within SECONDS; it writes nothing outside its folder (the
folder beside it is watched). Anything else is a finding: it says the seed and the number that make it again.
"""

import contextlib
import dataclasses
import pathlib
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator

from ghn_jax.base.errors import UserError

SECONDS = 5
MEMORY = 2 * 2**30  # bytes resident, of the process


@dataclasses.dataclass(frozen=True)
class Target:
    """make: an input from a source of randomness. call: hands it to the library, in an empty folder.

    share: of all inputs that the slow suite gives to this target.
    """

    name: str
    make: Callable[[random.Random], object]
    call: Callable[[object, pathlib.Path], object]
    share: float


@dataclasses.dataclass
class Report:
    inputs: int = 0
    refused: int = 0
    slowest: float = 0.0
    peak: int = 0


class Finding(AssertionError):
    """What a target did that it should not."""


def run(target: Target, folder: pathlib.Path, *, seed: int, count: int, seconds: float = 1e9) -> Report:
    """Up to `count` inputs, made from `seed`, for at most so many seconds. Raises Finding."""
    inside, beside = folder / 'inside', folder / 'beside'
    inside.mkdir()
    beside.mkdir()
    report, start = Report(), time.monotonic()
    while report.inputs < count and time.monotonic() - start < seconds:
        number = report.inputs
        value = target.make(random.Random(f'{target.name} {seed} {number}'))
        called = time.monotonic()
        where = f'{target.name}, seed {seed}, input {number}: '
        try:
            with time_limit():
                target.call(value, inside)
        except UserError as e:
            report.refused += 1
            text = str(e)
            if not text or len(text) > 1500 or '\n' in text:
                raise Finding(f'{where}no clear line: {text[:300]!r}; {str(value)[:300]!r}') from e
        except Exception as e:
            raise Finding(f'{where}{type(e).__name__}: {str(e)[:300]}; {str(value)[:1000]!r}') from e
        report.inputs += 1
        report.slowest = max(report.slowest, time.monotonic() - called)
        if any(beside.iterdir()):
            raise Finding(f'{where}wrote outside its folder; {str(value)[:300]!r}')
    report.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return report


@contextlib.contextmanager
def time_limit(seconds: float = SECONDS) -> Iterator[None]:
    """Raises TimeoutError in the middle of what takes longer."""

    def stop(number, frame):
        raise TimeoutError(f'more than {seconds} s')

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
