"""Initialisations compared at an equal budget: from single trainings to a table.

A result is a table as `reporting.docs_tables` has it on a page, with the trainings it is made of as `runs`.
Accuracies are in percent.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from tabulate import tabulate

T = TypeVar('T')
FLOAT_NAME = 'w32a32'
KINDS = {'batch': '', 'calibrated': 'calibrated '}
"""What the statistics of a score may be, and what a column says of it."""


def marks(epochs: int) -> tuple[int, ...]:
    """Return after which passes over the training images a network is scored: 0, 1, 5 and all."""
    return tuple(sorted({mark for mark in (0, 1, 5, epochs) if mark <= epochs}))


def grouped(rows: Iterable[T], key: Callable[[T], Any]) -> dict[Any, list[T]]:
    """Return rows by their keys, in the order in which these come."""
    groups: dict[Any, list[T]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def compare(runs: Sequence[Mapping[str, Any]], epochs: int) -> dict[str, Any]:
    """Make the table: a row for each bit-width and initialisation, a column for each score and mark.

    Args:
      runs: of each its network, bits, init and seed, and `scores`: by mark ('0', '1', ...) and kind ('batch')
        the accuracy by the bits that the network was run with.
      epochs: of each training.

    Returns:
      `columns` and `rows`. A mean is over networks, of each the mean of its seeds, and its standard error is
      that of networks; of one network, it is over seeds.
    """
    kinds = [kind for kind in KINDS if all(kind in run['scores']['0'] for run in runs)]
    ways = (False, True) if any(run['bits'] != FLOAT_NAME for run in runs) else (False,)
    scored = [(kind, rounded, mark) for kind in kinds for rounded in ways for mark in marks(epochs)]
    columns = ['bits', 'from', 'networks', 'seeds']
    for kind, rounded, mark in scored:
        columns.append(f'{KINDS[kind]}{"quantized" if rounded else "float"}, {mark}')
    rows = []
    for (bits, init), members in grouped(runs, lambda run: (run['bits'], run['init'])).items():
        networks, seeds = ({run[key] for run in members} for key in ('network', 'seed'))
        row: list[Any] = [bits, init, len(networks), len(seeds)]
        for kind, rounded, mark in scored:
            name = bits if rounded else FLOAT_NAME
            row.append(mean([(run['network'], run['scores'][str(mark)][kind][name]) for run in members]))
        rows.append(row)
    return {'columns': columns, 'rows': rows}


def mean(scores: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Return `mean_of` networks, of each the mean of its scores, or of one network's scores.

    scores: names of networks, with a score of each seed.
    """
    networks = dict.fromkeys(network for network, _ in scores)
    if len(networks) == 1:
        return mean_of([score for _, score in scores])
    return mean_of([np.mean([score for name, score in scores if name == network]) for network in networks])


def mean_of(values: Sequence[Any], digits: int | None = None) -> dict[str, float]:
    """Return `mean` and, of more than one value, `sem`: its standard error; rounded to digits, if any."""
    found = {'mean': float(np.mean(values))}
    if len(values) > 1:
        found['sem'] = float(np.std(values, ddof=1) / math.sqrt(len(values)))
    if digits is None:
        return found
    return {key: round(value, digits) + 0.0 for key, value in found.items()}  # no minus before 0


def text(result: Mapping[str, Any]) -> str:
    """Return the table as text, and below it what it is of."""
    lines = [[_cell(cell) for cell in row] for row in result['rows']]
    shown = tabulate(lines, result['columns'], tablefmt='github', disable_numparse=True)
    return '\n'.join([shown, '', *result['notes']])


def _cell(cell: Any) -> str:
    if not isinstance(cell, Mapping):
        return str(cell)
    return f'{cell["mean"]:.1f}' + (f' ± {cell["sem"]:.1f}' if 'sem' in cell else '')
