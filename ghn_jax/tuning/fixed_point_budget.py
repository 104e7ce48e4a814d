"""A budget of accuracy that holds on images which had no part in the choice of formats.

Every width of `layer_wise` is the least that suits the images it is chosen on, some of them by chance. So a
budget that is used up on these images is exceeded on others. Here some images choose and others check: where
the network loses more than the budget on the latter, the search is done again with a smaller share of the
budget, at last with none; then at least as many images must be right as with 8 bits everywhere.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jax import Array

from ghn_jax.base.errors import FieldError
from ghn_jax.datasets.load import Dataset
from ghn_jax.tuning.fixed_point_search import Search, check_eight_bits, layer_wise

SHARES = (1.0, 0.5, 0.25, 0.0)
"""Of the budget, in the order in which they are tried."""

Labelled = tuple[Array | np.ndarray, np.ndarray]
"""Images [N, ...] and labels [N]."""


class Attempt(NamedTuple):
    """A search with one of the shares.

    Attributes:
      number: of the share.
      layers: that are done with it.
      formats: int32 [T, 2], so far.
    """

    number: int
    layers: int
    formats: np.ndarray


def check_budget(budget: float) -> None:
    """Raise FieldError for a budget that is no number from 0 to 100."""
    if not 0 <= budget <= 100:
        raise FieldError('budget', f'={budget:g}: expected points of accuracy, from 0 to 100')


def labelled(dataset: Dataset, count: int) -> tuple[Labelled, Labelled]:
    """Return images that choose formats and images that check them, at most `count` in all.

    Those that check are half of them, and validation images only. Those that choose are the validation images
    behind these, and training images where they are too few. Raises FieldError for fewer than two.
    """
    if count < 2:
        raise FieldError(
            'images', f'={count}: half of them choose formats and half check them: give 2 or more'
        )
    checking = min(count // 2, len(dataset.val.labels))
    validation = dataset.normalized('val', count), dataset.val.labels[:count]
    more = max(count - len(validation[1]), 0)
    training = dataset.normalized('train', more), dataset.train.labels[:more]
    first, rest = zip(*((part[:checking], part[checking:]) for part in validation))
    choose = [np.concatenate(parts) for parts in zip(rest, training)]
    return (choose[0], choose[1]), (first[0], first[1])


def within_budget(
    choose: Search,
    check: Search,
    budget: float,
    done: Callable[[int], object] = lambda layers: None,
    begun: Attempt | None = None,
    keep: Callable[[Attempt], object] = lambda attempt: None,
) -> tuple[np.ndarray, float]:
    """Find widths and points layer after layer, within a budget on the images that check.

    Args:
      choose, check: one network, with the images that choose and the images that check.
      budget: points of accuracy that may be lost, on these and on those.
      done: called with the number of layers done since the last call, `count_parts` in all.
      begun: the last argument of `keep`, to go on from; None: begin anew.
      keep: called after each layer with what is found so far.

    Returns:
      Formats, int32 [T, 2], and the share of the budget that they were chosen with. Where even the last share
      is too much, 8 bits everywhere.

    Raises:
      FieldError: 8 bits everywhere are not within the budget, on these or on those.
    """
    eight = choose.eight_bits
    for search in (choose, check):
        check_eight_bits(search, budget, eight)
    for number, share in enumerate(SHARES):
        if begun and number < begun.number:
            done(choose.layers)
            continue
        here = (begun.layers, begun.formats) if begun and number == begun.number else None
        keep_here = lambda layers, formats, number=number: keep(Attempt(number, layers, formats))
        formats = layer_wise(choose, budget, share, done, here, keep_here)
        if check.meets(formats, check.least_correct(budget)):
            done(choose.layers * (len(SHARES) - number - 1))
            return formats, share
    return eight, 0.0


def count_parts(layers: int) -> int:
    """Return how many layers `within_budget` reports for a network of so many: those of each search."""
    return layers * len(SHARES)
