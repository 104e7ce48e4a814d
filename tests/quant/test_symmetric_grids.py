"""Symmetric grids, signs, ranges by standard deviation, and the mirror image of an activation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ghn_jax.quant import Scheme, fake_quantize, min_max, oracle
from ghn_jax.quant.activations import clip_range, quantize_activation
from ghn_jax.quant.ranges import ONE_SIDED, TWO_SIDED, power
from tests.quant.grids import BITS, TENSORS, activation, values_and_gradient


def slow_signs(x):
    """1 bit: signs where there are both, else {0, hi} or {lo, 0}."""
    lo, hi = min(x.min(), 0), max(x.max(), 0)
    if lo < 0 < hi:
        return [float(np.sign(v)) * max(-lo, hi) / 2 for v in x]
    return [hi if v > hi / 2 else lo if v < lo / 2 else 0.0 for v in x]


@pytest.mark.parametrize('tensor', ['two-sided', 'positive', 'negative', 'rectified'])
def test_one_bit_is_two_levels_with_gradient_one(tensor):
    with jax.enable_x64(True):
        x = TENSORS[tensor](np.random.default_rng(0))
        y, gradient = values_and_gradient(x, *min_max(jnp.asarray(x)), 1)
        np.testing.assert_allclose(y, slow_signs(x), rtol=1e-15)
        assert np.all(gradient == 1)
        assert fake_quantize(jnp.zeros(()), *min_max(jnp.asarray(x)), 1) == 0


@pytest.mark.parametrize('bits', BITS)
def test_a_symmetric_grid_has_an_odd_number_of_levels_about_zero(bits):
    with jax.enable_x64(True):
        x = np.linspace(-1.5, 1.5, 4001)
        rounded = functools.partial(fake_quantize, lo=-1.2, hi=1.2, bits=bits, symmetric=True)
        y, pull = jax.vjp(rounded, jnp.asarray(x))
        s = 1.2 / (2 ** (bits - 1) - 1)
        q = np.round(x / s)
        n = 2 ** (bits - 1) - 1
        clear = np.abs(x / s % 1 - 0.5) > 1e-9
        np.testing.assert_allclose(y[clear], (np.clip(q, -n, n) * s)[clear], atol=1e-12)
        np.testing.assert_array_equal(pull(jnp.ones_like(y))[0][clear], (np.abs(q) <= n)[clear])


def test_the_sigmas_are_the_best_for_a_normal_distribution():
    x = np.linspace(-9, 9, 20001)
    p = stats.norm.pdf(x)

    def error(clip, bits, one_sided):
        v = np.maximum(x, 0) if one_sided else x
        lo = 0.0 if one_sided else -clip
        s = (clip - lo) / (2**bits - 1)
        z = np.round(-lo / s)
        return np.sum(p * (v - (np.clip(np.round(v / s) + z, 0, 2**bits - 1) - z) * s) ** 2)

    for one_sided, table in ((True, ONE_SIDED), (False, TWO_SIDED)):
        for bits in range(1, 9):
            if bits == 1 and not one_sided:  # of signs: the level is half of the range
                np.testing.assert_allclose(table[0] / 2, np.sqrt(2 / np.pi), atol=1e-3)
                continue
            clips = table[bits - 1] + np.arange(-10, 11) * 0.005
            errors = [error(clip, bits, one_sided) for clip in clips]
            assert abs(np.argmin(errors) - 10) <= 2, (one_sided, bits)


@pytest.mark.parametrize('one_sided', [True, False])
def test_a_range_of_sigmas_leaves_out_zeros_and_goes_no_further_than_the_values(one_sided):
    x = np.random.default_rng(0).normal(size=4000) * 0.7
    x = np.maximum(x, 0) if one_sided else x
    scheme = Scheme('qat', activation_range='sigma')
    for bits, clips in ((2, True), (8, False), (16, False)):
        padded = jnp.pad(jnp.asarray(x), (0, 1000))
        lo, hi = clip_range(*min_max(padded), power(padded), jnp.int32(bits), scheme)
        if clips:
            np.testing.assert_allclose(hi, 0.7 * (1.95 if one_sided else 1.575), rtol=0.05)
            np.testing.assert_allclose(lo, 0 if one_sided else -hi, rtol=3e-3)
        else:
            assert lo >= x.min() - 1e-6 and hi <= x.max() + 1e-6
        if bits == 16:
            np.testing.assert_array_equal((lo, hi), min_max(padded))
    zeros = jnp.zeros(5)
    assert np.all(quantize_activation(zeros, jnp.int32(16), scheme) == 0)


@pytest.mark.parametrize('bits', [1, 2, 4, 32])
@pytest.mark.parametrize(
    'options',
    [
        {},
        {'activation_clip': 0.4},
        {'activation_range': 'sigma'},
    ],
    ids=str,
)
def test_activations_equal_the_plain_version(bits, options):
    scheme = Scheme('qat', **options)
    with jax.enable_x64(True):
        for tensor in ('two-sided', 'rectified', 'positive', 'negative', 'lopsided'):
            x = jnp.asarray(TENSORS[tensor](np.random.default_rng(0)))
            y, pull = jax.vjp(lambda x: quantize_activation(x, jnp.int32(bits), scheme), x)
            expected, expected_pull = jax.vjp(lambda x: oracle.quantize_activation(x, bits, scheme), x)
            np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-14)
            g = jnp.asarray(np.random.default_rng(1).normal(size=x.shape))
            np.testing.assert_allclose(pull(g)[0], expected_pull(g)[0], rtol=1e-9, atol=1e-12)


# ---- mirror images


@pytest.mark.parametrize('options', [{}, {'activation_clip': 0.4}, {'activation_range': 'sigma'}], ids=str)
def test_the_negative_of_an_activation_gets_the_mirror_image(options):
    """Of one-sided ones and of signs exactly; of others all but an outermost level that one side lacks."""
    scheme = Scheme('qat', **options)
    for tensor in ('positive', 'rectified', 'one number', 'two-sided', 'lopsided'):
        x = TENSORS[tensor](np.random.default_rng(0)).astype('float32')
        for bits in (1, *BITS, 32):
            y, mirrored = (np.asarray(activation(v, bits, scheme)) for v in (x, -x))
            if x.min() >= 0 or x.max() <= 0 or bits in (1, 32):
                np.testing.assert_array_equal(mirrored, -y)
            else:
                assert np.max(np.abs(mirrored + y)) <= 1.3 * np.ptp(x) / (2**bits - 1)


@pytest.mark.parametrize('bits', BITS)
def test_a_grid_on_both_sides_has_a_mirror_image_but_where_zero_is_halfway_between_two_levels(bits):
    x = np.random.default_rng(4).normal(size=500).astype('float32')
    top = 2**bits - 1
    for below in (0.2, 0.3, 0.45, 0.5):  # of the steps, how many are below 0
        below = np.floor(below * top) + (0.5 if below == 0.5 else 0.3)
        lo, hi = np.float32(-below), np.float32(top - below)
        y = values_and_gradient(top / 4 * x, lo, hi, bits)[0]
        mirrored = values_and_gradient(-top / 4 * x, -hi, -lo, bits)[0]
        off = np.max(np.abs(y + mirrored))
        assert off == 0 if below % 1 != 0.5 else off == 1  # half to even: one level on the side of lo
        symmetric = functools.partial(fake_quantize, lo=-hi, hi=hi, bits=bits, symmetric=True)
        np.testing.assert_array_equal(symmetric(-x), -symmetric(x))
