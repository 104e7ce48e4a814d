"""Compares strategies: trains a hypernetwork with each and scores all on the same unseen networks.

python -m ghn_jax.study --config=configs/quickstart.py --strategies=configs/strategies.json \
    --workdir=runs/study --batch_size=60 --bits=w32a32,w4a4,w2a2 [--seeds=0,1,2] [--groups=w2a2] \
    [--config.key=value]

A strategy is a name and what it changes in the config: a JSON object {"name": {"mode": "qat", ..}, ..}. Keys
are those of `config.quant`, or any of the config: "seed", "train.steps", "ghn.bits". What no strategy changes
is the same for all: seed, space, data, number of steps. Each run has a directory of its own, WORKDIR/name,
which `evaluate` and `predict` take as well; with --seeds, WORKDIR/name.seedK. A study that was stopped goes
on where it was, and several processes on one WORKDIR may share the runs by --only or --seeds.

WORKDIR/study.json holds the tables of all runs there that are done, whichever process did them and when: of
these strategies, with any seed. A run whose config is not the study's, or that was scored in another way, is
left out of them and named.
"""

import contextlib
import fcntl
import json
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from ghn_jax.base import bounds, files, paths
from ghn_jax.base.digests import json_digest
from ghn_jax.base.errors import UserError
from ghn_jax.config import RunConfig, freeze
from ghn_jax.datasets.load import Dataset
from ghn_jax.evaluation import results, sensitivity
from ghn_jax.evaluation.evaluate import evaluate
from ghn_jax.evaluation.score import image_batches, select_split
from ghn_jax.quant.bit_schedule import scheme_of
from ghn_jax.quant.policy import Policy
from ghn_jax.runs.checkpoint import Checkpoints
from ghn_jax.runs.run import (
    FREE_KEYS,
    Run,
    differing_keys,
    load_data,
    load_run,
    make_space_of,
    read_meta,
)
from ghn_jax.studies import study_tables
from ghn_jax.studies.study_runs import Variant, make_variants, seed_of
from ghn_jax.training.train import train

_RESULT, _STUDY, _LOCK = 'evaluation.json', 'study.json', 'study.lock'


