"""CIFAR-10: prepared from its archive as a TFDS data set, without TensorFlow, and read whole.

Whatever is absent, unreadable, damaged or not CIFAR-10 is a UserError that says which it is, and what to do.
"""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import re
import sys
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from PIL import Image

from ghn_jax.base import cache, files
from ghn_jax.base.errors import FieldError, UserError

URL = 'https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz'
MD5 = 'c32a1d4ab5d03f1284b67883e8d87530'
COUNTS = {'train': 50_000, 'test': 10_000}
SHAPE = (32, 32, 3)
NUM_CLASSES = 10
_PYTHON_MD5 = 'c58f30108f718f92721af3b95e74349a'
_RECORD = 1 + 3 * 32 * 32  # bytes: a label, then the three colour planes
_PREPARE = 'python -m ghn_jax.data --prepare=cifar10 [--archive=FILE] [--data_dir=DIR]'


class Split(NamedTuple):
    """Images, uint8 [N, H, W, 3], and their labels, int32 [N] in 0..num_classes-1."""

    images: np.ndarray
    labels: np.ndarray


def prepare(*, data_dir: str | None = None, archive: str | None = None, md5: str = MD5) -> pathlib.Path:
    """Write CIFAR-10 so that `tfds.data_source('cifar10')` reads it, as PNG (lossless). Returns the folder.

    Takes the official binary archive, or downloads it beside the data. TFDS writes into a folder of another
    name and renames it at the end, so data are whole or absent.

    Raises:
      UserError: the archive is absent, cannot be read or is another one; what is there is damaged; no place.
    """
    import tensorflow_datasets as tfds

    class Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # pyright: ignore
        """TFDS's own builder encodes images with TensorFlow; this one hands it Pillow's."""

        VERSION = tfds.core.Version('3.0.2')

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description='CIFAR-10 (60,000 32x32 colour images, 10 classes), as PNG from the archive.',
                features=tfds.features.FeaturesDict(
                    {
                        'id': tfds.features.Text(),
                        'image': tfds.features.Image(shape=SHAPE),
                        'label': tfds.features.ClassLabel(num_classes=NUM_CLASSES),
                    }
                ),
                supervised_keys=('image', 'label'),
                homepage='https://www.cs.toronto.edu/~kriz/cifar.html',
            )

        def _split_generators(self, dl_manager):
            names, splits = read_archive(source)
            self.info.features['label'].names = names  # pyright: ignore
            return {name: self._generate_examples(name, split) for name, split in splits.items()}

        def _generate_examples(self, name, split):
            for i, (image, label) in enumerate(zip(*split)):
                yield i, {'id': f'{name}_{i:05d}', 'image': Image.fromarray(image), 'label': int(label)}

    with _readable(_dataset_folder(data_dir)), _quiet():
        builder = Cifar10(data_dir=data_dir or None, file_format='array_record')
        prepared = builder.is_prepared()
    folder = pathlib.Path(builder.data_path)
    if prepared:
        print(f'cifar10 is already prepared in {folder}')
        return folder
    source = _archive(archive, folder.parents[1] / 'downloads', md5)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        with tempfile.TemporaryDirectory() as scratch, _quiet():
            builder.download_and_prepare(download_dir=scratch)
    except (OSError, RuntimeError) as e:  # array_record's writer raises the latter
        raise FieldError(
            'data_dir', f': cannot write {folder} ({_reason(e)}): give a folder to write to'
        ) from e
    return folder


