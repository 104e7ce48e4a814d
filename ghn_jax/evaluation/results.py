"""Results of an evaluation: their statistics, the comparison with another run, as text and as a picture.

A result is a dict, as it lies in a JSON file: `rows` (one for each split and bit-width), `networks` (each of
them) and `protocol` (how the numbers came about). Accuracies are in percent.
"""

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from ghn_jax.base import jsonfile
from ghn_jax.base.errors import UserError, shown
from ghn_jax.reporting import plotting

Result = dict[str, Any]
_ADVICE = 'give the --json file of another evaluation'
PICTURES = ('.png', '.pdf', '.svg')
RESAMPLES = 10_000
# Of a network's scores at a bit-width, what rows give the mean of: images with the prediction of the network
# in float, images that integer arithmetic puts into another class (percent); dB, means over layers.
MEANS = ('agreement', 'integer_disagreement', 'sqnr_weights', 'sqnr_activations')
_IDENTITY = ('split', 'name', 'digest')  # of a network: two runs are compared where these agree
_SAME = (
    'dataset',
    'note',  # says where images are not those of the data set
    'images',
    'image_size',
    'batch_size',
    'batch_norm',
    'ranges',
    'range_rule',
    'calibration_images',
)  # of two comparable protocols


def statistics(values: Sequence[float], prefix: str) -> dict[str, float | None]:
    """Mean, standard error (sample standard deviation / sqrt n; None for one value), median and max."""
    v = np.asarray(values, np.float64)
    sem = float(v.std(ddof=1) / math.sqrt(len(v))) if len(v) > 1 else None
    numbers = {'mean': float(v.mean()), 'sem': sem, 'median': float(np.median(v)), 'max': float(v.max())}
    return {f'{prefix}_{name}': number for name, number in numbers.items()}


def make_rows(networks: Sequence[Mapping[str, Any]], bits: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each split, in order of appearance, and bit-width: statistics of top-1 and top-5, the rank
    correlation of top-1 with parameters and depth, and means of what else the scores of all networks have.
    """
    rows = []
    for split in dict.fromkeys(network['split'] for network in networks):
        members = [network for network in networks if network['split'] == split]
        for b in bits:
            scores = [network['scores'][b] for network in members]
            row = {'split': split, 'bits': b, 'n': len(scores)}
            for top in ('top1', 'top5'):
                row |= statistics([s[top] for s in scores], top)
            for size in ('parameters', 'depth'):
                if all(size in network for network in members):
                    pairs = [(network[size], s['top1']) for network, s in zip(members, scores)]
                    row[f'correlation_{size}'] = rank_correlation(*zip(*pairs))
            for more in MEANS:
                if all(s.get(more) is not None for s in scores):
                    row[f'{more}_mean'] = float(np.mean([s[more] for s in scores]))
            rows.append(row)
    return rows


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Spearman's; of equal values each has their mean rank. None where all of one kind are equal."""
    ranks = []
    for values in (x, y):
        _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[which])
    if any(np.ptp(r) == 0 for r in ranks):
        return None
    return float(np.corrcoef(*ranks)[0, 1])


def bootstrap_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float] | None:
    """95 % interval of the mean: percentiles of the means of RESAMPLES samples, drawn from the values with
    replacement (B. Efron 1979). None for a single value.
    """
    v = np.asarray(values, np.float64)
    if len(v) < 2:
        return None
    drawn = np.random.default_rng(seed).integers(0, len(v), (RESAMPLES, len(v)))
    low, high = np.percentile(v[drawn].mean(1), (2.5, 97.5))
    return float(low), float(high)


def read_result(path: str | os.PathLike) -> Result:
    """A result from its JSON file. Raises UserError if it is none, naming what is not as it should be."""
    result = jsonfile.read(path, 'result', _ADVICE)
    if odd := _odd_part(result):
        raise UserError(f'{os.fspath(path)!r} is no result of ghn_jax.evaluate ({odd}): {_ADVICE}')
    return result


