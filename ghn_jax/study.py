"""Compares strategies: trains a hypernetwork with each and scores all on the same unseen networks.

python -m ghn_jax.study --config=configs/quickstart.py --strategies=configs/strategies.json \
    --workdir=runs/study --batch_size=60 --bits=w32a32,w4a4,w2a2 [--seeds=0,1,2] [--groups=w2a2] \
    [--config.key=value]

A strategy is a name and what it changes in the config: a JSON object {"name": {"mode": "qat", ..}, ..}. Keys
are those of `config.quant`, or any of the config: "seed", "train.steps", "ghn.bits". What no strategy changes
is the same for all: seed, space, data, number of steps. Each run has a directory of its own, WORKDIR/name,
which `evaluate` and `predict` take as well; with --seeds, WORKDIR/name.seedK. A study that was stopped goes
on where it was, and several processes on one WORKDIR may share the runs by --only. WORKDIR/study.json holds
the tables of what is done.

Differences are paired: those of the same seed on the same networks. With several seeds the standard errors
are those over seeds, since runs of one strategy differ by more than the networks of one run tell.
"""

import json
import math
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict
from tabulate import tabulate

from ghn_jax import bounds, cli, paths, results, runs, sensitivity
from ghn_jax.data import Dataset
from ghn_jax.errors import UserError
from ghn_jax.evaluate import evaluate
from ghn_jax.quant.policy import Policy
from ghn_jax.quant.strategy import scheme_of
from ghn_jax.request import parse_policies, parse_splits
from ghn_jax.scoring import image_batches, select_split
from ghn_jax.train import train
from ghn_jax.variants import Variant, make_variants, parse_seeds, read_strategies

_RESULT, _STUDY = 'evaluation.json', 'study.json'


def study(
    config: ConfigDict,
    strategies: Mapping[str, Mapping[str, Any]],
    workdir: pathlib.Path,
    *,
    seeds: Sequence[int] = (),
    only: Sequence[str] = (),
    baseline: str = '',
    groups: Policy | None = None,
    layers: int = 0,
    dataset: Dataset | None = None,
    **scoring: Any,
) -> dict[str, Any]:
    """Trains and scores the strategies; the tables of all that are done, as JSON.

    seeds: of which each strategy is trained with every one; () is the config's. only: strategies, or single
    runs such as 'mixed.seed1'; () is all. baseline: what the others are compared with; '' is the first.
    groups: bits at which parts of the networks are scored as well, and of the first `layers` networks each
    layer (`sensitivity`). scoring: splits, policies, num_networks, num_images, batch_size, as for `evaluate`.

    Raises:
      UserError: a bad strategy, before any is trained; whatever training and scoring raise.
    """
    bounds.check(layers=layers)
    workdir = paths.local(workdir, 'workdir')
    variants = make_variants(config, strategies, seeds)
    baseline = baseline or variants[0].strategy
    known = {*strategies, *(v.name for v in variants)}
    for flag, names, of in (('only', only, known), ('baseline', [baseline], set(strategies))):
        if odd := [name for name in names if name not in of]:
            runs_too = f', or a run such as {variants[0].name}' if of is known and seeds else ''
            raise UserError(f'--{flag}={odd[0]}: expected of {", ".join(strategies)}{runs_too}')
    wanted = {
        'bits': [str(policy) for policy in scoring['policies']],
        'groups': str(groups) if groups else None,
        'layers': layers,
        **{k: v for k, v in scoring.items() if k != 'policies'},
        'splits': list(scoring['splits']),
    }
    done: list[tuple[Variant, dict[str, Any]]] = []
    workdir.mkdir(parents=True, exist_ok=True)
    for variant in variants:
        folder = workdir / variant.name
        if not only or {variant.name, variant.strategy} & set(only):
            print(
                f'== {variant.name}: {json.dumps(strategies[variant.strategy])}', file=sys.stderr, flush=True
            )
            train(variant.config, folder)
            result = _read(folder, wanted, variant) or _score(
                folder, wanted, groups, layers, dataset, scoring
            )
        elif (result := _read(folder, wanted, variant)) is None:
            continue
        done.append((variant, result))
        tables = _tables(done, strategies, baseline, wanted)
        cli.write_atomic(workdir / _STUDY, json.dumps(tables, indent=1, allow_nan=False) + '\n')
    return tables


