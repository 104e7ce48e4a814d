"""Images: every data set keeps its promises, and a batch is a function of (seed, step)."""

import hashlib
import io
import os
import pathlib
import tarfile
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghn_jax import data
from ghn_jax.errors import UserError


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    """The user's cache is not for the images of tests."""
    monkeypatch.setenv('GHN_JAX_CACHE', '')


@pytest.fixture(scope='session')
def archive(tmp_path_factory) -> tuple[pathlib.Path, str, np.ndarray]:
    """A CIFAR-10 archive of 6 x 20 random images, its digest, and the records [6, 20, 3073]."""
    records = np.random.default_rng(0).integers(0, 256, (6, 20, 3073), dtype=np.uint8)
    records[:, :, 0] %= 10
    names = 'airplane automobile bird cat deer dog frog horse ship truck'.split()
    files = {f'data_batch_{i + 1}.bin': records[i].tobytes() for i in range(5)}
    files |= {'test_batch.bin': records[5].tobytes(), 'batches.meta.txt': '\n'.join(names).encode() + b'\n\n'}
    path = tmp_path_factory.mktemp('cifar') / 'cifar-10-binary.tar.gz'
    with tarfile.open(path, 'w:gz') as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f'cifar-10-batches-bin/{name}')
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path, hashlib.md5(path.read_bytes()).hexdigest(), records


