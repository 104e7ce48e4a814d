"""Flags of the commands that train networks one by one: how they are trained, and scored."""

from collections.abc import Callable
from typing import Any

from absl import flags

from ghn_jax.base import bounds
from ghn_jax.base.fields import define_field_flags, flag_values
from ghn_jax.evaluation.evaluation_spec import BATCH_SIZE
from ghn_jax.tuning.training import TrainingSpec

flags.disclaim_key_flags()  # --help shows them as the flags of the command that defines them


def define_flags() -> Callable[[], dict[str, Any]]:
    """Define the flags; what is returned reads them, once parsed, as fields of a `FinetuneSpec`.

    A `SqueezeSpec` has them, too. What is returned raises UserError for values that are none.
    """
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
    return lambda: {
        'training': TrainingSpec(**flag_values(training)),
        'seeds': bounds.integers('seeds', seeds.value, 'seed'),
        'eval_batch_size': eval_batch_size.value,
        'num_images': num_images.value,
    }
