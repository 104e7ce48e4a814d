"""Image data sets, read whole as uint8 arrays, and batches as a function of (seed, step).

A data set of CIFAR's size (154 MB) lives on the device; a step gathers its batch there by index.

Axes: N images | H, W pixels | 3 colours.
"""

import dataclasses
import functools
import os
import pathlib
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from ghn_jax.base import paths
from ghn_jax.base.errors import FieldError, UserError, shown
from ghn_jax.base.whole_numbers import is_int
from ghn_jax.datasets import cifar10, image_file
from ghn_jax.datasets.augment import normalize
from ghn_jax.datasets.cifar10 import Split
from ghn_jax.datasets.sizes import SIZES, DatasetSizes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """Labelled images in three disjoint splits.

    Attributes:
      name: of the data set.
      train, val, test: images uint8 [n, H, H, 3] and labels int32 [n].
      mean, std: of each channel of the training images, float32 [3], in units of 0..1.
      num_classes: how many classes there are.
      flip: whether a mirrored image is an image of the same class.
      note: what to say beside every result on these images.
    """

    name: str
    train: Split
    val: Split
    test: Split
    mean: np.ndarray
    std: np.ndarray
    num_classes: int
    flip: bool
    note: str = ''

    @functools.cached_property
    def digest(self) -> int:
        """What tells these images and labels from others of the same name and number."""
        arrays = [array for split in (self.train, self.val, self.test) for array in split]
        crc = int(self.flip)
        for array in arrays:
            crc = zlib.crc32(np.ascontiguousarray(array).data, crc)
        return crc

    @jax.ensure_compile_time_eval()
    def normalized(self, split: str = 'test', count: int | None = None) -> np.ndarray:
        """Return the first images of a split as networks see them, at most `count`: float32 [N, H, H, 3].

        Raises:
          UserError: a split other than train, val and test, or a negative count.
        """
        if split not in ('train', 'val', 'test'):
            raise UserError(f'split {shown(split)} is not one of train, val, test')
        if count is not None and not (is_int(count) and count >= 0):
            raise FieldError('count', f'={shown(count)}: expected a number of images, or None for all')
        images = getattr(self, split).images[:count]
        return np.asarray(normalize(jnp.asarray(images), jnp.asarray(self.mean), jnp.asarray(self.std)))


def load(
    name: str | os.PathLike,
    *,
    data_dir: str | os.PathLike | None = None,
    image_size: int = 32,
    seed: int = 0,
) -> Dataset:
    """Read the data set `name`, its images resized to `image_size` pixels where they have another size.

    Args:
        name: 'cifar10': 45,000 images to train on, 5,000 to validate, 10,000 to test. 'digits':
            scikit-learn's handwritten ones, 1,197 / 300 / 300, always the same. 'synthetic': a pattern for
            each class under noise, 1,024 / 256 / 256, easy to learn. 'FILE.npz': images of your own, see
            `image_file`.
        data_dir: where TFDS has cifar10, or the folder of FILE.npz; None or '': TFDS's own place, and where
            FILE.npz says.
        image_size: pixels on a side, 8 to 1,024.
        seed: of the synthetic images.

    Returns:
        The images and labels of the three splits, and what images are normalised by.

    Raises:
        UserError: an unknown name, an image size out of bounds, a negative seed, absent or damaged data.
    """
    name = _name(name)
    if not is_int(image_size) or not 8 <= image_size <= 1024:
        raise FieldError('image_size', f'={shown(image_size)}: expected 8 to 1,024 pixels on a side')
    if not is_int(seed) or seed < 0:
        raise FieldError('seed', f'={shown(seed)}: expected an integer from 0')
    if name.endswith(image_file.SUFFIX):
        return _own(image_file.find(name, data_dir), image_size)
    folder = paths.tfds_folder(data_dir) if name == 'cifar10' else None
    return _DATASETS[name](data_dir=folder, image_size=image_size, seed=seed)


def read_sizes(name: str | os.PathLike, *, data_dir: str | os.PathLike | None = None) -> DatasetSizes:
    """Return what is known of a data set without reading its images; arguments and errors as of `load`."""
    name = _name(name)
    if name.endswith(image_file.SUFFIX):
        return image_file.read_sizes(image_file.find(name, data_dir))
    return SIZES[name]


