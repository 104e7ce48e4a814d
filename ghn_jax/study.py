"""Compares strategies: trains a hypernetwork with each and scores all on the same unseen networks.

python -m ghn_jax.study --config=configs/quickstart.py --strategies=configs/strategies.json \
    --workdir=runs/study --batch_size=60 --bits=w32a32,w4a4,w2a2 [--groups=w2a2] [--config.key=value]

A strategy is a name and what it changes in the config: a JSON object {"name": {"mode": "qat", ..}, ..}. Keys
are those of `config.quant`, or any of the config: "seed", "train.steps", "ghn.bits". What no strategy changes
is the same for all: seed, space, data, number of steps. Each has a run directory of its own,
WORKDIR/name, which `evaluate` and `predict` take as well. A study that was stopped goes on where it was;
WORKDIR/study.json holds the tables of what is done. Differences are paired: those on the same networks.
"""

import copy
import json
import math
import os
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags
from tabulate import tabulate

from ghn_jax import cli, results, runs, sensitivity
from ghn_jax import config as configs
from ghn_jax.data import Dataset
from ghn_jax.errors import UserError
from ghn_jax.evaluate import evaluate
from ghn_jax.quant.policy import Policy
from ghn_jax.quant.strategy import strategy_of
from ghn_jax.request import parse_policies, parse_splits
from ghn_jax.scoring import image_batches, select_split
from ghn_jax.train import train

_RESULT, _STUDY = 'evaluation.json', 'study.json'


