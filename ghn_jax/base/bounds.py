"""The least and the most that numbers may be, by the names of the flags and arguments that take them.

The most is what keeps a slip of the pen from asking for terabytes or for years; what a machine or a data set
has is judged where it is known.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from ghn_jax.base.errors import FieldError, shown
from ghn_jax.base.whole_numbers import is_int

flags.disclaim_key_flags()  # --help shows them as the flags of the command that defines them

BOUNDS: dict[str, tuple[int, int]] = {
    'batch_size': (1, 65_536),
    'blocks': (1, 100),  # of a stage
    'calibration_batches': (1, 10**6),
    'calibration_images': (2, 10**6),
    'cells': (1, 1024),
    'channels': (1, 4096),
    'compare': (1, 10**9),
    'devices': (0, 1024),  # of one process
    'distributed_timeout': (1, 7 * 24 * 3600),  # seconds
    'epochs': (1, 10_000),
    'expansion': (1, 64),
    'images': (1, 10**6),
    'integer': (0, 10**9),
    'iterations': (1, 10**6),
    'layers': (0, 10**6),
    'line': (1, 10**9),
    'meta_batch': (1, 4096),
    'minutes': (1, 600),
    'num_images': (0, 10**9),
    'num_networks': (0, 10**6),
    'num_processes': (1, 65_536),
    'process_id': (0, 65_535),
    'repeats': (1, 10**6),
    'seed': (0, 2**31 - 1),  # of a random key
    'width': (16, 4096),
}


def define_integer(name: str, default: int | None, help_string: str) -> flags.FlagHolder:
    """Define the flag --name, with the bounds of its name."""
    least, most = BOUNDS[name]
    return flags.DEFINE_integer(name, default, help_string, lower_bound=least, upper_bound=most)


class _NumberParser(flags.FloatParser):
    """Of a float within bounds; what is no number is within none."""

    def is_outside_bounds(self, val: float) -> bool:
        return math.isnan(val) or super().is_outside_bounds(val)


def define_number(
    name: str, default: float, help_string: str, least: float, most: float
) -> flags.FlagHolder[float]:
    """Define the flag --name, a float from `least` to `most`."""
    parser = _NumberParser(least, most)
    return flags.DEFINE(parser, name, default, help_string, serializer=flags.ArgumentSerializer())


def integers(name: str, texts: Sequence[str], bounds: str) -> tuple[int, ...]:
    """Return the numbers of a flag or argument, in order and without repetitions.

    bounds: the name in `BOUNDS` of what each of them may be.

    Raises:
      FieldError: what is no number, or out of bounds; none at all.
    """
    least, most = BOUNDS[bounds]
    if not texts:
        raise FieldError(name, ' is empty: expected integers, as in 16,32')
    if not all(t.strip().isdecimal() and len(t) <= 10 and least <= int(t) <= most for t in texts):
        raise FieldError(
            name, f'={shown(",".join(texts))}: expected integers from {least} to {most:,}, as in 16,32'
        )
    return tuple(sorted(set(map(int, texts))))


def check(**values: Any) -> None:
    """Raise FieldError for the first of the values that is no integer within the bounds of its name."""
    for name, value in values.items():
        check_number(name, value, int, *BOUNDS[name])


def check_number(name: str, value: Any, kind: type, least: float, most: float) -> Any:
    """Return a number as the int or float that it is to be; `kind` is int or float.

    Raises:
      FieldError: no number, an int where one is expected and none given, or out of bounds.
    """
    fits = is_int(value) or (kind is float and isinstance(value, float | np.floating))
    if not fits or not least <= value <= most:  # NaN is not
        ends = ' to '.join(f'{end:,}' if isinstance(end, int) else f'{end:g}' for end in (least, most))
        raise FieldError(name, f'={shown(value)}: expected {_KINDS[kind]} from {ends}')
    return kind(value)


_KINDS = {int: 'an integer', float: 'a number'}
