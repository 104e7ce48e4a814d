"""Whole weight buffers in every scheme against the plain version, a tensor at a time, and in corners."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghn_jax.cnn.building import build_program
from ghn_jax.cnn.weights import quantize_weights, quantize_weights_backward
from ghn_jax.quant import Policy, Scheme, plain
from ghn_jax.quant.policy import TERNARY
from tests.cnn.networks import quantized_names, random_parameters, small_network

# Kernels dense and depthwise, weights cut into parts of a concatenation and into panels, 10 classes in 16.
NETWORK = small_network(
    [('sep_conv_3x3', 0), ('skip_connect', 1), ('conv_1x1', 2), ('conv_1x1', 1)], C=16, normal_concat=(2, 3),
    reduce_concat=(2, 3), stem_type=1, fc_layers=2, fc_dim=264, n_cells=2,
)  # fmt: skip
SCHEMES = [
    dict(),
    dict(symmetric=True),
    dict(granularity='channel'),
    dict(weight_range='percentile', percentile=95.0),
    dict(weight_range='mse', granularity='channel', symmetric=True),
    dict(weight_range='sigma', symmetric=True),
    dict(weight_range='sigma', weight_sigmas=1.3),
    dict(granularity='channel', weight_range='percentile', percentile=80.0),
]

pytestmark = pytest.mark.usefixtures('quick_reference')


@pytest.fixture(scope='module')
def placed():
    program = build_program([NETWORK], image_size=8, max_params=1e6)
    return program, program.layout(NETWORK)


def mixed_policy():
    widths = (2, TERNARY, 1, 4, 3, 8, 32)
    return Policy(layers=tuple((n, widths[i % 7], 32) for i, n in enumerate(quantized_names(NETWORK))))


@functools.partial(jax.jit, static_argnames='scheme')
def both(flat, tables, bits, out, g, *, scheme, key=None):
    y, grid = quantize_weights(flat, tables, bits, out, scheme=scheme, key=key)
    return y, quantize_weights_backward(flat, tables, bits, g, grid, scheme=scheme, key=key)


def run(placed, params, cotangents, policy, scheme):
    program, layout = placed
    shapes = {name: w.shape for name, w in params.items()}
    flat, g = (program.pack(layout, p, np.float64) for p in (params, cotangents))
    bits = program.bits(layout, policy).weights
    results = both(flat, layout.tables, bits, np.full_like(flat, 7.0), g, scheme=scheme)
    unpacked = [program.unpack(layout, np.array(r), shapes) for r in results]
    # Padding is zeros before and after: units beyond the hidden layer and classes that are none.
    blocks = layout.tables.n_blocks * 256
    padding = (program.pack(layout, {n: np.ones(s) for n, s in shapes.items()}) == 0)[:blocks]
    assert np.all(np.asarray(results[0])[:blocks][padding] == 0)
    return unpacked


@pytest.mark.parametrize('options', SCHEMES, ids=str)
def test_values_and_gradients_equal_the_plain_ones_tensor_by_tensor(placed, options):
    scheme, policy = Scheme('qat', **options), mixed_policy()
    with jax.enable_x64(True):
        params = random_parameters(NETWORK, 0, 'float64')
        r = np.random.default_rng(1)
        params = {n: w * r.uniform(0.5, 2, (len(w), *[1] * (w.ndim - 1))) for n, w in params.items()}
        cotangents = {name: r.normal(size=w.shape) for name, w in params.items()}
        values, gradients = run(placed, params, cotangents, policy, scheme)
        for name, w in params.items():
            expected, pull = jnp.asarray(w), lambda g: (g,)
            if w.ndim > 1:
                rounded = lambda w, name=name: plain.quantize_weight(w, policy.weights(name), scheme)
                expected, pull = jax.vjp(rounded, jnp.asarray(w))
            np.testing.assert_allclose(values[name], expected, rtol=1e-12, atol=1e-13, err_msg=name)
            g = pull(jnp.asarray(cotangents[name]))[0]
            np.testing.assert_allclose(gradients[name], g, rtol=1e-9, atol=1e-10, err_msg=name)


def test_bits_are_data_signs_and_ternary_weights_included(placed, count_compiles):
    program, layout = placed
    flat = program.pack(layout, random_parameters(NETWORK, 0))
    every = [program.bits(layout, Policy(b, 32)).weights for b in (TERNARY, 1, 2, 8, 32)]
    step = lambda bits: both(flat, layout.tables, bits, flat, flat, scheme=Scheme('qat'))[0]
    step(every[0])
    with count_compiles() as compiles:
        outputs = [step(bits) for bits in every]
    assert compiles.n == 0
    assert len({np.asarray(y).tobytes() for y in outputs}) == 5


def test_few_bits_have_few_levels(placed):
    program, layout = placed
    params, name = random_parameters(NETWORK, 0), 'cells.0._ops.0.op.2.weight'
    for bits, scheme, levels in (
        (1, Scheme('qat'), 2),
        (TERNARY, Scheme('qat'), 3),
        (2, Scheme('qat'), 4),
        (2, Scheme('qat', symmetric=True), 3),
    ):
        flat, b = program.pack(layout, params), program.bits(layout, Policy(bits, 32)).weights
        y = both(flat, layout.tables, b, flat, flat, scheme=scheme)[0]
        w = program.unpack(layout, np.array(y), {n: p.shape for n, p in params.items()})[name]
        assert len(np.unique(w)) == levels
        if levels == 2:  # XNOR-Net: the sign times the mean magnitude
            np.testing.assert_allclose(w, np.sign(params[name]) * np.mean(np.abs(params[name])), rtol=1e-5)
        if levels == 3:
            assert np.min(w) == -np.max(w) and 0 in w


@pytest.mark.parametrize('options', [SCHEMES[0], SCHEMES[4], SCHEMES[6], SCHEMES[7]], ids=str)
def test_zeros_and_constants_give_finite_values_and_gradients(placed, options):
    params = random_parameters(NETWORK, 0, 'float64')
    params = {n: np.full_like(w, i % 3 - 1) for i, (n, w) in enumerate(params.items())}
    with jax.enable_x64(True):
        for policy in (mixed_policy(), Policy(1, 32), Policy(2, 32)):
            results = run(placed, params, params, policy, Scheme('qat', **options))
            assert all(np.all(np.isfinite(x)) for tensors in results for x in tensors.values())


def test_noise_is_within_half_a_level_of_each_tensors_grid(placed):
    program, layout = placed
    flat = program.pack(layout, random_parameters(NETWORK, 0))
    for bits, levels in ((1, 1), (2, 3)):
        b = program.bits(layout, Policy(bits, 32)).weights
        step = functools.partial(both, flat, layout.tables, b, flat, flat)
        noisy, g = step(scheme=Scheme('noise', granularity='channel'), key=jax.random.key(0))
        rounded, _ = step(scheme=Scheme('qat', granularity='channel'))
        assert np.all(np.asarray(g) == flat)
        off = np.abs(np.asarray(noisy) - flat)
        assert 0 < np.max(off) < 1.01 * np.max(np.abs(np.asarray(rounded))) * (1 if levels == 1 else 0.5)
