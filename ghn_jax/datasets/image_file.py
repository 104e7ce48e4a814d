"""A data set of one's own: images and labels in a NumPy file.

    np.savez('flowers.npz', train_images=..., train_labels=..., test_images=..., test_labels=...)

Images are uint8 [N, H, H], [N, H, H, 1] or [N, H, H, 3], labels are integers [N] from 0. `val_images` and
`val_labels` may be there, too; without them a tenth of the training images, always the same ones, are for
validation. `flip=True` says that a mirrored image is an image of the same class.
"""

import contextlib
import os
import pathlib
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np

from ghn_jax.base import paths
from ghn_jax.base.errors import FieldError, one_line, shown
from ghn_jax.datasets.cifar10 import Split
from ghn_jax.datasets.sizes import DatasetSizes

SUFFIX = '.npz'
_NEEDED = ('train_images', 'train_labels', 'test_images', 'test_labels')
_MOST = 1_000_000  # classes; int32 would make other labels of larger ones
_KNOWN = (*_NEEDED, 'val_images', 'val_labels', 'flip')
_UNREADABLE = (
    OSError, ValueError, TypeError, EOFError, MemoryError, NotImplementedError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
_HOW = 'expected a file of numpy.savez (docs/configs.md); data_dir is its folder, where that is another'


def find(name: str, data_dir: str | os.PathLike | None) -> pathlib.Path:
    """Return the path of the file: where `name` says, or that of its name in the folder `data_dir`.

    Raises:
      FieldError: an address of a bucket, or a home directory that nobody has.
    """
    path = paths.local(name, 'dataset')
    return paths.local(data_dir, 'data_dir') / path.name if data_dir else path


def read(path: pathlib.Path) -> tuple[dict[str, Split], DatasetSizes]:
    """Read the splits train, val and test, in three colours and of any one size, and what `read_sizes` reads.

    Raises:
      FieldError: the file cannot be read, or has not what it should; which, and what is expected.
    """
    with _opened(path) as file:
        labels, sizes = _labels(path, file)
        images = {name: _images(path, file, name, len(labels[name])) for name in labels}
    shapes = {each.shape[1:] for each in images.values()}
    if len(shapes) > 1:
        raise _bad(path, f'images of several sizes: {", ".join(sorted(map(str, shapes)))}', 'one')
    if not np.ptp(images['train'], axis=(0, 1, 2)).all():
        raise _bad(path, 'train_images with the same value in every pixel', 'images that differ')
    if 'val' not in images:
        kept = _kept(sizes)
        for arrays in (images, labels):
            arrays['train'], arrays['val'] = arrays['train'][kept], arrays['train'][~kept]
    return {name: Split(images[name], labels[name]) for name in images}, sizes


def read_sizes(path: pathlib.Path) -> DatasetSizes:
    """Read what is known without the images. Raises FieldError as `read`."""
    with _opened(path) as file:
        return _labels(path, file)[1]


def _labels(path: pathlib.Path, file: np.lib.npyio.NpzFile) -> tuple[dict[str, np.ndarray], DatasetSizes]:
    """Read the labels of the splits that are there, and count images, classes and what is put aside."""
    labels = {}
    for split in ('train', 'val', 'test'):
        name = f'{split}_labels'
        if name not in file and split == 'val':
            continue
        array = file[name]
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer) or not len(array):
            raise _bad(path, f'{name} {_about(array)}', 'one integer for each image')
        if array.min() < 0:
            raise _bad(path, f'{name} with {array.min()}', 'classes from 0')
        if array.max() >= _MOST:
            raise _bad(path, f'{name} with {array.max()}', f'classes below {_MOST:,}')
        labels[split] = array.astype(np.int32)
    classes = int(labels['train'].max()) + 1
    for split, array in labels.items():
        if array.max() >= classes:
            raise _bad(path, f'{split}_labels with {array.max()}', f'0 to {classes - 1}, as in train_labels')
    flip = file['flip'] if 'flip' in file else np.array(False)
    if flip.shape or flip.dtype != bool:
        raise _bad(path, f'flip {_about(flip)}', 'True or False')
    train, aside = len(labels['train']), len(labels.get('val', ()))
    if not aside:
        if train < 2:
            raise _bad(path, 'one training image', 'two or more, for some are put aside for validation')
        aside = max(1, train // 10)
        train -= aside
    return labels, DatasetSizes(train, aside, len(labels['test']), classes, bool(flip))


def _images(path: pathlib.Path, file: np.lib.npyio.NpzFile, split: str, count: int) -> np.ndarray:
    name = f'{split}_images'
    images = file[name]
    grey = images.ndim == 3
    if (
        images.dtype != np.uint8
        or images.ndim not in (3, 4)
        or images.shape[1] != images.shape[2]
        or not images.shape[1]
        or not (grey or images.shape[3] in (1, 3))
    ):
        raise _bad(path, f'{name} {_about(images)}', 'uint8 [N, H, H] or [N, H, H, 1 or 3]')
    if len(images) != count:
        raise _bad(path, f'{len(images)} {name} and {count} {split}_labels', 'as many')
    return np.broadcast_to(images[..., None] if grey else images, (*images.shape[:3], 3))


def _kept(sizes: DatasetSizes) -> np.ndarray:
    """Which of the training images are not put aside, in a file that may be sorted by class: bool [N]."""
    kept = np.ones(sizes.train + sizes.val, bool)
    kept[np.random.default_rng(0).permutation(len(kept))[: sizes.val]] = False
    return kept


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[np.lib.npyio.NpzFile]:
    """Open the file, with the names that it should have, for as long as the context lasts."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if missing := [name for name in _NEEDED if name not in file]:
                raise _bad(path, f'no {missing[0]}', ', '.join(_NEEDED))
            if ('val_images' in file) != ('val_labels' in file):
                raise _bad(path, 'one of val_images and val_labels', 'both or none')
            if unknown := [name for name in file if name not in _KNOWN]:
                raise _bad(path, f'an array {shown(unknown[0])}', f'only {", ".join(_KNOWN)}')
            yield file
    except FieldError:
        raise
    except _UNREADABLE as e:
        reason = os.strerror(e.errno) if isinstance(e, OSError) and e.errno else one_line(e)
        raise FieldError('dataset', f'={path} cannot be read ({reason}): {_HOW}') from e


def _bad(path: pathlib.Path, found: str, expected: str) -> FieldError:
    return FieldError('dataset', f'={path} has {found}: expected {expected} (docs/configs.md)')


def _about(array: np.ndarray) -> str:
    return f'of {array.dtype} {list(array.shape)}'