def _score(
    folder: pathlib.Path,
    wanted: dict,
    groups: Policy | None,
    layers: int,
    dataset: Dataset | None,
    scoring: dict,
):
    """An evaluation, with the scores by part, written to the strategy's directory."""
    run = runs.load_run(folder)
    dataset = dataset or runs.load_data(run.config)
    result, _ = evaluate(run, dataset=dataset, workdir=str(folder), **scoring)
    result['study'] = wanted
    if groups is not None:
        result |= _score_parts(run, groups, layers, dataset, **scoring)
    cli.write_atomic(folder / _RESULT, json.dumps(result, indent=1, allow_nan=False) + '\n')
    return result


def _score_parts(
    run: runs.Run, groups: Policy, layers: int, dataset: Dataset,
    *, splits, num_networks, num_images, batch_size, policies,
) -> dict[str, Any]:  # fmt: skip
    """On the first of the splits, by part of the networks: 'groups', top-1 of each network with that part
    quantized; 'layers', changes of top-1 by a single layer, of all layers of the first networks.
    """
    space, size = runs.make_space_of(run.config), run.config.image_size
    select = lambda count: select_split(space, splits[0], seed=0, count=count, image_size=size)
    images = image_batches(dataset, dataset.test, batch_size=batch_size, num_images=num_images)
    scheme = scheme_of(run.config.quant).when_used()
    where = run.ghn, run.params, select(num_networks), images
    scores = sensitivity.score_policies(*where, sensitivity.group_policies(groups), scheme=scheme)
    parts: dict[str, Any] = {'groups': {part: top1.tolist() for part, top1 in scores.items()}, 'layers': {}}
    if layers:
        first = select(layers)
        changes = sensitivity.score_layers(run.ghn, run.params, first, images, groups, scheme=scheme)
        for spec, network in zip(first.specs, changes, strict=True):
            for name, change in network.items():
                parts['layers'].setdefault(sensitivity.place_of(name, spec.n_cells), []).append(change)
    return parts


def _read(folder: pathlib.Path, wanted: dict, variant: Variant) -> dict[str, Any] | None:
    """The evaluation of a finished run as it lies there, if it is the one wanted."""
    try:
        result = results.read_result(folder / _RESULT)
    except UserError:
        return None
    done = result.get('study') == wanted and result['protocol']['step'] == variant.config.train.steps
    return result if done else None


def _tables(
    done: Sequence[tuple[Variant, Mapping]], strategies: Mapping[str, Any], baseline: str, wanted: dict
) -> dict[str, Any]:
    """'rows' by split and bits and 'parts' by part of the networks, of every run; 'over_seeds', of both."""
    bases = {v.config.seed: result for v, result in done if v.strategy == baseline}
    rows, parts = [], []
    for variant, result in done:
        run = {'strategy': variant.strategy, 'seed': variant.config.seed}
        base = None if variant.strategy == baseline else bases.get(variant.config.seed)
        for row in result['rows']:
            line = run | {'steps': result['protocol']['step']}
            line |= {
                key: row[key]
                for key in ('split', 'bits', 'n', 'top1_mean', 'top1_sem', 'top1_median', 'top1_max')
            }
            rows.append(line | _difference(_scores(result, row), base and _scores(base, row)))
        for part, top1 in result.get('groups', {}).items():
            nothing = None if part == 'nothing' else result['groups']['nothing']
            line = run | {'part': part, 'n': len(top1), **results.statistics(top1, 'top1')}
            parts.append(line | _difference(top1, nothing))
        for part, changes in result.get('layers', {}).items():
            line = run | {'part': f'one layer of the {part}', 'n': len(changes)}
            parts.append(line | _difference(changes, [0.0] * len(changes)))
    protocol = next((result['protocol'] for _, result in done), {})
    same = ('dataset', 'note', 'images', 'image_size', 'batch_size', 'batch_norm', 'ranges', 'seed')
    return {
        'rows': rows,
        'parts': parts,
        'over_seeds': {'rows': _over_seeds(rows, 'split', 'bits'), 'parts': _over_seeds(parts, 'part')},
        'baseline': baseline,
        'strategies': {v.strategy: dict(strategies[v.strategy]) for v, _ in done},
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
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in ('strategy', *keys)), []).append(row)
    lines = []
    for members in groups.values():
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


