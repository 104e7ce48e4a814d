"""What is known of each data set without reading it: the shapes that programs are compiled for."""

from typing import NamedTuple


class DatasetSizes(NamedTuple):
    """A data set: images of each split, its classes, whether a mirrored image is one of the same class."""

    train: int
    val: int
    test: int
    num_classes: int = 10
    flip: bool = False


SIZES = {
    'cifar10': DatasetSizes(45_000, 5_000, 10_000, flip=True),
    'digits': DatasetSizes(1_197, 300, 300),
    'synthetic': DatasetSizes(1_024, 256, 256),
}
"""Of the data sets that have a name; `datasets.load` gives them, too, for files of images."""
MADE = 'digits', 'synthetic'
"""Data sets that lie in no folder: of the installation, and made on the fly."""
