"""A small CIFAR-10 archive."""

import hashlib
import io
import pathlib
import tarfile

import numpy as np
import pytest

from ghn_jax.datasets import cifar10


@pytest.fixture
def small_and_not_kept(monkeypatch):
    """Archives of tests are small, and the user's cache is not for their images."""
    monkeypatch.setenv('GHN_JAX_CACHE', '')
    monkeypatch.setattr(cifar10, 'COUNTS', {'train': 100, 'test': 20})


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
