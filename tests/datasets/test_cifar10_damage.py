"""Prepared CIFAR-10 that is damaged, incomplete or unreadable is one line that says what to do."""

import contextlib
import importlib.util
import itertools
import os
import pathlib
import shutil
import tempfile

import numpy as np
import pytest
from PIL import Image

from ghn_jax.base.errors import UserError
from ghn_jax.datasets import cifar10
from tests.small_run import command, is_one_error_line

pytestmark = pytest.mark.usefixtures('small_and_not_kept')
TRAIN, INFO = 'cifar10-train.array_record-00000-of-00001', 'dataset_info.json'


@pytest.fixture(scope='module')
def prepared(archive, tmp_path_factory) -> pathlib.Path:
    """A data_dir with a small CIFAR-10."""
    path, md5, _ = archive
    data_dir = tmp_path_factory.mktemp('prepared')
    with pytest.MonkeyPatch.context() as m:
        m.setattr(cifar10, 'COUNTS', {'train': 100, 'test': 20})
        cifar10.prepare(data_dir=str(data_dir), archive=str(path), md5=md5)
    return data_dir


def load_copy(prepared, data_dir, change):
    """What is read from a copy of the data with a change to their folder."""
    shutil.copytree(prepared, data_dir, dirs_exist_ok=True)
    change(data_dir / 'cifar10/3.0.2')
    return cifar10.load(str(data_dir))


def cut(folder, part: float):
    file = folder / TRAIN
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * part)])


def set_count(folder, count: int):
    file = folder / INFO
    file.write_text(file.read_text().replace('"100"', f'"{count}"'))


def make_a_directory(file):
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda f: cut(f, 0.5), 'Corrupted'),
        (lambda f: cut(f, 0.99), 'Corrupted'),
        (lambda f: cut(f, 0), 'ArrayRecord file should be at least'),
        (lambda f: (f / TRAIN).unlink(), 'train has 0 images, dataset_info.json says 100'),
        (lambda f: make_a_directory(f / TRAIN), 'Is a directory'),
        (lambda f: set_count(f, 105), 'train has 100 images, dataset_info.json says 105'),
        (lambda f: set_count(f, 95), 'train has 100 images, dataset_info.json says 95'),
        (lambda f: set_count(f, 0), 'can not be of 0 length'),
        (lambda f: (f / INFO).write_text('{garbage'), 'Failed to load JSON'),
        (lambda f: (f / INFO).write_text(''), 'Failed to load JSON'),
        (lambda f: (f / INFO).write_text('[]'), 'do not match'),
        (lambda f: (f / INFO).write_bytes(b'\xff\xfe'), "can't decode byte 0xff"),
        (lambda f: make_a_directory(f / INFO), 'Could not read dataset info'),
    ],
)
def test_what_is_damaged_is_one_line_that_says_what_and_what_to_do(prepared, tmp_path, capsys, change, words):
    with pytest.raises(UserError) as e:
        load_copy(prepared, tmp_path, change)
    text = str(e.value)
    assert text.startswith(f'{tmp_path}/cifar10') and words in text and '\n' not in text
    assert text.endswith(
        'make it readable, or move it away and prepare it again with '
        '`python -m ghn_jax.data --prepare=cifar10 [--archive=FILE] [--data_dir=DIR]`'
    )
    assert capsys.readouterr().err == ''


def test_a_bit_that_changes_anywhere_changes_no_image_or_is_noticed(prepared, tmp_path):
    whole, _ = cifar10.load(str(prepared))
    content = (prepared / 'cifar10/3.0.2' / TRAIN).read_bytes()
    noticed = 0
    for place in np.linspace(0, len(content) - 1, 25).astype(int):
        changed = content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :]
        try:
            read, _ = load_copy(prepared, tmp_path, lambda f, data=changed: (f / TRAIN).write_bytes(data))
        except UserError:
            noticed += 1
        else:
            for name in whole:
                for a, b in zip(whole[name], read[name]):
                    np.testing.assert_array_equal(a, b)
    assert noticed >= 10


