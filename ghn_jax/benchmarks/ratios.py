"""Two files of figures beside each other: the ratio of each figure, as measured and at equal machine speed.

A file is one of `ghn_jax.benchmark --json`, or the peer's: the published PyTorch code timed on its own
(`read_peer` says which of its figures stand for which of ours). Ratios are B / A. Seconds are scaled by each
file's probe, so that a machine that is slower just now is not taken for slower code; memory and counts are
not.
"""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from ghn_jax.base import jsonfile
from ghn_jax.base.errors import UserError, shown
from ghn_jax.benchmarks.options import Row

Result = dict[str, Any]
# What a row was measured on: rows are compared where these agree. A row has only some of them.
IDENTITY = (
    'what', 'mode', 'model', 'function', 'split', 'width', 'msa', 'part', 'cells', 'room', 'devices', 'link',
    'times_faster', 'chips', 'meta_batch', 'images_per_step', 'batch_size',
)  # fmt: skip
_PROBE = 'probe_matmul2048_f32_s'
_HINT = 'give two JSON files of ghn_jax.benchmark'
MAX_ROWS = 10_000  # of a file


def read_figures(path: str | os.PathLike) -> Result:
    """Read a file of figures, ours or the peer's.

    Returns:
      {'machine', 'rows'}.

    Raises:
      UserError: it is no such file.
    """
    result = jsonfile.read(path, 'the file', _HINT)
    if isinstance(result, dict) and 'rows' not in result and any(map(_PEER_STEP.fullmatch, result)):
        try:
            result = read_peer(result)
        except (TypeError, AttributeError, KeyError):
            raise UserError(
                f'{os.fspath(path)!r} is not as the figures of the PyTorch code are: {_HINT}'
            ) from None
    if fault := _fault(result):
        raise UserError(f'{os.fspath(path)!r} holds no figures of ghn_jax.benchmark ({fault}): {_HINT}')
    return result


def _fault(result: Any) -> str | None:
    """What is missing or of the wrong kind, of all that is read from a file of figures."""
    if not isinstance(result, dict):
        return f'it holds {shown(result)}'
    rows, machine = result.get('rows'), result.get('machine')
    if not isinstance(rows, list) or len(rows) > MAX_ROWS:
        return f'rows is {shown(rows)}, expected a list of at most {MAX_ROWS}'
    if not isinstance(machine, dict):
        return f'machine is {shown(machine)}'
    probe = machine.get(_PROBE)
    if probe is not None and not all(map(_is_time, probe if isinstance(probe, list) else [probe])):
        return f'{_PROBE} is {shown(probe)}'
    for i, row in enumerate(rows):
        if not isinstance(row, dict) or not isinstance(row.get('what'), str):
            return f'row {i} is {shown(row)}'
        for key in IDENTITY:
            if not isinstance(value := row.get(key), str | int | float | None):
                return f'{key} of row {i} is {shown(value)}'
        if 'images' in row and not (_is_time(row['images']) and row['images'] >= 1):
            return f'images of row {i} is {shown(row["images"])}'
        networks = row.get('networks')
        if networks is not None and not isinstance(networks, int):
            return f'networks of row {i} is {shown(networks)}'
    return None


