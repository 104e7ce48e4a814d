"""Whole numbers: which values are some, and rounding them up."""

from typing import Any, TypeGuard

import numpy as np


def is_int(value: Any) -> TypeGuard[int]:
    """Return whether a value is an int or a numpy integer, and no bool (which Python takes for 0 or 1)."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def round_up(n: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is at least n.

    Args:
      n: 0 or more.
      multiple: 1 or more.

    Returns:
      n itself where it is a multiple.
    """
    return -(-n // multiple) * multiple


def next_power_of_two(n: int) -> int:
    """Return the smallest power of two that is at least n, 1 or more: shapes in which programs are shared."""
    return 1 << (n - 1).bit_length()
