"""A study: a hypernetwork trained with each of several strategies, all scored on the same unseen networks.

A strategy is a name and what it changes in the config. Each run has a directory of its own, WORKDIR/name;
with several seeds, WORKDIR/name.seedK. A study that was stopped goes on where it was, and several processes
on one WORKDIR may share the runs.

WORKDIR/study.json holds the tables of all runs there that are done, whichever process did them and when: of
these strategies, with any seed. A run whose config is not the study's, or that was scored in another way, is
left out of them and named.
"""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from ghn_jax.base import files, lock, paths
from ghn_jax.base.digests import json_digest
from ghn_jax.base.errors import FieldError, UserError
from ghn_jax.base.fields import bounded, check_declared
from ghn_jax.base.jsonlines import read_jsonl
from ghn_jax.base.paths import Place
from ghn_jax.config import RunConfig, freeze
from ghn_jax.datasets.load import Dataset
from ghn_jax.evaluation import results, sensitivity
from ghn_jax.evaluation.evaluate import evaluate
from ghn_jax.evaluation.evaluation_spec import EvaluationSpec
from ghn_jax.evaluation.selection import image_batches, select_split
from ghn_jax.quant.policy import Policy
from ghn_jax.quant.strategy import scheme_of
from ghn_jax.runs.checkpoint import Checkpoints
from ghn_jax.runs.config_changes import FREE_KEYS, differing_keys
from ghn_jax.runs.run import Run, load_run, read_meta, validation_metric
from ghn_jax.runs.task import load_data, make_space_of
from ghn_jax.studies import study_tables
from ghn_jax.studies.study_runs import StudyRun, make_runs, seed_of
from ghn_jax.training.train import train

_RESULT, _STUDY, _LOCK = 'evaluation.json', 'study.json', 'study.lock'


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudySpec:
    """What a study is asked for, beside its config and strategies.

    Attributes:
      seeds: of which each strategy is trained with every one; (): with the config's.
      only: strategies, or single runs such as 'mixed.seed1', that are trained and scored; (): all.
      baseline: the strategy that the others are compared with; '': the first.
      groups: bits at which parts of the networks are scored as well; None: they are not.
      layers: networks of which, with groups, each layer is scored (`sensitivity`), the first ones.
      evaluation: how runs are scored; of it splits, policies, num_networks, num_images and batch_size are
        a study's choice.

    Raises:
      UserError: a number out of its bounds.
    """

    seeds: tuple[int, ...] = ()
    only: tuple[str, ...] = ()
    baseline: str = ''
    groups: Policy | None = None
    layers: int = bounded('layers', 0)
    evaluation: EvaluationSpec = EvaluationSpec()

    def __post_init__(self) -> None:
        check_declared(self)
        if self.layers and self.groups is None:
            raise FieldError(
                'layers',
                f'={self.layers}: give groups, too: the bits of a layer, such as w2a2',
            )

    @property
    def scoring(self) -> dict[str, Any]:
        """How runs are scored, in JSON's types, as it is written beside each evaluation."""
        evaluation = self.evaluation
        return {
            'bits': [str(policy) for policy in evaluation.policies],
            'groups': str(self.groups) if self.groups else None,
            'layers': self.layers,
            'splits': list(evaluation.splits),
            'num_networks': evaluation.num_networks,
            'num_images': evaluation.num_images,
            'batch_size': evaluation.batch_size,
        }


def study(
    config: RunConfig | ConfigDict,
    strategies: Mapping[str, Mapping[str, Any]],
    workdir: Place,
    spec: StudySpec | None = None,
) -> dict[str, Any]:
    """Train and score the strategies.

    Args:
      config: what all have in common.
      strategies: the changes of each, by its name (`read_strategies`).
      workdir: of the study; a run is WORKDIR/name.
      spec: seeds, what of it to do, and how it is scored; None: the defaults.

    Returns:
      the tables of all runs there that are done, as JSON.

    Raises:
      UserError: a bad strategy, before any is trained; whatever training and scoring raise.
    """
    spec = spec or StudySpec()
    config, workdir = freeze(config), paths.place(workdir, 'workdir')
    study_runs = make_runs(config, strategies, spec.seeds)
    baseline = spec.baseline or study_runs[0].strategy
    _check_names(strategies, study_runs, spec.only, baseline)
    workdir.mkdir(parents=True, exist_ok=True)
    tables: dict[str, Any] = {}
    said: set[str] = set()
    for study_run in study_runs:
        if spec.only and not {study_run.name, study_run.strategy} & set(spec.only):
            continue
        folder = workdir / study_run.name
        print(
            f'== {study_run.name}: {json.dumps(strategies[study_run.strategy])}', file=sys.stderr, flush=True
        )
        train(study_run.config, folder)
        try:
            result = _finished(folder, study_run, spec.scoring)
        except UserError:
            result = _score(folder, spec, study_run.config.data_dir)
        with lock.holding(workdir, _LOCK, wait=True):
            # Read again each time: other processes share the study.
            done, left_out = _collect(
                workdir, config, strategies, spec.scoring, like=result, seeded=bool(spec.seeds)
            )
            tables = study_tables.make_tables(done, strategies, baseline, spec.scoring)
            files.write_json(workdir / _STUDY, tables)
        for line in left_out:
            if line not in said:
                print(line, file=sys.stderr)
        said |= set(left_out)
    return tables


