"""Images: every data set keeps its promises, and a batch is a function of (seed, step)."""

import dataclasses
import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghn_jax.base.errors import UserError
from ghn_jax.datasets.cifar10 import Split
from ghn_jax.datasets.load import _permutation, batch_indices, load


@pytest.mark.parametrize('name, size', [('digits', 16), ('digits', 32), ('synthetic', 32), ('synthetic', 8)])
def test_a_data_set_is_three_splits_of_uint8_images_and_int32_labels(name, size):
    d = load(name, image_size=size)
    for split in (d.train, d.val, d.test):
        n = len(split.labels)
        assert split.images.shape == (n, size, size, 3) and split.images.dtype == np.uint8
        assert split.labels.shape == (n,) and split.labels.dtype == np.int32
        assert set(split.labels) == set(range(d.num_classes))
    np.testing.assert_allclose(d.mean, (d.train.images / 255).mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(d.std, (d.train.images / 255).std((0, 1, 2)), atol=1e-6)


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_a_digest_tells_images_and_labels_from_others_and_is_the_same_for_the_same(split):
    d, again = (load('digits', image_size=8) for _ in range(2))
    images, labels = getattr(d, split)
    pixel = images.copy()
    pixel[-1, -1, -1, -1] ^= 1
    swapped = labels.copy()
    swapped[[0, np.argmax(labels != labels[0])]] = swapped[[np.argmax(labels != labels[0]), 0]]
    changed = [Split(pixel, labels), Split(images, swapped), Split(images[:-1], labels[:-1])]
    others = [dataclasses.replace(d, **{split: other}) for other in changed] + [
        dataclasses.replace(d, flip=True)
    ]
    assert d.digest == again.digest
    assert len({d.digest, *(other.digest for other in others)}) == 5


def test_digits_are_split_the_same_whatever_the_seed_and_no_image_is_in_two_splits():
    a, b = load('digits', seed=0, image_size=8), load('digits', seed=1, image_size=8)
    assert [len(s.labels) for s in (a.train, a.val, a.test)] == [1197, 300, 300]
    for x, y in zip((a.train, a.val, a.test), (b.train, b.val, b.test)):
        np.testing.assert_array_equal(x.images, y.images)
    seen = [{x.tobytes() for x in s.images} for s in (a.train, a.val, a.test)]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    assert not a.flip  # a mirrored digit is another sign


def test_synthetic_images_follow_the_seed_and_a_nearest_mean_classifier_learns_them():
    d, again, other = (load('synthetic', image_size=16, seed=s) for s in (3, 3, 4))
    np.testing.assert_array_equal(d.train.images, again.train.images)
    assert (d.train.images != other.train.images).any()
    means = np.stack([d.train.images[d.train.labels == c].mean(0) for c in range(10)])
    nearest = ((d.test.images[:, None] - means) ** 2).sum((2, 3, 4)).argmin(1)
    assert (nearest == d.test.labels).mean() > 0.95


def test_digits_are_as_bright_as_a_byte_can_say():
    images = load('digits', image_size=8).train.images
    # scikit-learn's are 0 to 16: a full one is white.
    values = [0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255]
    assert np.unique(images).tolist() == values
    assert (images == images[..., :1]).all()


def test_synthetic_images_are_patterns_under_noise_and_always_the_same():
    d = load('synthetic', image_size=8)
    means = np.stack([d.train.images[d.train.labels == c].mean(0) for c in range(10)])
    inside = (means > 90) & (means < 165)  # what is not cut off at 0 and 255
    residuals = d.train.images - means[d.train.labels]
    assert residuals[inside[d.train.labels]].std() == pytest.approx(32, rel=0.02)
    assert 40 < means.min() < 70 and 185 < means.max() < 215
    digest = hashlib.sha256(b''.join(a.tobytes() for s in (d.train, d.val, d.test) for a in s))
    assert digest.hexdigest()[:16] == 'a015d6698d7b87e4'


def test_unknown_names_absent_data_and_impossible_sizes_are_one_clear_error_each(tmp_path):
    with pytest.raises(UserError, match="'mnist' is not one of cifar10, digits, synthetic"):
        load('mnist')
    with pytest.raises(UserError, match='image_size=4: expected 8 to 1,024'):
        load('digits', image_size=4)
    with pytest.raises(UserError, match='image_size=1000000: expected 8 to 1,024'):
        load('digits', image_size=10**6)
    with pytest.raises(UserError, match="image_size='8': expected 8 to 1,024"):
        load('digits', image_size='8')  # type: ignore[arg-type]
    for seed in (-1, 'a', 1.5):
        with pytest.raises(UserError, match='seed=.*: expected an integer from 0'):
            load('synthetic', image_size=8, seed=seed)  # type: ignore[arg-type]
    with pytest.raises(UserError, match='is not one of cifar10, digits'):
        load(['digits'])  # type: ignore[arg-type]
    data = load('digits', image_size=8)
    assert len(data.normalized('val', 0)) == 0 and len(data.normalized('val', 1000)) == 300
    for count in (-1, 2.0, '3'):
        with pytest.raises(UserError, match='count=.*: expected a number of images'):
            data.normalized('val', count)  # type: ignore[arg-type]
    with pytest.raises(UserError, match='not prepared .* data_dir.*--prepare=cifar10'):
        load('cifar10', data_dir=str(tmp_path))
    assert not list(tmp_path.iterdir())


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 3))
def test_each_epoch_of_the_stream_holds_every_image_once(n, batch, seed):
    steps = -(-3 * n // batch)
    stream = np.concatenate([batch_indices(seed, s, batch, n) for s in range(steps)])
    assert stream.dtype == np.int32
    for epoch in range(3):
        assert sorted(stream[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_a_batch_depends_on_seed_and_step_alone():
    a = [batch_indices(0, s, 8, 100) for s in range(40)]
    _permutation.cache_clear()
    for s in (39, 0, 17):
        np.testing.assert_array_equal(batch_indices(0, s, 8, 100), a[s])
    assert (batch_indices(1, 0, 8, 100) != a[0]).any()
    assert (np.concatenate(a[:12]) != np.concatenate(a[25:37])).any()  # another order in another epoch


def test_no_seed_has_the_order_of_another_seeds_other_epoch():
    orders = {tuple(batch_indices(seed, epoch, 50, 50)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16
