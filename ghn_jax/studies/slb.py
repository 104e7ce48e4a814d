"""Searched weights (SLB, arXiv 2009.08695) against rounding straight-through, at an equal budget.

    python -m ghn_jax.studies.slb digits DIR
    python -m ghn_jax.studies.slb cifar10 DIR --model=ghn_jax.studies.resnets:resnet20 --epochs=100 --augment

A network is trained at each bit-width, from each initialisation and with each seed by both methods, which
have the same images in the same order, the same number of steps and the same kind of grids: one for each
output channel. First and last layer have 8 bits. Norms take the statistics of each batch, also of those
of test images.

DIR has a folder of each method, as `ghn_jax.finetune` leaves it, and the tables `slb_DATASET.json` and
`slb_DATASET_gap.json`. A study that was stopped goes on where it was.
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ghn_jax.base import bounds, cli, files
from ghn_jax.base.errors import FieldError
from ghn_jax.base.paths import Place
from ghn_jax.base.start import start
from ghn_jax.datasets.cifar10 import Split
from ghn_jax.datasets.load import Dataset, load
from ghn_jax.models.model import Model
from ghn_jax.networks.files import load_networks
from ghn_jax.quant.policy import parse_bits
from ghn_jax.quant.scheme import Scheme
from ghn_jax.runs.hypernetwork import Hypernetwork
from ghn_jax.runs.hypernetwork import load as load_hypernetwork
from ghn_jax.runs.model_flags import make_models
from ghn_jax.runs.prediction import with_names
from ghn_jax.studies.study_arguments import command_line, make_parser, provenance, training_of
from ghn_jax.tuning import comparison_table, slb
from ghn_jax.tuning.finetune import FinetuneSpec, finetune
from ghn_jax.tuning.initialization import parse_starts
from ghn_jax.tuning.slb import SearchSpec
from ghn_jax.tuning.slb_method import searched_names

BITS = ('w1a8', 'w2a8', 'w4a8', 'w1a4', 'w2a4', 'w4a4')
EDGES = (8, 8)
SLB_SCHEME = Scheme('qat', granularity='channel', weight_range='sigma', activation_range='sigma')
METHODS = ('straight_through', 'slb')
Runs = Mapping[str, Sequence[Mapping[str, Any]]]
"""By method, its trainings, as `finetune` returns them."""


def study(
    models: Sequence[Model],
    sources: Mapping[str, Mapping[str, str]],
    inits: Sequence[str],
    spec: FinetuneSpec,
    out: Place,
    dataset: Dataset,
    hypernetwork: Hypernetwork | None,
) -> Runs:
    """Train networks by both methods, in a folder for each; what is done there is not done again.

    Args:
      models, sources: as of `finetune`.
      inits: initialisations by name.
      spec: of the searches; straight-through trainings are the same without `search`.
      out: the folder of the study.
      dataset: that is trained and scored on.
      hypernetwork: that predicts; None: there is none.

    Raises:
      UserError: as `finetune`; bits that are too many for a search.
    """
    for policy in spec.policies:
        for model in models:
            searched_names(policy, model)
    return {
        method: finetune(
            models,
            parse_starts(inits, models, hypernetwork),
            spec if method == 'slb' else dataclasses.replace(spec, search=None),
            out / method,
            dataset=dataset,
            scheme=SLB_SCHEME,
            used=lambda policy: dataclasses.replace(policy, edges=EDGES),
            sources=sources,
        )['runs']
        for method in METHODS
    }


def accuracies(runs: Runs) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows of accuracies in the end: by start and bits, both methods and their difference.

    Errors are those over seeds, of several networks over these (`comparison_table.mean`); of the difference,
    over the differences of equal seeds.
    """
    rows = []
    for init, bits in _settings(runs):
        scores = {method: _at_end(runs[method], init, bits) for method in METHODS}
        pairs = scores['slb'].keys() & scores['straight_through'].keys()
        searched, rounded = scores['slb'], scores['straight_through']
        change = _mean({pair: searched[pair] - rounded[pair] for pair in sorted(pairs)})
        error = f' ± {change["sem"]:.1f}' if 'sem' in change else ''
        means = [_mean(scores[method]) for method in METHODS]
        rows.append([init, bits, len(pairs), *means, f'{change["mean"]:+.1f}{error}'])
    return ['from', 'bits', 'trainings', 'straight-through', 'SLB', 'difference'], rows


def _mean(scores: Mapping[tuple[str, int], float]) -> dict[str, float]:
    return comparison_table.mean([(network, score) for (network, _), score in scores.items()])


