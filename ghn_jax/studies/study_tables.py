"""The tables of a study: rows of every run, means over seeds, paired differences; as JSON and as text.

Differences are paired: those of the same seed on the same networks. With several seeds the standard errors
are those over seeds, since runs of one strategy differ by more than the networks of one run tell.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from ghn_jax.evaluation import results
from ghn_jax.studies.study_runs import StudyRun
from ghn_jax.tuning.comparison_table import grouped


def make_tables(
    done: Sequence[tuple[StudyRun, Mapping]], strategies: Mapping[str, Any], baseline: str, wanted: dict
) -> dict[str, Any]:
    """Make the tables: rows by split and bits, parts by part of the networks, of all runs and over seeds."""
    bases = {study_run.config.seed: result for study_run, result in done if study_run.strategy == baseline}
    rows, parts = [], []
    for study_run, result in done:
        run = {'strategy': study_run.strategy, 'seed': study_run.config.seed}
        base = None if study_run.strategy == baseline else bases.get(study_run.config.seed)
        for row in result['rows']:
            line = run | {'steps': result['protocol']['step']}
            line |= {
                key: row[key]
                for key in ('split', 'bits', 'n', 'top1_mean', 'top1_sem', 'top1_median', 'top1_max')
            }
            rows.append(line | _difference(_scores(result, row), _scores(base, row) if base else None))
        for part, top1 in result.get('groups', {}).items():
            nothing = None if part == 'nothing' else result['groups']['nothing']
            line = run | {'part': part, 'n': len(top1), **results.statistics(top1, 'top1')}
            parts.append(line | _difference(top1, nothing))
        for part, changes in result.get('layers', {}).items():
            line = run | {'part': f'one layer of the {part}', 'n': len(changes)}
            parts.append(line | _difference(changes, [0.0] * len(changes)))
    protocol = next((result['protocol'] for _, result in done), {})
    same = ('dataset', 'note', 'images', 'image_size', 'batch_size', 'batch_norm', 'ranges', 'seed')
    curves = [
        {'strategy': study_run.strategy, 'seed': study_run.config.seed, **point}
        for study_run, result in done
        for point in result.get('validations', ())
    ]
    return {
        'rows': rows,
        'parts': parts,
        'curves': curves,
        'reached': _reached(curves, baseline),
        'over_seeds': {'rows': _over_seeds(rows, 'split', 'bits'), 'parts': _over_seeds(parts, 'part')},
        'baseline': baseline,
        'strategies': {study_run.strategy: dict(strategies[study_run.strategy]) for study_run, _ in done},
        'protocol': {key: protocol[key] for key in same if key in protocol} | wanted,
    }


def _scores(result: Mapping[str, Any], row: Mapping[str, Any]) -> list[float]:
    return [n['scores'][row['bits']]['top1'] for n in result['networks'] if n['split'] == row['split']]


def _difference(ours: Sequence[float], theirs: Sequence[float] | None) -> dict[str, float | None]:
    """Mean and standard error of the differences on the same networks; nothing where there are no others."""
    if theirs is None:
        return {}
    numbers = results.statistics(np.subtract(ours, theirs).tolist(), 'difference')
    return {key: numbers[key] for key in ('difference_mean', 'difference_sem')}


def _over_seeds(rows: Sequence[Mapping[str, Any]], *keys: str) -> list[dict[str, Any]]:
    """A row for each strategy and value of `keys`: means over seeds, and their standard errors over seeds; of
    one seed, the row as it is, with its standard errors over networks.
    """
    lines = []
    for members in grouped(rows, lambda row: tuple(row[key] for key in ('strategy', *keys))).values():
        line = {key: members[0][key] for key in ('strategy', 'steps', *keys) if key in members[0]}
        line['seeds'] = [row['seed'] for row in members]
        for name in ('top1', 'difference'):
            mean, sem = f'{name}_mean', f'{name}_sem'
            have = [row for row in members if mean in row]
            if len(have) > 1:
                numbers = results.statistics([row[mean] for row in have], name)
                line |= {key: numbers[key] for key in (mean, sem)}
            elif have:
                line |= {key: have[0][key] for key in (mean, sem)}
        lines.append(line)
    return lines


def _reached(curves: Sequence[Mapping[str, Any]], baseline: str) -> dict[str, Any]:
    """How many networks each strategy saw until it validated as well as the baseline did in the end.

    Returns:
      {'top1': the baseline's last validation, the mean over its seeds; 'networks': {strategy: networks until
      the mean validation over its seeds is that good; None where it never is}}; {} without validations of the
      baseline.
    """
    found: dict[str, dict[int, dict[int, float]]] = {}  # by strategy, networks and seed
    for point in curves:
        of_strategy = found.setdefault(point['strategy'], {})
        of_strategy.setdefault(point['networks'], {})[point['seed']] = point['top1']
    means = {
        strategy: {n: float(np.mean([*seeds.values()])) for n, seeds in sorted(of_strategy.items())}
        for strategy, of_strategy in found.items()
    }
    if not means.get(baseline):
        return {}
    wanted = means[baseline][max(means[baseline])]
    first = {
        strategy: next((n for n, top1 in curve.items() if top1 >= wanted), None)
        for strategy, curve in means.items()
    }
    return {'top1': wanted, 'networks': first}


def text(tables: Mapping[str, Any]) -> str:
    """Return the tables as text: a line for each strategy, a column for each split and bits; then parts."""
    rows, parts = tables['over_seeds']['rows'], tables['over_seeds']['parts']
    columns = list(dict.fromkeys((row['split'], row['bits']) for row in rows))
    several = len({split for split, _ in columns}) > 1
    cells = {(r['strategy'], (r['split'], r['bits'])): r for r in rows}
    about = {row['strategy']: [row['strategy'], row['steps'], len(row['seeds'])] for row in rows}
    headers = ['strategy', 'steps', 'seeds']
    headers += [f'{split} {bits}' if several else bits for split, bits in columns]
    lines = [[*about[name], *(_cell(cells.get((name, column))) for column in columns)] for name in about]
    if reached := tables['reached']:
        headers.append(f'networks to {reached["top1"]:.1f} % in validation')
        for line in lines:
            networks = reached['networks'].get(line[0])
            line.append('never' if networks is None else f'{networks:,}')
    out = [tabulate(lines, headers, tablefmt='github', disable_numparse=True), '', _note(tables)]
    if parts:
        names = list(dict.fromkeys(row['part'] for row in parts))
        by_part = {(row['strategy'], row['part']): row for row in parts}
        lines = [[part, *(_cell(by_part.get((name, part))) for name in about)] for part in names]
        title = f'{tables["protocol"]["groups"]} on parts of the networks, the rest in float'
        out += ['', f'{title} (difference to the whole network in float):', '']
        out += [tabulate(lines, ['quantized', *about], tablefmt='github', disable_numparse=True)]
    return '\n'.join(out)


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ''
    if 'top1_mean' not in row:
        return f'({_plus_minus(row["difference_mean"], row["difference_sem"], "+")})'
    cell = _plus_minus(row['top1_mean'], row['top1_sem'])
    if 'difference_mean' in row:
        cell += f' ({_plus_minus(row["difference_mean"], row["difference_sem"], "+")})'
    return cell


def _plus_minus(mean: float, sem: float | None, sign: str = '') -> str:
    return f'{mean:{sign}.2f}' + ('' if sem is None or math.isnan(sem) else f' ± {sem:.2f}')


def _note(tables: Mapping[str, Any]) -> str:
    p = tables['protocol']
    seeds = any(len(row['seeds']) > 1 for row in tables['over_seeds']['rows'])
    error = 'standard error over seeds, of one seed over networks,' if seeds else 'standard error'
    return (
        f'Mean top-1 ± {error} in percent (difference to {tables["baseline"]} on the same networks); '
        f'{p["num_networks"]} networks, {p.get("images")} test images of {p.get("dataset")}. '
        f'{p.get("note") or ""}'
    ).strip()
