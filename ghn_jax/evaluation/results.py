"""Results of an evaluation: their statistics, and the comparison with another run.

A result is a dict, as it lies in a JSON file: `rows` (one for each split and bit-width), `networks` (each of
them) and `protocol` (how the numbers came about). Accuracies are in percent.
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from ghn_jax.base import jsonfile
from ghn_jax.base.errors import UserError, shown

Result = dict[str, Any]
_ADVICE = 'give the JSON file of another evaluation'
RESAMPLES = 10_000
# Of a network's scores at a bit-width, what rows give the mean of: images with the prediction of the network
# in float, images that integer arithmetic puts into another class (percent); dB, means over layers.
MEANS = ('agreement', 'integer_disagreement', 'sqnr_weights', 'sqnr_activations')
_IDENTITY = ('split', 'name', 'digest')  # of a network: two runs are compared where these agree
# Of two comparable protocols; the note says where images are not those of the data set.
_DIGEST = 'images_digest'
_NAMES = ('dataset', 'note')  # what tells images from others where a result has no digest of them
_SAME = (
    'images', 'image_size', 'batch_size', 'batch_norm', 'ranges', 'range_rule', 'calibration_images',
)  # fmt: skip


def statistics(values: Sequence[float], prefix: str) -> dict[str, float | None]:
    """Return mean, standard error (sample deviation / sqrt n; None for one value), median and maximum."""
    v = np.asarray(values, np.float64)
    sem = float(v.std(ddof=1) / math.sqrt(len(v))) if len(v) > 1 else None
    numbers = {'mean': float(v.mean()), 'sem': sem, 'median': float(np.median(v)), 'max': float(v.max())}
    return {f'{prefix}_{name}': number for name, number in numbers.items()}


def make_rows(networks: Sequence[Mapping[str, Any]], bits: Sequence[str]) -> list[dict[str, Any]]:
    """Make a row for each split, in order of appearance, and bit-width.

    Each has statistics of top-1 and top-5, the rank correlation of top-1 with parameters and depth, and means
    of what else the scores of all networks have.
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
    """Return Spearman's rank correlation, equal values sharing their mean rank.

    Returns:
      A number from -1 to 1; None where all values of one kind are equal.
    """
    if any(np.ptp(values) == 0 for values in (x, y)):
        return None
    found: Any = scipy.stats.spearmanr(x, y)
    return float(found.statistic)


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean by the percentile bootstrap (B. Efron 1979).

    RESAMPLES samples are drawn with replacement, by a fixed seed: the same values always have the same
    interval.

    Returns:
      The ends of the interval; None for a single value.
    """
    if len(values) < 2:
        return None
    rng = np.random.default_rng(0)
    interval = scipy.stats.bootstrap(
        (np.asarray(values, np.float64),), np.mean, n_resamples=RESAMPLES, method='percentile', rng=rng
    ).confidence_interval
    return float(interval.low), float(interval.high)


def mean_difference(these: Sequence[float], those: Sequence[float]) -> dict[str, Any]:
    """Return the mean of paired differences (these - those) as a cell of a table.

    Returns:
      `difference`, and its bootstrap `interval` where there are several pairs.
    """
    differences = [a - b for a, b in zip(these, those, strict=True)]
    ends = bootstrap_interval(differences)
    found: dict[str, Any] = {'difference': float(np.mean(differences))}
    return found | ({} if ends is None else {'interval': list(ends)})


def read_result(path: str | os.PathLike) -> Result:
    """Read a result from its JSON file. Raises UserError if it is none, naming what is wrong with it."""
    result = jsonfile.read(path, 'result', _ADVICE)
    if wrong := _wrong_part(result):
        raise UserError(f'{os.fspath(path)!r} is no result of ghn_jax.evaluate ({wrong}): {_ADVICE}')
    return result


def _wrong_part(result: Any) -> str | None:
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
    """Raise UserError unless `other` has exactly these networks, at these bit-widths, on the same images."""
    digests = [p.get(_DIGEST) for p in (protocol, other['protocol'])]
    for key in (*(_NAMES if None in digests else ()), *_SAME):
        if (theirs := other['protocol'].get(key)) != protocol[key]:
            raise UserError(
                f'{path} was made with {key}={shown(theirs)}, this is {key}={protocol[key]!r}: '
                'evaluate both runs with the same flags'
            )
    if None not in digests and digests[0] != digests[1]:
        raise UserError(
            f'{path} was made with other images or labels of {shown(other["protocol"].get("dataset"))}: '
            'evaluate both runs on the same ones'
        )
    ours, theirs = ([tuple(n[k] for k in _IDENTITY) for n in x] for x in (networks, other['networks']))
    if ours != theirs:
        first = next((a for a, b in zip(ours, theirs) if a != b), None)
        what = (
            f'{len(theirs)} networks, this has {len(ours)}'
            if first is None
            else f'other networks, from {first[1]!r} on'
        )
        raise UserError(f'{path} has {what}: evaluate both runs with the same flags, in the same space')
    if missing := [b for b in bits if any(b not in n['scores'] for n in other['networks'])]:
        raise UserError(f'{path} has no {", ".join(missing)}: evaluate both runs with the same bits')


def compare(result: Result, other: Result) -> Result:
    """Return the result with the other run's top-1 and the paired difference (this - other) in each row.

    The difference has the bootstrap's 95 % interval over the networks.
    """
    kept = ('against_top1_mean', 'against_top1_sem', 'difference_top1_mean', 'difference_top1_sem')
    rows = []
    for row in result['rows']:
        pairs = [
            (a['scores'][row['bits']]['top1'], b['scores'][row['bits']]['top1'])
            for a, b in zip(result['networks'], other['networks'], strict=True)
            if a['split'] == row['split']
        ]
        differences = [a - b for a, b in pairs]
        numbers = statistics([b for _, b in pairs], 'against_top1')
        numbers |= statistics(differences, 'difference_top1')
        low, high = bootstrap_interval(differences) or (None, None)
        interval = {'difference_top1_low': low, 'difference_top1_high': high}
        rows.append(row | {key: numbers[key] for key in kept} | interval)
    return {**result, 'rows': rows, 'against': other['protocol']}
