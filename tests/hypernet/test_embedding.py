import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghn_jax.hypernet.embedding import embed_nodes, init_embedding, shape_indices, vocabulary

pytestmark = pytest.mark.usefixtures('quick_reference')

SIZES = vocabulary()
CHANNELS, SPATIAL = SIZES


def rows(out, inputs, height, width, sizes=SIZES):
    return tuple(int(i) for i in shape_indices(jnp.array([out, inputs, height, width], jnp.int32), sizes))


def tables():
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_embedding(jax.random.key(0), 8, SIZES))
    return {name: jnp.asarray(rng.normal(size=shape.shape)) for name, shape in shapes.items()}


def test_vocabularies_are_the_published_ones():
    assert len(CHANNELS) == 391 and len(SPATIAL) == 8
    assert CHANNELS[:5].tolist() == [1, 3, 8, 10, 16] and CHANNELS[-2:].tolist() == [8160, 8192]
    assert (np.diff(CHANNELS) > 0).all()


def test_the_number_of_classes_and_the_largest_kernel_have_rows_of_their_own():
    sizes = vocabulary(num_classes=1000, window=16)
    assert (len(sizes.channels), sizes.kernels.tolist()) == (391, [1, 3, 5, 7, 9, 11, 13, 14, 15, 16])
    assert sizes.channels[rows(1000, 10, 13, 2, sizes)[0]] == 1000 and 10 not in sizes.channels
    assert rows(1000, 10, 13, 2, sizes)[1:] == (2, 6, 1)  # 10 counts as 8, a kernel of 2 as 3
    assert len(vocabulary(num_classes=64).channels) == 390 == len(vocabulary(num_classes=5).channels) - 1
    assert vocabulary(5).channels[rows(5, 1, 1, 1, vocabulary(5))[0]] == 8  # as published


@pytest.mark.parametrize('size', [*CHANNELS[:12], *CHANNELS[-3:]])
def test_known_channels_are_found(size):
    assert CHANNELS[rows(size, size, 1, 1)[0]] == CHANNELS[rows(size, size, 1, 1)[1]] == size


@pytest.mark.parametrize(
    ('size', 'nearest'),
    [(2, 1), (4, 8), (5, 8), (6, 8), (7, 8), (9, 8), (11, 10), (13, 10), (14, 16), (20, 16), (21, 24),
     (60, 56), (72, 64), (73, 80), (4088, 4080), (4089, 4096),
     (8176, 8160), (8191, 8192), (9000, 8192), (10**6, 8192)],
)  # fmt: skip
def test_unknown_channels_take_the_nearest_entry_and_ties_the_smaller(size, nearest):
    assert CHANNELS[rows(size, 1, 1, 1)[0]] == nearest
    assert CHANNELS[rows(1, size, 1, 1)[1]] == nearest


@pytest.mark.parametrize(
    ('size', 'nearest'),
    [(1, 1), (2, 3), (3, 3), (4, 3), (6, 5), (8, 7), (10, 9), (12, 11), (13, 14), (15, 14), (40, 16)]
)  # fmt: skip
def test_unknown_kernel_sizes_take_the_nearest_entry(size, nearest):
    assert SPATIAL[rows(1, 1, size, 1)[2]] == nearest
    assert SPATIAL[rows(1, 1, 1, size)[3]] == nearest


def test_a_node_without_tensor_has_rows_of_its_own():
    assert rows(0, 0, 0, 0) == (391, 391, 8, 8)


def test_features_are_the_primitive_plus_the_four_sizes_in_order():
    params = tables()
    features = embed_nodes(params, jnp.array([4]), jnp.array([[16, 3, 5, 7]]), SIZES)[0]
    channel, spatial = params['channel'], params['spatial']
    expected = params['primitive'][4] + jnp.concatenate([channel[4], channel[1], spatial[2], spatial[3]])
    np.testing.assert_allclose(features, expected, rtol=1e-6)


def test_gradient_of_the_tables_is_that_of_indexing():
    with jax.enable_x64(True):
        params = tables()
        rng = np.random.default_rng(0)
        primitive, shape = rng.integers(0, 15, (2, 9)), rng.integers(0, 80, (2, 9, 4))
        weight = rng.normal(size=(2, 9, 8))

        def plain(p):
            r = shape_indices(jnp.asarray(shape), SIZES)
            sizes = [
                p['channel'][r[..., 0]],
                p['channel'][r[..., 1]],
                p['spatial'][r[..., 2]],
                p['spatial'][r[..., 3]],
            ]
            return jnp.sum(weight * (p['primitive'][primitive] + jnp.concatenate(sizes, -1)))

        ours = jax.grad(
            lambda p: jnp.sum(weight * embed_nodes(p, jnp.asarray(primitive), jnp.asarray(shape), SIZES))
        )(params)
        for name, gradient in jax.grad(plain)(params).items():
            np.testing.assert_allclose(ours[name], gradient, rtol=1e-12, atol=1e-12)