@pytest.mark.parametrize('name, size', [('digits', 16), ('digits', 32), ('synthetic', 32), ('synthetic', 8)])
def test_a_data_set_is_three_splits_of_uint8_images_and_int32_labels(name, size):
    d = data.load(name, image_size=size)
    for split in (d.train, d.val, d.test):
        n = len(split.labels)
        assert split.images.shape == (n, size, size, 3) and split.images.dtype == np.uint8
        assert split.labels.shape == (n,) and split.labels.dtype == np.int32
        assert set(split.labels) == set(range(d.num_classes))
    np.testing.assert_allclose(d.mean, (d.train.images / 255).mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(d.std, (d.train.images / 255).std((0, 1, 2)), atol=1e-6)


def test_digits_are_split_the_same_whatever_the_seed_and_no_image_is_in_two_splits():
    a, b = data.load('digits', seed=0, image_size=8), data.load('digits', seed=1, image_size=8)
    assert [len(s.labels) for s in (a.train, a.val, a.test)] == [1197, 300, 300]
    for x, y in zip((a.train, a.val, a.test), (b.train, b.val, b.test)):
        np.testing.assert_array_equal(x.images, y.images)
    seen = [{x.tobytes() for x in s.images} for s in (a.train, a.val, a.test)]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    assert not a.flip  # a mirrored digit is another sign


def test_synthetic_images_follow_the_seed_and_a_nearest_mean_classifier_learns_them():
    d, again, other = (data.load('synthetic', image_size=16, seed=s) for s in (3, 3, 4))
    np.testing.assert_array_equal(d.train.images, again.train.images)
    assert (d.train.images != other.train.images).any()
    means = np.stack([d.train.images[d.train.labels == c].mean(0) for c in range(10)])
    nearest = ((d.test.images[:, None] - means) ** 2).sum((2, 3, 4)).argmin(1)
    assert (nearest == d.test.labels).mean() > 0.95


def test_unknown_names_absent_data_and_impossible_sizes_are_one_clear_error_each(tmp_path):
    with pytest.raises(UserError, match="'mnist' is not one of cifar10, digits, synthetic"):
        data.load('mnist')
    with pytest.raises(UserError, match='image_size=4: expected at least 8'):
        data.load('digits', image_size=4)
    with pytest.raises(UserError, match='not prepared .* data_dir.*--prepare=cifar10'):
        data.load('cifar10', data_dir=str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_prepared_cifar10_comes_back_pixel_for_pixel(archive, tmp_path, capsys):
    path, md5, records = archive
    folder = data.prepare_cifar10(data_dir=str(tmp_path), archive=str(path), md5=md5)
    assert [p.name for p in tmp_path.iterdir()] == ['cifar10'] and folder.is_relative_to(tmp_path / 'cifar10')
    d = data.load('cifar10', data_dir=str(tmp_path))
    assert [len(s.labels) for s in (d.train, d.val, d.test)] == [90, 10, 20]
    assert d.flip and d.note == ''

    def as_set(images, labels):
        return {(image.tobytes(), int(label)) for image, label in zip(images, labels)}

    def of_records(r):
        r = r.reshape(-1, 3073)
        return as_set(np.ascontiguousarray(r[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), r[:, 0])

    assert as_set(*d.train) | as_set(*d.val) == of_records(records[:5])
    assert as_set(*d.test) == of_records(records[5])
    data.prepare_cifar10(data_dir=str(tmp_path), archive='no such file', md5=md5)
    assert 'already prepared' in capsys.readouterr().out
    assert data.load('cifar10', data_dir=str(tmp_path), image_size=16).train.images.shape[1:] == (16, 16, 3)


def test_decoded_images_are_kept_and_a_damaged_file_of_them_is_made_anew(
    archive, tmp_path, monkeypatch, capsys
):
    path, md5, _ = archive
    monkeypatch.setenv('GHN_JAX_CACHE', str(tmp_path / 'cache'))
    folder = data.prepare_cifar10(data_dir=str(tmp_path / 'd'), archive=str(path), md5=md5)
    load = lambda: data.load('cifar10', data_dir=str(tmp_path / 'd'))
    first = load()
    (kept,) = (tmp_path / 'cache' / 'images').iterdir()

    def same(d) -> None:
        for a, b in zip((first.train, first.val, first.test), (d.train, d.val, d.test)):
            np.testing.assert_array_equal(a.images, b.images)
            np.testing.assert_array_equal(a.labels, b.labels)

    with monkeypatch.context() as m:
        m.setattr(data.Image, 'open', None)  # nothing is decoded
        same(load())
    whole = kept.read_bytes()
    for damaged in (b'', whole[: len(whole) // 2], b'PK' + whole[2:1000], whole[:200] + b'?' + whole[201:]):
        kept.write_bytes(damaged)
        same(load())
    assert 'decoding anew' in capsys.readouterr().err and kept.read_bytes() == whole
    kept.write_bytes(whole[:1000])
    with monkeypatch.context() as m:
        m.setattr(os, 'replace', mock.Mock(side_effect=OSError(28, 'No space left on device')))
        same(load())
    assert 'are not kept' in capsys.readouterr().err and not list(kept.parent.iterdir())
    load()
    # Other files in the same place are other images.
    record = next(f for f in folder.iterdir() if 'train' in f.name)
    os.utime(record, ns=(0, 0))
    load()
    assert len(list(kept.parent.iterdir())) == 2


def test_a_wrong_or_absent_archive_is_refused_and_nothing_is_written(archive, tmp_path):
    path, md5, _ = archive
    with pytest.raises(UserError, match=f'digest {md5}, expected {data.CIFAR10_MD5}'):
        data.prepare_cifar10(data_dir=str(tmp_path), archive=str(path))
    with pytest.raises(UserError, match='no such file'):
        data.prepare_cifar10(data_dir=str(tmp_path), archive=str(tmp_path / 'x.tar.gz'))
    notes = tmp_path.with_suffix('.txt')
    notes.write_text('no archive')
    digest = hashlib.md5(notes.read_bytes()).hexdigest()
    with pytest.raises(UserError, match='is not the binary archive of CIFAR-10'):
        data.prepare_cifar10(data_dir=str(tmp_path), archive=str(notes), md5=digest)
    assert not [p for p in tmp_path.rglob('*') if p.is_file()]


def test_a_download_that_fails_is_one_clear_error_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(data, 'CIFAR10_URL', (tmp_path / 'absent.tar.gz').as_uri())
    with pytest.raises(UserError, match='cannot download .* --archive=FILE'):
        data.prepare_cifar10(data_dir=str(tmp_path / 'd'))
    assert not [p for p in tmp_path.rglob('*') if p.is_file()]


def test_a_download_is_checked_before_it_is_used(archive, tmp_path, monkeypatch):
    path, md5, _ = archive
    monkeypatch.setattr(data, 'CIFAR10_URL', path.as_uri())
    with pytest.raises(UserError, match='digest'):
        data.prepare_cifar10(data_dir=str(tmp_path))
    assert not [p for p in tmp_path.rglob('*') if p.is_file()]
    data.prepare_cifar10(data_dir=str(tmp_path), md5=md5)
    assert len(data.load('cifar10', data_dir=str(tmp_path)).test.labels) == 20


@pytest.mark.slow
def test_the_prepared_cifar10_beside_the_repository_is_read_with_its_note(shared):
    d = data.load('cifar10', data_dir=str(shared / 'tfds'))
    assert [len(s.labels) for s in (d.train, d.val, d.test)] == [45_000, 5_000, 10_000]
    assert 'JPEG' in d.note
    np.testing.assert_allclose(d.mean, [0.4914, 0.4822, 0.4465], atol=0.003)  # of the original images


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 3))
def test_each_epoch_of_the_stream_holds_every_image_once(n, batch, seed):
    steps = -(-3 * n // batch)
    stream = np.concatenate([data.batch_indices(seed, s, batch, n) for s in range(steps)])
    assert stream.dtype == np.int32
    for epoch in range(3):
        assert sorted(stream[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_a_batch_depends_on_seed_and_step_alone():
    a = [data.batch_indices(0, s, 8, 100) for s in range(40)]
    data._permutation.cache_clear()
    for s in (39, 0, 17):
        np.testing.assert_array_equal(data.batch_indices(0, s, 8, 100), a[s])
    assert (data.batch_indices(1, 0, 8, 100) != a[0]).any()
    assert (np.concatenate(a[:12]) != np.concatenate(a[25:37])).any()  # another order in another epoch


def test_every_augmented_image_is_a_crop_of_the_padded_one_or_its_mirror():
    images = np.random.default_rng(0).integers(1, 256, (64, 6, 6, 3), dtype=np.uint8)
    out = np.asarray(jax.jit(lambda k, x: data.augment(k, x, pad=2))(jax.random.key(0), images))
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    seen = set()
    for x, y in zip(padded, out):
        places = [
            (i, j, flip)
            for i in range(5)
            for j in range(5)
            for flip in (False, True)
            if np.array_equal(y, x[i : i + 6, j : j + 6][:, :: -1 if flip else 1])
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert {f for _, _, f in seen} == {False, True}
    assert {i for i, _, _ in seen} == {j for _, j, _ in seen} == set(range(5))


def test_without_flip_and_padding_augmentation_is_the_identity():
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), dtype=np.uint8))
    np.testing.assert_array_equal(data.augment(jax.random.key(0), images, pad=0, flip=False), images)


def test_normalized_training_images_have_mean_0_and_deviation_1():
    d = data.load('synthetic', image_size=8)
    x = np.asarray(data.normalize(jnp.asarray(d.train.images), d.mean, d.std))
    assert x.dtype == np.float32
    np.testing.assert_allclose(x.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(x.std((0, 1, 2)), 1, atol=1e-4)
    assert data.normalize(jnp.asarray(d.train.images[:2]), d.mean, d.std, jnp.bfloat16).dtype == jnp.bfloat16
