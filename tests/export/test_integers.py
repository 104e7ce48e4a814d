"""A file holds the integers that a calibrated network is rounded to, and onnxruntime computes with them."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import ghn_jax
from ghn_jax.base.errors import FieldError
from ghn_jax.export import freeze, levels, onnx_file, to_onnx, to_quantized_onnx
from ghn_jax.export.integers import to_integers
from ghn_jax.export.quantizing import marked, with_integer_biases
from ghn_jax.export.runtime import OPTIONS, run_onnx, session_options
from ghn_jax.export.runtime_comparison import compare
from ghn_jax.models.folding import Calibrated, calibrate
from ghn_jax.models.kept_norms import absorb
from ghn_jax.models.tracing import trace
from ghn_jax.quant.policy import Policy, parse_bits
from ghn_jax.quant.scheme import QAT, Scheme
from tests.export.test_stablehlo import Net, drawn, images

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
BY_CHANNEL = Scheme('qat', granularity='channel', symmetric=True)


class Written:
    """A calibrated model: what it computes, its integers, and its file."""

    def __init__(self, model, params, x, policy, scheme=QAT, batch_norm='corrected'):
        self.calibrated = calibrate(model, params, [x], policy, scheme=scheme, batch_norm=batch_norm)
        self.quantizer = self.calibrated.quantizer(policy, scheme)
        self.integers = to_integers(self.calibrated, self.quantizer)
        self.frozen = freeze(marked(self.calibrated, self.integers), x)
        self.file = to_quantized_onnx(self.calibrated, self.quantizer)
        self.expected = np.asarray(jax.jit(lambda x: self.calibrated.apply(x, self.quantizer))(x))

    @functools.cached_property
    def graph(self):
        return onnx.load_from_string(self.file).graph

    def stored(self, kind):
        """The initializers that nodes of a kind read as their input, weight and bias."""
        arrays = {t.name: onnx.numpy_helper.to_array(t) for t in self.graph.initializer}
        of = {node.output[0]: node for node in self.graph.node}
        of |= {out: of[node.input[0]] for out, node in of.items() if node.op_type == 'Transpose'}
        return [
            [[arrays.get(name) for name in of[part].input] for part in node.input]
            for node in self.graph.node
            if node.op_type == kind
        ]


@functools.cache
def written(bits: str, scheme: Scheme = QAT, batch_norm: str = 'corrected') -> Written:
    model = trace(Net(), (1, 16, 16, 3))
    params = drawn(model)
    params['BatchNorm_0']['scale'] = params['BatchNorm_0']['scale'] * np.where(np.arange(8) % 3, 1, -1)
    return Written(model, params, images(64), parse_bits(bits), scheme, batch_norm)


def check(network: Written, x, agreement: float = 0.99, tolerance: float = 1e-5) -> None:
    """onnxruntime computes what the marked program does, and puts images into the classes of the model."""
    found, here = run_onnx(network.file, x), np.asarray(network.frozen.apply(x))
    np.testing.assert_allclose(found, here, atol=tolerance * np.abs(here).max())
    assert np.mean(found.argmax(1) == network.expected.argmax(1)) >= agreement


HELD = [
    'w4a8',
    'w4a4',
    'w2a8',
    'w8a2',
    'w3a3',
    'w5a6',
    'w1a1',
    'wta2',
    'w12a16',
    'w32a8',
    'w8a32',
    'w2a32',
    'w4a12',
]


@pytest.mark.parametrize(
    'bits', ['w8a8', 'w2a2', *(pytest.param(bits, marks=pytest.mark.slow) for bits in HELD)]
)
def test_onnxruntime_computes_with_the_integers_of_all_bits(bits):
    # A level of 16 bits is 1.5e-5 of the range: sums in another order may put an activation on the next one.
    tolerance = 3e-5 if bits == 'w12a16' else 1e-5
    check(written(bits), images(64), 0.95 if bits in ('w5a6', 'w12a16') else 0.98, tolerance)


def test_with_the_biases_of_its_file_a_network_gives_the_logits_of_its_file():
    network, x = written('w8a8'), images(64)
    as_written = with_integer_biases(network.calibrated, network.quantizer)
    here = np.asarray(jax.jit(lambda c, x: c.apply(x, network.quantizer))(as_written, x))
    largest, found = np.abs(here).max(), run_onnx(network.file, x)
    np.testing.assert_allclose(here, found, atol=1e-5 * largest)
    assert np.abs(network.expected - found).max() > 1e-3 * largest  # float biases: other levels behind them


@pytest.mark.parametrize(
    'bits, scheme',
    [
        ('w8a8', QAT),
        *(pytest.param(b, QAT, marks=pytest.mark.slow) for b in ('w4a8', 'w2a2', 'w1a2', 'wta2', 'w2a32')),
        *(pytest.param(b, BY_CHANNEL, marks=pytest.mark.slow) for b in ('w8a8', 'w4a4', 'wta8')),
    ],
)
def test_norms_that_have_stayed_behind_layers_are_in_the_scales_of_their_weights(bits, scheme):
    """The file has the operations of one whose norms are folded, and levels that weights have in training."""
    network, folded = written(bits, scheme), written(bits, scheme, 'calibrated')
    assert all(norm is not None for norm in network.calibrated.norms)
    assert any(np.any(scale < 0) for scale, _ in network.calibrated.norms)
    check(network, images(64), 0.98)
    kinds = lambda of: collections.Counter(node.op_type for node in of.graph.node)
    assert kinds(network) == kinds(folded)
    rounded, (_, gains) = jax.jit(network.quantizer.weight, static_argnums=0), absorb(network.calibrated)
    assert len(gains) == 2
    for name, gain in gains.items():
        expected = np.asarray(rounded(name, network.calibrated.weights[name])) * gain.reshape(-1, 1, 1, 1)
        np.testing.assert_allclose(network.integers.weights[name].real, expected, rtol=1e-5, atol=1e-9)
    as_written = with_integer_biases(network.calibrated, network.quantizer)
    here = np.asarray(jax.jit(lambda c, x: c.apply(x, network.quantizer))(as_written, images(64)))
    found = run_onnx(network.file, images(64))
    assert np.mean(np.abs(here - found).max(1) < 1e-4 * np.abs(here).max()) > 0.9  # others lie on borders


@pytest.mark.slow
@pytest.mark.parametrize('bits', ['w8a8', 'w4a8', 'w2a2', 'w1a2'])
def test_so_it_does_with_a_scale_for_each_channel(bits):
    check(written(bits, BY_CHANNEL), images(64), 0.98)
    for _, (_, scale, _), _ in written(bits, BY_CHANNEL).stored('Conv'):
        assert scale.shape == (8,)


def test_weights_activations_and_biases_are_unsigned_integers_of_their_bits_and_int32():
    network = written('w8a8', batch_norm='calibrated')
    layers = [*network.stored('Conv'), *network.stored('Gemm')]
    assert len(layers) == 3
    for x, (codes, scale, zero), (bias, of_bias, *none) in layers:
        assert codes.dtype == zero.dtype == x[2].dtype == np.uint8 and bias.dtype == np.int32 and not none
        np.testing.assert_allclose(of_bias, x[1] * scale, rtol=1e-6)  # as runtimes add it to sums of products
    names = [layer.name for layer in network.calibrated.model.layers]
    for (_, (codes, scale, zero), _), name in zip(layers, names):
        w, codes = network.calibrated.weights[name], codes if codes.ndim == 4 else codes.T
        np.testing.assert_allclose((codes.astype(np.float32) - zero) * scale, w, atol=0.51 * scale)


def test_two_bits_take_two_bits_in_the_file_and_an_option_of_onnxruntime():
    network = written('w2a2')
    file = onnx.load_from_string(network.file)
    assert (file.opset_import[0].version, file.ir_version) == (25, 13)
    assert session_options(network.file) == {'session.disable_quant_qdq': '1'}
    sizes = {t.name: len(t.raw_data) for t in file.graph.initializer if t.data_type == onnx.TensorProto.UINT2}
    assert max(sizes.values()) == 8 * 3 * 9 / 4  # of the first convolution
    other = onnx.load_from_string(written('w8a8').file)
    assert other.opset_import[0].version == 21 and session_options(written('w8a8').file) == {}


@pytest.mark.parametrize('bits, needed', [('w4a4', True), ('w8a8', False)])
def test_a_max_pool_between_4_bit_activations_takes_that_option_too(bits, needed):
    def apply(p, x):
        return nn.max_pool(jax.nn.relu(x @ p['first']), (2, 2), (2, 2)).reshape(x.shape[0], -1) @ p['last']

    r = np.random.default_rng(0)
    params = {'first': r.normal(size=(3, 8)), 'last': r.normal(size=(32, 10))}
    params = jax.tree.map(np.float32, params)
    network = Written(trace(apply, (1, 4, 4, 3), params=params), params, images(64, 4), parse_bits(bits))
    check(network, images(64, 4), 0.95)
    assert session_options(network.file) == ({'session.disable_quant_qdq': '1'} if needed else {})


@pytest.fixture(scope='module')
def layer():
    """One layer, calibrated on ones."""
    model = trace(nn.Dense(6), (4, 10))
    params = {'kernel': np.zeros((10, 6), np.float32), 'bias': np.ones(6, np.float32)}
    return calibrate(model, params, [np.ones((4, 10), np.float32)], Policy(8, 8))


def integers_of(calibrated: Calibrated, scheme=QAT, **fields):
    calibrated = dataclasses.replace(calibrated, **fields)
    return to_integers(calibrated, calibrated.quantizer(Policy(8, 8), scheme))


def test_a_bias_that_would_overflow_widens_the_scale_of_the_weight(layer):
    w = np.random.default_rng(0).normal(size=(6, 10)).astype(np.float32)
    w[2] *= 1e-9
    bias = np.arange(6, dtype=np.float32)
    of = {'weights': {'kernel': w}, 'biases': {'kernel': bias}}
    for scheme in (QAT, BY_CHANNEL):
        found = integers_of(layer, scheme=scheme, **of)
        weight, stored = found.weights['kernel'], found.biases['kernel']
        np.testing.assert_allclose(stored.real, bias, rtol=1e-4)
        scale = found.activations['kernel'].scale
        np.testing.assert_allclose(stored.scale, np.broadcast_to(scale * weight.scale.ravel(), 6), rtol=1e-6)
        np.testing.assert_allclose(weight.real, w, atol=weight.scale.max() * 0.51)
    assert abs(stored.codes[2]) == 2**30 and np.all(abs(stored.codes) <= 2**30)


def test_a_scale_for_each_of_several_axes_of_channels_is_stored():
    """Such a weight is stored as a matrix."""
    model = trace(lambda p, x: jnp.einsum('nij,jabi->nab', x, p).reshape(x.shape[0], 6), (4, 2, 5),
                  params=jax.ShapeDtypeStruct((5, 2, 3, 2), jnp.float32))  # fmt: skip
    r = np.random.default_rng(0)
    w, x = r.normal(size=(5, 2, 3, 2)) * np.arange(1, 7).reshape(2, 3, 1), r.uniform(size=(4, 2, 5))
    w, x = np.float32(w), np.float32(x)
    calibrated = calibrate(model, w, [x], Policy(8, 8), scheme=BY_CHANNEL)
    found = integers_of(calibrated, scheme=BY_CHANNEL)
    frozen = freeze(marked(calibrated, found), x)
    file = to_onnx(frozen)
    np.testing.assert_allclose(run_onnx(file, x), frozen.apply(x), rtol=1e-5)
    np.testing.assert_allclose(run_onnx(file, x), model.apply(w, x), atol=0.1)
    (codes,) = (t for t in onnx.load_from_string(file).graph.initializer if np.prod(t.dims) == w.size)
    assert (codes.data_type, [*codes.dims]) == (onnx.TensorProto.UINT8, [6, 10])


def test_what_has_no_range_is_zero(layer):
    found = integers_of(layer, ranges={'kernel': (np.float32(0), np.float32(0))})
    assert not found.biases and np.all(found.weights['kernel'].real == 0)
    x = np.random.default_rng(1).uniform(size=(4, 10)).astype(np.float32)
    file = to_onnx(freeze(marked(layer, found), x))
    np.testing.assert_array_equal(run_onnx(file, x), np.ones((4, 6)))


GRIDS = {
    'all levels': levels.ActivationGrid(0.5, 1, 3),
    'fewer than the integers have': levels.ActivationGrid(0.5, 2, 6),
    'one bit, one side': levels.ActivationGrid(1.0, 0, 1),
    'one bit, the other side': levels.ActivationGrid(1.0, 1, 1),
    'signs': levels.ActivationGrid(0.75, 1, 2, signs=True),
    'no range': levels.ActivationGrid(0.0, 0, 255),
}  # fmt: skip


@pytest.mark.parametrize('name', GRIDS)
def test_activations_are_rounded_to_the_levels_of_a_grid(name):
    x = np.append(np.linspace(-2, 2, 81), [-100, 0, 100]).reshape(-1, 1).astype(np.float32)
    grid = GRIDS[name]
    frozen = freeze(lambda x: levels.rounded(x, grid), x)
    found = run_onnx(to_onnx(frozen, {OPTIONS: '{"session.disable_quant_qdq": "1"}'}), x)
    np.testing.assert_array_equal(found, frozen.apply(x))
    assert len(np.unique(found)) == (1 if not grid.scale else grid.top + 1)


def test_integers_count_by_their_bits_in_what_a_file_holds(monkeypatch):
    network = written('w2a2')
    monkeypatch.setattr(onnx_file, '_MOST', 400)
    to_onnx(network.frozen)
    monkeypatch.setattr(onnx_file, '_MOST', 150)
    with pytest.raises(ghn_jax.UserError, match='and an ONNX file has 150 at most'):
        to_onnx(network.frozen)


def test_what_is_not_calibrated_is_refused(layer):
    quantizer = layer.model.quantizer(Policy(8, 8))
    for calibrated, given in ((layer.model, quantizer), (layer, None)):
        with pytest.raises(ghn_jax.UserError, match='expected what ghn_jax.calibrate returns, and its'):
            to_quantized_onnx(calibrated, given)
    with pytest.raises(ghn_jax.UserError, match="enters 'kernel' is not calibrated: calibrate with a policy"):
        to_quantized_onnx(dataclasses.replace(layer, ranges={}), quantizer)


def test_without_calibration_images_there_are_no_integers(layer):
    with pytest.raises(ghn_jax.UserError, match='no calibration images'):
        calibrate(layer.model, layer.params, [], Policy(8, 8))


Split = collections.namedtuple('Split', 'labels')


class Data:
    """Images whose label is where they are brightest."""

    def __init__(self):
        self.x = {name: images(n, 4)[:, 0, :, 0] for name, n in (('test', 5), ('val', 4), ('train', 20))}

    def normalized(self, split, count):
        return self.x[split][:count]

    def __getattr__(self, split):
        return Split(self.x[split].argmax(1))


def test_a_comparison_takes_test_images_first_and_says_what_it_took():
    data, x = Data(), images(2, 4)[:, 0, :, 0]
    file = to_onnx(freeze(lambda x: 2 * x, x))
    found = compare(file, lambda x: x + 1, data, 12)
    assert (found.images, found.agreement) == ({'test': 5, 'val': 4, 'train': 3}, 1.0)
    worse = compare(file, lambda x: -x, data, 4)
    assert (worse.images, worse.top1[0], worse.agreement) == ({'test': 4, 'val': 0, 'train': 0}, 1, 0)
    assert '4 images (4 test): top-1 100.00%, evaluated here 0.00%, the same class for 0.00%' in str(worse)
    with pytest.raises(FieldError, match='=30: the data have 29 images: give no more'):
        compare(file, lambda x: x, data, 30)
