"""Flags of the commands that train networks one by one: how, on which images, from which hypernetwork."""

import dataclasses
from collections.abc import Callable

from absl import flags

from ghn_jax.base import bounds
from ghn_jax.base.fields import define_field_flags
from ghn_jax.datasets.load import Dataset
from ghn_jax.evaluation.evaluation_spec import BATCH_SIZE
from ghn_jax.runs import source_flags
from ghn_jax.runs.hypernetwork import Hypernetwork
from ghn_jax.runs.source_flags import Source
from ghn_jax.tuning.training import TrainingSpec

flags.disclaim_key_flags()  # --help shows them as the flags of the command that defines them


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingFlags:
    """What the flags say.

    Attributes:
      training: how a network is trained.
      seeds: a training for each.
      eval_batch_size, num_images: of the images that are scored; 0 images takes all.
      source: of the images, and of the hypernetwork if there is one.
    """

    training: TrainingSpec
    seeds: tuple[int, ...]
    eval_batch_size: int
    num_images: int
    source: Source

    def load(self) -> tuple[Hypernetwork | None, Dataset]:
        """Read the hypernetwork, if there is one, and the images.

        Raises:
          UserError: run or data set cannot be read.
        """
        loaded = self.source.load_hypernetwork(predicts=False)
        return (None if self.source.workdir is None else loaded), loaded.load_data()


def define_flags() -> Callable[[], TrainingFlags]:
    """Define the flags; return what reads and checks them once they are parsed (UserError)."""
    source = source_flags.define_flags()
    training = define_field_flags(
        TrainingSpec,
        epochs='How many passes over the training images a training has.',
        batch_size='Images of a training step.',
        learning_rate='Learning rate of the first step; it falls to 0 along half a cosine.',
        optimizer='Optimizer of the training; sgd has a momentum of 0.9.',
        weight_decay='Weight decay, which is multiplied by the learning rate.',
        ema='Decay of the moving average of the parameters, which is kept. 0: no average.',
        augment='Crop training images at random, and mirror them where the data set allows it.',
    )
    seeds = flags.DEFINE_list(
        'seeds',
        ['0'],
        'Train with each of these seeds, of weights and of the order of images, as in 0,1,2.',
    )
    eval_batch_size = flags.DEFINE_integer(
        'eval_batch_size',
        BATCH_SIZE,
        'Images of a batch in scoring, whose statistics batch norms use.',
        *bounds.BOUNDS['batch_size'],
    )
    num_images = bounds.define_integer('num_images', 0, 'How many test images score a network. 0: all.')

    def read() -> TrainingFlags:
        return TrainingFlags(
            training=TrainingSpec(**{name: flag.value for name, flag in training.items()}),
            seeds=bounds.integers('seeds', seeds.value, 'seed'),
            eval_batch_size=eval_batch_size.value,
            num_images=num_images.value,
            source=source(),
        )

    return read
