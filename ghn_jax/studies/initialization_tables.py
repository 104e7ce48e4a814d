"""The tables of the study of initialisation, from the records of its trainings.

A record has `kind`, `init`, `seed`, and `scores`: by mark (passes done, as text) `top1` in percent by bits,
and `weights` and `activations`, the statistics of each layer (`layer_statistics.summarized`).
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ghn_jax.studies.block_kinds import KINDS, ROLES, role_of
from ghn_jax.tuning.comparison_table import FLOAT_NAME, grouped, mean_of

Record = Mapping[str, Any]
LEARNED = 50.0  # percent in float at the end: a network that did not learn has no accuracy to lose
TENSORS = ('weights', 'activations')
_BITS = {FLOAT_NAME: 'float', 'w8a8': 'W8/A8', 'w4a4': 'W4/A4'}
_COLUMNS = [
    'trainings', 'learned', *_BITS.values(), 'lost at W8/A8', 'lost at W4/A4', 'weights, dB at 8',
    'activations, dB at 8', 'range ratio of weights', 'of activations',
]  # fmt: skip
_NOTE = (
    'Top-1 in percent at the end of training, mean ± standard error over trainings. What is lost to float, '
    'the noise of rounding and the ratio are of those that learned (50 % in float). dB: power of a tensor to '
    'power of its rounding error, mean over layers. Range ratio: of the whole tensor to the mean of its '
    "channels' own, mean over layers."
)


def make_tables(runs: Sequence[Record], about: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the tables by name, as `reporting.docs_tables` has them: by initialisation, by block, by layer.

    The first one has the trainings as well, without their layers.
    """
    common = {'about': dict(about), 'notes': [_NOTE]}
    by_start = [
        [norm, init, *_row(members)]
        for (norm, init), members in grouped(runs, lambda run: (norm_of(run), run['init'])).items()
    ]
    by_kind = [[kind, *_row(members)] for kind, members in grouped(runs, lambda run: run['kind']).items()]
    return {
        'initialization': {
            'title': 'Initialisations',
            'columns': ['norm', 'from', *_COLUMNS],
            'rows': by_start,
            **common,
            'runs': [_short(run) for run in runs],
        },
        'initialization_blocks': {
            'title': 'Kinds of blocks', 'columns': ['block', *_COLUMNS], 'rows': by_kind, **common,
        },
        'initialization_layers': {'title': 'Layers', **_by_layer(runs), **common},
    }  # fmt: skip


def norm_of(run: Record) -> str:
    """Return 'bn' or 'none'."""
    return 'bn' if KINDS[run['kind']].norm else 'none'


def marks_of(runs: Sequence[Record]) -> list[str]:
    """Return the passes after which networks were scored, rising."""
    return sorted(runs[0]['scores'], key=int)


def learned(run: Record) -> bool:
    """Return whether a network is better than `LEARNED` in float at the end."""
    return last(run)['top1'][FLOAT_NAME] >= LEARNED


def last(run: Record) -> Mapping[str, Any]:
    """Return the scores at the end of a training."""
    return run['scores'][marks_of([run])[-1]]


def mean_of_layers(
    scores: Iterable[Mapping[str, Any]], tensor: str, key: str, role: str = ''
) -> float | None:
    """Return the mean of a statistic over layers (of a role; '': all) and trainings; None if there is none.

    Args:
      scores: of trainings at one mark.
      tensor: 'weights' or 'activations'.
      key: of `layer_statistics.summarized`.
      role: of `block_kinds.ROLES`.
    """
    values = [
        layer[key]
        for each in scores
        for name, layer in each[tensor].items()
        if role in ('', role_of(name)) and layer[key] is not None
    ]
    return float(np.mean(values)) if values else None


def _row(runs: Sequence[Record]) -> list[Any]:
    good = [last(run) for run in runs if learned(run)]
    lost = [[s['top1'][FLOAT_NAME] - s['top1'][bits] for s in good] for bits in list(_BITS)[1:]]
    cells = [mean_of([last(run)['top1'][bits] for run in runs], 2) for bits in _BITS]
    cells += [mean_of(values, 2) if values else None for values in lost]
    statistics = [mean_of_layers(good, tensor, 'sqnr8') for tensor in TENSORS]
    ratios = [mean_of_layers(good, tensor, 'ratio') for tensor in TENSORS]
    return [
        len(runs), len(good), *cells,
        *(_rounded(v, 1) for v in statistics), *(_rounded(v, 2) for v in ratios),
    ]  # fmt: skip


def _by_layer(runs: Sequence[Record]) -> dict[str, Any]:
    rows = []
    for role, norm in itertools.product(ROLES, ('bn', 'none')):
        good = [last(run) for run in runs if norm_of(run) == norm and learned(run)]
        cells: list[Any] = []
        for tensor in TENSORS:
            cells.append(_rounded(mean_of_layers(good, tensor, 'ratio', role), 2))
            cells += [_rounded(mean_of_layers(good, tensor, key, role), 1) for key in ('sqnr8', 'sqnr4')]
        if any(cell is not None for cell in cells):
            rows.append([role, norm, *cells])
    columns = [f'{tensor}: {what}' for tensor in TENSORS for what in ('range ratio', 'dB at 8', 'dB at 4')]
    return {'columns': ['layer', 'norm', *columns], 'rows': rows}


def _short(run: Record) -> dict[str, Any]:
    scores = {}
    for mark, found in run['scores'].items():
        scores[mark] = dict(found['top1'])
        for tensor, key in itertools.product(TENSORS, ('ratio', 'sqnr8')):
            scores[mark][f'{tensor} {key}'] = _rounded(mean_of_layers([found], tensor, key), 2)
    return {key: run[key] for key in ('kind', 'init', 'seed')} | {'scores': scores}


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
