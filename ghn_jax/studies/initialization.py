"""Where should we begin: what initial weights mean for 8 and 4 bits after training (arXiv 2011.14578).

    python -m ghn_jax.studies.initialization digits DIR
    python -m ghn_jax.studies.initialization cifar10 DIR --data_dir=DATA --channels=32,64,128 --epochs=60

Small networks of each kind of block (`block_kinds`) are trained in float from each initialisation, then run
at 8 and 4 bits without further training: batch norms are folded, and every weight and activation of every
layer is rounded on an asymmetric grid over all values of its tensor, those of activations on training images.
Before training, after 1 and 5 passes and at the end, accuracy and the statistics of each layer
(`layer_statistics`) are taken.

DIR/runs has each training, whole; DIR has the tables `initialization*.json` and the picture. A study that was
stopped goes on where it was.
"""

import argparse
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from ghn_jax.base import bounds, cli, files, lock
from ghn_jax.base.errors import FieldError
from ghn_jax.base.fields import bounded, check_declared
from ghn_jax.base.paths import Place
from ghn_jax.base.start import start
from ghn_jax.datasets.load import Dataset, load
from ghn_jax.evaluation.selection import image_batches
from ghn_jax.models.folding import fold
from ghn_jax.models.model import Model
from ghn_jax.models.tracing import trace
from ghn_jax.quant.policy import Policy
from ghn_jax.runs.hypernetwork import Hypernetwork
from ghn_jax.runs.hypernetwork import load as load_hypernetwork
from ghn_jax.runs.progress import Progress
from ghn_jax.studies.block_kinds import KINDS, BlockNet, Kind
from ghn_jax.studies.initialization_picture import picture
from ghn_jax.studies.initialization_tables import make_tables
from ghn_jax.studies.layer_statistics import BITS, observe, summarized
from ghn_jax.studies.study_arguments import command_line, make_parser, provenance, training_of
from ghn_jax.tuning import comparison_table
from ghn_jax.tuning.images import TuningImages
from ghn_jax.tuning.initialization import PREDICTED, RANDOM, parse_starts
from ghn_jax.tuning.loop import fit
from ghn_jax.tuning.records import TrainingRecord
from ghn_jax.tuning.scoring import Accuracy
from ghn_jax.tuning.training import TrainingImages, TrainingSpec, TrainingState, make_trainer

