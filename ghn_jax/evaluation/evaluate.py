"""Evaluates a run: scores networks with the weights that its hypernetwork predicts, at several bit-widths.

Accuracies are in percent.
"""

import dataclasses
import os
import pathlib
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from ghn_jax.assembly.memory import check_scoring
from ghn_jax.assembly.mesh import local_mesh
from ghn_jax.base import files, paths
from ghn_jax.base.digests import array_digests, json_digest
from ghn_jax.base.errors import FieldError
from ghn_jax.cnn.deploy import integer
from ghn_jax.config import SpaceConfig
from ghn_jax.datasets.load import Dataset
from ghn_jax.evaluation import results
from ghn_jax.evaluation.descriptions import about_images, about_network, about_networks, about_run, in_percent
from ghn_jax.evaluation.evaluation_spec import GIVEN, EvaluationSpec
from ghn_jax.evaluation.partial import Partial, files_of
from ghn_jax.evaluation.results import Result
from ghn_jax.evaluation.score import Score, check_tiles, score_each
from ghn_jax.evaluation.selection import (
    ImageBatches,
    Selection,
    calibration_images,
    check_task,
    image_batches,
    select_given,
    select_split,
)
from ghn_jax.hypernet.policy_features import check_policies
from ghn_jax.networks.deepnets import PublishedSpace, differing
from ghn_jax.quant.strategy import strategy_of
from ghn_jax.runs.progress import Progress
from ghn_jax.runs.run import Run, load_run
from ghn_jax.runs.task import make_space_of


def evaluate(
    run: Run, spec: EvaluationSpec | None = None, *, dataset: Dataset | None = None
) -> tuple[Result, Result | None]:
    """Score networks with the weights that a run's hypernetwork predicts, on test images.

    Args:
      run: from `load_run`.
      spec: which networks, images and bits, and how; None: the defaults.
      dataset: the run's; None: it is read.

    Returns:
      the result (see `results` for what one is), compared with the other one where there is one to compare
      with; the other result, or None.

    Raises:
      UserError: bad values, networks that cannot be run, a file or run to compare with that does not fit.
    """
    spec = spec or EvaluationSpec()
    against = Against.of(spec.against, run)
    runs = [run, *([against.run] if against.run else [])]
    mesh = local_mesh(spec.devices)
    selections = _select(run.config, spec)
    _check_networks(runs, spec, selections, mesh)  # before the data are read, which may take half a minute
    dataset = dataset or run.load_images()
    for each in runs:
        for selection in selections.values():
            check_task(each.ghn, selection.specs, dataset)
    images, calibration = make_batches(dataset, spec)
    networks = [about_network(name, i, g) for name, s in selections.items() for i, g in enumerate(s.graphs)]
    protocol = about_images(dataset, images, calibration, spec)
    counts = {split: len(selection.graphs) for split, selection in selections.items()}
    protocol |= about_networks(run.config, spec, counts, _space(run, spec), mesh.size if mesh else 1)
    if against.result is not None:
        results.check_comparable(against.result, against.path, networks, protocol['bits'], protocol)
    task = _Task(spec, selections, dataset, images, calibration, mesh, networks, protocol)
    kept = files_of(spec.partial)
    result = task.result_of(run, spec.workdir, kept[0])
    other = task.result_of(against.run, against.path, kept[1]) if against.run else against.result
    return (result if other is None else results.compare(result, other)), other


@dataclasses.dataclass(frozen=True)
class Against:
    """What an evaluation is compared with: a run that is scored too, a result, or nothing."""

    path: str = ''
    run: Run | None = None
    result: Result | None = None

    @classmethod
    def of(cls, path: str | os.PathLike | None, ours: Run) -> 'Against':
        """Read the run or the result at this path; raise UserError for a run of other images than ours."""
        if not path:
            return cls()
        if paths.zoo_name(path) is None:
            path = paths.place(path, 'against')
            if not files.is_folder(path):
                return cls(str(path), result=results.read_result(path))
        run = load_run(path)
        check_same_images(ours, run, str(path))
        return cls(str(path), run=run)