def read_archive(archive: str | os.PathLike) -> tuple[list[str], dict[str, Split]]:
    """Read the class names, and the splits `train` and `test` of an official binary archive, in its order.

    Raises:
      UserError: it is not such an archive.
    """
    try:
        with tarfile.open(archive) as tar:
            files = {
                os.path.basename(m.name): tar.extractfile(m).read()  # pyright: ignore[reportOptionalMemberAccess]
                for m in tar.getmembers()
                if m.isfile()
            }
        names = files['batches.meta.txt'].decode().split()
        parts = {'train': [f'data_batch_{i}.bin' for i in range(1, 6)], 'test': ['test_batch.bin']}
        splits = {}
        for split, members in parts.items():
            raw = b''.join(files[m] for m in members)
            records = np.frombuffer(raw, np.uint8).reshape(-1, _RECORD)
            images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            splits[split] = Split(np.ascontiguousarray(images), records[:, 0].astype(np.int32))
            _check(split, splits[split])
    except (tarfile.TarError, zlib.error, OSError, EOFError, KeyError, ValueError) as e:
        raise UserError(f'{archive} is not the binary archive of CIFAR-10 ({e}): get it from {URL}') from e
    return names, splits


def load(data_dir: str | None) -> tuple[dict[str, Split], str]:
    """Read the splits `train` and `test` in TFDS's order, and what to say beside every result on them.

    Raises:
      UserError: they are absent, damaged or cannot be read.
    """
    import tensorflow_datasets as tfds

    with _readable(_dataset_folder(data_dir)), _quiet():
        builder: Any = tfds.builder('cifar10', data_dir=data_dir or None, file_format='array_record')
        prepared = builder.is_prepared()
    folder = pathlib.Path(builder.data_path)
    if not prepared:
        with _readable(folder), contextlib.suppress(FileNotFoundError):
            os.listdir(folder)  # TFDS takes what it may not read for absent
        raise UserError(
            f'cifar10 is not prepared as array_record in {folder}: say where it is with data_dir, '
            f'or prepare it with `{_PREPARE}`'
        )
    with _readable(folder), _quiet():
        # The builder knows the description in its code; the one written with the data says what was done to
        # them.
        info = json.loads((folder / 'dataset_info.json').read_text())
        sentences = re.split(r'(?<=\.)\s+', info.get('description', ''))
        note = ' '.join(s for s in sentences if re.search('re-encoded|lossy', s))
        return _decoded(builder, folder), note


@contextlib.contextmanager
def _readable(folder: pathlib.Path) -> Iterator[None]:
    """Turn what fails inside into a UserError: TFDS and its readers raise exceptions of all kinds."""
    try:
        yield
    except (UserError, MemoryError, ImportError):
        raise
    except Exception as e:
        raise UserError(
            f'{folder} is damaged, incomplete or cannot be read ({_reason(e)}): make it readable, or move it '
            f'away and prepare it again with `{_PREPARE}`'
        ) from e


def _dataset_folder(data_dir: str | None) -> pathlib.Path:
    import tensorflow_datasets as tfds

    default = tfds.core.constants.DATA_DIR  # pyright: ignore[reportAttributeAccessIssue]
    return pathlib.Path(data_dir or default, 'cifar10').expanduser()


def _reason(error: Exception) -> str:
    text = re.sub(r'Failed to construct dataset .*?\}": ', '', str(error))  # TFDS names the arguments first
    return ' '.join(text.split())[:300] or type(error).__name__


def _check(name: str, split: Split) -> None:
    """Raise ValueError unless these are as many images as CIFAR-10 has, of their shape and classes."""
    images, labels = split
    if len(labels) != COUNTS[name]:
        raise ValueError(f'{name} has {len(labels):,} images, expected {COUNTS[name]:,}')
    if images.shape != (len(labels), *SHAPE) or images.dtype != np.uint8:
        raise ValueError(f'{name} is {images.dtype}{list(images.shape)}, expected uint8 images of {SHAPE}')
    if labels.min() < 0 or labels.max() >= NUM_CLASSES:
        raise ValueError(
            f'{name} has labels from {labels.min()} to {labels.max()}, expected 0 to {NUM_CLASSES - 1}'
        )


