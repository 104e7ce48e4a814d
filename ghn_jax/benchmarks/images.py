"""Images to measure with: as many as a data set has for training, of random pixels.

What a step costs depends on their number and size, not on what they show, so no data set has to be there.
Axes: n images | H pixels.
"""

from typing import Any

import jax
import numpy as np

from ghn_jax.datasets.cifar10 import Split
from ghn_jax.datasets.load import Dataset
from ghn_jax.training.compiled import ImageStream

NUM_CLASSES = 10  # of every data set there is
_TRAINING = {  # images to train on; whether a mirrored image is one of the same class
    'cifar10': (45_000, True),
    'digits': (1_197, False),
    'synthetic': (1_024, False),
}


def flips(name: str) -> bool:
    """Tell whether images of the data set `name` are mirrored in training."""
    return _TRAINING[name][1]


def random_dataset(name: str, image_size: int) -> Dataset:
    """Make random images in the shapes of the data set `name`; there are none to validate and to test on."""
    count, flip = _TRAINING[name]
    rng = np.random.default_rng(0)
    shape = (image_size, image_size, 3)
    train = Split(
        rng.integers(0, 256, (count, *shape), np.uint8), np.arange(count, dtype=np.int32) % NUM_CLASSES
    )
    none = Split(np.zeros((0, *shape), np.uint8), np.zeros(0, np.int32))
    mean, std = np.full(3, 0.5, np.float32), np.full(3, 0.25, np.float32)
    return Dataset(
        name=name, train=train, val=none, test=none, mean=mean, std=std, num_classes=NUM_CLASSES, flip=flip,
        note='random pixels',
    )  # fmt: skip


def stream_shapes(name: str, image_size: int) -> ImageStream:
    """Give the shapes of the training images of the data set `name`, as a training step takes them."""
    count = _TRAINING[name][0]

    def shape(dims: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(dims, dtype)

    return ImageStream(
        images=shape((count, image_size, image_size, 3), np.uint8),
        labels=shape((count,), np.int32),
        mean=shape((3,), np.float32),
        std=shape((3,), np.float32),
    )
