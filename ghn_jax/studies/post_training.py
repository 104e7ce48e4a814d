"""Post-training quantization compared: ranges of all values, of least error, PD-Quant and it without a part.

    python -m ghn_jax.studies.post_training
    python -m ghn_jax.studies.post_training cifar10 WORKDIR

Networks of a hypernetwork's space, of its test split, come with weights in two ways: predicted, and trained
for some hundred steps of Adam, of digits from random weights (He), of CIFAR-10 from predicted ones, from
where it takes fewer. Each is quantized by every method at four bit-widths, its first and last layer at W8/A8,
and scored on test images. All images have 16 pixels.

What is done of a network stands in WORKDIR; the study goes on where it was stopped. Its table is written anew
after each network.
"""

import argparse
import dataclasses
import json
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from ghn_jax.base import cli, files
from ghn_jax.base.paths import Place
from ghn_jax.base.start import start
from ghn_jax.datasets.load import Dataset, load
from ghn_jax.hypernet.policy_features import resolve, weight_names
from ghn_jax.models.model import Model
from ghn_jax.models.names import map_named
from ghn_jax.models.tracing import trace
from ghn_jax.networks.graph import build_graph
from ghn_jax.networks.spec import NetworkSpec
from ghn_jax.quant.policy import parse_bits
from ghn_jax.reporting.tables import bits_label
from ghn_jax.runs import hypernetwork as hypernetworks
from ghn_jax.runs.hypernetwork import Hypernetwork
from ghn_jax.studies.study_arguments import case_parser, provenance
from ghn_jax.tuning.comparison_table import grouped, mean_of
from ghn_jax.tuning.correction import norm_statistics
from ghn_jax.tuning.pd_quant import pd_quant
from ghn_jax.tuning.quantize import Network, top1
from ghn_jax.tuning.ranges import round_nearest
from ghn_jax.tuning.reconstruction import ReconstructionOptions
from ghn_jax.tuning.records import TrainingRecord

