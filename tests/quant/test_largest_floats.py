"""Rounding up to the largest float: what is finite stays finite, and within a level."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ghn_jax.quant import Policy, Scheme, fake_quantize, min_max, oracle
from ghn_jax.quant.policy import TERNARY
from ghn_jax.quant.rounding import round_weights
from tests.quant.grids import BITS, activation

LARGEST = float(np.finfo('float32').max)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from(
    [LARGEST, -LARGEST, LARGEST / 2, 1.5e19, -3e30, 1e-38, 1e-45, 0.0, 1.0]
)


@given(
    x=arrays.arrays(np.float32, 6, elements=FLOATS),
    bits=st.sampled_from((1, *BITS, 5, 32)),
    symmetric=st.booleans(),
    mode=st.sampled_from(('qat', 'noise')),
)
@example(x=np.float32([LARGEST] + 5 * [-LARGEST]), bits=2, symmetric=False, mode='qat')
@example(x=np.float32([LARGEST] + 5 * [-LARGEST]), bits=3, symmetric=True, mode='qat')
@example(x=np.float32([LARGEST] + 5 * [-LARGEST]), bits=4, symmetric=False, mode='noise')
@settings(max_examples=300, deadline=None, database=None, derandomize=True)
def test_finite_values_stay_finite_and_within_a_level(x, bits, symmetric, mode):
    lo, hi = min_max(jnp.asarray(x))
    if symmetric:
        hi = jnp.maximum(-lo, hi)
        lo = -hi
    options = dict(symmetric=True) if symmetric else {}
    y, gradient = extreme(x, lo, hi, bits, mode=mode, key=jax.random.key(0), **options)
    assert np.all(np.isfinite(y)) and np.all(np.isfinite(gradient))
    step = (np.float64(hi) - np.float64(lo)) / (2 ** max(bits, 2) - (2 if symmetric else 1))
    off = np.abs(np.asarray(y, np.float64) - x)
    most = step * 1.00001 + 2**-20 * np.max(np.abs(x))
    if bits == 1 or step > 1 / np.finfo('float32').tiny:  # few levels over all floats end before the range
        most = LARGEST
    most = 0 if bits == 32 else most
    assert np.all(off <= most + 3e-38)  # what is subnormal may become 0


@functools.partial(jax.jit, static_argnames=('mode', 'symmetric'))
def extreme(x, lo, hi, bits, **options):
    y, pull = jax.vjp(lambda x: fake_quantize(x, lo, hi, bits, **options), x)
    return y, pull(jnp.ones_like(y))[0]


@given(x=arrays.arrays(np.float32, 6, elements=FLOATS), bits=st.sampled_from((1, *BITS)))
@settings(max_examples=100, deadline=None, database=None, derandomize=True)
def test_activations_of_every_range_stay_finite(x, bits):
    for options in ({'activation_range': 'sigma'}, {'activation_range': 'sigma', 'activation_sigmas': 0.1}):
        assert np.all(np.isfinite(activation(x, bits, Scheme('qat', **options))))


@given(x=arrays.arrays(np.float32, (2, 4), elements=FLOATS), bits=st.sampled_from((0, 1, *BITS)))
@settings(max_examples=60, deadline=None, database=None, derandomize=True)
def test_weights_of_every_range_stay_finite(x, bits):
    for of_range in ('sigma', 'mse', 'percentile'):
        scheme = Scheme('qat', granularity='channel', weight_range=of_range)
        rounded, how = round_weights({'a.weight': x}, Policy(bits, 32), scheme)
        assert np.all(np.isfinite(rounded['a.weight'])) and np.all(np.isfinite(how['a.weight']['scale']))


@pytest.mark.parametrize('of_range', ['minmax', 'sigma', 'mse', 'percentile'])
def test_weights_scaled_by_a_power_of_two_have_the_same_levels_up_to_the_largest_float(of_range):
    w = np.random.default_rng(0).normal(size=(2, 400)).astype('float32')
    w /= 4 * np.max(np.abs(w))  # the lowest level may be half a step below the lowest weight
    for bits in (TERNARY, 1, 2, 8):
        results = []
        for exponent in (-100, 0, 127):
            scaled = {'a.weight': np.ldexp(w, exponent)}
            scheme = Scheme('qat', weight_range=of_range)
            results.append(
                np.ldexp(round_weights(scaled, Policy(bits, 32), scheme)[0]['a.weight'], -exponent)
            )
        np.testing.assert_array_equal(results[0], results[1])
        np.testing.assert_array_equal(results[2], results[1])


def test_the_plain_version_is_finite_too():
    w = jnp.asarray([[LARGEST, -LARGEST, 1.0, -3e30], [LARGEST, LARGEST, LARGEST, 0]], jnp.float32)
    with jax.disable_jit():
        for bits, options in ((1, {}), (2, {}), (2, {'symmetric': True}), (2, {'weight_range': 'sigma'})):
            scheme = Scheme('qat', granularity='channel', **options)
            assert np.all(np.isfinite(oracle.quantize_weight(w, bits, scheme)))
