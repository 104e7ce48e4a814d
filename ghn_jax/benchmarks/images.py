"""Images to measure with: as many as a data set has for training, of random pixels.

What a step costs depends on their number and size, not on what they show, so no data set has to be there.
Axes: n images | H pixels | K batches | N images of a batch.
"""

import numpy as np

from ghn_jax.datasets.cifar10 import Split
from ghn_jax.datasets.load import Dataset
from ghn_jax.datasets.sizes import DatasetSizes
from ghn_jax.evaluation.selection import ImageBatches

_MEAN, _STD = np.full(3, 0.5, np.float32), np.full(3, 0.25, np.float32)


def random_dataset(sizes: DatasetSizes, image_size: int) -> Dataset:
    """Make random images in the shapes of a data set; there are none to validate and to test on."""
    rng = np.random.default_rng(0)
    shape = (image_size, image_size, 3)
    train = Split(
        rng.integers(0, 256, (sizes.train, *shape), np.uint8),
        np.arange(sizes.train, dtype=np.int32) % sizes.num_classes,
    )
    none = Split(np.zeros((0, *shape), np.uint8), np.zeros(0, np.int32))
    return Dataset(
        name='random', train=train, val=none, test=none, mean=_MEAN, std=_STD, num_classes=sizes.num_classes,
        flip=sizes.flip, note='random pixels',
    )  # fmt: skip


def random_batches(count: int, batch_size: int, image_size: int) -> ImageBatches:
    """Make `count` batches of random images [K, N, H, H, 3], all of class 0."""
    images = np.random.default_rng(0).integers(
        0, 256, (count, batch_size, image_size, image_size, 3), np.uint8
    )
    return ImageBatches(images, np.zeros((count, batch_size), np.int32), _MEAN, _STD)
