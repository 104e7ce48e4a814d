"""Networks trained one by one, beside what a hypernetwork predicts for them: what a prediction is worth.

    python -m ghn_jax.studies.one_by_one digits
    python -m ghn_jax.studies.one_by_one cifar10 runs/one_by_one

Networks that the hypernetwork has not seen are trained from random weights (He), for one pass over the
training images and for more, each budget with a cosine of its own. The optimizer is the one that the authors
of GHN-2 train networks with (arXiv 2110.13100, code): SGD with a momentum of 0.9, a rate of 0.025, weight
decay of 3e-4, gradients clipped to a norm of 5, batches of 96. Networks of few bits are trained through
rounding. All are scored on the same test images, by the statistics of each batch.

What is done stands in the folder, and the study goes on where it was stopped.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ghn_jax.base import cli, files
from ghn_jax.base.paths import Place
from ghn_jax.datasets.load import Dataset
from ghn_jax.evaluation import results
from ghn_jax.evaluation.public import evaluate
from ghn_jax.models.model import Model
from ghn_jax.networks.spec import NetworkSpec
from ghn_jax.quant.policy import parse_bits
from ghn_jax.reporting.tables import bits_label
from ghn_jax.runs import hypernetwork as hypernetworks
from ghn_jax.runs.hypernetwork import Hypernetwork
from ghn_jax.runs.model_flags import make_models
from ghn_jax.runs.prediction import with_names
from ghn_jax.studies.study_arguments import case_parser, count_passes, provenance
from ghn_jax.tuning.comparison_table import FLOAT_NAME
from ghn_jax.tuning.finetune import FinetuneSpec, finetune
from ghn_jax.tuning.initialization import parse_starts
from ghn_jax.tuning.records import TrainingRecord
from ghn_jax.tuning.training import TrainingSpec

NETWORKS = 20
Scores = Mapping[str, Mapping[str, float]]
"""By bits and by the name of a network: top-1 in percent."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained, and for how long.

    Attributes:
      workdir: of the hypernetwork, whose images are taken.
      passes: over the training images.
      bits: at which networks are trained and scored.
      batch: test images of a batch.
      augment: whether training images are cropped and mirrored.
    """

    workdir: str
    passes: tuple[int, ...]
    bits: tuple[str, ...]
    batch: int
    augment: bool

    def training(self, passes: int) -> TrainingSpec:
        """Return how a network is trained."""
        return TrainingSpec(
            epochs=passes,
            batch_size=96,
            optimizer='sgd',
            learning_rate=0.025,
            weight_decay=3e-4,
            clip_norm=5.0,
            ema=0.0,
            augment=self.augment,
        )


CASES = {
    'digits': Case(
        workdir='zoo:digits-bits', passes=(1, 5, 20), bits=(FLOAT_NAME, 'w4a4', 'w2a2'), batch=60,
        augment=False,
    ),
    'cifar10': Case(
        workdir='zoo:cifar10-narrow-bits', passes=(1, 5), bits=(FLOAT_NAME,), batch=64, augment=True
    ),
}  # fmt: skip


def predicted(case: Case, hypernetwork: Hypernetwork, record: TrainingRecord) -> Scores:
    """Return the scores of the networks with predicted weights."""
    if done := record.read():
        return done
    result = evaluate(hypernetwork, _networks(hypernetwork), bits=case.bits, batch_size=case.batch)
    scores = {
        bits: {network['name']: network['scores'][bits]['top1'] for network in result['networks']}
        for bits in case.bits
    }
    record.write(scores)
    return scores


def trained(
    case: Case,
    passes: int,
    models: Sequence[Model],
    hypernetwork: Hypernetwork,
    dataset: Dataset,
    out: Place,
) -> Scores:
    """Train the networks from random weights for so many passes, and return their scores."""
    spec = FinetuneSpec(
        policies=tuple(map(parse_bits, case.bits)),
        training=case.training(passes),
        eval_batch_size=case.batch,
    )
    done = finetune(
        models,
        parse_starts(['he'], models, hypernetwork),
        spec,
        out,
        dataset=dataset,
        scheme=hypernetwork.scheme,
        used=hypernetwork.used,
    )
    scores: dict[str, dict[str, float]] = {bits: {} for bits in case.bits}
    for run in done['runs']:
        scores[run['bits']][run['network']] = run['scores'][str(passes)]['batch'][run['bits']]
    return scores


def table(found: Mapping[str, Scores], about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table: a row for each way to weights, the first of which is the prediction."""
    first, *_ = found.values()
    rows = []
    for way, scores in found.items():
        lists = {bits: [of[name] for name in first[bits]] for bits, of in scores.items()}
        row: list[Any] = [way, *map(_spread, lists.values())]
        for bits, values in lists.items():
            predicted = list(first[bits].values())
            row.append(results.mean_difference(values, predicted) if scores is not first else None)
        ranks = results.rank_correlation(lists[FLOAT_NAME], list(first[FLOAT_NAME].values()))
        rows.append([*row, round(ranks, 2) if ranks is not None and scores is not first else None])
    names = [bits_label(bits) for bits in first]
    columns = ['weights', *names, *(f'{name}, to the prediction' for name in names)]
    columns += ['rank correlation with the prediction, float']
    return {'title': 'Networks trained one by one', 'about': dict(about), 'columns': columns, 'rows': rows}