def text(tables: Mapping[str, Any]) -> str:
    """The tables: a line for each strategy, a column for each split and bit-width; then by parts."""
    rows, parts = tables['over_seeds']['rows'], tables['over_seeds']['parts']
    columns = list(dict.fromkeys((row['split'], row['bits']) for row in rows))
    several = len({split for split, _ in columns}) > 1
    cells = {(r['strategy'], (r['split'], r['bits'])): r for r in rows}
    about = {row['strategy']: [row['strategy'], row['steps'], len(row['seeds'])] for row in rows}
    headers = ['strategy', 'steps', 'seeds']
    headers += [f'{split} {bits}' if several else bits for split, bits in columns]
    lines = [[*about[name], *(_cell(cells.get((name, column))) for column in columns)] for name in about]
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


if __name__ == '__main__':
    _CONFIG = cli.define_config()
    _WORKDIR = flags.DEFINE_string('workdir', None, 'Directory of the study: a run for each strategy.')
    _STRATEGIES = flags.DEFINE_string(
        'strategies', None, 'JSON file, or the name of one of ghn_jax: {"name": {"mode": "qat", ..}, ..}.'
    )
    _SEEDS = flags.DEFINE_list('seeds', [], 'Train every strategy with each of these seeds, such as 0,1,2.')
    _ONLY = flags.DEFINE_list(
        'only', [], 'Train and score only these strategies, or runs such as mixed.seed1.'
    )
    _BASELINE = flags.DEFINE_string('baseline', '', 'The strategy to compare with, if not the first.')
    _SPLITS = flags.DEFINE_list('splits', ['test'], 'Networks to score, as for evaluate.')
    _BITS = flags.DEFINE_list('bits', ['w32a32', 'w8a8', 'w4a4', 'w2a2'], 'As for evaluate.')
    _GROUPS = flags.DEFINE_string('groups', '', 'Bits, such as w2a2, to score parts of the networks at.')
    _LAYERS = bounds.define_integer('layers', 0, 'Networks to score layer by layer, with --groups.')
    _NUM_NETWORKS = bounds.define_integer('num_networks', 50, 'Networks of each split; 0 takes all.')
    _NUM_IMAGES = bounds.define_integer('num_images', 0, 'Test images; 0 takes all.')
    _BATCH_SIZE = bounds.define_integer('batch_size', 64, 'Images of a batch.')

    def _main() -> None:
        config = cli.read_config(_CONFIG)
        workdir = cli.check_workdir(_WORKDIR.value)
        if not _STRATEGIES.value:
            raise UserError('--strategies is missing: give a file or a name, as in --strategies=strategies')
        runs.start(config.devices.cpu)
        tables = study(
            config,
            read_strategies(_STRATEGIES.value),
            workdir,
            seeds=parse_seeds(_SEEDS.value),
            only=_ONLY.value,
            baseline=_BASELINE.value,
            groups=parse_policies([_GROUPS.value])[0] if _GROUPS.value else None,
            layers=_LAYERS.value,
            splits=parse_splits(_SPLITS.value),
            policies=parse_policies(_BITS.value),
            num_networks=_NUM_NETWORKS.value,
            num_images=_NUM_IMAGES.value,
            batch_size=_BATCH_SIZE.value,
        )
        print(text(tables))

    cli.run(_main)