HYPERNETWORKS = {'digits': 'zoo:digits-bits'}
"""Which one predicts networks for a data set, where none is given."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitializationSpec:
    """What is trained.

    Attributes:
      kinds: of blocks, of `KINDS`.
      starts: initialisations by name: of `RANDOM`, or 'predicted'.
      seeds: of random weights and of the order of images.
      channels, blocks, expansion: of `BlockNet`.
      training: in float, without an average of parameters.
      batch_size: of test images; what does not fill a batch is left out.
      calibration_images: the first training images, for the statistics of norms and ranges.

    Raises:
      FieldError: an unknown kind, a number out of its bounds.
    """

    kinds: tuple[str, ...] = tuple(KINDS)
    starts: tuple[str, ...] = (*RANDOM, PREDICTED)
    seeds: tuple[int, ...] = (0,)
    channels: tuple[int, ...] = (16, 32)
    blocks: int = bounded('blocks', 1)
    expansion: int = bounded('expansion', 4)
    training: TrainingSpec = dataclasses.field(
        default_factory=lambda: TrainingSpec(epochs=5, batch_size=32, ema=0.0)
    )
    batch_size: int = bounded('batch_size', 100)
    calibration_images: int = bounded('calibration_images', 256)

    def __post_init__(self) -> None:
        check_declared(self)
        if unknown := [kind for kind in self.kinds if kind not in KINDS]:
            raise FieldError('kinds', f' has {unknown[0]!r}: expected of {", ".join(KINDS)}')


def study(
    dataset: Dataset, spec: InitializationSpec, out: Place, hypernetwork: Hypernetwork | None = None
) -> Iterator[list[dict[str, Any]]]:
    """Train and score; after each kind yield the records of all trainings so far, from files or new.

    Args:
      dataset: its training images are trained on, its test images scored.
      spec: what is trained.
      out: folder of the records.
      hypernetwork: that predicts parameters, where these are asked for.

    Raises:
      UserError: an unknown initialisation, a folder of a study with other settings.
    """
    images = _images(dataset, spec)
    total = images.steps(spec.training) * len(spec.kinds) * len(spec.starts) * len(spec.seeds)
    runs: list[dict[str, Any]] = []
    with lock.holding(out), Progress(total, desc='initialization') as progress:
        (out / 'runs').mkdir(parents=True, exist_ok=True)
        for name in spec.kinds:
            runs += _train(KINDS[name], spec, images, hypernetwork, out / 'runs', progress)
            yield runs


def _images(dataset: Dataset, spec: InitializationSpec) -> TuningImages:
    """Return the images; those to calibrate with are one batch."""
    count = spec.calibration_images
    test = image_batches(dataset, dataset.test, batch_size=spec.batch_size)
    calibration = image_batches(dataset, dataset.train, batch_size=count, num_images=count)
    return TuningImages(dataset, TrainingImages.of(dataset), test, calibration.normalized())


def _train(
    kind: Kind,
    spec: InitializationSpec,
    images: TuningImages,
    hypernetwork: Hypernetwork | None,
    out: Place,
    progress: Progress,
) -> Iterator[dict[str, Any]]:
    """Do the trainings of a kind, or what is left of them, by one program; yield their records."""
    data = images.dataset
    net = BlockNet(kind, spec.channels, spec.blocks, spec.expansion, data.num_classes)
    model = trace(net, (1, *data.train.images.shape[1:]))
    trainer = make_trainer(model.apply, None, spec.training, data)
    score = _scorer(model, images)
    policy = hypernetwork.used(Policy()) if hypernetwork else Policy()  # that parameters are predicted for
    settings = {
        'net': [kind.name, list(spec.channels), spec.blocks, spec.expansion],
        'training': dataclasses.asdict(spec.training),
        'images': [*images.identity, images.test.count, spec.calibration_images],
    }
    starts = parse_starts(spec.starts, [model], hypernetwork)
    for origin, seed in itertools.product(starts, spec.seeds):
        own = {**settings, 'seed': seed, 'from': origin.about}
        record = TrainingRecord(out, f'{kind.name}.{origin.name}.seed{seed}', own)
        if done := record.read():
            progress.update(trainer.steps)
        else:
            begun = trainer.begin(origin.params(model, policy, seed), seed)
            marks = comparison_table.marks(spec.training.epochs)
            _, history = fit(
                trainer, images.train, begun, record, marks=marks, score=score, progress=progress
            )
            done = {'kind': kind.name, 'init': origin.name, 'seed': seed, **history}
            record.write(done)
        yield done


def _scorer(model: Model, images: TuningImages) -> Callable[[TrainingState], dict[str, Any]]:
    """Return what takes a state to top-1 in percent by bits, and to the statistics of each layer."""
    policies = {comparison_table.FLOAT_NAME: Policy(), **{f'w{b}a{b}': Policy(b, b) for b in BITS}}
    seen = jax.jit(observe)

    def accuracy(policy: Policy) -> Accuracy:
        quantizer = model.quantizer(policy)
        return Accuracy(
            lambda network, x: network.apply(x, dataclasses.replace(quantizer, ranges=network.ranges)),
            images.test,
        )

    accuracies = {bits: accuracy(policy) for bits, policy in policies.items()}

    def score(state: TrainingState) -> dict[str, Any]:
        network = fold(model, state.averaged, images.calibration)
        found = jax.device_get(seen(network, images.calibration[0]))
        network = dataclasses.replace(network, ranges=found.ranges)
        top1 = {bits: round(score_of(network), 2) for bits, score_of in accuracies.items()}
        names = [layer.name for layer in model.layers]  # JAX has sorted them
        in_order = lambda tensors: summarized({name: tensors[name] for name in names})
        layers = {'weights': in_order(found.weights), 'activations': in_order(found.activations)}
        return {'top1': top1, **layers}

    return score


def about(
    dataset: Dataset, spec: InitializationSpec, command: str, hypernetwork: str | None
) -> dict[str, Any]:
    """Return how the figures are taken. hypernetwork: name of the one that predicts; None: there is none."""
    said = {
        'dataset': dataset.name,
        'note': dataset.note,
        'image size': dataset.train.images.shape[1],
        'networks': f'channels {", ".join(map(str, spec.channels))}, blocks in each stage: {spec.blocks}',
        'hypernetwork': hypernetwork,
        'seeds': ', '.join(map(str, spec.seeds)),
        'training': f'{spec.training.epochs} epochs of AdamW in float, learning rate '
        f'{spec.training.learning_rate}, batches of {spec.training.batch_size}',
        'calibration': f'{spec.calibration_images} training images',
        'test images': len(dataset.test.labels) // spec.batch_size * spec.batch_size,
    }
    return provenance(command, said)


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    made = make_parser('ghn_jax.studies.initialization', __doc__, epochs=5, batch_size=32, seeds='0')
    made.add_argument('--kinds', default=','.join(InitializationSpec.kinds), help='of blocks, a list')
    made.add_argument('--init', help='a list: of finetune --init, without files')
    made.add_argument('--channels', default='16,32', help='of each stage, rising')
    made.add_argument('--blocks', type=int, default=1, help='of each stage')
    made.add_argument('--expansion', type=int, default=4, help='of inverted bottlenecks')
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study, and write its tables and its picture after each kind."""
    args = parser().parse_args(arguments)
    with cli.errors_in_one_line():
        out = cli.check_folder(args.out, 'out')
        predicts = args.hypernetwork or HYPERNETWORKS.get(args.dataset)
        default = (*RANDOM, PREDICTED) if predicts else tuple(RANDOM)
        spec = InitializationSpec(
            kinds=tuple(args.kinds.split(',')),
            starts=tuple(args.init.split(',')) if args.init else default,
            seeds=bounds.integers('seeds', args.seeds.split(','), 'seed'),
            channels=bounds.integers('channels', args.channels.split(','), 'channels'),
            blocks=args.blocks,
            expansion=args.expansion,
            training=training_of(args, ema=0.0),
        )
        start()
        dataset = load(args.dataset, data_dir=args.data_dir, image_size=args.image_size)
        predicts = predicts if PREDICTED in spec.starts else None
        hypernetwork = load_hypernetwork(predicts) if predicts else None
        said = about(dataset, spec, command_line(parser(), arguments), predicts)
        for runs in study(dataset, spec, out, hypernetwork):
            for name, table in make_tables(runs, said).items():
                files.write_json(out / f'{name}.json', table)
            files.write(out / 'initialization.png', picture(runs))


if __name__ == '__main__':
    main()