def read_strategies(path: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """The strategies of a JSON file, in its order. Raises UserError if it is not what it should be."""
    try:
        with open(path, encoding='utf-8') as f:
            strategies = json.load(f)
    except OSError as e:
        raise UserError(f'--strategies={path} cannot be read ({e.strerror}): give a JSON file') from None
    except ValueError as e:
        raise UserError(f'--strategies={path} is no JSON: {e}') from None
    if not isinstance(strategies, dict) or not strategies:
        raise UserError(f'--strategies={path}: expected a JSON object {{"name": {{"mode": "qat", ..}}, ..}}')
    for name, changes in strategies.items():
        if not re.fullmatch(r'\w[\w.+-]*', name):
            raise UserError(
                f'--strategies={path}: {name!r} is no name for a directory: use letters, digits, _.+-'
            )
        if not isinstance(changes, dict):
            raise UserError(
                f'--strategies={path}: {name!r} is {changes!r}, expected an object of config keys'
            )
    return strategies


def config_with(config: ConfigDict, name: str, changes: Mapping[str, Any]) -> ConfigDict:
    """The config with a strategy's changes. Raises UserError for bad keys and values."""
    config = copy.deepcopy(config)
    for key, value in changes.items():
        full = key if '.' in key or key in config else f'quant.{key}'
        *parts, last = full.split('.')
        holder = config
        for part in parts:
            holder = holder.get(part) if isinstance(holder, ConfigDict) else None
        if not isinstance(holder, ConfigDict) or last not in holder:
            known = f'{", ".join(config.quant)}, or a key of the config such as train.steps'
            raise UserError(f'strategy {name!r}: {full} is no key: expected {known}')
        try:
            holder[last] = configs.tuples(value)
        except TypeError as e:
            raise UserError(f'strategy {name!r}: {full}: {e}') from None
    try:
        strategy_of(configs.check(config))
    except UserError as e:
        raise UserError(f'strategy {name!r}: {e}') from None
    return config


def study(
    config: ConfigDict,
    strategies: Mapping[str, Mapping[str, Any]],
    workdir: pathlib.Path,
    *,
    only: Sequence[str] = (),
    baseline: str = '',
    groups: Policy | None = None,
    layers: int = 0,
    dataset: Dataset | None = None,
    **scoring: Any,
) -> dict[str, Any]:
    """Trains and scores the strategies (`only` those, if given); the tables of all that are done, as JSON.

    baseline: what the others are compared with; '' is the first. groups: bits at which parts of the networks
    are scored as well, and of the first `layers` networks each layer (`sensitivity`). scoring: splits,
    policies, num_networks, num_images, batch_size, as for `evaluate`.

    Raises:
      UserError: a bad strategy, before any is trained; whatever training and scoring raise.
    """
    every = {name: config_with(config, name, changes) for name, changes in strategies.items()}
    baseline = baseline or next(iter(every))
    for flag, names in (('only', only), ('baseline', [baseline])):
        if odd := [name for name in names if name not in every]:
            raise UserError(f'--{flag}={odd[0]}: expected of {", ".join(every)}')
    wanted = {
        'bits': [str(policy) for policy in scoring['policies']],
        'groups': str(groups) if groups else None,
        'layers': layers,
        **{k: v for k, v in scoring.items() if k != 'policies'},
        'splits': list(scoring['splits']),
    }
    found: dict[str, Any] = {}
    workdir.mkdir(parents=True, exist_ok=True)
    for name, own in every.items():
        folder = workdir / name
        if not only or name in only:
            print(f'== {name}: {json.dumps(strategies[name])}', file=sys.stderr, flush=True)
            train(own, folder)
            found[name] = _read(folder, wanted, own) or _score(
                folder, wanted, groups, layers, dataset, scoring
            )
        elif result := _read(folder, wanted, own):
            found[name] = result
        tables = _tables(found, strategies, baseline, wanted)
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
    scheme = strategy_of(run.config).scheme.when_used()
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


def _read(folder: pathlib.Path, wanted: dict, config: ConfigDict) -> dict[str, Any] | None:
    """The evaluation of a finished run as it lies there, if it is the one wanted."""
    try:
        result = results.read_result(folder / _RESULT)
    except UserError:
        return None
    done = result.get('study') == wanted and result['protocol']['step'] == config.train.steps
    return result if done else None


def _tables(found: Mapping[str, Any], strategies: Mapping[str, Any], baseline: str, wanted: dict):
    rows, parts = [], []
    for name, result in found.items():
        for row in result['rows']:
            scores = _scores(result, row)
            steps = result['protocol']['step']
            line = {
                'strategy': name,
                'steps': steps,
                'split': row['split'],
                'bits': row['bits'],
                'n': row['n'],
            }
            line |= {key: row[key] for key in ('top1_mean', 'top1_sem', 'top1_median', 'top1_max')}
            if baseline in found and name != baseline:
                line |= _difference(scores, _scores(found[baseline], row))
            rows.append(line)
        for part, top1 in result.get('groups', {}).items():
            line = {'strategy': name, 'part': part, 'n': len(top1), **results.statistics(top1, 'top1')}
            if part != 'nothing':
                line |= _difference(top1, result['groups']['nothing'])
            parts.append(line)
        for part, changes in result.get('layers', {}).items():
            numbers = results.statistics(changes, 'difference')
            parts.append({'strategy': name, 'part': f'one layer of the {part}', 'n': len(changes), **numbers})
    protocol = next((r['protocol'] for r in found.values()), {})
    same = ('dataset', 'note', 'images', 'image_size', 'batch_size', 'batch_norm', 'ranges', 'seed')
    return {
        'rows': rows,
        'parts': parts,
        'baseline': baseline,
        'strategies': {name: dict(strategies[name]) for name in found},
        'protocol': {key: protocol[key] for key in same if key in protocol} | wanted,
    }


def _scores(result: Mapping[str, Any], row: Mapping[str, Any]) -> list[float]:
    return [n['scores'][row['bits']]['top1'] for n in result['networks'] if n['split'] == row['split']]


def _difference(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float | None]:
    """Mean and standard error of the differences on the same networks."""
    numbers = results.statistics(np.subtract(ours, theirs).tolist(), 'difference')
    return {key: numbers[key] for key in ('difference_mean', 'difference_sem')}


def text(tables: Mapping[str, Any]) -> str:
    """The tables: a line for each strategy, a column for each split and bit-width; then by parts."""
    columns = list(dict.fromkeys((row['split'], row['bits']) for row in tables['rows']))
    names = list(dict.fromkeys(row['strategy'] for row in tables['rows']))
    cells = {(r['strategy'], (r['split'], r['bits'])): r for r in tables['rows']}
    several = len({split for split, _ in columns}) > 1
    headers = ['strategy', 'steps', *(f'{split} {bits}' if several else bits for split, bits in columns)]
    steps = {row['strategy']: row['steps'] for row in tables['rows']}
    lines = [[name, steps[name], *(_cell(cells.get((name, column))) for column in columns)] for name in names]
    out = [tabulate(lines, headers, tablefmt='github', disable_numparse=True), '', _note(tables)]
    if tables['parts']:
        parts = list(dict.fromkeys(row['part'] for row in tables['parts']))
        by_part = {(row['strategy'], row['part']): row for row in tables['parts']}
        lines = [[part, *(_cell(by_part.get((name, part))) for name in names)] for part in parts]
        title = f'{tables["protocol"]["groups"]} on parts of the networks, the rest in float'
        out += ['', f'{title} (difference to float):', '']
        out += [tabulate(lines, ['quantized', *names], tablefmt='github', disable_numparse=True)]
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
    return (
        f'Mean top-1 ± standard error in percent (difference to {tables["baseline"]} on the same networks); '
        f'{p["num_networks"]} networks, {p.get("images")} test images of {p.get("dataset")}. '
        f'{p.get("note") or ""}'
    ).strip()


if __name__ == '__main__':
    _CONFIG = config_flags.DEFINE_config_file('config', help_string='Config file, then --config.key=value.')
    _WORKDIR = flags.DEFINE_string('workdir', None, 'Directory of the study: a run for each strategy.')
    _STRATEGIES = flags.DEFINE_string('strategies', None, 'JSON file: {"name": {"mode": "qat", ..}, ..}.')
    _ONLY = flags.DEFINE_list('only', [], 'Train and score only these; the table has all that are done.')
    _BASELINE = flags.DEFINE_string('baseline', '', 'The strategy to compare with, if not the first.')
    _SPLITS = flags.DEFINE_list('splits', ['test'], 'Networks to score, as for evaluate.')
    _BITS = flags.DEFINE_list('bits', ['w32a32', 'w8a8', 'w4a4', 'w2a2'], 'As for evaluate.')
    _GROUPS = flags.DEFINE_string('groups', '', 'Bits, such as w2a2, to score parts of the networks at.')
    _LAYERS = flags.DEFINE_integer('layers', 0, 'Networks to score layer by layer, with --groups.')
    _NUM_NETWORKS = flags.DEFINE_integer('num_networks', 50, 'Networks of each split; 0 takes all.')
    _NUM_IMAGES = flags.DEFINE_integer('num_images', 0, 'Test images; 0 takes all.')
    _BATCH_SIZE = flags.DEFINE_integer('batch_size', 64, 'Images of a batch.')

    def _main() -> None:
        config = cli.read_config(_CONFIG)
        workdir = cli.check_workdir(_WORKDIR.value)
        if not _STRATEGIES.value:
            raise UserError(
                '--strategies is missing: give a file, as in --strategies=configs/strategies.json'
            )
        runs.divide_cpu(config.devices.cpu)
        runs.enable_compilation_cache()
        tables = study(
            config,
            read_strategies(_STRATEGIES.value),
            workdir,
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
