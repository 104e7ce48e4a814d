"""Operations against plain `lax` with autodiff and against loops, in float64; odd sizes too."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ghn_jax.base import backends
from ghn_jax.cnn import ops, reference_layers
from ghn_jax.cnn.batch_norm import batch_norm
from tests.cnn.comparison import QUICK

SIZES = [(8, 8), (7, 5), (2, 1)]


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def assert_same_with_gradients(f, expected, *inputs):
    """Values and gradients of a random weighting of the result."""

    @functools.partial(jax.jit, compiler_options=QUICK)
    def both(g, *inputs):
        y, pull = jax.vjp(f, *inputs)
        z, expected_pull = jax.vjp(expected, *inputs)
        return (y, *pull(g)), (z, *expected_pull(g))

    shape = jax.eval_shape(expected, *inputs).shape
    for a, b in zip(*both(draw(*shape, seed=9), *inputs), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


def lax_conv(x, w, stride, dilation=1, groups=1):
    padding = [((k - 1) * dilation // 2,) * 2 for k in w.shape[:2]]
    return lax.conv_general_dilated(
        x, w, stride, padding, rhs_dilation=(dilation, dilation), feature_group_count=groups,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )  # fmt: skip


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('kernel', [(1, 1), (3, 3), (5, 5), (7, 7), (1, 7), (7, 1)])
@pytest.mark.parametrize('stride', [1, 2])
def test_convolution_equals_lax(size, kernel, stride):
    strides = tuple(stride if k > 1 or kernel == (1, 1) else 1 for k in kernel)
    x, w = draw(2, *size, 3), draw(*kernel, 3, 4, seed=1)
    assert_same_with_gradients(
        lambda x, w: ops.conv(x, w, strides), lambda x, w: lax_conv(x, w, strides), x, w
    )


@pytest.mark.parametrize('size', SIZES[1:])
@pytest.mark.parametrize('stride', [1, 2])
def test_dilated_convolution_equals_lax(size, stride):
    x, w, strides = draw(2, *size, 3), draw(3, 5, 3, 4, seed=1), (stride, stride)
    assert_same_with_gradients(
        lambda x, w: ops.conv(x, w, strides, 2), lambda x, w: lax_conv(x, w, strides, 2), x, w
    )


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('k', [3, 5])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('dilation', [1, 2])
def test_depthwise_convolution_equals_lax(size, k, stride, dilation):
    x, w = draw(2, *size, 3), draw(k, k, 3, seed=1)
    assert_same_with_gradients(
        lambda x, w: ops.depthwise_conv(x, w, stride, dilation),
        lambda x, w: lax_conv(x, w[:, :, None], (stride, stride), dilation, groups=3),
        x, w,
    )  # fmt: skip


@pytest.mark.parametrize('other', ['gpu', 'tpu'])
def test_the_formulations_of_other_backends_give_the_same(other):
    x, w, depthwise = draw(2, 7, 6, 3), draw(5, 5, 3, 4, seed=1), draw(3, 3, 3, seed=2)
    here = ops.conv(x, w, (2, 2)), ops.depthwise_conv(x, depthwise, 2, 2)
    with backends.built_for(other):
        there = ops.conv(x, w, (2, 2)), ops.depthwise_conv(x, depthwise, 2, 2)
    for a, b in zip(here, there, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('stride', [1, 2])
def test_max_pool_equals_reduce_window(size, stride):
    def expected(x):
        padding = ((0, 0), (1, 1), (1, 1), (0, 0))
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, stride, stride, 1), padding)

    assert_same_with_gradients(lambda x: ops.max_pool(x, stride), expected, draw(2, *size, 3))


@pytest.mark.parametrize('stride', [1, 2])
def test_of_equal_maxima_the_first_in_row_major_order_takes_the_gradient(stride):
    x = np.random.default_rng(0).integers(0, 3, (2, 6, 5, 2)).astype('float64')  # ties everywhere
    y, pull = jax.vjp(lambda x: ops.max_pool(x, stride), jnp.asarray(x))
    g = np.asarray(draw(*y.shape, seed=1))
    expected = np.zeros_like(x)
    for n, i, j, c in np.ndindex(*y.shape):
        window = {
            (a, b): x[n, a, b, c]
            for a in range(stride * i - 1, stride * i + 2)
            for b in range(stride * j - 1, stride * j + 2)
            if 0 <= a < 6 and 0 <= b < 5
        }
        first = max(window, key=window.get)  # of equals the first, in the order of insertion
        assert y[n, i, j, c] == window[first]
        expected[n, *first, c] += g[n, i, j, c]
    np.testing.assert_allclose(pull(jnp.asarray(g))[0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('stride', [1, 2])
def test_average_pool_divides_by_the_pixels_inside(size, stride):
    def expected(x):
        window, padding = ((1, 3, 3, 1), (1, stride, stride, 1)), ((0, 0), (1, 1), (1, 1), (0, 0))
        total = lambda x: lax.reduce_window(x, 0.0, lax.add, *window, padding)
        return total(x) / total(jnp.ones_like(x))

    assert_same_with_gradients(lambda x: ops.avg_pool(x, stride), expected, draw(2, *size, 3))


def test_batch_norm_equals_its_definition():
    def expected(x, scale, shift):
        mean, variance = jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))
        return (x - mean) / jnp.sqrt(variance + 1e-5) * scale + shift

    x, scale, shift = 3 * draw(3, 5, 4, 6) + 2, draw(6, seed=1), draw(6, seed=2)
    assert_same_with_gradients(lambda *a: batch_norm(*a, jnp.float64(1)), expected, x, scale, shift)


def test_batch_norm_switched_off_scales_and_shifts():
    x, scale, shift = draw(3, 5, 4, 6), draw(6, seed=1), draw(6, seed=2)
    assert_same_with_gradients(
        lambda *a: batch_norm(*a, jnp.float64(0)), lambda x, s, b: x * s + b, x, scale, shift
    )
    ones, zeros = jnp.ones(6), jnp.zeros(6)
    np.testing.assert_array_equal(batch_norm(x, ones, zeros, jnp.float64(0)), x)  # to the last bit


def test_batch_norm_of_a_constant_channel_is_the_shift():
    x = jnp.full((2, 3, 3, 4), 1e6)
    y, pull = jax.vjp(lambda x: batch_norm(x, jnp.ones(4), jnp.full(4, 0.5), jnp.float64(1)), x)
    np.testing.assert_array_equal(y, np.full_like(x, 0.5))
    assert np.all(np.isfinite(pull(draw(*x.shape))[0]))


def test_relu_has_gradient_0_at_0():
    np.testing.assert_array_equal(jax.vmap(jax.grad(ops.relu))(jnp.array([-1.0, 0.0, 2.0])), [0, 0, 1])


@pytest.mark.parametrize('relu', [ops.relu, reference_layers.relu])
def test_relu_hides_nothing_that_is_no_number(relu):
    np.testing.assert_array_equal(relu(jnp.array([-jnp.inf, jnp.nan, jnp.inf])), [0, np.nan, np.inf])


def test_operations_keep_float32():
    x, w, depthwise = (draw(*shape).astype('float32') for shape in ((2, 6, 6, 3), (3, 3, 3, 4), (3, 3, 3)))
    results = [
        ops.conv(x, w),
        ops.depthwise_conv(x, depthwise),
        ops.max_pool(x),
        ops.avg_pool(x, 2),
        ops.relu(x),
    ]
    results.append(batch_norm(x, x[0, 0, 0], x[0, 0, 1], jnp.float32(1)))
    assert {y.dtype for y in results} == {jnp.dtype('float32')}