@contextlib.contextmanager
def without_privileges():
    """Permissions count for nothing to root, as whom containers run tests."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65_534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize('name', [TRAIN, INFO, '', '..', '../..'])
def test_what_may_not_be_read_is_one_line(prepared, name):
    cifar10.load(str(prepared))  # what has to be imported is
    with tempfile.TemporaryDirectory() as data_dir:
        os.chmod(data_dir, 0o755)
        shutil.copytree(prepared, data_dir, dirs_exist_ok=True)
        place = pathlib.Path(data_dir, 'cifar10/3.0.2', name)
        os.chmod(data_dir, 0o755)
        os.chmod(place, 0)
        try:
            with (
                without_privileges(),
                pytest.raises(UserError, match='cannot be read .*make it readable, or'),
            ):
                cifar10.load(data_dir)
        finally:
            os.chmod(place, 0o755)


def test_fewer_images_than_cifar10_has_and_images_of_another_kind_are_refused(
    prepared, tmp_path, monkeypatch
):
    with monkeypatch.context() as m:
        m.setattr(cifar10, 'COUNTS', {'train': 50_000, 'test': 10_000})
        with pytest.raises(UserError, match='train has 100 images, expected 50,000'):
            cifar10.load(str(prepared))
    images, labels = np.zeros((100, 32, 32, 3), np.uint8), np.zeros(100, np.int32)
    cifar10._check('train', cifar10.Split(images, labels))
    for odd, words in (
        ((images[:99], labels[:99]), 'train has 99 images, expected 100'),
        ((images[:, :28], labels), r'uint8\[100, 28, 32, 3\], expected uint8 images of \(32, 32, 3\)'),
        ((images.astype(np.float32), labels), 'float32'),
        ((images, labels + 10), 'labels from 10 to 10, expected 0 to 9'),
        ((images, labels - 1), 'labels from -1 to -1'),
    ):
        with pytest.raises(ValueError, match=words):
            cifar10._check('train', cifar10.Split(*odd))


def test_images_of_another_shape_are_refused(prepared, monkeypatch):
    sizes = itertools.chain([(28, 28)], itertools.repeat((32, 32)))
    monkeypatch.setattr(Image, 'open', lambda _: np.zeros((*next(sizes), 3), np.uint8))
    with pytest.raises(UserError, match=r'train has an image of \(28, 28, 3\), expected \(32, 32, 3\)'):
        cifar10.load(str(prepared))
    monkeypatch.setattr(Image, 'open', lambda _: np.zeros((32, 32), np.uint8))
    with pytest.raises(UserError, match=r'train has an image of \(32, 32\)'):
        cifar10.load(str(prepared))


def test_the_counts_are_those_of_the_data_set():
    spec = importlib.util.find_spec('ghn_jax.datasets.cifar10')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.COUNTS == {'train': 50_000, 'test': 10_000}  # A. Krizhevsky 2009, section 3.1


@pytest.mark.parametrize('part', [0.0, 0.3, 0.9])
def test_a_damaged_archive_is_one_line(archive, tmp_path, part):
    path, md5, _ = archive
    damaged = tmp_path / 'a.tar.gz'
    content = path.read_bytes()
    damaged.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(UserError, match='damaged or another file: it has the MD5'):
        cifar10.prepare(data_dir=str(tmp_path / 'd'), archive=str(damaged), md5=md5)
    with pytest.raises(UserError, match='is not the binary archive of CIFAR-10'):
        cifar10.read_archive(damaged)
    middle = len(content) // 2
    damaged.write_bytes(content[:middle] + b'?' * 100 + content[middle + 100 :])
    with pytest.raises(UserError, match='is not the binary archive of CIFAR-10'):
        cifar10.read_archive(damaged)


def test_an_archive_that_may_not_be_read_and_one_with_fewer_images_are_one_line(
    archive, tmp_path, monkeypatch
):
    path, md5, _ = archive
    monkeypatch.setattr(cifar10, 'COUNTS', {'train': 101, 'test': 20})
    with pytest.raises(UserError, match='is not the binary archive .*train has 100 images, expected 101'):
        cifar10.prepare(data_dir=str(tmp_path / 'd'), archive=str(path), md5=md5)
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        copy = shutil.copy(path, folder)
        os.chmod(copy, 0)
        with (
            without_privileges(),
            pytest.raises(UserError, match=r'cannot be read \(Permission denied\): make'),
        ):
            cifar10._archive(copy, tmp_path, md5)


def test_commands_say_it_in_one_line(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / 'd')
    (tmp_path / 'd/cifar10/3.0.2' / INFO).write_text('{garbage')
    flags = '--config=configs/test.py', '--config.dataset=cifar10', f'--config.data_dir={tmp_path}/d'
    result = command('ghn_jax.train', *flags, f'--workdir={tmp_path}/run')
    assert is_one_error_line(result, 'is damaged', '--prepare=cifar10')
    result = command('ghn_jax.data', '--prepare=cifar10', f'--data_dir={tmp_path}/d')
    assert is_one_error_line(result, 'is damaged', 'move it away')


def test_no_damage_to_the_kept_images_gives_other_images(prepared, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('GHN_JAX_CACHE', str(tmp_path))
    whole, _ = cifar10.load(str(prepared))
    (kept,) = (tmp_path / 'images').iterdir()
    content, rng = kept.read_bytes(), np.random.default_rng(0)
    # Headers of the archive and of its arrays lie at its ends and between the arrays.
    places = [
        *range(0, 200, 13),
        *range(len(content) - 400, len(content), 29),
        *rng.integers(0, len(content), 8),
    ]
    for place in places:
        kept.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        read, _ = cifar10.load(str(prepared))
        for name in whole:
            for a, b in zip(whole[name], read[name]):
                np.testing.assert_array_equal(a, b)
    np.savez(kept, **{f'{n}_{k}': a[:5] for n, split in whole.items() for k, a in split._asdict().items()})
    capsys.readouterr()
    assert len(cifar10.load(str(prepared))[0]['train'].labels) == 100
    assert 'train has 5 images, expected 100): decoding anew' in capsys.readouterr().err