def _spread(values: Sequence[float]) -> dict[str, float]:
    found = results.statistics(values, 'top1')
    return {key: round(found[f'top1_{key}'] or 0.0, 2) for key in ('mean', 'sem', 'median', 'max')}


def about(name: str, data: Dataset) -> dict[str, Any]:
    """Return how the figures of a case are taken."""
    case = CASES[name]
    spec, count = case.training(1), len(data.train.labels)
    scored = len(data.test.labels) // case.batch * case.batch
    said = {
        'hypernetwork': case.workdir,
        'dataset': f'{data.name}, {data.train.images.shape[1]} pixels',
        'note': data.note,
        'networks': f'the first {NETWORKS} of the test split',
        'training': f'{count:,} images a pass, {"cropped and mirrored, " if case.augment else ""}SGD with a '
        f'momentum of 0.9, rate {spec.learning_rate:g} and half a cosine, weight decay '
        f'{spec.weight_decay:g}, batches of {spec.batch_size}, from random weights (He)',
        'images': f'{scored:,} test images',
        'protocol': f'statistics of batch norms and ranges are those of each batch of {case.batch}',
        'cells': 'mean ± standard error over networks (median, largest)',
        'to the prediction': 'on the same networks, with the 95 % interval of the bootstrap',
        'seed': 0,
    }
    return provenance(f'python -m ghn_jax.studies.one_by_one {name}', said)


def _networks(hypernetwork: Hypernetwork) -> list[NetworkSpec]:
    space = hypernetwork.space
    return with_names([space.sample('test', seed=0, index=i) for i in range(NETWORKS)])


def study(name: str, out: Place) -> dict[str, Any]:
    """Return the table of a case.

    Raises:
      UserError: images that cannot be loaded, a folder of other settings.
    """
    case = CASES[name]
    hypernetwork = hypernetworks.load(case.workdir)
    dataset = hypernetwork.load_data()
    models, _ = make_models(_networks(hypernetwork), None, hypernetwork.config.image_size)
    out.mkdir(parents=True, exist_ok=True)
    settings = {
        'workdir': case.workdir, 'bits': list(case.bits), 'batch': case.batch, 'networks': NETWORKS
    }  # fmt: skip
    found = {'predicted': predicted(case, hypernetwork, TrainingRecord(out, 'predicted', settings))}
    for passes in case.passes:
        found[f'trained, {count_passes(passes)}'] = trained(
            case, passes, models, hypernetwork, dataset, out / str(passes)
        )
    return table(found, about(name, dataset))


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    return case_parser('ghn_jax.studies.one_by_one', __doc__, list(CASES))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study of a case."""
    args = parser().parse_args(arguments)
    with cli.errors_in_one_line():
        made = study(args.case, cli.check_folder(args.workdir, 'out') / args.case)
        files.write_json(pathlib.Path('docs/results') / f'one_by_one_{args.case}.json', made)


if __name__ == '__main__':
    main()
