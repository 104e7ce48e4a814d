"""What is known of a value of a traced model, without its numbers.

A value is a constant, one parameter in another shape (`View`), something computed from parameters alone
(`Mixed`), something computed from the image (`Flow`), or a statistic of such (`Statistic`).
"""

import dataclasses
from typing import Any

import numpy as np

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Constant:
    """It depends on no parameter and not on the image."""


@dataclasses.dataclass(frozen=True)
class View:
    """The entries of parameter `leaf`, in another shape or order.

    Attributes:
      moves: how to get back, the last first: ('reshape', shape before), ('transpose', order), ('rev', axes).
      repeated: entries come several times, so that there is no way back.
    """

    leaf: int
    moves: tuple[tuple[str, Shape], ...] = ()
    repeated: bool = False

    def moved(self, kind: str, how: Shape) -> 'View':
        """Return the view after one more move."""
        return dataclasses.replace(self, moves=((kind, tuple(how)), *self.moves))

    def undo(self, array: np.ndarray) -> np.ndarray:
        """Return the parameter whose view is `array`."""
        for kind, how in self.moves:
            if kind == 'reshape':
                array = array.reshape(how)
            elif kind == 'transpose':
                array = array.transpose(np.argsort(how))
            else:
                array = np.flip(array, how)
        return array


@dataclasses.dataclass(frozen=True)
class Mixed:
    """Computed from these parameters. step: the first that is more than a view."""

    leaves: frozenset[int]
    step: Any


@dataclasses.dataclass(frozen=True)
class Flow:
    """Computed from the image: the result of operation `op` of the graph, and of what is no node.

    Attributes:
      fresh: nothing came after the operation, so that a norm may still get its scale and its shift.
      squared: it is a square.
      scores: it is the product of the results of these, as in attention.
    """

    op: int
    fresh: bool = False
    squared: bool = False
    scores: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Statistic:
    """Sums or maxima of `op`'s result over some axes, and what is computed from them.

    It becomes part of a norm, or a global pool: who reads it decides.
    batch: summed over the images.   squared: of squares.   root: a root was taken of such, as for a norm.
    power: a square was taken of it.
    scale, shift: parameters that were multiplied with, and added to it.
    origin: slot of the sum.   left: numbers left for each image.   window: of a maximum, its size.
    """

    op: int
    batch: bool
    squared: bool
    origin: int
    left: int
    window: Shape | None = None
    root: bool = False
    power: bool = False
    scale: View | None = None
    shift: View | None = None


Value = Constant | View | Mixed | Flow | Statistic
CONSTANT = Constant()


def leaves_of(value: Value) -> frozenset[int]:
    """Return the parameters that a value is made of, if it is made of parameters only."""
    if isinstance(value, View):
        return frozenset([value.leaf])
    return value.leaves if isinstance(value, Mixed) else frozenset()
