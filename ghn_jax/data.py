"""Images: whole data sets as uint8 arrays, batches as a function of (seed, step), and the on-device pieces.

A data set of CIFAR's size (154 MB) lives on the device; a step gathers its batch by index, then crops, flips
and normalises it there.  Axes: N images | B batch | H W pixels | 3 colours.

`python -m ghn_jax.data --prepare=cifar10` writes CIFAR-10 where TFDS looks for it, without TensorFlow.
"""

import contextlib
import dataclasses
import functools
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
import zipfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging
from PIL import Image

from ghn_jax import axes, cache, cli, paths
from ghn_jax.errors import UserError

CIFAR10_URL = 'https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz'
CIFAR10_MD5 = 'c32a1d4ab5d03f1284b67883e8d87530'
_CIFAR10_PYTHON_MD5 = 'c58f30108f718f92721af3b95e74349a'
_CIFAR10_RECORD = 1 + 3 * 32 * 32  # bytes: a label, then the three colour planes


class Split(NamedTuple):
    """images: uint8 [N, H, W, 3]; labels: int32 [N] in 0..num_classes-1."""

    images: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """Three disjoint splits; `mean` and `std` (float32 [3], in units of 0..1) are the training images'."""

    name: str
    train: Split
    val: Split
    test: Split
    mean: np.ndarray
    std: np.ndarray
    num_classes: int
    flip: bool  # whether a mirrored image is an image of the same class
    note: str = ''  # what to say beside every result on these images


def load(name: str, *, data_dir: str | None = None, image_size: int = 32, seed: int = 0) -> Dataset:
    """The data set `name`, its images resized to `image_size` pixels where they have another size.

    cifar10: 45,000 / 5,000 / 10,000, read with TFDS from `data_dir` (None or '': TFDS's own place).
    digits: scikit-learn's handwritten digits, 1,197 / 300 / 300, always the same ones.
    synthetic: seeded patterns, one a class, under noise: 1,024 / 256 / 256; easy to learn.
    Raises UserError for an unknown name, an image size below 8 and absent data.
    """
    if name not in DATASETS:
        raise UserError(f'data set {name!r} is not one of {", ".join(DATASETS)}')
    if image_size < 8:
        raise UserError(f'image_size={image_size}: expected at least 8 pixels')
    if name == 'cifar10':
        data_dir = paths.tfds_folder(data_dir)
    return DATASETS[name](data_dir=data_dir, image_size=image_size, seed=seed)


def batch_indices(seed: int, step: int, batch: int, n: int) -> np.ndarray:
    """Which of n images step `step` reads: int32 [batch], a pure function of the arguments.

    The stream is one permutation of the n images after another (a new one each epoch), cut into batches:
    nothing is dropped, and a batch may span the border of two epochs.
    """
    position = step * batch + np.arange(batch, dtype=np.int64)
    epoch, offset = np.divmod(position, n)
    return np.concatenate([_permutation(seed, int(e), n)[offset[epoch == e]] for e in np.unique(epoch)])


def augment(
    key: jax.Array, images: jax.Array, *, pad: int = 4, flip: bool = True, axis: str | None = None
) -> jax.Array:
    """Random crops from zero-padded images, mirrored with probability 1/2: uint8 [B, H, W, 3] in and out.

    axis: a mesh axis whose devices each hold B images of a batch; they look as they do on one device.
    """
    k_crop, k_flip = jax.random.split(key)
    b, h, w, c = images.shape
    batch = b * axes.size(axis)
    origin = axes.own_rows(jax.random.randint(k_crop, (batch, 2), 0, 2 * pad + 1), axis)
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    crop = jax.vmap(lambda x, o: jax.lax.dynamic_slice(x, (o[0], o[1], 0), (h, w, c)))(padded, origin)
    if not flip:
        return crop
    mirrored = axes.own_rows(jax.random.bernoulli(k_flip, 0.5, (batch,)), axis)
    return jnp.where(mirrored[:, None, None, None], crop[:, :, ::-1], crop)


def normalize(images: jax.Array, mean: jax.Array, std: jax.Array, dtype=jnp.float32) -> jax.Array:
    """uint8 [B, H, W, 3] to (x/255 - mean) / std; mean and std [3] in units of 0..1."""
    mean, std = (jnp.asarray(a, dtype).reshape(1, 1, 1, 3) for a in (mean, std))
    return (images.astype(dtype) / 255 - mean) / std


def prepare_cifar10(
    *, data_dir: str | None = None, archive: str | None = None, md5: str = CIFAR10_MD5
) -> pathlib.Path:
    """Writes CIFAR-10 so that `tfds.data_source('cifar10')` reads it, as PNG (lossless); returns the folder.

    Takes the official binary archive, or downloads it beside the data. TFDS writes into a folder of another
    name and renames it at the end, so data are whole or absent. Raises UserError if the archive is absent or
    another one.
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
                        'image': tfds.features.Image(shape=(32, 32, 3)),
                        'label': tfds.features.ClassLabel(num_classes=10),
                    }
                ),
                supervised_keys=('image', 'label'),
                homepage='https://www.cs.toronto.edu/~kriz/cifar.html',
            )

        def _split_generators(self, dl_manager):
            names, splits = read_cifar10(source)
            self.info.features['label'].names = names  # pyright: ignore
            return {name: self._generate_examples(name, split) for name, split in splits.items()}

        def _generate_examples(self, name, split):
            for i, (image, label) in enumerate(zip(*split)):
                yield i, {'id': f'{name}_{i:05d}', 'image': Image.fromarray(image), 'label': int(label)}

    with _quiet():
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
    except OSError as e:
        raise UserError(f'cannot write {folder}: {e}: give a folder to write to with --data_dir=DIR') from e
    return folder


def read_cifar10(archive: str | os.PathLike) -> tuple[list[str], dict[str, Split]]:
    """Class names, and the splits `train` and `test` of an official binary archive, in its order.

    Raises UserError if it is not such an archive.
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
            records = np.frombuffer(raw, np.uint8).reshape(-1, _CIFAR10_RECORD)
            images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            splits[split] = Split(np.ascontiguousarray(images), records[:, 0].astype(np.int32))
    except (tarfile.TarError, EOFError, KeyError, ValueError) as e:
        raise UserError(
            f'{archive} is not the binary archive of CIFAR-10 ({e}): get it from {CIFAR10_URL}'
        ) from e
    return names, splits