def _decoded(builder: Any, folder: pathlib.Path) -> dict[str, Split]:
    """The splits, decoded. That takes half a minute; later reads of the same files find it in the cache."""
    files = sorted(folder.iterdir())
    stamps = [(str(f.absolute()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    digest = hashlib.sha256(repr(stamps).encode()).hexdigest()[:16]
    cached = cache.folder()
    kept = cached and cached / 'images' / f'cifar10-{digest}.npz'
    if kept and os.path.isfile(kept):  # not where that cannot be told
        try:
            with np.load(kept, allow_pickle=False) as arrays:
                splits = {n: Split(arrays[f'{n}_images'], arrays[f'{n}_labels']) for n in COUNTS}
            for name, split in splits.items():
                _check(name, split)
            return splits
        except Exception as e:  # a torn file fails in many ways, and it is only a copy
            print(f'{kept} cannot be read ({_reason(e)}): decoding anew', file=sys.stderr)
            with contextlib.suppress(OSError):  # where the new one cannot be written, none is better
                kept.unlink()
    splits = {name: _decode(builder, folder, name) for name in COUNTS}
    if kept:
        _keep(kept, {f'{n}_{k}': a for n, split in splits.items() for k, a in split._asdict().items()})
    return splits


def _decode(builder: Any, folder: pathlib.Path, name: str) -> Split:
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordReader

    source = builder.as_data_source(split=name, decoders={'image': tfds.decode.SkipDecoding()})
    # What dataset_info.json counts is what is read, whatever the files hold.
    readers = [ArrayRecordReader(str(file)) for file in folder.glob(f'*-{name}.array_record*')]
    held = sum(reader.num_records() for reader in readers)
    for reader in readers:
        reader.close()
    if held != len(source):
        raise ValueError(f'{name} has {held:,} images, dataset_info.json says {len(source):,}')
    records = source.__getitems__(range(len(source)))
    images = [np.asarray(Image.open(io.BytesIO(record['image']))) for record in records]
    if (misshapen := next((image for image in images if image.shape != SHAPE), None)) is not None:
        raise ValueError(f'{name} has an image of {misshapen.shape}, expected {SHAPE}')
    split = Split(np.stack(images), np.array([record['label'] for record in records], np.int32))
    _check(name, split)
    return split


def _keep(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    """Write the arrays, if there is a place for them."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    try:
        with files.writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, buffer.getvalue())
    except UserError as e:
        print(f'the decoded images are not kept: {e}', file=sys.stderr)


def _archive(archive: str | None, downloads: pathlib.Path, md5: str) -> pathlib.Path:
    """The archive, downloaded if none is given, its digest checked."""
    path = pathlib.Path(archive or downloads / os.path.basename(URL)).expanduser()
    if not path.is_file():
        if archive:
            raise FieldError('archive', f'={archive}: there is no such file; it comes from {URL}')
        _download(URL, path)
    try:
        with open(path, 'rb') as f:
            digest = hashlib.file_digest(f, 'md5').hexdigest()
    except OSError as e:
        raise FieldError(
            'archive', f': {path} cannot be read ({e.strerror}): make it readable, or give another file'
        ) from None
    if digest != md5:
        if not archive:
            path.unlink()  # or every later attempt would find it
        hint = ' (the Python version)' if digest == _PYTHON_MD5 else ''
        raise UserError(
            f'{path} is damaged or another file: it has the MD5 digest {digest}{hint}, expected {md5}; get '
            f'the archive from {URL}'
        )
    return path


def _download(url: str, path: pathlib.Path) -> None:
    from tqdm import tqdm

    part = path.with_name(path.name + '.part')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        print(f'downloading {url}')
        with urllib.request.urlopen(url, timeout=30) as response, open(part, 'wb') as f:
            total = int(response.headers.get('Content-Length') or 0) or None
            with tqdm(total=total, unit='B', unit_scale=True, disable=None) as bar:
                while block := response.read(1 << 20):
                    f.write(block)
                    bar.update(len(block))
        os.replace(part, path)
    except OSError as e:  # URLError and timeouts are OSErrors
        raise FieldError(
            'archive', f': cannot download {url} ({e}): get it by other means and give the file'
        ) from e
    finally:
        part.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()  # made for nothing: a folder with something in it stays


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence TFDS, which warns of folders it does not find; our own error says it better."""
    level = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(level)