def _check_names(
    strategies: Mapping[str, Any], study_runs: Sequence[StudyRun], only: Sequence[str], baseline: str
) -> None:
    """Raise FieldError for a name in `only` or `baseline` that is none of the study's."""
    runs = {study_run.name for study_run in study_runs} - set(strategies)
    run_too = f', or a run such as {study_runs[0].name}' if runs else ''
    for field, names, known, more in (
        ('only', only, {*strategies, *runs}, run_too),
        ('baseline', [baseline], set(strategies), ''),
    ):
        if unknown := [name for name in names if name not in known]:
            raise FieldError(field, f'={unknown[0]}: expected of {", ".join(strategies)}{more}')


def _collect(
    workdir: Place,
    config: RunConfig,
    strategies: Mapping[str, Any],
    wanted: dict,
    *,
    like: Mapping[str, Any],
    seeded: bool,
) -> tuple[list[tuple[StudyRun, dict[str, Any]]], list[str]]:
    """Return the finished runs with their evaluations, whoever did them, and lines on what is left out.

    like: an evaluation that the others must be comparable with. seeded: whether runs have seeds of their own.
    """
    names = {file.parent.name for file in workdir.glob(f'*/{_RESULT}')}
    seeds = sorted({seed for name in names if (seed := seed_of(name, strategies)) is not None})
    done: list[tuple[StudyRun, dict[str, Any]]] = []
    left_out: list[str] = []
    networks, protocol = like['networks'], like['protocol']
    for study_run in make_runs(config, strategies, seeds if seeded else ()):
        if study_run.name in names:
            names.remove(study_run.name)
            try:
                result = _finished(workdir / study_run.name, study_run, wanted)
                results.check_comparable(result, 'it', networks, protocol['bits'], protocol)
                done.append((study_run, result))
            except UserError as e:
                left_out.append(f'{study_run.name} is left out of the tables: {e}')
    if names:
        which = 'with' if seeded else 'without'
        which = f'no runs of these strategies {which} seeds of their own'
        left_out.append(f'left out of the tables, being {which}: {", ".join(sorted(names))}')
    return done, left_out


def _finished(folder: Place, study_run: StudyRun, wanted: dict) -> dict[str, Any]:
    """Return the evaluation of a finished run as it lies there; raise UserError with what is wrong."""
    meta, digest = Checkpoints(folder).restore_record()
    config, _, step = read_meta(meta, folder)
    result = results.read_result(folder / _RESULT)
    if differing := differing_keys(config, study_run.config, FREE_KEYS):
        raise UserError(f'it was trained with another config ({", ".join(differing)} differ)')
    if step != config.train.steps:
        raise UserError(f'its training is at step {step} of {config.train.steps}')
    if 'digest' not in result:
        raise UserError('its evaluation was not written by a study of this version')
    if result.pop('digest') != json_digest(result):
        raise UserError('its evaluation is not what was written')
    if result.get('checkpoint') != digest:
        raise UserError('its evaluation is not of its newest checkpoint')
    theirs = result.get('study')
    theirs = theirs if isinstance(theirs, dict) else {}
    if differing := [key for key in wanted.keys() | theirs.keys() if theirs.get(key) != wanted.get(key)]:
        raise UserError(f'it was scored in another way ({", ".join(sorted(differing))} differ)')
    return result


def _score(folder: Place, spec: StudySpec, data_dir: str) -> dict[str, Any]:
    """Evaluate a run, with the scores by part, and write the result to its directory."""
    run = load_run(folder, data_dir=data_dir)
    dataset = load_data(run.config)
    evaluation = dataclasses.replace(spec.evaluation, workdir=str(folder))
    result, _ = evaluate(run, evaluation, dataset=dataset)
    result['validations'] = _validations(folder, run.config)
    result['study'], result['checkpoint'] = spec.scoring, Checkpoints(folder).restore_record()[1]
    if spec.groups is not None:
        result |= _score_parts(run, spec.groups, spec.layers, evaluation, dataset)
    files.write_json(folder / _RESULT, result | {'digest': json_digest(result)})
    return result


def _validations(folder: Place, config: RunConfig) -> list[dict[str, float]]:
    """Return the validations of a run while it trained: networks seen until then, and top-1 in percent."""
    name, meta_batch = validation_metric(config), config.train.meta_batch
    file = folder / 'metrics.jsonl'
    rows = [row for row in (read_jsonl(file) if file.is_file() else []) if row.get(name) is not None]
    return [{'networks': row['step'] * meta_batch, 'top1': 100 * row[name]} for row in rows]


def _score_parts(
    run: Run, groups: Policy, layers: int, evaluation: EvaluationSpec, dataset: Dataset
) -> dict[str, Any]:
    """Score parts of the networks of the first split.

    Returns:
      'groups': by part, top-1 of each network with that part quantized; 'layers': by place, the changes of
      top-1 by a single layer, of all layers of the first networks.
    """
    space, size, split = make_space_of(run.config), run.config.image_size, evaluation.splits[0]
    select = lambda count: select_split(space, split, seed=0, count=count, image_size=size)
    images = image_batches(
        dataset, dataset.test, batch_size=evaluation.batch_size, num_images=evaluation.num_images
    )
    scheme = scheme_of(run.config.quant).when_used()
    where = run.ghn, run.params, select(evaluation.num_networks), images
    scores = sensitivity.score_policies(*where, sensitivity.group_policies(groups), scheme=scheme)
    parts: dict[str, Any] = {'groups': {part: top1.tolist() for part, top1 in scores.items()}, 'layers': {}}
    if layers:
        first = select(layers)
        changes = sensitivity.score_layers(run.ghn, run.params, first, images, groups, scheme=scheme)
        for spec, network in zip(first.specs, changes, strict=True):
            for name, change in network.items():
                parts['layers'].setdefault(sensitivity.place_of(name, spec.n_cells), []).append(change)
    return parts