def _name(name: Any) -> str:
    """The name of a data set, or the path of its file, as text; UserError for another one."""
    name = os.fspath(name) if isinstance(name, os.PathLike) else name
    if not isinstance(name, str) or not (name in SIZES or name.endswith(image_file.SUFFIX)):
        raise UserError(
            f'data set {shown(name)} is not one of {", ".join(SIZES)}, nor a file of images, FILE.npz'
        )
    return name


def batch_indices(seed: int, step: int, batch: int, n: int) -> np.ndarray:
    """Choose the images, of n, that step `step` reads: int32 [batch], a pure function of the arguments.

    The stream is one permutation of the n images after another (a new one each epoch), cut into batches:
    nothing is dropped, and a batch may span the border of two epochs.
    """
    position = step * batch + np.arange(batch, dtype=np.int64)
    epoch, offset = np.divmod(position, n)
    return np.concatenate([_permutation(seed, int(e), n)[offset[epoch == e]] for e in np.unique(epoch)])


def _cifar10(*, data_dir: str | None, image_size: int, seed: int) -> Dataset:
    read, note = cifar10.load(data_dir)
    splits = {name: Split(_resize(images, image_size), labels) for name, (images, labels) in read.items()}
    # TFDS stores examples in a fixed shuffled order, so the last tenth is a random one.
    cut = len(splits['train'].labels) * 9 // 10
    train, val = (Split(*(a[s] for a in splits['train'])) for s in (slice(cut), slice(cut, None)))
    classes = cifar10.NUM_CLASSES
    return _dataset('cifar10', train, val, splits['test'], num_classes=classes, flip=True, note=note)


def _digits(*, data_dir: str | None, image_size: int, seed: int) -> Dataset:
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    grey = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # [1797, 8, 8], from 0..16
    images = _resize(np.repeat(grey[..., None], 3, axis=-1), image_size)
    labels = bunch.target.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(labels))  # a fixed split, whatever the seed of the run
    train, val, test = (Split(images[i], labels[i]) for i in np.split(order, [1197, 1497]))
    return _dataset('digits', train, val, test, num_classes=10, flip=False)


def _synthetic(*, data_dir: str | None, image_size: int, seed: int) -> Dataset:
    rng = np.random.default_rng(seed)
    patterns = _resize(rng.integers(48, 208, (10, 4, 4, 3)).astype(np.uint8), image_size).astype(np.float32)
    splits = []
    for n in (1024, 256, 256):
        labels = rng.permutation(np.arange(n, dtype=np.int32) % 10)
        noise = rng.normal(0, 32, (n, image_size, image_size, 3)).astype(np.float32)
        splits.append(Split(np.clip(patterns[labels] + noise, 0, 255).astype(np.uint8), labels))
    note = f'The images are patterns under noise, of seed {seed}.'
    return _dataset('synthetic', *splits, num_classes=10, flip=False, note=note)


def _own(path: pathlib.Path, image_size: int) -> Dataset:
    splits, sizes = image_file.read(path)
    resized = {name: Split(_resize(images, image_size), labels) for name, (images, labels) in splits.items()}
    return _dataset(path.name, **resized, num_classes=sizes.num_classes, flip=sizes.flip)


_DATASETS = {'cifar10': _cifar10, 'digits': _digits, 'synthetic': _synthetic}


def _dataset(name: str, train: Split, val: Split, test: Split, **fields: Any) -> Dataset:
    """Put splits together, with the mean and deviation of each colour of the training images."""
    # From the 256-bin histogram of each colour: exact, and no float copy of the images.
    counts = np.stack(
        [np.bincount(train.images[..., c].ravel(), minlength=256) for c in range(3)]
    )  # [3, 256]
    value = np.arange(256) / 255
    mean = counts @ value / counts.sum(1)
    std = np.sqrt(counts @ value**2 / counts.sum(1) - mean**2)
    return Dataset(
        name=name,
        train=train,
        val=val,
        test=test,
        mean=mean.astype(np.float32),
        std=std.astype(np.float32),
        **fields,
    )


def _resize(images: np.ndarray, size: int) -> np.ndarray:
    if images.shape[1:3] == (size, size):
        return images
    bilinear = Image.Resampling.BILINEAR
    return np.stack([np.asarray(Image.fromarray(x).resize((size, size), bilinear)) for x in images])


@functools.lru_cache(maxsize=4)  # two epochs of two streams
def _permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    order = np.random.default_rng((seed, epoch)).permutation(n).astype(np.int32)
    order.flags.writeable = False
    return order