def _odd_part(result: Any) -> str | None:
    """What is missing or of the wrong kind, of all that is read from another run's result."""
    if not isinstance(result, dict):
        return f'it holds {shown(result)}'
    for part, kind in {'rows': list, 'networks': list, 'protocol': dict}.items():
        if not isinstance(result.get(part), kind):
            return f'{part} is {shown(result.get(part))}'
    for key, kind in {'training': str, 'workdir': str, 'step': int, 'images': int}.items():
        if not isinstance(value := result['protocol'].get(key), kind):
            return f'{key} of its protocol is {shown(value)}'
    for i, network in enumerate(result['networks']):
        if not isinstance(network, dict):
            return f'network {i} is {shown(network)}'
        for key in _IDENTITY:
            if not isinstance(network.get(key), str):
                return f'{key} of network {i} is {shown(network.get(key))}'
        scores = network.get('scores')
        if not isinstance(scores, dict) or not all(map(_is_score, scores.values())):
            return f'scores of network {i} are {shown(scores)}'
    return None


def _is_score(score: Any) -> bool:
    return isinstance(score, dict) and all(
        isinstance(x := score.get(top), int | float) and not isinstance(x, bool) and 0 <= x <= 100
        for top in ('top1', 'top5')
    )


def check_comparable(
    other: Result, path: str, networks: Sequence[Mapping], bits: Sequence[str], protocol: Mapping
):
    """Raises UserError unless `other` has exactly these networks, at these bit-widths, on the same images."""
    for key in _SAME:
        if (theirs := other['protocol'].get(key)) != protocol[key]:
            raise UserError(
                f'{path} was made with {key}={shown(theirs)}, this is {key}={protocol[key]!r}: '
                'evaluate both runs with the same flags'
            )
    ours, theirs = ([tuple(n[k] for k in _IDENTITY) for n in x] for x in (networks, other['networks']))
    if ours != theirs:
        odd = next((a for a, b in zip(ours, theirs) if a != b), None)
        what = (
            f'{len(theirs)} networks, this has {len(ours)}'
            if odd is None
            else f'other networks, from {odd[1]!r} on'
        )
        raise UserError(f'{path} has {what}: evaluate both runs with the same flags, in the same space')
    if missing := [b for b in bits if any(b not in n['scores'] for n in other['networks'])]:
        raise UserError(f'{path} has no {", ".join(missing)}: evaluate both runs with the same --bits')


def compare(result: Result, other: Result) -> Result:
    """The result with the other run's top-1 beside each row, and the paired difference (this - other), with
    the bootstrap's 95 % interval over the networks.
    """
    rows = []
    for row in result['rows']:
        pairs = [
            (a['scores'][row['bits']]['top1'], b['scores'][row['bits']]['top1'])
            for a, b in zip(result['networks'], other['networks'], strict=True)
            if a['split'] == row['split']
        ]
        theirs = statistics([b for _, b in pairs], 'against_top1')
        differences = [a - b for a, b in pairs]
        numbers = theirs | statistics(differences, 'difference_top1')
        numbers['difference_top1_low'], numbers['difference_top1_high'] = bootstrap_interval(differences) or (
            None,
            None,
        )
        keep = ('against_top1_mean', 'against_top1_sem', *(k for k in numbers if k.startswith('difference')))
        drop = ('difference_top1_median', 'difference_top1_max')
        rows.append(row | {k: v for k, v in numbers.items() if k in keep and k not in drop})
    return {**result, 'rows': rows, 'against': other['protocol']}


def labels(result: Result, other: Result | None = None) -> tuple[str, ...]:
    """What to call the run, and the other one: how they were trained; where they lie, if that is the same."""
    protocols = [r['protocol'] for r in (result, other) if r is not None]
    names = [p['training'] for p in protocols]
    if len(set(names)) < len(names):
        names = [f'{p["training"]}, {p["workdir"]}' for p in protocols]
    return tuple(names)


