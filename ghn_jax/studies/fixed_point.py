"""Fixed point compared: 8 bits everywhere, one width, widths by layer, and widths found without the order.

    python -m ghn_jax.studies.fixed_point
    python -m ghn_jax.studies.fixed_point digits,cifar10 WORKDIR

Two small networks, a plain and a residual one, are trained in float on each data set at 16 pixels, from
three seeds each. Their formats are found under a budget of 1 point of accuracy on images that choose them,
and the last row's on others that check them, too (`fixed_point_budget`): training images choose, validation
images check. What they lose on the test images is the result, and what they save in memory and in
multiplications against 8 bits everywhere. Each result is checked with integers and shifts alone.

What is done stands in WORKDIR; a study that was stopped goes on there. Its table is written anew after each
network.
"""

import argparse
import dataclasses
import itertools
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ghn_jax.base import cli, files
from ghn_jax.base.errors import FieldError
from ghn_jax.base.paths import Place
from ghn_jax.base.start import start
from ghn_jax.datasets.load import Dataset, load
from ghn_jax.models.folding import Calibrated, fold
from ghn_jax.models.model import Model
from ghn_jax.models.tracing import trace
from ghn_jax.runs.model_parameters import read_params, write_params
from ghn_jax.runs.progress import Progress
from ghn_jax.studies.resnets import ResNet
from ghn_jax.studies.study_arguments import Parser, command_line, provenance
from ghn_jax.tuning.comparison_table import grouped, mean_of
from ghn_jax.tuning.fixed_point import MOST_BITS, to_network
from ghn_jax.tuning.fixed_point_budget import labelled, within_budget
from ghn_jax.tuning.fixed_point_network import SAVED, lost, saved
from ghn_jax.tuning.fixed_point_search import BUDGET, Search, each_alone, layer_wise, network_wise, uniform
from ghn_jax.tuning.initialization import RANDOM, random_params
from ghn_jax.tuning.integer_run import integer_logits
from ghn_jax.tuning.loop import fit
from ghn_jax.tuning.quantize import top1
from ghn_jax.tuning.records import TrainingRecord
from ghn_jax.tuning.training import TrainingImages, TrainingSpec, make_trainer

EPOCHS = {'digits': 30, 'cifar10': 20}
SEEDS = (0, 1, 2)
PIXELS, IMAGES = 16, 10_000  # of images, and how many of them choose and check formats, at most
FOLDED, CHECKED = 256, 64  # images that fix statistics, and that are run with integers
KINDS = ('weight', 'activation', 'bias')
RESULT = pathlib.Path('docs/results/fixed_point.json')
METHODS: dict[str, Callable[[Search, Search], np.ndarray]] = {
    '8 bits everywhere': lambda choose, check: uniform(choose, MOST_BITS),
    'one width for all': lambda choose, check: network_wise(choose, BUDGET),
    'each tensor alone': lambda choose, check: each_alone(choose, BUDGET),
    'layer after layer, not checked': lambda choose, check: layer_wise(choose, BUDGET),
    'layer after layer': lambda choose, check: within_budget(choose, check, BUDGET)[0],
}