def _is_time(value: Any) -> bool:
    """Positive and within reason, so that a product of ratios is finite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 1e-12 < value < 1e12


_PEER_STEP = re.compile(r'(q?)train:(\d+)')


def read_peer(peer: Mapping[str, Any]) -> Result:
    """Return the figures of the published PyTorch code, as rows of ours.

    'predict': its predict_* figures. 'train:M', 'qtrain:M': a step with M networks and 64 images, in float
    and W4/A4; its `mean_step_per_net_s` is our mean_s. 'evaluate_10k_images_median_s': float, and W4/A4.
    """
    rows: list[Row] = []
    if predict := peer.get('predict'):
        names = ('graph_median_s', 'peak_rss_gib')
        figures = {f'{k}_s': predict.get(f'predict_{k}_s') for k in ('mean', 'median', 'p95')}
        figures |= {k: predict.get(k) for k in names}
        count = len(predict['per_arch']) if 'per_arch' in predict else None
        rows.append({'what': 'predict', 'mode': 'float', 'networks': count, **figures})
    for name, step in peer.items():
        if match := _PEER_STEP.fullmatch(name):
            rows.append({
                'what': 'train',
                'mode': 'qat' if match[1] else 'float',
                'meta_batch': int(match[2]),
                'images_per_step': 64,
                'mean_s': step.get('mean_step_per_net_s'),
                'peak_rss_gib': step.get('peak_rss_gib'),
            })  # fmt: skip
    for name, seconds in peer.get('evaluate_10k_images_median_s', {}).items():
        mode = 'float' if name == 'float' else 'qat'
        rows.append({'what': 'evaluate', 'mode': mode, 'median_s_per_10k_images': seconds})
    return {'machine': {**peer.get('machine', {}), _PROBE: peer.get(_PROBE)}, 'rows': rows}


def label(row: Row) -> str:
    """Say what a row was measured on: 'train, qat, meta_batch=8, images_per_step=64'."""
    plain = [str(row[k]) for k in ('what', 'mode', 'function', 'part') if row.get(k) is not None]
    rest = [f'{k}={v}' for k, v in _identity(row) if k not in ('what', 'mode', 'function', 'part')]
    return ', '.join(plain + rest)


def compare(a: Result, b: Result, names: Sequence[str] = ('A', 'B')) -> Result:
    """Compare every figure that two results have of the same thing.

    Args:
      a, b: of `read_figures`.
      names: what to call them.

    Returns:
      {'a', 'b': names, 'probe_s', 'rows': [{identity, 'figure', 'a', 'b', 'ratio', 'scaled_ratio'}], ...}, as
      JSON. ratio: b / a. scaled_ratio: what it would be at equal speed of the machines; the ratio itself for
      memory and counts, None for times where a file has no probe. Either is None where a is 0.

    Raises:
      UserError: no row and figure in common.
    """
    probes = [_probe(r['machine']) for r in (a, b)]
    slower = probes[1] / probes[0] if probes[0] and probes[1] else None  # how much slower B's machine was
    theirs = {_identity(row): _figures(row) for row in b['rows']}
    rows = []
    for row in a['rows']:
        others = theirs.get(_identity(row), {})
        for figure, x in _figures(row).items():
            if (y := others.get(figure)) is None:
                continue
            power = _power_of_time(figure)
            ratio = y / x if x else None
            scaled = ratio
            if ratio is not None and power:
                scaled = None if slower is None else ratio / slower**power
            identity = dict(_identity(row))
            rows.append(identity | {'figure': figure, 'a': x, 'b': y, 'ratio': ratio, 'scaled_ratio': scaled})
    if not rows:
        has = [sorted(set(map(label, r['rows']))) for r in (a, b)]
        raise UserError(
            f'no rows in common: {names[0]} has {_shortened(has[0])}; '
            f'{names[1]} has {_shortened(has[1])}: time the same things with the same flags'
        )
    return {
        'a': names[0], 'b': names[1], 'probe_s': probes, 'networks': [_networks(r) for r in (a, b)],
        'only_a': _missing(a, b), 'only_b': _missing(b, a), 'rows': rows,
    }  # fmt: skip


def text(comparison: Result) -> str:
    """Write the comparison as a table, with what to know about it below."""
    lines = [
        [
            label(r),
            r['figure'],
            _number(r['a']),
            _number(r['b']),
            _ratio(r['ratio']),
            _ratio(r['scaled_ratio']),
        ]
        for r in comparison['rows']
    ]
    table = tabulate(
        lines, ['row', 'figure', 'A', 'B', 'B / A', 'at equal speed'],
        tablefmt='github', disable_numparse=True, colalign=('left', 'left', *['right'] * 4),
    )  # fmt: skip
    notes = [f'A: {comparison["a"]}', f'B: {comparison["b"]}']
    a, b = comparison['probe_s']
    if a and b:
        notes.append(f'probe: {a:.4f} s and {b:.4f} s; times at equal speed are divided by it')
    else:
        notes.append('a file has no probe: times cannot be scaled to equal speed')
    if len(set(comparison['networks']) - {None}) > 1:
        notes.append(
            f'A ran {comparison["networks"][0]} networks, B {comparison["networks"][1]}: not the same'
        )
    for name in ('a', 'b'):
        if only := comparison[f'only_{name}']:
            notes.append(f'in {name.upper()} only: {"; ".join(only)}')
    return '\n'.join([table, '', *notes])


def _identity(row: Row) -> tuple:
    # The same work on other devices is what one wants to compare, except where these are the question.
    return tuple((k, row[k]) for k in IDENTITY if k in row and (k != 'devices' or row['what'] == 'scaling'))


def _figures(row: Row) -> dict[str, float]:
    """The numbers of a row that can be compared: seconds, rates, memory, compilations."""
    figures: dict[str, float] = {
        k: v
        for k, v in row.items()
        if isinstance(v, int | float) and not isinstance(v, bool) and _is_sane(v) and _is_figure(k)
    }
    if 'images' in row:  # a score takes as long as it has images: the times of a fixed number compare
        times = {k: figures.pop(k) for k in ('mean_s', 'median_s', 'p95_s') if k in figures}
        if 'median_s' in times:
            figures['median_s_per_10k_images'] = times['median_s'] / row['images'] * 10_000
    return figures


def _is_sane(value: float) -> bool:
    """Zero, or such that ratios are finite."""
    return value == 0 or 1e-100 < abs(value) < 1e100


def _is_figure(name: str) -> bool:
    return _power_of_time(name) != 0 or name.endswith(('_gib', '_bytes')) or name.startswith('compilations')


def _power_of_time(name: str) -> int:
    """1 for a time, -1 for a rate, 0 for what a faster machine does not change."""
    if name.endswith('_per_s'):
        return -1
    return int(name.endswith(('_s', '_us_per_instruction')) or '_s_per_' in name)


def _probe(machine: Mapping[str, Any]) -> float | None:
    value = machine.get(_PROBE)
    return None if value is None or value == [] else float(np.median(value))


def _networks(result: Result) -> int | None:
    """How many networks were timed; training repeats some, so its rows do not say."""
    return next((r.get('networks') for r in result['rows'] if r['what'] in ('predict', 'evaluate')), None)


def _missing(a: Result, b: Result) -> list[str]:
    """Labels of the rows of a that b lacks."""
    known = set(map(_identity, b['rows']))
    return [label(row) for row in a['rows'] if _identity(row) not in known]


def _shortened(labels: Sequence[str]) -> str:
    return '; '.join(labels[:4]) + ('; ...' if len(labels) > 4 else '') or 'none'


def _number(value: float) -> str:
    return f'{value:,}' if isinstance(value, int) else f'{value:.4g}'


def _ratio(value: float | None) -> str:
    return '-' if value is None else f'{value:.3f}'