BITS = ('w4a4', 'w2a4', 'w4a2', 'w2a2')
NETWORKS, DRAWN = 5, 40  # those with the fewest layers of the ones drawn
IMAGES, BATCH, RATE = 256, 64, 2e-3
OPTIONS = ReconstructionOptions(iterations=100, correction_steps=50)
WITHOUT = {'prediction': 'prediction difference', 'correction': 'distribution correction', 'drop': 'drop'}
RESULT = pathlib.Path('docs/results')
SIZE = 16  # pixels on a side


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a data set is studied.

    Attributes:
      hypernetwork: that draws and predicts networks.
      begin: weights that training begins with: 'random' or 'predicted'.
      steps: of training.
      test_images: that networks are scored on, the first ones.
      without: whether PD-Quant is run without each of its parts, too.
    """

    hypernetwork: str
    begin: str
    steps: int
    test_images: int
    without: bool


PLANS = {
    'digits': Plan('zoo:digits-bits', 'random', steps=300, test_images=300, without=True),
    'cifar10': Plan('zoo:cifar10-narrow-bits', 'predicted', steps=500, test_images=2000, without=False),
}


def study(dataset: Dataset, plan: Plan, workdir: Place) -> Iterator[list[dict[str, Any]]]:
    """Quantize and score all networks; after each yield the records of all so far.

    Records of networks that were done before come from the folder.

    Raises:
      UserError: a folder of a study with other settings.
    """
    hypernetwork = hypernetworks.load(plan.hypernetwork)
    drawn = [hypernetwork.space.sample('test', seed=0, index=i) for i in range(DRAWN)]
    settings = {
        'plan': dataclasses.asdict(plan),
        'pd_quant': dataclasses.asdict(OPTIONS),
        'images': [SIZE, IMAGES, BATCH, RATE],
        'bits': list(BITS),
    }
    found = []
    for spec in sorted(drawn, key=_count_layers)[:NETWORKS]:
        model = trace(spec, (1, SIZE, SIZE, 3))
        for kind in ('trained', 'predicted'):
            record = TrainingRecord(workdir, f'{dataset.name}-{kind}-{spec.name}', settings)
            if (scored := record.read()) is None:
                params = _weights(kind, model, hypernetwork, dataset, plan)
                scored = {'kind': kind, 'network': spec.name, **quantized(model, params, dataset, plan)}
                record.write(scored)
                print(json.dumps(scored), flush=True)
            found.append(scored)
            yield found
        jax.clear_caches()


def _count_layers(spec: NetworkSpec) -> int:
    return len(weight_names(build_graph(spec)))


def _weights(kind: str, model: Model, hypernetwork: Hypernetwork, dataset: Dataset, plan: Plan) -> Any:
    is_random = kind == 'trained' and plan.begin == 'random'
    params = _random_params(model) if is_random else hypernetwork.predict(model)
    return train(model, params, dataset, plan.steps) if kind == 'trained' else params


def train(model: Model, params: Any, dataset: Dataset, steps: int) -> Any:
    """Train a network in float, with batch statistics, from given parameters; return parameters."""
    data = jnp.asarray(dataset.normalized('train')), jnp.asarray(dataset.train.labels)
    optimizer = optax.adam(optax.cosine_decay_schedule(RATE, steps))

    def loss(params: Any, images: Array, labels: Array) -> Array:
        return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, images), labels).mean()

    @jax.jit  # images are arguments: a constant would be copied into the program of each network
    def step(i: int, params: Any, memory: Any, images: Array, labels: Array) -> tuple[Any, Any]:
        chosen = jax.random.randint(jax.random.fold_in(jax.random.key(0), i), (BATCH,), 0, len(labels))
        updates, memory = optimizer.update(jax.grad(loss)(params, images[chosen], labels[chosen]), memory)
        return optax.apply_updates(params, updates), memory

    memory = optimizer.init(params)
    for i in range(steps):
        params, memory = step(i, params, memory, *data)
    return jax.device_get(params)


def _random_params(model: Model) -> Any:
    r = np.random.default_rng(0)
    return map_named(lambda name, leaf: _random(r, name, leaf), model.params)


def _random(r: np.random.Generator, name: str, leaf: Any) -> np.ndarray:
    """He's weights in PyTorch's layouts; of norms and biases 1 and 0."""
    if len(leaf.shape) > 1:
        return (r.normal(size=leaf.shape) * math.sqrt(2 / math.prod(leaf.shape[1:]))).astype(np.float32)
    return np.full(leaf.shape, float('weight' in name), np.float32)


def quantized(model: Model, params: Any, dataset: Dataset, plan: Plan) -> dict[str, Any]:
    """Quantize a network by all methods; return {'float': top-1, 'scores': {method: {bits: top-1}}}."""
    count = plan.test_images
    test = jnp.asarray(dataset.normalized('test', count)), dataset.test.labels[:count]
    network = Network.of(model, params, dataset.normalized('train', IMAGES))
    policies = {bits: dataclasses.replace(parse_bits(bits), edges=(8, 8)) for bits in BITS}
    widths = {bits: resolve(policy, model.graph) for bits, policy in policies.items()}
    asked = [('pd_quant', bits, OPTIONS) for bits in BITS]
    parts = WITHOUT if plan.without else {}
    asked += [(WITHOUT[part], BITS[-1], dataclasses.replace(OPTIONS, **{part: False})) for part in parts]
    scores: dict[str, dict[str, float]] = {
        method: {} for method in ('minmax', 'mse', 'pd_quant', *parts.values())
    }
    for rule in ('minmax', 'mse'):
        for bits, policy in policies.items():
            made = round_nearest(network.calibrated, network.images, widths[bits], rule)
            scores[rule][bits] = top1(made, *test, policy)
    statistics = norm_statistics(model, params, list(network.batches))
    settings = [(widths[bits], options) for _, bits, options in asked]
    learned = pd_quant(network.calibrated, network.images, settings, statistics)
    for (method, bits, _), made in zip(asked, learned, strict=True):
        scores[method][bits] = top1(made, *test, policies[bits])
    return {'float': top1(network.calibrated, *test), 'scores': scores}


def table(found: list[dict[str, Any]], about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table of a study, as `reporting.docs_tables` has them."""
    rows = []
    for kind, of_kind in grouped(found, lambda one: one['kind']).items():
        for method in of_kind[0]['scores']:
            name = f'PD-Quant without {method}' if method in WITHOUT.values() else _NAMES[method]
            cells = [
                mean_of([one['scores'][method][bits] for one in of_kind], 2)
                if bits in of_kind[0]['scores'][method]
                else None
                for bits in BITS
            ]
            rows.append([kind, len(of_kind), name, mean_of([one['float'] for one in of_kind], 2), *cells])
    columns = ['weights', 'networks', 'method', 'float', *map(bits_label, BITS)]
    return {'title': 'Post-training quantization', 'about': dict(about), 'columns': columns, 'rows': rows}


_NAMES = {'minmax': 'ranges of all values', 'mse': 'ranges of the least L2.4 error', 'pd_quant': 'PD-Quant'}


def about(dataset: Dataset, plan: Plan) -> dict[str, Any]:
    """Return how the figures are taken."""
    name = dataset.name
    said = {
        'seed': 0,
        'dataset': f'{name}, {SIZE} pixels',
        'note': dataset.note,
        'hypernetwork': plan.hypernetwork,
        'networks': f'those with the fewest layers of the first {DRAWN} in the test split',
        'training': f'{plan.steps} steps of Adam on {BATCH} images, from {plan.begin} weights',
        'images': f'{plan.test_images} test images, {IMAGES} for calibration',
        'PD-Quant': f'{OPTIONS.iterations} steps a block, {OPTIONS.correction_steps} of the correction',
        'edges': 'first and last layer at W8/A8',
        'error': 'standard error over networks',
    }
    return provenance(
        'python -m ghn_jax.studies.post_training' + ('' if name == 'digits' else f' {name}'), said
    )


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    return case_parser('ghn_jax.studies.post_training', __doc__, list(PLANS))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study of a data set."""
    args = parser().parse_args(arguments)
    name, plan = args.case, PLANS[args.case]
    result = RESULT / ('pd_quant.json' if name == 'digits' else f'pd_quant_{name}.json')
    with cli.errors_in_one_line():
        out = cli.check_folder(args.workdir, 'out')
        start()
        dataset = load(name, image_size=SIZE)
        out.mkdir(parents=True, exist_ok=True)
        for found in study(dataset, plan, out):
            files.write_json(result, table(found, about(dataset, plan)))


if __name__ == '__main__':
    main()
