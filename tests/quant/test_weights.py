"""Whole weight buffers, files and the plain version: one definition of the grids, in every scheme."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghn_jax.base import backends
from ghn_jax.cnn.building import build_program
from ghn_jax.cnn.weight_quantization import quantize_weights, quantize_weights_backward
from ghn_jax.quant import Policy, Scheme, oracle
from ghn_jax.quant.policy import TERNARY
from ghn_jax.quant.rounding import round_weights
from tests.cnn.networks import quantized_names, random_parameters, small_network

# Kernels dense and depthwise, weights cut into parts of a concatenation and into panels, 10 classes in 16.
NETWORK = small_network(
    [('sep_conv_3x3', 0), ('skip_connect', 1), ('conv_1x1', 2), ('conv_1x1', 1)], C=16, normal_concat=(2, 3),
    reduce_concat=(2, 3), stem_type=1, fc_layers=2, fc_dim=264, n_cells=2,
)  # fmt: skip
SCHEMES = [
    dict(granularity=granularity, symmetric=symmetric, **of_range)
    for granularity in ('tensor', 'channel')
    for symmetric in (False, True)
    for of_range in (
        dict(weight_range='minmax'),
        dict(weight_range='percentile', percentile=85.0),
        dict(weight_range='mse'),
        dict(weight_range='sigma'),
    )
] + [dict(weight_range='sigma', weight_sigmas=1.3)]
# Each in all tensors and in all channels by turns.
PATTERNS = [
    lambda r, n: r.normal(size=n),
    lambda r, n: r.normal(size=n) + 0.7,
    lambda r, n: r.uniform(0.3, 2, n),
    lambda r, n: -r.uniform(0.3, 2, n),
    lambda r, n: np.maximum(r.normal(size=n), 0),
    lambda r, n: np.minimum(r.normal(size=n), 0),
    lambda r, n: np.full(n, 1.7),
    lambda r, n: np.full(n, -0.3),
    lambda r, n: np.zeros(n),
]
WIDTHS = (8, 4, 3, 2, TERNARY, 1, 32)

pytestmark = pytest.mark.usefixtures('quick_reference')


@pytest.fixture(scope='module')
def placed():
    program = build_program([NETWORK], image_size=8, max_params=1e6)
    return program, program.layout(NETWORK)


@functools.partial(jax.jit, static_argnames='scheme')
def forward(flat, tables, bits, out, *, scheme, key=None):
    return quantize_weights(flat, tables, bits, out, scheme=scheme, key=key)


@functools.partial(jax.jit, static_argnames='scheme')
def backward(flat, tables, bits, g, grid, *, scheme, key=None):
    return quantize_weights_backward(flat, tables, bits, g, grid, scheme=scheme, key=key)


def run(placed, params, policy, scheme, cotangents=None):
    """What the executor makes of weights by name, and of cotangents the gradients."""
    program, layout = placed
    shapes = {name: w.shape for name, w in params.items()}
    pack = lambda params: program.pack(layout, params, np.float64)
    unpack = lambda flat: program.unpack(layout, np.array(flat), shapes)
    flat, bits = pack(params), program.bits(layout, policy).weights
    values, grid = forward(flat, layout.tables, bits, np.full_like(flat, 7.0), scheme=scheme)
    # Padding is zeros before and after: units beyond the hidden layer and classes that are none.
    blocks = layout.tables.n_blocks * 256
    padding = (pack({n: np.ones(s) for n, s in shapes.items()}) == 0)[:blocks]
    assert np.all(np.asarray(values)[:blocks][padding] == 0)
    if cotangents is None:
        return unpack(values)
    # One program for each granularity: all that it needs of the range is in the grid.
    of_grid = Scheme('qat', granularity=scheme.granularity)
    return unpack(values), unpack(backward(flat, layout.tables, bits, pack(cotangents), grid, scheme=of_grid))


def patterned(turn, by_channel):
    """Weights that have every pattern in turn, and a policy that has every width."""
    r = np.random.default_rng(turn)
    params, layers = random_parameters(NETWORK, 0, 'float64'), []
    for i, name in enumerate(quantized_names(NETWORK)):
        j, (o, *_) = i + turn * len(quantized_names(NETWORK)), params[name].shape
        n = params[name].size // o
        if by_channel:
            w = np.stack([PATTERNS[(j + c) % len(PATTERNS)](r, n) * r.uniform(0.5, 2) for c in range(o)])
        else:
            w = PATTERNS[j % len(PATTERNS)](r, n * o)
        params[name] = w.reshape(params[name].shape)
        layers.append((name, WIDTHS[j % len(WIDTHS)], 32))
    return params, Policy(2, 32, layers=tuple(layers))


@pytest.mark.parametrize('every', [False, pytest.param(True, marks=pytest.mark.slow)], ids=['some', 'every'])
@pytest.mark.parametrize('options', SCHEMES, ids=lambda o: ' '.join(map(str, o.values())))
def test_the_executor_the_file_and_the_plain_version_agree_whatever_the_signs(placed, options, every):
    """Every scheme on every pattern and at every width; both ways round, for w and for -w.

    every: each pattern at each width in each scheme. Some: in all schemes together.
    """
    scheme, by_channel = Scheme('qat', **options), options.get('granularity') == 'channel'
    turns = 1 if by_channel else -(-len(PATTERNS) * len(WIDTHS) // len(quantized_names(NETWORK)))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-13)
    with jax.enable_x64(True):
        first = SCHEMES.index(options)
        for turn in range(turns) if every else {first % turns, (first + 3) % turns}:
            params, policy = patterned(turn, by_channel)
            r = np.random.default_rng(9)
            cotangents = {name: r.normal(size=w.shape) for name, w in params.items()}
            negated = {name: -w for name, w in params.items()}
            values, gradients = run(placed, params, policy, scheme, cotangents)
            mirrored = run(placed, negated, policy, scheme)
            alone = {'alone.weight': np.array([[-0.7], [0.4], [0]][: 3 if by_channel else 1])}
            in_file, _ = round_weights(params | alone, policy, scheme)
            close(in_file['alone.weight'], alone['alone.weight'])
            for name, w in params.items():
                if w.ndim == 1:
                    expected, g = w, cotangents[name]
                else:
                    expected, g = plain_version(w, cotangents[name], policy.widths(name)[0], scheme)
                close(values[name], expected, err_msg=name)
                close(in_file[name], expected, err_msg=name)
                close(gradients[name], g, err_msg=name)
                check_mirror(w, values[name], mirrored[name], policy.widths(name)[0], scheme)


def plain_version(w, cotangent, bits, scheme):
    """Its values and gradients. Padded to few shapes, which changes nothing, and a step at a time: to compile
    it for each shape, width and scheme would take long.
    """
    o, n = len(w), w.size // len(w)
    room = next(s for s in ((16, 288), (264, 32)) if s[0] >= o and s[1] >= n)
    pad = lambda x: jnp.asarray(np.pad(x.reshape(o, n), [(0, m - k) for m, k in zip(room, (o, n))]))
    with jax.disable_jit():
        y, pull = jax.vjp(lambda w: oracle.quantize_weight(w, bits, scheme), pad(w))
        g = pull(pad(cotangent))[0]
    assert np.all(np.isfinite(y)) and np.all(np.isfinite(g))
    return (np.asarray(x)[:o, :n].reshape(w.shape) for x in (y, g))


def check_mirror(w, y, mirrored, bits, scheme):
    """-w gets the mirror image, exactly; but of a range of sigmas on both sides the outermost level."""
    off = np.abs(y + mirrored)
    if scheme.weight_range == 'sigma' and not scheme.symmetric and 2 <= bits < 32 and w.ndim > 1:
        rows = w.reshape(len(w) if scheme.granularity == 'channel' else 1, -1)
        two_sided = (rows.min(1) < 0) & (rows.max(1) > 0)
        assert np.all(off.reshape(rows.shape)[~two_sided] == 0)
        assert np.all(off.reshape(rows.shape) <= 1.3 * np.ptp(rows, 1, keepdims=True) / (2**bits - 1))
    else:
        assert np.all(off == 0)


@pytest.mark.parametrize('granularity', ['tensor', 'channel'])
def test_in_one_page_as_on_gpus_they_are_the_same(placed, granularity):
    scheme = Scheme('qat', granularity=granularity, weight_range='sigma')
    params, policy = patterned(0, granularity == 'channel')
    random = np.random.default_rng(9)
    cotangents = {name: random.normal(size=w.shape) for name, w in params.items()}
    with jax.enable_x64(True):
        expected = run(placed, params, policy, scheme, cotangents)
        with backends.built_for('gpu'):
            found = run(placed, params, policy, scheme, cotangents)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-13), found, expected)


def test_bits_are_data_signs_and_ternary_weights_included(placed, count_compiles):
    program, layout = placed
    flat = program.pack(layout, random_parameters(NETWORK, 0))
    every = [program.bits(layout, Policy(b, 32)).weights for b in (TERNARY, 1, 2, 8, 32)]
    step = lambda bits: forward(flat, layout.tables, bits, flat, scheme=Scheme('qat'))[0]
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
        y = forward(flat, layout.tables, b, flat, scheme=scheme)[0]
        w = program.unpack(layout, np.array(y), {n: p.shape for n, p in params.items()})[name]
        assert len(np.unique(w)) == levels
        if levels == 2:  # XNOR-Net: the sign times the mean magnitude
            np.testing.assert_allclose(w, np.sign(params[name]) * np.mean(np.abs(params[name])), rtol=1e-5)
        if levels == 3:
            assert np.min(w) == -np.max(w) and 0 in w


def test_noise_fills_half_a_level_to_either_side_of_each_channels_grid(placed):
    """At one bit that is the scale, for two signs are two scales apart."""
    program, layout = placed
    params = random_parameters(NETWORK, 0)
    flat, noise = program.pack(layout, params), Scheme('noise', granularity='channel')
    for bits, half in ((1, 1), (TERNARY, 0.5), (2, 0.5), (32, 0)):
        policy, key = Policy(bits, 32), jax.random.key(0)
        b = program.bits(layout, policy).weights
        noisy, grid = forward(flat, layout.tables, b, flat, scheme=noise, key=key)
        g = backward(flat, layout.tables, b, flat, grid, scheme=noise, key=key)
        assert np.all(np.asarray(g) == flat)
        noisy = program.unpack(layout, np.array(noisy), {n: w.shape for n, w in params.items()})
        _, grids = round_weights(params, policy, noise)
        for name, w in params.items():
            off = np.abs(noisy[name] - w).reshape(len(w), -1)
            if name not in grids:
                assert np.all(off == 0)
                continue
            steps = off / np.array(grids[name]['scale'])[:, None]
            assert 0.95 * half < np.max(steps) < 1.0001 * half, (name, bits)
