"""Operations of the reference: loops over pixels and windows give the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghn_jax.cnn import reference
from ghn_jax.quant.scheme import QAT
from tests.cnn.networks import small_network

NETWORK = small_network([('conv_3x3', 0), ('skip_connect', 1)], n_cells=1)


def windows(x, stride):
    """Of a padded 3x3 pool: output row, output column, what the window sees, its top left corner."""
    h, w = x.shape[1:3]
    for i in range(0, h, stride):
        for j in range(0, w, stride):
            top, left = max(i - 1, 0), max(j - 1, 0)
            yield i // stride, j // stride, x[:, top : i + 2, left : j + 2], (top, left)


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('size', [4, 5])
def test_pools_equal_loops_over_windows(stride, size):
    x = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype('float32') - 5  # zeros would win
    biggest, mean = reference.max_pool(x, stride), reference.avg_pool(x, stride)
    assert biggest.shape == mean.shape == (2, -(-size // stride), -(-size // stride), 3)
    for i, j, window, _ in windows(x, stride):
        np.testing.assert_array_equal(biggest[:, i, j], window.max((1, 2)))
        np.testing.assert_allclose(mean[:, i, j], window.mean((1, 2)), rtol=1e-5)


@pytest.mark.parametrize('stride', [1, 2])
def test_of_tied_maxima_the_first_row_major_takes_the_whole_gradient(stride):
    r = np.random.default_rng(1)
    x = r.integers(0, 3, size=(2, 6, 6, 2)).astype('float32')
    y, pull = jax.vjp(lambda x: reference.max_pool(x, stride), x)
    g = r.normal(size=y.shape).astype('float32')
    expected = np.zeros_like(x)
    for i, j, window, (top, left) in windows(x, stride):
        for n in range(2):
            for c in range(2):
                row, column = divmod(int(np.argmax(window[n, :, :, c])), window.shape[2])
                expected[n, top + row, left + column, c] += g[n, i, j, c]
    np.testing.assert_allclose(pull(g)[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('kernel, groups, stride, dilation', [
    ((3, 3), 1, (2, 2), 1),
    ((1, 7), 1, (1, 2), 1),
    ((7, 1), 1, (2, 1), 1),
    ((5, 5), 4, (2, 2), 1),
    ((3, 3), 4, (1, 1), 2),
    ((5, 5), 4, (2, 2), 2),
])  # fmt: skip
def test_convolutions_equal_loops_over_pixels(kernel, groups, stride, dilation):
    r = np.random.default_rng(2)
    x, w = r.normal(size=(2, 6, 6, 4)), r.normal(size=(4, 4 // groups, *kernel))
    padding = tuple(k // 2 * dilation for k in kernel)
    layers = reference.Layers({'a.weight': w.astype('float32')}, None, QAT, NETWORK)
    y = layers.conv('a', x.astype('float32'), stride=stride, padding=padding, dilation=dilation)
    assert y.shape == (2, 6 // stride[0], 6 // stride[1], 4)
    for i in range(y.shape[1]):
        for j in range(y.shape[2]):
            total = np.zeros((2, 4))
            for a in range(kernel[0]):
                for b in range(kernel[1]):
                    row = i * stride[0] + a * dilation - padding[0]
                    column = j * stride[1] + b * dilation - padding[1]
                    if 0 <= row < 6 and 0 <= column < 6:
                        pixel, tap = x[:, row, column], w[:, :, a, b]
                        total += pixel * tap[:, 0] if groups == 4 else pixel @ tap.T
            np.testing.assert_allclose(y[:, i, j], total, rtol=1e-4, atol=1e-4)


def test_factorized_reduce_reads_even_pixels_into_its_first_half_and_odd_ones_into_its_second():
    unnormed = dataclasses.replace(NETWORK, norm=None)
    params = {'a.conv_1.weight': np.ones((1, 1, 1, 1)), 'a.conv_2.weight': np.ones((1, 1, 1, 1))}
    layers = reference.Layers({k: v.astype('float32') for k, v in params.items()}, None, QAT, unnormed)
    x = np.arange(16, dtype='float32').reshape(1, 4, 4, 1)
    y = reference._factorized_reduce(layers, 'a', x)
    np.testing.assert_array_equal(y[..., 0], x[:, ::2, ::2, 0])
    np.testing.assert_array_equal(y[..., 1], x[:, 1::2, 1::2, 0])


def test_relu_has_gradient_0_at_0():
    np.testing.assert_array_equal(jax.vmap(jax.grad(reference.relu))(jnp.array([-1.0, 0.0, 2.0])), [0, 0, 1])
