"""Genotype: the two cells a network is made of, as data.

As in DARTS (arXiv 1806.09055): states 0 and 1 are the cell's inputs, state 2 + j is the sum of entries 2j and
2j + 1, an entry is (op, source state), and the cell's output is the listed states, concatenated by channel.
A network stacks `normal` cells with two `reduce` cells among them, which halve the resolution.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ghn_jax.base import jsonfile
from ghn_jax.base.errors import UserError, shown
from ghn_jax.base.whole_numbers import is_int
from ghn_jax.networks.ops import OPS

MAX_STEPS = 64  # intermediate states of a cell; the spaces have at most 10

Entry = tuple[str, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Genotype:
    """The normal and the reduction cell. Validated when made; hashable.

    Attributes:
      normal, reduce: entries (op, source state), two for each intermediate state; source < own state.
      normal_concat, reduce_concat: distinct intermediate states (2 and up) joined at the cell's output.

    Raises UserError on construction if anything is not so.
    """

    normal: tuple[Entry, ...]
    normal_concat: tuple[int, ...]
    reduce: tuple[Entry, ...]
    reduce_concat: tuple[int, ...]

    def __post_init__(self):
        for cell in ('normal', 'reduce'):
            entries = _entries(f'genotype.{cell}', getattr(self, cell))
            concat = _concat(f'genotype.{cell}_concat', getattr(self, f'{cell}_concat'), len(entries) // 2)
            object.__setattr__(self, cell, entries)
            object.__setattr__(self, f'{cell}_concat', concat)

    @property
    def ops(self) -> frozenset[str]:
        """Names of all ops that occur in either cell."""
        return frozenset(op for op, _ in self.normal + self.reduce)

    @property
    def steps(self) -> int:
        """Intermediate states of the larger cell."""
        return max(len(self.normal), len(self.reduce)) // 2

    def cell(self, reduction: bool) -> tuple[tuple[Entry, ...], tuple[int, ...]]:
        """Return (entries, concat) of a reduction or a normal cell."""
        return (self.reduce, self.reduce_concat) if reduction else (self.normal, self.normal_concat)

    def to_dict(self) -> dict[str, Any]:
        """Convert to lists and plain values, ready for JSON."""
        return {
            'normal': [list(entry) for entry in self.normal],
            'normal_concat': list(self.normal_concat),
            'reduce': [list(entry) for entry in self.reduce],
            'reduce_concat': list(self.reduce_concat),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> 'Genotype':
        """Read what to_dict writes. Raises UserError on unknown or missing fields and on bad values."""
        names = tuple(field.name for field in dataclasses.fields(cls))
        return cls(**jsonfile.object_fields('genotype', fields, required=names))


def _entries(what: str, entries: Any) -> tuple[Entry, ...]:
    if not isinstance(entries, (list, tuple)) or not entries or len(entries) % 2:
        raise UserError(
            f'{what} is {shown(entries)}: expected a list of [op, source], two for each intermediate state'
        )
    if len(entries) > 2 * MAX_STEPS:
        raise UserError(
            f'{what} has {len(entries):,} entries: expected at most {2 * MAX_STEPS}, two for each of '
            f'{MAX_STEPS} intermediate states'
        )
    checked = []
    for i, entry in enumerate(entries):
        if not isinstance(entry, (list, tuple)) or len(entry) != 2:
            raise UserError(f'{what}[{i}] is {shown(entry)}: expected [op, source]')
        op, source = entry
        if not isinstance(op, str) or op not in OPS:
            raise UserError(f'{what}[{i}] has the op {shown(op)}: choose one of {", ".join(OPS)}')
        if not is_int(source) or not 0 <= source < 2 + i // 2:
            raise UserError(
                f'{what}[{i}] has the source {shown(source)}: expected an earlier state, 0 to {1 + i // 2}'
            )
        checked.append((op, int(source)))
    return tuple(checked)


def _concat(what: str, states: Any, steps: int) -> tuple[int, ...]:
    if not isinstance(states, (list, tuple)) or not states:
        raise UserError(
            f'{what} is {shown(states)}: expected a list of one or more of the states 2 to {steps + 1}'
        )
    for state in states:
        if not is_int(state) or not 2 <= state <= steps + 1:
            raise UserError(
                f'{what} has {shown(state)}: expected one of the intermediate states, 2 to {steps + 1}'
            )
    if len(set(states)) < len(states):
        raise UserError(f'{what} is {shown(states)}: name each state once')
    return tuple(int(state) for state in states)