class Plain(nn.Module):
    """Five convolutions and a linear layer."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        """Compute the logits."""
        for width, stride in ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1)):
            x = nn.Conv(width, (3, 3), stride, use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(10)(x.mean((1, 2)))


NETWORKS = {'plain': Plain(), 'residual': ResNet(1)}


def study(dataset: Dataset, workdir: Place) -> Iterator[list[dict[str, Any]]]:
    """Train, quantize and score the networks; after each method yield the records of all so far.

    Records of methods that were done before come from the folder.

    Raises:
      UserError: a folder of a study with other settings.
    """
    found = []
    settings = {'epochs': EPOCHS[dataset.name], 'images': [PIXELS, IMAGES, FOLDED, CHECKED], 'budget': BUDGET}
    for seed, (name, module) in itertools.product(SEEDS, NETWORKS.items()):
        network = None
        for method, find in METHODS.items():
            what = f'{dataset.name}-{name}-{method.replace(" ", "-")}.seed{seed}'
            record = TrainingRecord(workdir, what, {**settings, 'seed': seed})
            if (done := record.read()) is None:
                network = network or _Trained.of(module, name, seed, dataset, workdir)
                try:
                    done = {'network': name, 'seed': seed, 'method': method, **network.quantized(find)}
                except FieldError as e:  # a budget that 8 bits do not meet: there is no such row
                    print(f'{what}: {e}', flush=True)
                    continue
                record.write(done)
                print(json.dumps(done, indent=1), flush=True)
            found.append({'dataset': dataset.name, **done})
            yield found


class _Trained:
    """A folded network, its searches on the images that choose and that check, and the test images."""

    def __init__(self, calibrated: Calibrated, dataset: Dataset):
        self.calibrated = calibrated
        self.choose, self.check = (Search.of(calibrated, *part) for part in labelled(dataset, IMAGES))
        self.test = jnp.asarray(dataset.normalized('test')), dataset.test.labels

    @classmethod
    def of(cls, module: nn.Module, name: str, seed: int, dataset: Dataset, workdir: Place) -> '_Trained':
        model = trace(module, (1, PIXELS, PIXELS, 3))
        path = workdir / f'{dataset.name}-{name}.seed{seed}.safetensors'
        if not files.exists(path):
            settings = {'epochs': EPOCHS[dataset.name], 'network': model.name, 'dataset': dataset.name}
            record = TrainingRecord(workdir, path.stem, {**settings, 'seed': seed})
            write_params(path, model, train(model, dataset, record, seed), {})
            record.state.unlink(missing_ok=True)
        images = jnp.asarray(dataset.normalized('train', FOLDED)).reshape(4, -1, PIXELS, PIXELS, 3)
        return cls(fold(model, read_params(model, path), list(images)), dataset)

    def quantized(self, find: Callable[[Search, Search], np.ndarray]) -> dict[str, Any]:
        """Find formats, and what they lose and save; nothing of it depends on the methods before."""
        choose, check = (dataclasses.replace(search, scores={}) for search in (self.choose, self.check))
        begin = time.process_time()
        formats = find(choose, check)
        cpu_seconds = time.process_time() - begin
        tensors = choose.tensors
        network, policy = to_network(self.calibrated, tensors, formats)
        kinds = np.array([tensor.kind for tensor in tensors])
        return {
            'float': top1(self.calibrated, *self.test),
            'top1': top1(network, *self.test, policy),
            'lost_in_choice': lost(choose, formats),
            'lost_in_check': lost(check, formats),
            'images': [choose.images, check.images],
            'saved': {what: 100 * share for what, share in saved(choose, formats).items()},
            'mean_bits': {
                kind: float(formats[kinds == kind, 0].mean()) for kind in dict.fromkeys(kinds.tolist())
            },
            'integers_agree': _is_exact(network, policy, self.test[0][:CHECKED]),
            'formats': {f'{t.kind} {t.name}': row for t, row in zip(tensors, formats.tolist())},
            'cpu_seconds': round(cpu_seconds, 1),
        }


def _is_exact(network: Calibrated, policy: Any, images: jax.Array) -> bool:
    """Whether integers and shifts give the same logits to the bit."""
    quantizer = network.quantizer(policy)
    expected = jax.jit(lambda x: network.apply(x, quantizer))(images)
    return bool(
        np.array_equal(integer_logits(network, policy, images).real, np.asarray(expected, np.float64))
    )


def train(model: Model, dataset: Dataset, record: TrainingRecord, seed: int) -> Any:
    """Train a network in float from random weights (He, normal), with batch statistics; return parameters."""
    spec = TrainingSpec(epochs=EPOCHS[dataset.name], augment=True)
    trainer = make_trainer(model.apply, None, spec, dataset)
    begun = trainer.begin(random_params(model, RANDOM['he'], seed), seed)
    images = TrainingImages.of(dataset)
    with Progress(trainer.steps, desc=model.name) as progress:
        trained, _ = fit(trainer, images, begun, record, marks=(), score=lambda _: None, progress=progress)
    return jax.device_get(trained.averaged)


def table(found: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table of the study, means over seeds, as `reporting.docs_tables` has them."""
    rows = []
    for key, seeds in grouped(found, lambda one: (one['dataset'], one['network'], one['method'])).items():
        bits = [np.mean([one['mean_bits'][kind] for one in seeds]) for kind in KINDS]
        figures = zip(*(_figures(one).values() for one in seeds))
        rows.append([*key, '/'.join(f'{mean:.1f}' for mean in bits), *map(mean_of, figures)])
    columns = ['data', 'network', 'widths', f'mean bits: {"/".join(KINDS)}', *_figures(found[0])]
    notes = [] if all(one['integers_agree'] for one in found) else ['Integers and shifts do not agree.']
    return {
        'title': 'Fixed point by layer',
        'about': dict(about),
        'columns': columns,
        'rows': rows,
        'notes': notes,
        'found': list(found),
    }


def _figures(one: Mapping[str, Any]) -> dict[str, float]:
    return {
        'float': one['float'],
        'fixed point': one['top1'],
        'points lost': one['float'] - one['top1'],
        'lost where it was chosen': one['lost_in_choice'],
        'lost where it was checked': one['lost_in_check'],
        **{f'{what} saved, %': one['saved'][what] for what in SAVED},
        'CPU seconds': one['cpu_seconds'],
    }


def about(datasets: Sequence[Dataset], command: str) -> dict[str, Any]:
    """Return how the figures are taken."""
    epochs = ' and '.join(f'{EPOCHS[data.name]} passes over {data.name}' for data in datasets)
    note = ' '.join(f'{data.name}: {data.note}' for data in datasets if data.note)
    said = {
        'seeds': ', '.join(map(str, SEEDS)),
        'cells': 'mean ± standard error over seeds, each with weights of its own',
        'note': note,
        'images': f'{PIXELS} pixels, all test images; at most {IMAGES:,} others, half of them to choose '
        'formats, half to check them',
        'training': f'{epochs} in float, from random weights',
        'budget': f'{BUDGET:g} point of accuracy on the latter',
        'saved': 'against 8 bits everywhere',
        'integers': f'logits of {CHECKED} test images agree to the bit',
    }
    return provenance(command, said)


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    made = Parser(prog='python -m ghn_jax.studies.fixed_point', description=__doc__)
    made.add_argument('datasets', nargs='?', default=','.join(EPOCHS), help='a list')
    made.add_argument('workdir', metavar='WORKDIR', nargs='?', default='runs/fixed_point')
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study of data sets, one after another."""
    args = parser().parse_args(arguments)
    with cli.errors_in_one_line():
        out, names = cli.check_folder(args.workdir, 'out'), args.datasets.split(',')
        if unknown := [name for name in names if name not in EPOCHS]:
            raise FieldError('datasets', f' has {unknown[0]!r}: expected of {", ".join(EPOCHS)}')
        start()
        out.mkdir(parents=True, exist_ok=True)
        datasets = [load(name, image_size=PIXELS) for name in names]
        said, before = about(datasets, command_line(parser(), arguments)), list[dict[str, Any]]()
        for dataset in datasets:
            found: list[dict[str, Any]] = []
            for found in study(dataset, out):
                files.write_json(RESULT, table(before + found, said))
            before += found


if __name__ == '__main__':
    main()
