"""CIFAR-10: what is prepared comes back pixel for pixel, and nothing else is taken for it."""

import hashlib
import os
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from ghn_jax.base.errors import UserError
from ghn_jax.datasets import cifar10
from ghn_jax.datasets import load as data

pytestmark = pytest.mark.usefixtures('small_and_not_kept')


def test_prepared_cifar10_comes_back_pixel_for_pixel(archive, tmp_path, capsys):
    path, md5, records = archive
    folder = cifar10.prepare(data_dir=str(tmp_path), archive=str(path), md5=md5)
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
    cifar10.prepare(data_dir=str(tmp_path), archive='no such file', md5=md5)
    assert 'already prepared' in capsys.readouterr().out
    assert data.load('cifar10', data_dir=str(tmp_path), image_size=16).train.images.shape[1:] == (16, 16, 3)


def test_decoded_images_are_kept_and_a_damaged_file_of_them_is_made_anew(
    archive, tmp_path, monkeypatch, capsys
):
    path, md5, _ = archive
    monkeypatch.setenv('GHN_JAX_CACHE', str(tmp_path / 'cache'))
    folder = cifar10.prepare(data_dir=str(tmp_path / 'd'), archive=str(path), md5=md5)
    load = lambda: data.load('cifar10', data_dir=str(tmp_path / 'd'))
    first = load()
    (kept,) = (tmp_path / 'cache' / 'images').iterdir()

    def same(d) -> None:
        for a, b in zip((first.train, first.val, first.test), (d.train, d.val, d.test)):
            np.testing.assert_array_equal(a.images, b.images)
            np.testing.assert_array_equal(a.labels, b.labels)

    with monkeypatch.context() as m:
        m.setattr(Image, 'open', None)  # nothing is decoded
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
    with pytest.raises(
        UserError, match=f'damaged or another file: it has the MD5 digest {md5}, expected {cifar10.MD5}'
    ):
        cifar10.prepare(data_dir=str(tmp_path), archive=str(path))
    with pytest.raises(UserError, match='no such file'):
        cifar10.prepare(data_dir=str(tmp_path), archive=str(tmp_path / 'x.tar.gz'))
    notes = tmp_path.with_suffix('.txt')
    notes.write_text('no archive')
    digest = hashlib.md5(notes.read_bytes()).hexdigest()
    with pytest.raises(UserError, match='is not the binary archive of CIFAR-10'):
        cifar10.prepare(data_dir=str(tmp_path), archive=str(notes), md5=digest)
    assert not [p for p in tmp_path.rglob('*') if p.is_file()]


def test_a_download_that_fails_is_one_clear_error_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, 'URL', (tmp_path / 'absent.tar.gz').as_uri())
    with pytest.raises(UserError, match='^archive: cannot download .* give the file'):
        cifar10.prepare(data_dir=str(tmp_path / 'd'))
    assert not [p for p in tmp_path.rglob('*') if p.is_file()]


def test_a_download_is_checked_before_it_is_used(archive, tmp_path, monkeypatch):
    path, md5, _ = archive
    monkeypatch.setattr(cifar10, 'URL', path.as_uri())
    with pytest.raises(UserError, match='digest'):
        cifar10.prepare(data_dir=str(tmp_path))
    assert not [p for p in tmp_path.rglob('*') if p.is_file()]
    cifar10.prepare(data_dir=str(tmp_path), md5=md5)
    assert len(data.load('cifar10', data_dir=str(tmp_path)).test.labels) == 20


@pytest.mark.slow
def test_the_prepared_cifar10_beside_the_repository_is_read_with_its_note(shared, monkeypatch):
    monkeypatch.setattr(cifar10, 'COUNTS', {'train': 50_000, 'test': 10_000})
    d = data.load('cifar10', data_dir=str(shared / 'tfds'))
    assert [len(s.labels) for s in (d.train, d.val, d.test)] == [45_000, 5_000, 10_000]
    assert 'JPEG' in d.note
    np.testing.assert_allclose(d.mean, [0.4914, 0.4822, 0.4465], atol=0.003)  # of the original images
