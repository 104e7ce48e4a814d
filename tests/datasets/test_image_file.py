"""Images of one's own in a file: they are what was written; whatever else a file has is one clear error."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghn_jax import config
from ghn_jax.base.errors import UserError
from ghn_jax.datasets.load import load, read_sizes
from ghn_jax.runs.task import sizes_of
from tests.small_run import small_config


def arrays(n=40, size=8, classes=3, colours=(3,), **changes):
    """What a file has: images of `size` pixels, the first ones of every class."""
    rng = np.random.default_rng(0)

    def images(count):
        return rng.integers(0, 256, (count, size, size, *colours), np.uint8)

    labels = np.arange(n) % classes
    made = {'train_images': images(n), 'train_labels': np.sort(labels)}
    made |= {'test_images': images(5), 'test_labels': np.arange(5) % classes}
    return {name: array for name, array in (made | changes).items() if array is not None}


@pytest.fixture
def write(tmp_path):
    def written(name='own.npz', compressed=False, **contents):
        (np.savez_compressed if compressed else np.savez)(tmp_path / name, **contents)
        return str(tmp_path / name)

    return written


def test_images_and_labels_are_those_of_the_file(write):
    rng = np.random.default_rng(1)
    val = {'val_images': rng.integers(0, 256, (7, 8, 8, 3), np.uint8), 'val_labels': np.arange(7) % 3}
    contents = arrays(**val)
    for compressed in (False, True):
        data = load(write(compressed=compressed, **contents), image_size=8)
        for split in ('train', 'val', 'test'):
            images, labels = getattr(data, split)
            np.testing.assert_array_equal(images, contents[f'{split}_images'])
            np.testing.assert_array_equal(labels, contents[f'{split}_labels'])
            assert labels.dtype == np.int32
        assert (data.name, data.num_classes, data.flip) == ('own.npz', 3, False)
    np.testing.assert_allclose(data.mean, (data.train.images / 255).mean((0, 1, 2)), atol=1e-6)
    assert load(write(flip=True, **contents), image_size=8).flip
    assert load(write(**contents), image_size=16).train.images.shape == (40, 16, 16, 3)


@pytest.mark.parametrize('colours', [(), (1,)])
def test_grey_images_have_three_equal_colours(colours, write):
    contents = arrays(colours=colours)
    images = load(write(**contents), image_size=8).test.images
    np.testing.assert_array_equal(images, np.stack([contents['test_images'].reshape(5, 8, 8)] * 3, -1))


@settings(deadline=None, max_examples=20)
@given(n=st.integers(2, 60))
def test_without_validation_images_a_tenth_of_the_others_are_put_aside(n, tmp_path_factory):
    contents = arrays(n=n, classes=2, train_images=np.arange(n * 64, dtype=np.uint64).reshape(n, 8, 8) % 251)
    contents['train_images'] = contents['train_images'].astype(np.uint8)
    contents['train_images'][:, 0, 0] = np.arange(n)  # each is another one
    file = tmp_path_factory.mktemp('file') / 'own.npz'
    np.savez(file, **contents)
    a, b = (load(str(file), image_size=8) for _ in range(2))
    assert len(a.val.labels) == max(1, n // 10) and len(a.train.labels) == n - len(a.val.labels)
    np.testing.assert_array_equal(a.val.images, b.val.images)
    for images, labels in (a.train, a.val):
        places = images[:, 0, 0, 0]
        np.testing.assert_array_equal(labels, contents['train_labels'][places])
    both = np.concatenate([a.train.images[:, 0, 0, 0], a.val.images[:, 0, 0, 0]])
    assert sorted(both) == list(range(n))


def test_images_put_aside_are_of_all_classes_though_the_file_is_sorted(write):
    data = load(write(**arrays(n=300)), image_size=8)
    assert set(data.val.labels) == set(data.train.labels) == {0, 1, 2}


def test_sizes_are_known_without_the_images(write):
    for contents in (
        arrays(),
        arrays(val_images=arrays()['test_images'], val_labels=arrays()['test_labels']),
    ):
        file = write(flip=True, **contents)
        data = load(file, image_size=8)
        counts = (len(split.labels) for split in (data.train, data.val, data.test))
        assert read_sizes(file) == (*counts, data.num_classes, data.flip)


def test_a_folder_of_data_takes_the_place_of_that_of_the_file(write, tmp_path):
    file = write(**arrays())
    assert load('elsewhere/own.npz', data_dir=str(tmp_path), image_size=8).name == 'own.npz'
    assert read_sizes('own.npz', data_dir=str(tmp_path)) == read_sizes(file)
    with pytest.raises(UserError, match=r'dataset=own\.npz cannot be read \(No such file'):
        load('own.npz')


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'train_labels': None}, 'no train_labels: expected train_images, train_labels, test_images'),
        ({'val_labels': np.arange(3)}, 'one of val_images and val_labels: expected both or none'),
        ({'labels': np.arange(3)}, "an array 'labels': expected only train_images"),
        ({'test_images': np.zeros((5, 8, 8, 3))}, r'test_images of float64 \[5, 8, 8, 3\]: expected uint8'),
        ({'test_images': np.zeros((5, 8, 9, 3), np.uint8)}, r'test_images of uint8 \[5, 8, 9, 3\]'),
        ({'test_images': np.zeros((5, 8, 8, 4), np.uint8)}, r'test_images of uint8 \[5, 8, 8, 4\]'),
        ({'test_images': np.zeros((5, 64), np.uint8)}, r'test_images of uint8 \[5, 64\]'),
        ({'test_images': np.zeros((6, 8, 8), np.uint8)}, '6 test_images and 5 test_labels: expected as many'),
        ({'test_images': np.zeros((5, 16, 16), np.uint8)}, 'images of several sizes'),
        ({'train_images': np.zeros((40, 8, 8), np.uint8)}, 'train_images with the same value in every pixel'),
        ({'test_labels': np.zeros(5)}, r'test_labels of float64 \[5\]: expected one integer for each image'),
        ({'test_labels': np.zeros((5, 1), int)}, r'test_labels of int64 \[5, 1\]'),
        ({'test_labels': np.array([0, 1, 2, 3, 0])}, 'test_labels with 3: expected 0 to 2, as in train'),
        ({'test_labels': np.array([0, 1, 2, -1, 0])}, 'test_labels with -1: expected classes from 0'),
        (
            {'train_labels': np.arange(40) + 2**32},
            r'train_labels with 4294967335: expected classes below 1,000',
        ),
        ({'test_labels': np.full(5, 2**32)}, 'test_labels with 4294967296: expected classes below'),
        ({'train_labels': np.zeros(0, int)}, r'train_labels of int64 \[0\]'),
        ({'flip': np.array([True])}, r'flip of bool \[1\]: expected True or False'),
        ({'flip': 1}, r'flip of int64 \[\]: expected True or False'),
        ({'train_labels': np.array([{}] * 40)}, r'cannot be read \(Object arrays cannot be loaded'),
    ],
)
def test_what_no_data_set_has_is_one_clear_error(changes, message, write):
    with pytest.raises(UserError, match=message) as found:
        load(write(**arrays(**changes)), image_size=8)
    assert '\n' not in str(found.value) and str(found.value).startswith('dataset=')


def test_a_file_of_something_else_is_one_clear_error(tmp_path, write):
    whole = open(write(**arrays()), 'rb').read()
    np.save(tmp_path / 'array.npy', np.zeros(3))
    array = (tmp_path / 'array.npy').read_bytes()
    file = tmp_path / 'own.npz'
    for contents in (b'', b'text', whole[: len(whole) // 2], whole[:-10], array):
        file.write_bytes(contents)
        with pytest.raises(
            UserError, match=r'own\.npz cannot be read \(.*\): expected a file of numpy.savez'
        ):
            load(str(file))
    file.unlink()
    file.mkdir()
    with pytest.raises(UserError, match='cannot be read'):
        load(str(file))


def test_networks_have_the_classes_of_the_data(write):
    c = config.replace(config.freeze(small_config()), 'dataset', write(**arrays()))
    with pytest.raises(UserError, match=r'space\.num_classes=10: .*own\.npz has 3 classes; give these'):
        sizes_of(c)
    assert sizes_of(config.replace(c, 'space.num_classes', 3)).num_classes == 3
