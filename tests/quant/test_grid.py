"""Fake quantization against arithmetic a number at a time, against PyTorch if installed, and in corners."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ghn_jax.base.errors import UserError
from ghn_jax.quant import fake_quantize, min_max
from ghn_jax.quant.policy import TERNARY
from tests.quant.grids import BITS, TENSORS, values_and_gradient

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
@pytest.mark.parametrize('bits', [TERNARY, *BITS, 32])
def test_what_is_no_number_stays_none(bits, mode):
    x = jnp.array([-1.0, jnp.nan, 2.0])
    y = fake_quantize(x, *min_max(x), bits, mode=mode, key=jax.random.key(0))
    assert np.isnan(y[1])


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
