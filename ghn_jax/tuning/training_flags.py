"""Flags of the commands that train networks one by one: how, on which images, from which hypernetwork."""

import dataclasses
from collections.abc import Callable

from absl import flags

from ghn_jax.base import bounds, cli
from ghn_jax.base.errors import UserError
from ghn_jax.base.start import start
from ghn_jax.datasets.load import Dataset, load
from ghn_jax.datasets.sizes import SIZES
from ghn_jax.evaluation.evaluation_spec import BATCH_SIZE
from ghn_jax.runs import hypernetwork
from ghn_jax.runs.hypernetwork import Hypernetwork
from ghn_jax.tuning.training import OPTIMIZERS, TrainingSpec

flags.disclaim_key_flags()  # --help shows them as the flags of the command that defines them


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingFlags:
    """What the flags say.

    Attributes:
      training: how a network is trained.
      seeds: a training for each.
      eval_batch_size, num_images: of the images that are scored; 0 images takes all.
      workdir: run or zoo:NAME, whose images are taken; or
      dataset, image_size, data_dir: the images, where there is no run.
    """

    training: TrainingSpec
    seeds: tuple[int, ...]
    eval_batch_size: int
    num_images: int
    workdir: str | None
    dataset: str | None
    image_size: int
    data_dir: str | None

    def load(self) -> tuple[Hypernetwork | None, Dataset]:
        """Read the hypernetwork, if there is one, and the images.

        Raises:
          UserError: run or data set cannot be read.
        """
        start()
        if not self.workdir:
            return None, load(self.dataset or '', data_dir=self.data_dir, image_size=self.image_size)
        loaded = hypernetwork.load(cli.check_workdir(self.workdir, must_exist=True))
        return loaded, loaded.load_data()


def define_flags() -> Callable[[], TrainingFlags]:
    """Define the flags; return what reads and checks them once they are parsed (UserError)."""
    spec = TrainingSpec
    workdir = flags.DEFINE_string('workdir', None, 'Run directory, or zoo:NAME.')
    epochs = bounds.define_integer('epochs', 10, 'Passes over the training images.')
    seeds = flags.DEFINE_list(
        'seeds', ['0'], 'A training for each: of random weights, of the order of images.'
    )
    batch_size = bounds.define_integer('batch_size', spec.batch_size, 'Images of a step.')
    eval_batch_size = flags.DEFINE_integer(
        'eval_batch_size', BATCH_SIZE, 'Images of a batch that is scored.', *bounds.BOUNDS['batch_size']
    )
    num_images = bounds.define_integer('num_images', 0, 'Test images; 0 takes all.')
    rate = bounds.define_number('learning_rate', spec.learning_rate, 'Of the first step.', 0, 10)
    optimizer = flags.DEFINE_enum('optimizer', spec.optimizer, OPTIMIZERS, 'SGD has a momentum of 0.9.')
    decay = bounds.define_number('weight_decay', spec.weight_decay, 'Times the learning rate.', 0, 10)
    ema = bounds.define_number('ema', spec.ema, 'Decay of the average that is kept; 0: none.', 0, 0.999999)
    augment = flags.DEFINE_bool('augment', False, 'Crop and mirror training images.')
    dataset = flags.DEFINE_string(
        'dataset', None, f'Images, where no run has any: {", ".join(SIZES)}, or FILE.npz of your own.'
    )
    image_size = flags.DEFINE_integer('image_size', 32, 'Pixels on a side, with --dataset.', 8, 1024)
    data_dir = flags.DEFINE_string('data_dir', None, 'Where TFDS data or FILE.npz lie, with --dataset.')

    def read() -> TrainingFlags:
        if bool(workdir.value) == bool(dataset.value):
            given = 'both given' if dataset.value else 'missing'
            raise UserError(
                f'--workdir and --dataset are {given}: give a run, whose images are taken, or a data set'
            )
        for flag in (image_size, data_dir):
            if workdir.value and flag.present:
                raise UserError(
                    f'--{flag.name} is for --dataset; images are those of --workdir: leave it out'
                )
        return TrainingFlags(
            training=TrainingSpec(
                epochs=epochs.value,
                batch_size=batch_size.value,
                optimizer=optimizer.value,
                learning_rate=rate.value,
                weight_decay=decay.value,
                ema=ema.value,
                augment=augment.value,
            ),
            seeds=bounds.integers('seeds', seeds.value, 'seed'),
            eval_batch_size=eval_batch_size.value,
            num_images=num_images.value,
            workdir=workdir.value,
            dataset=dataset.value,
            image_size=image_size.value,
            data_dir=data_dir.value,
        )

    return read
