"""Results of an evaluation as text: a table, and what is to be said under it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from ghn_jax.evaluation.results import MEANS, Result


def labels(result: Result, other: Result | None = None) -> tuple[str, ...]:
    """Return what to call both runs: how they were trained, and where they lie if that is the same."""
    protocols = [r['protocol'] for r in (result, other) if r is not None]
    names = [p['training'] for p in protocols]
    if len(set(names)) < len(names):
        names = [f'{p["training"]}, {p["workdir"]}' for p in protocols]
    return tuple(names)


def text(result: Result, other: Result | None = None) -> str:
    """Return the table, with notes under it: how top-1 goes with size and depth, and the protocol."""
    headers, lines = table(result, other)
    shown = tabulate(lines, headers, tablefmt='github', disable_numparse=True)
    return '\n'.join([shown, '', *notes(result, other)])


def table(result: Result, other: Result | None = None) -> tuple[list[str], list[list[Any]]]:
    """(headers, a line of cells for each split and bit-width), in percent and decibels."""
    rows = result['rows']
    headers = ['split', 'bits', 'n', 'top-1', 'median', 'max', 'top-5', 'median', 'max']
    measured = [more for more in MEANS if any(f'{more}_mean' in r for r in rows)]
    headers += [_HEADERS[more] for more in measured]
    if other is not None:
        headers += [f'top-1: {labels(result, other)[1]}', 'difference [95 %]']
    lines = []
    for r in rows:
        line = [r['split'], r['bits'], r['n']]
        for top in ('top1', 'top5'):
            line += [_mean(r, top), f'{r[f"{top}_median"]:.2f}', f'{r[f"{top}_max"]:.2f}']
        line += [f'{r[f"{more}_mean"]:.2f}' if f'{more}_mean' in r else '' for more in measured]
        if other is not None:
            line += [_mean(r, 'against_top1'), _difference(r)]
        lines.append(line)
    return headers, lines


def notes(result: Result, other: Result | None = None) -> list[str]:
    """Return the lines under the table: what was scored and how, correlations, the note on the data."""
    p, rows = result['protocol'], result['rows']
    return [
        f'{_whose(p, labels(result, other)[0])} Mean ± standard error over n networks, in percent; '
        f'{p["images"]} {p["image_split"]} images of {p["dataset"]}. {_how(p)}',
        *([_correlations(rows)] if any(r.get('correlation_depth') is not None for r in rows) else []),
        *([p['note']] if p['note'] else []),
    ]


_HEADERS = {
    'agreement': 'as in float',
    'integer_disagreement': 'integer differs',
    'sqnr_weights': 'dB weights',
    'sqnr_activations': 'dB activations',
}


def _whose(protocol: Mapping[str, Any], label: str) -> str:
    """Say where the parameters come from. label: of the hypernetwork, where it predicts them."""
    if 'quantized' in protocol:
        return 'The network is quantized already; no parameters are predicted.'
    words = {
        'predicted': f'{label}, step {protocol["step"]}.',
        'initial': 'The parameters are those that the model starts with; none are predicted.',
        'given': 'The parameters are given; none are predicted.',
    }
    given = protocol.get('parameters', 'predicted')
    return words.get(given, f'The parameters are those of {given}; none are predicted.')


def _how(protocol: Mapping[str, Any]) -> str:
    if 'quantized' in protocol:
        by, images = (protocol['quantized'].get(key) for key in ('method', 'calibration_images'))
        made = f' (method {by}{f", {images} training images" if images else ""})' if by else ''
        return f'Bits, statistics and ranges are its own{made}.'
    norms, ranges, batch = protocol['batch_norm'], protocol['ranges'], protocol['batch_size']
    if norms == ranges == 'batch':
        return f'BatchNorm and ranges of each batch of {batch}.'
    images = f'{protocol["calibration_images"]} training images'
    norm_text = {
        'batch': f'BatchNorm of each batch of {batch}',
        'calibrated': f'BatchNorm of {images}, folded',
        'corrected': f'BatchNorm of {images} in the rounded network',
    }[norms]
    of_images = images if norms == 'batch' else 'these'
    rule = str(protocol['range_rule']).replace('_', ' ')
    range_text = f'of each batch of {batch}' if ranges == 'batch' else f'of {of_images} ({rule})'
    return f'{norm_text}; ranges {range_text}.'


def _correlations(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rank correlations of top-1 with parameters and depth, split by split."""
    number = lambda x: 'none' if x is None else f'{x:+.2f}'
    parts = []
    for split in dict.fromkeys(r['split'] for r in rows):
        each = [
            f'{r["bits"]} {number(r["correlation_parameters"])}/{number(r["correlation_depth"])}'
            for r in rows
            if r['split'] == split
        ]
        parts.append(f'{split}: {", ".join(each)}')
    return 'Rank correlation of top-1 with parameters/depth. ' + '; '.join(parts) + '.'


def _difference(row: Mapping[str, Any]) -> str:
    low, high = row['difference_top1_low'], row['difference_top1_high']
    interval = '' if low is None else f' [{low:+.2f}, {high:+.2f}]'
    return f'{row["difference_top1_mean"]:+.2f}{interval}'


def _mean(row: Mapping[str, Any], prefix: str) -> str:
    mean, sem = row[f'{prefix}_mean'], row[f'{prefix}_sem']
    return f'{mean:.2f}' + ('' if sem is None else f' ± {sem:.2f}')


def bits_label(bits: str) -> str:
    """Return the name of a policy as figures show it: `w4a8` is W4/A8, that of a file is as it is."""
    if bits == 'w32a32':
        return 'float'
    return bits.upper().replace('A', '/A') if re.fullmatch(r'w(\d+|t)a\d+', bits) else bits