def text(result: Result, other: Result | None = None) -> str:
    """The table, with notes under it: how top-1 goes with size and depth, and the protocol."""
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
    """What is to be said under the table: what was scored and how, correlations, the note on the data."""
    p, rows = result['protocol'], result['rows']
    return [
        f'{labels(result, other)[0]}, step {p["step"]}. Mean ± standard error over n networks, in percent; '
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


def _how(protocol: Mapping[str, Any]) -> str:
    norms, ranges, batch = protocol['batch_norm'], protocol['ranges'], protocol['batch_size']
    if norms == ranges == 'batch':
        return f'BatchNorm and ranges of each batch of {batch}.'
    images = f'{protocol["calibration_images"]} training images'
    norm_text = {
        'batch': f'BatchNorm of each batch of {batch}',
        'calibrated': f'BatchNorm of {images}, folded',
        'corrected': f'BatchNorm of {images}, folded and corrected after rounding',
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


def picture(result: Result, other: Result | None = None, *, suffix: str = '.png') -> bytes:
    """A panel for each split: the networks' top-1 at every bit-width, as points and boxes, for both runs."""
    protocol = result['protocol']
    splits, bits = list(dict.fromkeys(r['split'] for r in result['rows'])), protocol['bits']
    runs = [r for r in (result, other) if r is not None]
    columns = min(len(splits), 3 if other is None else 2)
    rows = -(-len(splits) // columns)
    width = max(5.5, (1.0 + 0.55 * len(bits) * len(runs)) * columns)
    fig, axes = plotting.pyplot().subplots(
        rows, columns, figsize=(width, 3.6 * rows + 0.9), sharey=True, squeeze=False, layout='constrained'
    )
    handles = []
    for panel, split in zip(axes.flat, splits):
        for r, (run, colour) in enumerate(zip(runs, ('tab:blue', 'tab:orange'))):
            offset = (r - (len(runs) - 1) / 2) * 0.38
            networks = [n for n in run['networks'] if n['split'] == split]
            top1 = [[n['scores'][b]['top1'] for n in networks] for b in bits]
            places = np.arange(len(bits)) + offset
            boxes = panel.boxplot(
                top1, positions=places, widths=0.3, showfliers=False, manage_ticks=False,
                medianprops={'color': colour, 'linewidth': 2}, boxprops={'color': colour},
                whiskerprops={'color': colour}, capprops={'color': colour},
            )  # fmt: skip
            jitter = np.random.default_rng(0).uniform(-0.1, 0.1, len(networks))
            for place, values in zip(places, top1):
                panel.plot(
                    place + jitter, values, '.', color=colour, alpha=0.4, markersize=5, markeredgewidth=0
                )
            handles.append(boxes['medians'][0])
        panel.axhline(100 / protocol['num_classes'], color='gray', linestyle=':', linewidth=1)
        panel.set_xticks(range(len(bits)), [bits_label(b) for b in bits])
        panel.set_xlim(-0.6, len(bits) - 0.4)
        panel.set_title(
            f'{split} ({sum(n["split"] == split for n in result["networks"])} networks)', fontsize=10
        )
        panel.grid(axis='y', alpha=0.3)
    for panel in axes.flat[len(splits) :]:
        panel.set_axis_off()
    for row in axes:
        row[0].set_ylabel('top-1 accuracy, %')
    names = [
        f'trained: {label}, step {r["protocol"]["step"]}' for label, r in zip(labels(result, other), runs)
    ]
    chance = axes.flat[0].lines[-1]
    on = f'{protocol["images"]} {protocol["image_split"]} images of {protocol["dataset"]}'
    title = f'Networks with predicted weights, {on}'
    fig.suptitle('\n'.join([title, *textwrap.wrap(protocol['note'], 16 * int(width))]), fontsize=10)
    entries = [*handles[: len(runs)], chance], [*names, 'chance']
    fig.legend(*entries, loc='outside lower center', ncols=3, fontsize=9, frameon=False)
    return plotting.encoded(fig, suffix)


def bits_label(bits: str) -> str:
    """The name of a policy as figures show it: `w4a8` is W4/A8."""
    return 'float' if bits == 'w32a32' else bits.upper().replace('A', '/A')
