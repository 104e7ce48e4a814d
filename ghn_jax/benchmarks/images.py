"""Images to measure with: as many as a data set has for training, of random pixels.

What a step costs depends on their number and size, not on what they show, so no data set has to be there.
Axes: n images | H pixels.
"""

import numpy as np

from ghn_jax.datasets.cifar10 import Split
from ghn_jax.datasets.load import Dataset
from ghn_jax.datasets.sizes import Sizes


def random_dataset(sizes: Sizes, image_size: int) -> Dataset:
    """Make random images in the shapes of a data set; there are none to validate and to test on."""
    rng = np.random.default_rng(0)
    shape = (image_size, image_size, 3)
    train = Split(
        rng.integers(0, 256, (sizes.train, *shape), np.uint8),
        np.arange(sizes.train, dtype=np.int32) % sizes.num_classes,
    )
    none = Split(np.zeros((0, *shape), np.uint8), np.zeros(0, np.int32))
    mean, std = np.full(3, 0.5, np.float32), np.full(3, 0.25, np.float32)
    return Dataset(
        name='random', train=train, val=none, test=none, mean=mean, std=std, num_classes=sizes.num_classes,
        flip=sizes.flip, note='random pixels',
    )  # fmt: skip
