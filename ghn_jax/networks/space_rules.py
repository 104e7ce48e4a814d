"""Rules: what the networks of a space may be, checked, and how each split changes them.

Splits: train, val, test (in-distribution) | wide: the test networks, 4 times the channels |
deep: 10 to 36 cells | dense: up to 10 steps | bnfree: no normalisation.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar

from ghn_jax.base.bounds import check_number
from ghn_jax.base.errors import FieldError, UserError, of_field, shown
from ghn_jax.base.whole_numbers import is_int
from ghn_jax.networks import counts
from ghn_jax.networks.ops import OPS, has_attention, plain_ops

SPLITS = ('train', 'val', 'test', 'wide', 'deep', 'dense', 'bnfree')

_INTEGERS = {'min_steps': (1, 64), 'max_steps': (1, 64), 'max_steps_deep': (1, 64), 'max_params': (1, 10**12),
             'num_train': (1, 10**12), 'num_eval': (1, 10**12), 'num_classes': (1, 65536)}  # fmt: skip
_RANGES = {'cells': (1, 512), 'deep_split_cells': (1, 512), 'dense_split_steps': (1, 64)}
_CHOICES = {'ops': OPS, 'redrawn_ops': OPS, 'norms': ('bnorm', None), 'ks': (3, 5, 7), 'stem_types': (0, 1),
            'C_mults': (1, 2), 'fc_layers': (1, 2)}  # fmt: skip
_SHARES = {'pool_only_share': (0, 1), 'flat_head_share': (0, 1), 'plain_share': (0, 1)}
_LISTS = {'deep_cells': (0, 512), 'channels': (2, 1024), 'fc_dims': (1, 65536)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpaceRules:
    """What the networks of a space may be. Where a rule leaves a choice, it is drawn uniformly.

    Attributes:
      name: of the space; it is part of the seed of its networks.
      ops: what cells are made of.
      redrawn_ops: drawn like the others, but a network that has one is drawn again (which favours small
        cells).
      cells: fewest and most cells.
      min_steps, max_steps: intermediate states of a cell.
      deep_cells: the threshold, drawn for each network, beyond which it is deep; deep networks have at most
        max_steps_deep steps and always a global average before the head.
      pool_only_share: the share of reduction cells that are drawn without a trainable op.
      flat_head_share: the share of heads that flatten their input, where they may.
      plain_share: the share of plain networks (`drawing.plain`), such as people write: a chain of one
        operation, maybe residual, halved by it or by pooling. DeepNets-1M has none. `ops` must have `none`.
      norms: the choices for networks of the fewest cells or one more, and at most max_steps_deep steps;
        others have 'bnorm' (None if that is no choice).
      ks, stem_types, C_mults, fc_layers: choices for the fields of `NetworkSpec`.
      channels, fc_dims: choices. None is DeepNets-1M's rule: training networks are widened by its loader,
        small ones more (C 32..128, fc_dim 64..512); the other splits have C 32, fc_dim 256.
      max_params: at 32 channels and fc_dim 256 where those are left to the rule, else at the widths drawn.
        Ten times as many in the splits deep and dense; wide networks are measured before they are widened.
      deep_split_cells, dense_split_steps: cells of the split deep, steps of the split dense.
      num_train, num_eval: networks in train and in each other split.
      num_classes: of all networks.

    Raises:
      FieldError: a field that is of no use.
    """

    name: str
    ops: tuple[str, ...]
    redrawn_ops: tuple[str, ...] = ()
    cells: tuple[int, int] = (4, 18)
    min_steps: int = 1
    max_steps: int = 4
    max_steps_deep: int = 2
    deep_cells: tuple[int, ...] = (7, 8, 9, 10)
    pool_only_share: float = 0.5
    flat_head_share: float = 0.1
    plain_share: float = 0.0
    norms: tuple[str | None, ...] = ('bnorm', None)
    ks: tuple[int, ...] = (3, 5, 7)
    stem_types: tuple[int, ...] = (0, 1)
    C_mults: tuple[int, ...] = (1, 2)
    fc_layers: tuple[int, ...] = (1, 2)
    channels: tuple[int, ...] | None = None
    fc_dims: tuple[int, ...] | None = None
    max_params: int = 10**7
    deep_split_cells: tuple[int, int] = (10, 36)
    dense_split_steps: tuple[int, int] = (2, 10)
    num_train: int = 1_000_000
    num_eval: int = 500
    num_classes: int = 10

    def __post_init__(self):
        checks: tuple[tuple[Any, Callable[[str, Any, Any], Any]], ...] = (
            (_INTEGERS, _integer),
            (_SHARES, _share),
            (_RANGES, _range),
            (_LISTS, _list),
            (_CHOICES, _choices),
        )
        if not isinstance(self.name, str) or not self.name:
            raise FieldError('name', f'={shown(self.name)}: expected a non-empty string')
        for fields, check in checks:
            for field, allowed in fields.items():
                object.__setattr__(self, field, check(field, getattr(self, field), allowed))
        object.__setattr__(self, 'max_steps_deep', min(self.max_steps, self.max_steps_deep))
        _check_together(self)

    def size(self, split: str) -> int:
        """Return the number of networks in a split. Raises UserError for an unknown split."""
        return self.num_train if known_split(split) == 'train' else self.num_eval


_R = TypeVar('_R', bound=SpaceRules)


@functools.lru_cache(maxsize=64)
def split_rules(space: _R, split: str) -> _R:
    """Return the space with the rules of `split` in place of its own.

    Raises:
      FieldError: the split's own cells or steps ask for too much.
    """
    ten_times = min(10 * space.max_params, _INTEGERS['max_params'][1])
    if split == 'deep':  # networks of up to 18 cells do not count as deep there
        with of_field('deep_split_cells'):
            return dataclasses.replace(
                space, cells=space.deep_split_cells, deep_cells=(18,), max_params=ten_times
            )
    if split == 'dense':
        low, high = space.dense_split_steps
        medium = max(low, 6)
        with of_field('dense_split_steps'):
            return dataclasses.replace(
                space, min_steps=low, max_steps_deep=medium, max_steps=high, max_params=ten_times
            )
    if split == 'bnfree':
        return dataclasses.replace(space, norms=(None,))
    return space


def known_split(split: str) -> str:
    """Return the split. Raises UserError where there is none of this name."""
    if split not in SPLITS:
        raise UserError(f'split {shown(split)} is unknown: choose one of {", ".join(SPLITS)}')
    return split


# ---- checks: each returns the value of a field as it is kept, or raises FieldError


def _integer(field: str, value: Any, bounds: tuple[int, int]) -> int:
    return check_number(field, value, int, *bounds)


def _share(field: str, value: Any, bounds: tuple[int, int]) -> float:
    return check_number(field, value, float, *bounds)


def _are_integers(values: Any, low: int, high: int) -> bool:
    return (
        isinstance(values, (tuple, list))
        and len(values) >= 1
        and all(is_int(v) and low <= v <= high for v in values)
    )


def _range(field: str, value: Any, bounds: tuple[int, int]) -> tuple[int, ...]:
    low, high = bounds
    if not _are_integers(value, low, high) or len(value) != 2 or value[0] > value[1]:
        raise FieldError(field, f'={shown(value)}: expected (least, most) within {low} and {high}')
    return tuple(map(int, value))


def _list(field: str, value: Any, bounds: tuple[int, int]) -> tuple[int, ...] | None:
    low, high = bounds
    if value is None and field in ('channels', 'fc_dims'):
        return None
    if value is None or not _are_integers(value, low, high):
        raise FieldError(field, f'={shown(value)}: expected a tuple of integers from {low} to {high:,}')
    return tuple(map(int, value))


def _choices(field: str, value: Any, choices: tuple) -> tuple:
    good = isinstance(value, (tuple, list)) and (value or field == 'redrawn_ops')
    for v in value if good else ():
        if isinstance(v, bool) or v not in choices:
            raise FieldError(field, f' has {shown(v)}: choose from {", ".join(map(str, choices))}')
    if not good or len(set(value)) < len(value):
        raise FieldError(
            field, f'={shown(value)}: expected different values of {", ".join(map(str, choices))}'
        )
    return tuple(choices[choices.index(v)] for v in value)  # 3.0 is 3


def _check_together(space: SpaceRules) -> None:
    """Raise FieldError where fields that are good each by itself ask for no network, or for too much."""
    if space.min_steps > space.max_steps_deep:
        raise FieldError(
            'min_steps',
            f'={space.min_steps}: expected at most max_steps ({space.max_steps}) and '
            f'max_steps_deep ({space.max_steps_deep})',
        )
    if all(op == 'none' for op in space.ops):
        raise FieldError('ops', f'={shown(space.ops)}: expected at least one besides none')
    if space.plain_share and ('none' not in space.ops or not plain_ops(space.ops)):
        raise FieldError(
            'plain_share',
            f'={space.plain_share}: plain networks are made of none and a convolution; the space has the '
            f'ops {", ".join(space.ops)}',
        )
    shallow = min(space.cells[1], max(space.deep_cells))
    operations = max(
        cells * counts.operations_of_cell(steps)
        for cells, steps in ((shallow, space.max_steps), (space.cells[1], space.max_steps_deep))
    )
    if operations > counts.MAX_OPERATIONS:
        raise FieldError(
            'cells',
            f'={space.cells}: the space has networks of up to {operations:,} operations, more than '
            f'{counts.MAX_OPERATIONS:,}: give fewer cells ({space.cells[1]}) or steps ({space.max_steps}, '
            f'{space.max_steps_deep} in deep networks)',
        )
    if (widths := len(set(space.channels or ()))) > counts.MAX_FAMILIES:
        raise FieldError(
            'channels',
            f' has {widths} widths, and each takes minutes to compile: give at most {counts.MAX_FAMILIES}',
        )
    multiple = 8 if has_attention(space.ops) else 2
    for width in space.channels or ():
        if width % multiple:
            raise FieldError('channels', f' has {width}: expected multiples of {multiple}')
