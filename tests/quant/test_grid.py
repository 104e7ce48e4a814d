"""Fake quantization against arithmetic a number at a time, against PyTorch if installed, and in corners."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from ghn_jax.base.errors import UserError
from ghn_jax.quant import Policy, Scheme, fake_quantize, min_max, oracle
from ghn_jax.quant.activations import clip_range, quantize_activation
from ghn_jax.quant.export import round_weights
from ghn_jax.quant.policy import TERNARY
from ghn_jax.quant.ranges import ONE_SIDED, TWO_SIDED, power

BITS = (2, 3, 4, 8, 16)
TENSORS = {
    'two-sided': lambda r: r.normal(size=500),
    'lopsided': lambda r: r.normal(size=500) * 3 + 2,
    'positive': lambda r: r.uniform(0.5, 2, size=500),
    'negative': lambda r: -r.uniform(0.5, 2, size=500),
    'rectified': lambda r: np.maximum(r.normal(size=500), 0),
    'one number': lambda r: np.array([-0.3]),
    'small': lambda r: r.normal(size=500) * 1e-20,
    'large': lambda r: r.normal(size=500) * 1e20,
}
DEGENERATE = {
    'zeros': np.zeros(5),
    'constant': np.full(5, 3.7),
    'negative constant': np.full(5, -0.1),
    'subnormal': np.array([0, 1e-40, 3e-39, -1e-41, -1e-45]),
    'smallest normal': np.array([np.finfo(np.float32).tiny, 0, 0, 0, 0]),
    'empty': np.zeros(0),
}


def slow_fake_quantize(x, lo, hi, bits):
    """Values and gradient mask, from the definition, a number at a time, in the dtype of x."""
    kind = x.dtype.type
    top = 2**bits - 1
    s = kind(kind(hi) - kind(lo)) / kind(top)
    z = round(float(-kind(lo) / s))
    values, mask = [], []
    for v in x.ravel():
        q = round(float(v / s)) + z  # Python rounds half to even
        values.append(kind(min(max(q, 0), top) - z) * s)
        mask.append(0 <= q <= top)
    return np.array(values, x.dtype).reshape(x.shape), np.array(mask, x.dtype).reshape(x.shape)


def far_from_ties(x, lo, hi, bits):
    """Where x/s is further from a half than its rounding error: elsewhere a compiler may go either way."""
    ratio = x.astype('float64') / ((np.float64(hi) - np.float64(lo)) / (2**bits - 1))
    return np.abs(ratio % 1 - 0.5) > 2 * np.finfo(x.dtype).eps * np.maximum(np.abs(ratio), 1)


@functools.partial(jax.jit, static_argnames='mode')
def values_and_gradient(x, lo, hi, bits, **options):
    y, pull = jax.vjp(lambda x: fake_quantize(x, lo, hi, bits, **options), x)
    return y, pull(jnp.ones_like(y))[0]


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
@pytest.mark.parametrize('tensor', TENSORS)
def test_values_and_gradients_equal_the_slow_definition(tensor, dtype):
    with jax.enable_x64(dtype == 'float64'):
        x = TENSORS[tensor](np.random.default_rng(0)).astype(dtype)
        lo, hi = min_max(jnp.asarray(x))
        # The tensor's own range, and a narrower one that clips on both sides.
        for low, high in ((lo, hi), (lo / 2, hi / 3)):
            for bits in BITS:
                y, gradient = values_and_gradient(x, low, high, bits)
                assert y.dtype == gradient.dtype == dtype
                expected, mask = slow_fake_quantize(x, np.asarray(low), np.asarray(high), bits)
                clear = far_from_ties(x, np.asarray(low), np.asarray(high), bits)
                assert np.mean(clear) > 0.8  # few are left out, most of them at 16 bits in float32
                np.testing.assert_allclose(y[clear], expected[clear], rtol=4 * np.finfo(dtype).eps)
                np.testing.assert_array_equal(gradient[clear], mask[clear])


@pytest.mark.parametrize('bits', BITS)
def test_values_and_gradients_equal_those_of_torch(bits):
    torch = pytest.importorskip('torch')
    r = np.random.default_rng(bits)
    for lo, hi in ((-1.3, 2.1), (0.0, 0.9), (-3.0, 0.0)):
        x = (2 * r.normal(size=2000)).astype('float32')
        s = np.float32(np.float32(hi) - np.float32(lo)) / np.float32(2**bits - 1)
        x = x[far_from_ties(x, lo, hi, bits)]  # torch multiplies by 1/s
        y, gradient = values_and_gradient(x, lo, hi, bits)
        t = torch.tensor(x, requires_grad=True)
        expected = torch.fake_quantize_per_tensor_affine(
            t, float(s), int(np.round(-np.float32(lo) / s)), 0, 2**bits - 1
        )
        expected.sum().backward()
        assert 0 < np.sum(np.asarray(gradient) == 0) < len(x)
        np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-6, atol=1e-6 * float(s))
        np.testing.assert_array_equal(gradient, t.grad.numpy())


def test_two_bits_have_four_levels():
    x = jax.random.normal(jax.random.key(0), (1000,))
    assert len(np.unique(fake_quantize(x, *min_max(x), 2))) == 4


@pytest.mark.parametrize('bits', BITS)
def test_inside_the_range_the_error_is_at_most_half_a_step_and_gradients_pass(bits):
    x = np.random.default_rng(1).normal(size=1000).astype('float32')
    lo, hi = min_max(jnp.asarray(x))
    s = (hi - lo) / (2**bits - 1)
    inside = x[(x > lo + s / 2) & (x < hi - s / 2)]
    y, gradient = values_and_gradient(inside, lo, hi, bits)
    assert np.max(np.abs(y - inside)) <= s * 0.5001
    assert np.all(gradient == 1)


@pytest.mark.parametrize('bits', BITS)
@pytest.mark.parametrize('tensor', ['two-sided', 'positive', 'negative'])
def test_zero_stays_zero(tensor, bits):
    x = TENSORS[tensor](np.random.default_rng(2)).astype('float32')
    lo, hi = min_max(jnp.asarray(x))
    assert fake_quantize(jnp.zeros(()), lo, hi, bits) == 0


@pytest.mark.parametrize('sign', [1, -1])
def test_a_one_sided_tensor_spends_all_levels_on_its_side(sign):
    x = sign * jnp.linspace(0, 3, 1000)
    y = fake_quantize(x, *min_max(x), 2)
    np.testing.assert_allclose(np.unique(y), np.sort(sign * np.arange(4.0)))


@pytest.mark.parametrize('mode', ['qat', 'noise'])
@pytest.mark.parametrize('tensor', DEGENERATE)
def test_degenerate_ranges_give_finite_values_and_gradients(tensor, mode):
    x = jnp.asarray(DEGENERATE[tensor], jnp.float32)
    for bits in (*BITS, 32):
        y, gradient = values_and_gradient(x, *min_max(x), bits, mode=mode, key=jax.random.key(0))
        assert y.dtype == jnp.float32
        assert np.all(np.isfinite(y))
        assert np.all(gradient == 1)
        if mode == 'qat':
            np.testing.assert_allclose(y, x, rtol=1e-6, atol=2e-38)


@pytest.mark.parametrize('mode', ['qat', 'noise', 'float'])
def test_32_bits_change_nothing(mode):
    x = jax.random.normal(jax.random.key(0), (100,))
    bits = 4 if mode == 'float' else 32
    y, gradient = values_and_gradient(x, -0.1, 0.1, bits, mode=mode, key=jax.random.key(1))
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(gradient, jnp.ones_like(x))


def test_every_bit_width_runs_in_one_program(count_compiles):
    x = jax.random.normal(jax.random.key(0), (4, 4))
    step = jax.jit(lambda x, bits: values_and_gradient(x, *min_max(x), bits))
    widths = [jnp.int32(bits) for bits in (*BITS, 32)]
    step(x, widths[0])
    with count_compiles() as compiles:
        outputs = [step(x, bits)[0] for bits in widths]
    assert compiles.n == 0
    assert len({np.asarray(y).tobytes() for y in outputs}) == len(widths)


def test_ranges_and_bits_per_block_equal_separate_tensors():
    x = np.random.default_rng(3).normal(size=(5, 3, 4)) * np.arange(1, 6)[:, None, None]
    x = x.astype('float32')
    lo, hi = (np.asarray(bound)[:, None, None] for bound in min_max(x, axis=(1, 2)))
    bits = np.array([2, 3, 4, 8, 32])
    y, gradient = values_and_gradient(x, lo, hi, bits[:, None, None])
    for i in range(5):
        expected = values_and_gradient(x[i], *min_max(x[i]), bits[i])
        np.testing.assert_array_equal(y[i], expected[0])
        np.testing.assert_array_equal(gradient[i], expected[1])


def test_branches_of_a_switch_give_what_straight_code_gives():
    branches = [lambda x, bits: fake_quantize(x, *min_max(x), bits), lambda x, bits: 2 * x]

    @jax.jit
    def gradient(branch, x, bits):
        return jax.vjp(lambda x: jax.lax.switch(branch, branches, x, bits), x)[1](jnp.ones_like(x))[0]

    x = jnp.asarray([-1.0, 0.5, 3.0])
    for branch in (0, 1):
        expected = jax.vjp(branches[branch], x, 4.0)[1](jnp.ones_like(x))[0]
        np.testing.assert_array_equal(gradient(branch, x, 4), expected)


def test_the_range_and_the_bits_get_no_gradient():
    x = jax.random.normal(jax.random.key(0), (100,))
    gradients = jax.grad(lambda lo, hi, bits: fake_quantize(x, lo, hi, bits).sum(), (0, 1, 2))(-1.0, 1.0, 4.0)
    assert gradients == (0, 0, 0)
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.stack(min_max(x)).sum())(x), 0)


def test_the_backward_pass_keeps_nothing_but_the_input():
    x = jax.random.normal(jax.random.key(0), (64, 64))
    _, pull = jax.vjp(lambda x: fake_quantize(x, -1.0, 1.0, 4), x)
    kept = [leaf.size for leaf in jax.tree.leaves(pull) if leaf.size > 1]
    assert kept == [x.size]


@pytest.mark.parametrize(
    ('bits', 'sided', 'step'),
    [
        (4, 'two', lambda lo, hi: (hi - lo) / 15),
        (1, 'two', lambda lo, hi: max(-lo, hi)),  # from the sign at minus half of it to that at half
        (1, 'one', lambda lo, hi: hi),  # from 0 to it
    ],
)
def test_noise_is_uniform_within_half_a_step_and_differs_between_keys(bits, sided, step):
    x = jax.random.normal(jax.random.key(0), (20000,))
    x = x if sided == 'two' else jnp.abs(x)
    lo, hi = min_max(x)
    s = float(step(lo, hi))
    y, gradient = values_and_gradient(x, lo, hi, bits, mode='noise', key=jax.random.key(1))
    steps = np.asarray((y - x) / s, np.float64)
    assert 0.499 < np.max(np.abs(steps)) <= 0.5 + 1e-5
    assert abs(steps.mean()) < 4 / np.sqrt(12 * len(steps))
    assert stats.kstest(steps, stats.uniform(-0.5, 1).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(steps, x)[0, 1]) < 0.03
    assert np.all(gradient == 1)
    assert np.any(fake_quantize(x, lo, hi, bits, mode='noise', key=jax.random.key(2)) != y)


def test_noise_of_a_degenerate_range_is_zero():
    assert np.all(fake_quantize(jnp.zeros(9), 0.0, 0.0, 4, mode='noise', key=jax.random.key(0)) == 0)


def test_bad_modes_are_user_errors():
    with pytest.raises(UserError, match="mode 'lsq' is not one of float, qat, noise"):
        fake_quantize(jnp.ones(3), 0, 1, 4, mode='lsq')
    with pytest.raises(UserError, match='needs a random key'):
        fake_quantize(jnp.ones(3), 0, 1, 4, mode='noise')


def test_a_range_always_includes_zero():
    ranges = (([1, 2], (0, 2)), ([-3, -1], (-3, 0)), ([-1, 4], (-1, 4)), ([0], (0, 0)), ([], (0, 0)))
    for x, expected in ranges:
        assert min_max(jnp.asarray(x, jnp.float32)) == expected


def test_padding_with_zeros_does_not_change_a_range():
    x = jax.random.normal(jax.random.key(0), (4, 5)) + 3
    for axis in (None, 1, (0, 1)):
        padded = jnp.pad(x, ((0, 0), (0, 7)))
        np.testing.assert_array_equal(jnp.stack(min_max(padded, axis)), jnp.stack(min_max(x, axis)))


# ---- symmetric grids, signs, smooth rounding, ranges by standard deviation


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


@functools.partial(jax.jit, static_argnames='scheme')
def activation(x, bits, scheme):
    return quantize_activation(x, bits, scheme)


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


# ---- up to the largest float

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
