"""Results of an evaluation: their statistics, the comparison with another run, as text and as a picture.

A result is a dict, as it lies in a JSON file: `rows` (one for each split and bit-width), `networks` (each of
them) and `protocol` (how the numbers came about). Accuracies are in percent.
"""

import io
import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from ghn_jax import jsonfile
from ghn_jax.errors import UserError, shown

Result = dict[str, Any]
_ADVICE = 'give the --json file of another evaluation'
PICTURES = ('.png', '.pdf', '.svg')
_IDENTITY = ('split', 'name', 'digest')  # of a network: two runs are compared where these agree
_SAME = (
    'dataset',
    'images',
    'image_size',
    'batch_size',
    'batch_norm',
    'ranges',
)  # of two comparable protocols


def statistics(values: Sequence[float], prefix: str) -> dict[str, float | None]:
    """Mean, standard error (sample standard deviation / sqrt n; None for one value), median and max."""
    v = np.asarray(values, np.float64)
    sem = float(v.std(ddof=1) / math.sqrt(len(v))) if len(v) > 1 else None
    numbers = {'mean': float(v.mean()), 'sem': sem, 'median': float(np.median(v)), 'max': float(v.max())}
    return {f'{prefix}_{name}': number for name, number in numbers.items()}


def make_rows(networks: Sequence[Mapping[str, Any]], bits: Sequence[str]) -> list[dict[str, Any]]:
    """A row of statistics for each split, in order of appearance, and bit-width."""
    rows = []
    for split in dict.fromkeys(network['split'] for network in networks):
        scores = [network['scores'] for network in networks if network['split'] == split]
        for b in bits:
            row = {'split': split, 'bits': b, 'n': len(scores)}
            for top in ('top1', 'top5'):
                row |= statistics([s[b][top] for s in scores], top)
            rows.append(row)
    return rows


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
    """The result with the other run's top-1 beside each row, and the paired difference (this - other)."""
    rows = []
    for row in result['rows']:
        pairs = [
            (a['scores'][row['bits']]['top1'], b['scores'][row['bits']]['top1'])
            for a, b in zip(result['networks'], other['networks'], strict=True)
            if a['split'] == row['split']
        ]
        theirs = statistics([b for _, b in pairs], 'against_top1')
        difference = statistics([a - b for a, b in pairs], 'difference_top1')
        keep = ('against_top1_mean', 'against_top1_sem', 'difference_top1_mean', 'difference_top1_sem')
        rows.append(row | {k: v for k, v in (theirs | difference).items() if k in keep})
    return {**result, 'rows': rows, 'against': other['protocol']}


def labels(result: Result, other: Result | None = None) -> tuple[str, ...]:
    """What to call the run, and the other one: how they were trained; where they lie, if that is the same."""
    protocols = [r['protocol'] for r in (result, other) if r is not None]
    names = [p['training'] for p in protocols]
    if len(set(names)) < len(names):
        names = [f'{p["training"]}, {p["workdir"]}' for p in protocols]
    return tuple(names)


def text(result: Result, other: Result | None = None) -> str:
    """The table, with a line on the protocol under it."""
    named = labels(result, other)
    headers = ['split', 'bits', 'n', 'top-1', 'median', 'max', 'top-5', 'median', 'max']
    if other is not None:
        headers += [f'top-1: {named[1]}', 'difference']
    lines = []
    for r in result['rows']:
        line = [r['split'], r['bits'], r['n']]
        for top in ('top1', 'top5'):
            line += [_mean(r, top), f'{r[f"{top}_median"]:.2f}', f'{r[f"{top}_max"]:.2f}']
        if other is not None:
            line += [_mean(r, 'against_top1'), _mean(r, 'difference_top1', '+')]
        lines.append(line)
    p = result['protocol']
    notes = [
        f'{named[0]}, step {p["step"]}. Mean ± standard error over n networks, in percent; '
        f'{p["images"]} {p["image_split"]} images of {p["dataset"]}, '
        f'BatchNorm and ranges of each batch of {p["batch_size"]}.',
        *([p['note']] if p['note'] else []),
    ]
    return '\n'.join([tabulate(lines, headers, tablefmt='github', disable_numparse=True), '', *notes])


def _mean(row: Mapping[str, Any], prefix: str, sign: str = '') -> str:
    mean, sem = row[f'{prefix}_mean'], row[f'{prefix}_sem']
    return f'{mean:{sign}.2f}' + ('' if sem is None else f' ± {sem:.2f}')


def picture(result: Result, other: Result | None = None, *, suffix: str = '.png') -> bytes:
    """A panel for each split: the networks' top-1 at every bit-width, as points and boxes, for both runs."""
    import matplotlib

    matplotlib.use('Agg')
    matplotlib.rcParams['text.parse_math'] = False  # names may have dollars
    from matplotlib import pyplot as plt

    protocol = result['protocol']
    splits, bits = list(dict.fromkeys(r['split'] for r in result['rows'])), protocol['bits']
    runs = [r for r in (result, other) if r is not None]
    columns = min(len(splits), 3 if other is None else 2)
    rows = -(-len(splits) // columns)
    width = max(5.5, (1.0 + 0.55 * len(bits) * len(runs)) * columns)
    fig, axes = plt.subplots(
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
        panel.set_xticks(range(len(bits)), [_bits_label(b) for b in bits])
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
    out = io.BytesIO()
    fig.savefig(out, format=suffix.removeprefix('.'), dpi=130)
    plt.close(fig)
    return out.getvalue()


def _bits_label(bits: str) -> str:
    return 'float' if bits == 'w32a32' else bits.upper().replace('A', '/A')