def study(
    config: RunConfig | ConfigDict,
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
    config, workdir = freeze(config), paths.local(workdir, 'workdir')
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
    workdir.mkdir(parents=True, exist_ok=True)
    tables: dict[str, Any] = {}
    told: set[str] = set()
    for variant in variants:
        if only and not {variant.name, variant.strategy} & set(only):
            continue
        folder = workdir / variant.name
        print(f'== {variant.name}: {json.dumps(strategies[variant.strategy])}', file=sys.stderr, flush=True)
        train(variant.config, folder)
        result = _finished(folder, variant, wanted)
        if isinstance(result, str):
            result = _score(folder, wanted, groups, layers, dataset, scoring)
        with _alone(workdir):
            # Read again each time: other processes share the study.
            done, left_out = _collect(workdir, config, strategies, wanted, like=result, seeded=bool(seeds))
            tables = study_tables.make_tables(done, strategies, baseline, wanted)
            files.write_json(workdir / _STUDY, tables)
        for line in left_out:
            if line not in told:
                print(line, file=sys.stderr)
        told |= set(left_out)
    return tables


@contextlib.contextmanager
def _alone(workdir: pathlib.Path) -> Iterator[None]:
    """One process at a time reads what is done and writes the tables; the others wait."""
    try:
        file = open(workdir / _LOCK, 'a')
    except OSError as e:
        raise UserError(f'{workdir} cannot be written ({e.strerror}): give another --workdir') from None
    with file:
        with contextlib.suppress(OSError):  # a file system without locks: the next write has all rows again
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _collect(
    workdir: pathlib.Path,
    config: RunConfig,
    strategies: Mapping[str, Any],
    wanted: dict,
    *,
    like: Mapping[str, Any],
    seeded: bool,
) -> tuple[list[tuple[Variant, dict[str, Any]]], list[str]]:
    """(runs of the study that are done with their evaluations, whoever did them; lines that say what of the
    directory is left out and why).

    like: an evaluation that the others must be comparable with. seeded: whether runs have seeds of their own.
    """
    names = {file.parent.name for file in workdir.glob(f'*/{_RESULT}')}
    seeds = sorted({seed for name in names if (seed := seed_of(name, strategies)) is not None})
    done: list[tuple[Variant, dict[str, Any]]] = []
    left_out: list[str] = []
    for variant in make_variants(config, strategies, seeds if seeded else ()):
        if variant.name in names:
            names.remove(variant.name)
            result = _finished(workdir / variant.name, variant, wanted)
            if isinstance(result, dict) and (reason := _unlike(result, like)):
                result = reason
            if isinstance(result, dict):
                done.append((variant, result))
            else:
                left_out.append(f'{variant.name} is left out of the tables: {result}')
    if names:
        which = 'with' if seeded else 'without'
        which = f'no runs of these strategies {which} seeds of their own'
        left_out.append(f'left out of the tables, being {which}: {", ".join(sorted(names))}')
    return done, left_out


def _finished(folder: pathlib.Path, variant: Variant, wanted: dict) -> dict[str, Any] | str:
    """The evaluation of a finished run as it lies there; or why it is none of this variant, scored so."""
    try:
        meta, digest = Checkpoints(folder).restore_record()
        config, _, step = read_meta(meta, folder)
        result = results.read_result(folder / _RESULT)
    except UserError as e:
        return str(e)
    if differing := differing_keys(config, variant.config, FREE_KEYS):
        return f'it was trained with another config ({", ".join(differing)} differ)'
    if step != config.train.steps:
        return f'its training is at step {step} of {config.train.steps}'
    if 'digest' not in result:
        return 'its evaluation was not written by a study of this version'
    if result.pop('digest') != json_digest(result):
        return 'its evaluation is not what was written'
    if result.get('checkpoint') != digest:
        return 'its evaluation is not of its newest checkpoint'
    theirs = result.get('study')
    theirs = theirs if isinstance(theirs, dict) else {}
    if differing := [key for key in wanted.keys() | theirs.keys() if theirs.get(key) != wanted.get(key)]:
        return f'it was scored in another way ({", ".join(sorted(differing))} differ)'
    return result


def _unlike(result: Mapping[str, Any], like: Mapping[str, Any]) -> str | None:
    """Why the two evaluations are not of the same networks and images."""
    protocol = like['protocol']
    try:
        results.check_comparable(dict(result), 'it', like['networks'], protocol['bits'], protocol)
    except UserError as e:
        return str(e)
    return None


def _score(
    folder: pathlib.Path,
    wanted: dict,
    groups: Policy | None,
    layers: int,
    dataset: Dataset | None,
    scoring: dict,
) -> dict[str, Any]:
    """An evaluation, with the scores by part, written to the strategy's directory."""
    run = load_run(folder)
    dataset = dataset or load_data(run.config)
    result, _ = evaluate(run, dataset=dataset, workdir=str(folder), **scoring)
    result['study'], result['checkpoint'] = wanted, Checkpoints(folder).restore_record()[1]
    if groups is not None:
        result |= _score_parts(run, groups, layers, dataset, **scoring)
    files.write_json(folder / _RESULT, result | {'digest': json_digest(result)})
    return result


def _score_parts(
    run: Run, groups: Policy, layers: int, dataset: Dataset,
    *, splits, num_networks, num_images, batch_size, policies,
) -> dict[str, Any]:  # fmt: skip
    """On the first of the splits, by part of the networks: 'groups', top-1 of each network with that part
    quantized; 'layers', changes of top-1 by a single layer, of all layers of the first networks.
    """
    space, size = make_space_of(run.config), run.config.image_size
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