@dataclasses.dataclass(frozen=True)
class _Task:
    """Everything that is the same for all runs that are scored.

    Attributes:
      networks: what the result says of each, whoever predicts its weights.
      protocol: of how they are scored.
    """

    spec: EvaluationSpec
    selections: Mapping[str, Selection]
    dataset: Dataset
    images: ImageBatches
    calibration: ImageBatches | None
    mesh: Mesh | None
    networks: Sequence[Mapping[str, Any]]
    protocol: Mapping[str, Any]

    def result_of(self, run: Run, workdir: str, kept: pathlib.Path | None) -> Result:
        """Score a run. workdir: what the result calls it.   kept: the file of its `Partial`."""
        begin, scored, bits = time.perf_counter(), [], self.protocol['bits']
        about = {**self.protocol, **about_run(run, workdir, self.spec.predicted_for)}
        known = Partial(kept, self._digest(run, about))
        for split, selection in self.selections.items():
            scores = known.of_split(split)
            for place, of_network in self._score_split(run, split, selection, set(scores)):
                scores[place] = in_percent(bits, self.spec.policies, of_network)
                known.add(split, place, scores[place], time.perf_counter() - begin)
            scored += [scores[place] for place in range(len(selection.graphs))]
        about['seconds'] = round(known.seconds + time.perf_counter() - begin, 1)
        scored = [{**network, **own} for network, own in zip(self.networks, scored, strict=True)]
        return {'rows': results.make_rows(scored, bits), 'networks': scored, 'protocol': about}

    def _digest(self, run: Run, about: Mapping[str, Any]) -> int:
        """A digest of all that the scores depend on."""
        how = {key: value for key, value in about.items() if key != 'workdir'}  # or what it is called
        networks = [network['digest'] for network in self.networks]
        return json_digest(
            [how, self.dataset.digest, networks, repr(run.ghn.config), array_digests(run.params)]
        )

    def _score_split(
        self, run: Run, split: str, selection: Selection, skip: Collection[int]
    ) -> Iterator[tuple[int, list[Score]]]:
        """Score the networks of a split at all policies, with a progress bar; not those of `skip`."""
        policies, predicted_for = self.spec.policies, self.spec.predicted_for
        strategy, count = strategy_of(run.config), len(selection.graphs)
        compiled = f'programs to compile, unless cached: {len(selection.groups)}'
        before = f'{len(skip)} of them scored before; ' if skip else ''
        print(f'{split}: {count} networks; {before}{compiled}', file=sys.stderr)
        total = count * len(policies)
        with Progress(total, initial=len(skip) * len(policies), desc=split, unit='score') as progress:
            yield from score_each(
                run.ghn, run.params, selection, self.images, list(map(strategy.used, policies)),
                predicted_for=predicted_for and strategy.used(predicted_for),
                scheme=strategy.scheme.when_used(),
                protocol=self.spec.protocol, calibration=self.calibration, mesh=self.mesh, skip=skip,
                done=lambda p: progress.update(
                    networks=int(p == len(policies) - 1), images=self.images.count
                ),
            )  # fmt: skip


def _select(config: Any, spec: EvaluationSpec) -> dict[str, Selection]:
    """Select the networks to score, by the name of their split."""
    size = config.image_size
    if spec.networks is not None:
        return {GIVEN: select_given(spec.networks, image_size=size)}
    if spec.deepnets:
        config = dataclasses.replace(config, space=SpaceConfig(name='deepnets1m', folder=spec.deepnets))
    space, count = make_space_of(config), spec.num_networks
    selections = {
        split: select_split(space, split, seed=spec.seed, count=count, image_size=size)
        for split in spec.splits
    }
    if isinstance(space, PublishedSpace):
        for split, selection in selections.items():
            if others := differing(space, split, selection.specs):
                these = f'{len(others)} of {len(selection.specs)} graphs (the first: {others[0]})'
                print(
                    f'warning: {split}: {these} in the files are not those of their networks', file=sys.stderr
                )
    return selections


def _check_networks(
    runs: Sequence[Run], spec: EvaluationSpec, selections: Mapping[str, Selection], mesh: Mesh | None
) -> None:
    """Raise UserError for what cannot be scored, as far as it is known without the data."""
    for run in runs:
        check_tiles(run.ghn)
    if spec.predicted_for and not runs[0].ghn.config.bits:
        raise FieldError(
            'predicted_for',
            f'={spec.predicted_for}: the hypernetwork of this run is told no bits (ghn.bits): leave it out',
        )
    programs = (program for selection in selections.values() for program, _ in selection.groups)
    check_scoring(programs, spec.batch_size, mesh)
    graphs = [graph for selection in selections.values() for graph in selection.graphs]
    if spec.protocol.integer:
        used = [strategy_of(each.config).used(p) for each in runs for p in spec.policies]
        integer.check([graph.spec for graph in graphs], used)
    check_policies(graphs, [*spec.policies, *([spec.predicted_for] if spec.predicted_for else [])])


def make_batches(dataset: Dataset, spec: EvaluationSpec) -> tuple[ImageBatches, ImageBatches | None]:
    """Return the test images, and the training images that a protocol measures on, None if it does not."""
    size = spec.batch_size
    images = image_batches(dataset, dataset.test, batch_size=size, num_images=spec.num_images)
    if spec.protocol.integer > images.count:
        raise FieldError(
            'integer', f'={spec.protocol.integer}: there are {images.count} test images in whole batches'
        )
    if not spec.protocol.measures:
        return images, None
    return images, calibration_images(dataset, batch_size=size, batches=spec.calibration_batches)


def _space(run: Run, spec: EvaluationSpec) -> str | None:
    """Return what the networks are drawn from; None where they are given."""
    if spec.networks is not None:
        return None
    return "deepnets1m's files" if spec.deepnets or run.config.space.folder else run.config.space.name


def check_same_images(run: Run, other: Run, against: str) -> None:
    """Raise FieldError for runs of other images: by their digests; where one has none, by their names."""
    digests, synthetic = (run.images_digest, other.images_digest), run.config.dataset == 'synthetic'
    names = ['dataset', *(['seed'] if synthetic else [])] if None in digests else []
    for key in ('image_size', *names):
        ours, theirs = (getattr(each.config, key) for each in (run, other))
        if ours != theirs:
            raise FieldError(
                'against',
                f'={against} was trained with {key}={theirs}, this run with {key}={ours}: the two cannot be '
                'scored on the same images',
            )
    if None not in digests and digests[0] != digests[1]:
        raise FieldError(
            'against',
            f'={against} was trained on other images or labels ({other.config.dataset}) than this run: the '
            'two cannot be scored on the same ones',
        )