def gaps(runs: Runs, spec: SearchSpec, epochs: int) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows of the accuracy of soft and of hard weights after each pass, of all seeds."""
    passes = range(epochs + 1)
    taus = [float(slb.temperature(spec, done, epochs)) for done in passes]
    said = [f'{tau:.3g}' if np.isfinite(tau) else 'hard' for tau in taus]
    rows: list[list[Any]] = [['temperature', '', *said]]
    for init, bits in _settings(runs):
        scores = [run['scores'] for run in runs['slb'] if (run['init'], run['bits']) == (init, bits)]
        cells = []
        for done in map(str, passes):
            soft, hard = (
                np.mean([by_pass[done][kind][bits] for by_pass in scores]) for kind in ('soft', 'batch')
            )
            cells.append(f'{soft:.1f} / {hard:.1f}')
        rows.append([init, bits, *cells])
    return ['from', 'bits', *map(str, passes)], rows


def _settings(runs: Runs) -> list[tuple[str, str]]:
    """Return starts and bits, one start after another."""
    found = list(dict.fromkeys((run['init'], run['bits']) for run in runs['slb']))
    starts = list(dict.fromkeys(init for init, _ in found))
    return sorted(found, key=lambda pair: starts.index(pair[0]))


def _at_end(runs: Sequence[Mapping[str, Any]], init: str, bits: str) -> dict[tuple[str, int], float]:
    """Return the last score of each training, by network and seed."""
    members = [run for run in runs if (run['init'], run['bits']) == (init, bits)]
    last = lambda scores: scores[max(scores, key=int)]['batch'][bits]
    return {(run['network'], run['seed']): last(run['scores']) for run in members}


def about(dataset: Dataset, models: Sequence[Model], spec: FinetuneSpec, command: str) -> dict[str, Any]:
    """Return how the figures are taken."""
    training, search = spec.training, spec.search
    assert search is not None
    said = {
        'dataset': f'{dataset.name}, {dataset.train.images.shape[1]} pixels',
        'note': dataset.note,
        'images': f'{len(dataset.train.labels)} for training, {spec.num_images or len(dataset.test.labels)} '
        f'for testing in batches of {spec.eval_batch_size}',
        'networks': ', '.join(model.name for model in models),
        'seeds': ', '.join(map(str, spec.seeds)),
        'training': f'{training.epochs} passes, batches of {training.batch_size}, learning rate '
        f'{training.learning_rate:g}, moving average {training.ema:g}',
        'search': f'temperature {search.temperature:g}, rising from {search.start:g} to {search.end:g} of '
        f'all passes, learning rate of the logits {search.rate:g}, logits: {search.logits}',
        'edges': f'first and last layer at W{EDGES[0]}/A{EDGES[1]}',
    }
    return provenance(command, said)


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    made = make_parser('ghn_jax.studies.slb', __doc__, epochs=10, batch_size=64, seeds='0,1,2')
    made.add_argument('--model', default='ghn_jax.studies.resnets:resnet8', help='package.module:function')
    made.add_argument('--arch', help='architecture file, in place of --model')
    made.add_argument('--init', default='he', help='a list: of finetune --init')
    made.add_argument('--bits', default=','.join(BITS), help='a list')
    made.add_argument('--train_images', type=int, default=0, help='the first ones; 0: all')
    made.add_argument('--num_images', type=int, default=0, help='test images; 0: all')
    made.add_argument('--eval_batch_size', type=int, default=60, help='images of a batch that is scored')
    made.add_argument('--logits', default='distance', help='where they begin: distance or random')
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study, and write its tables."""
    args = parser().parse_args(arguments)
    with cli.errors_in_one_line():
        out, spec = cli.check_folder(args.out, 'out'), _spec(args)
        start()
        dataset = load(args.dataset, data_dir=args.data_dir, image_size=args.image_size)
        dataset = _first_images(dataset, args.train_images)
        inits = args.init.split(',')
        hypernetwork = load_hypernetwork(args.hypernetwork) if args.hypernetwork else None
        specs = with_names(load_networks(args.arch)) if args.arch else []
        models, sources = make_models(specs, None if args.arch else args.model, args.image_size)
        runs = study(models, sources, inits, spec, out, dataset, hypernetwork)
        command = command_line(parser(), arguments)
        taken = about(dataset, models, spec, command)
        assert spec.search is not None
        tables = {'': accuracies(runs), '_gap': gaps(runs, spec.search, spec.training.epochs)}
        for name, (columns, rows) in tables.items():
            table = {'title': 'Searched weights', 'about': taken, 'columns': columns, 'rows': rows}
            files.write_json(out / f'slb_{dataset.name}{name}.json', table)


def _first_images(dataset: Dataset, count: int) -> Dataset:
    """Return the data set with its first `count` training images; 0: all."""
    available = len(dataset.train.labels)
    if not 0 <= count <= available:
        raise FieldError('train_images', f'={count}: {dataset.name} has {available}; 0 takes all')
    return dataclasses.replace(dataset, train=Split(*(part[: count or None] for part in dataset.train)))


def _spec(args: argparse.Namespace) -> FinetuneSpec:
    return FinetuneSpec(
        policies=tuple(map(parse_bits, args.bits.split(','))),
        training=training_of(args),
        seeds=bounds.integers('seeds', args.seeds.split(','), 'seed'),
        eval_batch_size=args.eval_batch_size,
        num_images=args.num_images,
        search=SearchSpec(logits=args.logits),
        marks=tuple(range(args.epochs + 1)),
    )


if __name__ == '__main__':
    main()
