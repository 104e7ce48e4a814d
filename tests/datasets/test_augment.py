"""What a batch goes through on the device: crops, mirror images, normalisation."""

import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax.datasets.augment import crop_and_flip, halved_to, normalize
from ghn_jax.datasets.load import load


def test_every_augmented_image_is_a_crop_of_the_padded_one_or_its_mirror():
    images = np.random.default_rng(0).integers(1, 256, (64, 6, 6, 3), dtype=np.uint8)
    out = np.asarray(jax.jit(lambda k, x: crop_and_flip(k, x, pad=2))(jax.random.key(0), images))
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
    np.testing.assert_array_equal(crop_and_flip(jax.random.key(0), images, pad=0, flip=False), images)


def test_halved_images_are_means_of_squares_and_those_of_the_right_size_stay():
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    assert halved_to(16, images) is images
    small = halved_to(4, images)
    assert small.shape == (2, 4, 4, 3)
    np.testing.assert_allclose(small[1, 2, 3], images[1, 8:12, 12:].mean((0, 1)), atol=1e-6)


def test_normalized_training_images_have_mean_0_and_deviation_1():
    d = load('synthetic', image_size=8)
    x = np.asarray(normalize(jnp.asarray(d.train.images), d.mean, d.std))
    assert x.dtype == np.float32
    np.testing.assert_allclose(x.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(x.std((0, 1, 2)), 1, atol=1e-4)
    assert normalize(jnp.asarray(d.train.images[:2]), d.mean, d.std, jnp.bfloat16).dtype == jnp.bfloat16