def _cifar10(*, data_dir: str | None, image_size: int, seed: int) -> Dataset:
    import tensorflow_datasets as tfds

    with _quiet():
        builder: Any = tfds.builder('cifar10', data_dir=data_dir or None, file_format='array_record')
        prepared = builder.is_prepared()
    if not prepared:
        raise UserError(
            f'cifar10 is not prepared as array_record in {builder.data_path}: say where it is with data_dir, '
            'or prepare it with `python -m ghn_jax.data --prepare=cifar10 [--archive=FILE] [--data_dir=DIR]`'
        )
    decoded = _decoded(builder)
    splits = {name: Split(_resize(images, image_size), labels) for name, (images, labels) in decoded.items()}
    # The builder knows the description in its code; the one written with the data says what was done to them.
    info = json.loads((pathlib.Path(builder.data_path) / 'dataset_info.json').read_text())
    sentences = re.split(r'(?<=\.)\s+', info.get('description', ''))
    note = ' '.join(s for s in sentences if re.search('re-encoded|lossy', s))
    # TFDS stores examples in a fixed shuffled order, so the last tenth is a random one.
    cut = len(splits['train'].labels) * 9 // 10
    train, val = (Split(*(a[s] for a in splits['train'])) for s in (slice(cut), slice(cut, None)))
    return _dataset('cifar10', train, val, splits['test'], num_classes=10, flip=True, note=note)


def _decoded(builder: Any) -> dict[str, Split]:
    """The splits `train` and `test`, decoded; the first time for these files that takes half a minute, then
    they come from the cache.
    """
    import tensorflow_datasets as tfds

    files = sorted(pathlib.Path(builder.data_path).iterdir())
    stamps = [(str(f.absolute()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    digest = hashlib.sha256(repr(stamps).encode()).hexdigest()[:16]
    folder = cache.folder()
    kept = folder and folder / 'images' / f'cifar10-{digest}.npz'
    if kept and kept.is_file():
        try:
            with np.load(kept, allow_pickle=False) as arrays:
                return {n: Split(arrays[f'{n}_images'], arrays[f'{n}_labels']) for n in ('train', 'test')}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
            print(f'{kept} cannot be read ({e}): decoding anew', file=sys.stderr)
    splits = {}
    for name in ('train', 'test'):
        source = builder.as_data_source(split=name, decoders={'image': tfds.decode.SkipDecoding()})
        records = source.__getitems__(range(len(source)))
        images = np.stack([np.asarray(Image.open(io.BytesIO(r['image']))) for r in records])
        splits[name] = Split(images, np.array([r['label'] for r in records], np.int32))
    if kept:
        _keep(kept, {f'{n}_{k}': a for n, split in splits.items() for k, a in split._asdict().items()})
    return splits


def _keep(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes the arrays, if there is a place for them."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        cli.write_atomic(path, buffer.getvalue())
    except OSError as e:
        print(f'the decoded images are not kept: {e}', file=sys.stderr)


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
    return _dataset('synthetic', *splits, num_classes=10, flip=False)


DATASETS = {'cifar10': _cifar10, 'digits': _digits, 'synthetic': _synthetic}


def _dataset(name: str, train: Split, val: Split, test: Split, **fields) -> Dataset:
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


def _archive(archive: str | None, downloads: pathlib.Path, md5: str) -> pathlib.Path:
    """The archive, downloaded if none is given, its digest checked."""
    path = pathlib.Path(archive or downloads / os.path.basename(CIFAR10_URL)).expanduser()
    if not path.is_file():
        if archive:
            raise UserError(f'--archive={archive}: there is no such file; it comes from {CIFAR10_URL}')
        _download(CIFAR10_URL, path)
    with open(path, 'rb') as f:
        digest = hashlib.file_digest(f, 'md5').hexdigest()
    if digest != md5:
        if not archive:
            path.unlink()  # or every later attempt would find it
        hint = ' (the Python version)' if digest == _CIFAR10_PYTHON_MD5 else ''
        raise UserError(f'{path} has the MD5 digest {digest}{hint}, expected {md5}: it is at {CIFAR10_URL}')
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
        raise UserError(f'cannot download {url} ({e}): get it by other means and give --archive=FILE') from e
    finally:
        part.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()  # made for nothing: a folder with something in it stays


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TFDS warns of folders it does not find; our own error says it better."""
    level = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(level)


if __name__ == '__main__':
    _PREPARE = flags.DEFINE_enum('prepare', None, ['cifar10'], 'The data set to prepare.')
    _ARCHIVE = flags.DEFINE_string(
        'archive', None, f'The official archive, if it is here already ({CIFAR10_URL}).'
    )
    _DATA_DIR = flags.DEFINE_string('data_dir', None, "Where to write (default: TFDS's own place).")

    def _main() -> None:
        if _PREPARE.value is None:
            raise UserError('--prepare is missing: say what, as in --prepare=cifar10')
        prepare_cifar10(data_dir=paths.tfds_folder(_DATA_DIR.value), archive=_ARCHIVE.value)

    cli.run(_main)
