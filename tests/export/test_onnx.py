"""onnxruntime computes from a file what JAX computes from the model: primitive by primitive, and models."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

import ghn_jax
from ghn_jax.cnn.reference import apply_reference
from ghn_jax.export import freeze, onnx_file, to_onnx
from ghn_jax.models.tracing import trace
from tests.cnn.networks import random_parameters, small_network
from tests.export.test_stablehlo import Net, drawn, images, of
from tests.models import linen_models
from tests.small_run import command, write_run

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')


def run(file: bytes, x: np.ndarray) -> np.ndarray:
    """The logits by onnxruntime, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=['CPUExecutionProvider'])
    return session.run(['logits'], {'images': x})[0]


def kinds(file: bytes) -> collections.Counter:
    """How many nodes there are of each kind."""
    return collections.Counter(node.op_type for node in onnx.load_from_string(file).graph.node)


def conv(x, w, strides=(1, 1), padding='SAME', numbers=('NHWC', 'HWIO', 'NHWC'), **more):
    return lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=numbers, **more)


def window(x, initial, op, size, strides, padding='SAME', **more):
    return lax.reduce_window(x, initial, op, size, strides, padding, **more)


W = np.random.default_rng(1).normal(size=(3, 3, 4, 8)).astype(np.float32)
V = np.random.default_rng(2).normal(size=(6, 4)).astype(np.float32)

PRIMITIVES = {
    'conv': lambda x: conv(x, W, (2, 2)),
    'conv_valid_dilated': lambda x: conv(x, W, padding='VALID', rhs_dilation=(2, 1)),
    'conv_uneven_padding': lambda x: conv(x, W, (2, 1), [(0, 1), (2, 0)]),
    'conv_groups': lambda x: conv(x, W[:, :, :2], feature_group_count=2),
    'conv_depthwise': lambda x: conv(x, W[:, :, :1, :4], feature_group_count=4),
    'conv_nchw': lambda x: conv(
        x, W.transpose(3, 2, 0, 1)[:, :1].repeat(6, 1), numbers=('NCHW', 'OIHW', 'NCHW')
    ),
    'conv_of_one_axis': lambda x: conv(x[:, 0], W[0], (1,), numbers=('NHC', 'HIO', 'NHC')),
    'two_convs': lambda x: conv(jax.nn.relu(conv(x, W)), W.transpose(0, 1, 3, 2)),
    'dense': lambda x: x @ V.T,
    'dense_of_two_axes': lambda x: jnp.einsum('nhwc,hck->nwk', x, V[:, :, None].repeat(5, 2)),
    'attention': lambda x: jax.nn.softmax(jnp.einsum('nhwc,nhvc->nhwv', x, x) / 2),
    'max_pool': lambda x: nn.max_pool(x, (3, 3), (2, 2), 'SAME'),
    'max_pool_dilated': lambda x: window(
        x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 1, 1, 1), window_dilation=(1, 2, 2, 1)
    ),
    'avg_pool': lambda x: nn.avg_pool(x, (3, 3), (2, 2), 'SAME'),
    'avg_pool_of_inside': lambda x: nn.avg_pool(x, (3, 3), (1, 1), 'SAME', count_include_pad=False),
    'pool_of_one_axis': lambda x: nn.avg_pool(x, (1, 3), (1, 3)),
    'means': lambda x: x - x.mean(-1, keepdims=True) / (1 + x.var((1, 2), keepdims=True)),
    'extremes': lambda x: x.max(2) - x.min(2) + x.prod(2),
    'concatenate': lambda x: jnp.concatenate([conv(x, W), x, jnp.ones_like(x)], -1),
    'pad': lambda x: jnp.pad(conv(x, W), ((0, 0), (1, 2), (0, 1), (0, 0)), constant_values=3),
    'pad_less': lambda x: lax.pad(x, jnp.float32(0), ((0, 0, 0), (-1, 0, 0), (1, -2, 0), (0, 0, 0))),
    'slice': lambda x: conv(x, W)[:, 1:5:2, :, 3:],
    'reverse': lambda x: conv(x, W)[:, ::-1] + jnp.flip(conv(x, W), (1, 2)),
    'pick': lambda x: (
        conv(x, W)[:, 2] + conv(x, W)[:, :, -1] + conv(x, W)[:, jnp.array([3, 0, 3, 1, 2, 5]), 1]
    ),
    'pick_along_axes': lambda x: (
        conv(x, W)[:, ::2, 1::3, 2:] + conv(x, W)[:, jnp.array([[5], [0], [5]]), jnp.array([1, 4]), :6]
    ),
    'split': lambda x: jnp.multiply(*jnp.split(conv(x, W), 2, -1)),
    'stack': lambda x: jnp.stack(
        [conv(x, W[..., :6]), x @ V.T, jnp.broadcast_to(V[:, 0], (x @ V.T).shape)], 2
    ),
    'unstack': lambda x: jnp.multiply(*jnp.unstack(conv(x, W)[..., :2], axis=3)),
    'tile': lambda x: jnp.tile(conv(x, W), (1, 2, 1, 3)),
    'is_finite': lambda x: jnp.where(jnp.isfinite(x / jnp.where(x > 0.3, x, 0)), x, 7),
    'reshape': lambda x: conv(x, W).reshape(x.shape[0], 6, -1),
    'transpose': lambda x: conv(x, W).transpose(0, 3, 1, 2),
    'broadcast': lambda x: jnp.broadcast_to(x[:, :1], x.shape),
    'broadcast_constant': lambda x: jnp.concatenate([x, jnp.broadcast_to(V, (x.shape[0], 6, 6, 4))], -1),
    'select': lambda x: jnp.where((x > 0.3) & ~(x >= 1) | (x != x), x, 2 * x),
    'clamp': lambda x: jnp.clip(x, -0.5, 0.5) + lax.clamp(jnp.float32(0), x, jnp.float32(0.1)),
    'round': lambda x: (
        jnp.round(3 * x) + lax.round(2.5 * jnp.sign(x)) + jnp.floor(x) + jnp.ceil(x) + jnp.fmod(x, 0.3)
    ),
    'round_near_half': lambda x: lax.round(jnp.sign(x) * np.nextafter(np.float32(0.5), np.float32(0))),
    'roots': lambda x: lax.rsqrt(jnp.abs(x) + 1) + jnp.sqrt(x * x) + (1 + x**2) ** 0.3 + 1 / (2 + x**4),
    'exponentials': lambda x: (
        jnp.exp(x) + jnp.log1p(jnp.abs(x)) + jnp.expm1(x) + jnp.exp2(x) + jnp.log(2 + x**2)
    ),
    'functions': lambda x: lax.erf(x) + lax.erfc(x) + jnp.tanh(x) + jnp.sin(x) + jax.nn.sigmoid(x),
    'activations': lambda x: sum(
        f(x) for f in (nn.relu6, nn.hard_swish, nn.silu, nn.gelu, nn.softplus, nn.elu, nn.leaky_relu)
    ),
    'gelu': lambda x: nn.gelu(x, approximate=False),
    'cumsum': lambda x: jnp.cumsum(conv(x, W), 1),
    'bfloat16': lambda x: nn.relu(x.astype(jnp.bfloat16)).astype(jnp.float32),
}


@pytest.mark.parametrize('name', PRIMITIVES)
def test_a_primitive_computes_the_same(name):
    function = lambda x: PRIMITIVES[name](x).reshape(x.shape[0], -1)
    x = np.random.default_rng(0).normal(size=(3, 6, 6, 4)).astype(np.float32)
    file, expected = to_onnx(freeze(function, x)), function(x)
    tolerance = 0.02 if name == 'bfloat16' else 1e-5
    np.testing.assert_allclose(
        run(file, x), expected, rtol=tolerance, atol=tolerance * np.abs(expected).max()
    )
    np.testing.assert_allclose(run(file, x[:1]), run(file, x)[:1], rtol=1e-5, atol=1e-5)


MODELS = {
    'net': Net(),
    'convnext': linen_models.ConvNeXt((1, 1), (16, 32)),
    'densenet': linen_models.DenseNet((1, 1)),
    'inception': linen_models.Inception(),
    'mobilenet': linen_models.MobileNet(
        (linen_models._row(1, 16, 1, 1), linen_models._row(6, 24, 2, 2, 5, 4, nn.hard_swish)),
        stem=16,
        head=64,
    ),
    'resnet': linen_models.ResNet((1, 1), linen_models.BasicBlock, width=8),
    'squeezenet': linen_models.SqueezeNet(),
}


@pytest.mark.parametrize(
    'name', [name if name == 'net' else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def test_a_model_computes_the_same_on_64_images(name):
    model, x = trace(MODELS[name], (1, 16, 16, 3)), images(64)
    params = drawn(model)
    file = to_onnx(freeze(of(model, params), x), {'model': name})
    expected, found = np.asarray(jax.jit(model.apply)(params, x)), run(file, x)
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.99
    if name == 'net':  # between the images, channels last, and the head: in front of the first convolution
        assert (kinds(file)['Conv'], kinds(file)['Transpose']) == (2, 1)
    written = onnx.load_from_string(file)
    assert {p.key: p.value for p in written.metadata_props} == {'model': name}
    assert (written.opset_import[0].version, written.ir_version) == (21, 10)


@pytest.mark.slow
def test_a_network_of_deepnets_computes_the_same():
    spec = small_network([('sep_conv_3x3', 0), ('avg_pool_3x3', 1)], n_cells=1, name='small')
    params, x = random_parameters(spec, 0), images(8)
    file = to_onnx(freeze(of(trace(spec, (1, 16, 16, 3)), params), x))
    expected = jax.jit(lambda x: apply_reference(spec, params, x))(x)
    np.testing.assert_allclose(run(file, x), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
def test_a_network_of_the_digits_space_classifies_digits_the_same():
    """Statistics of 256 training images, 300 test images that they were not taken from."""
    hypernetwork = ghn_jax.load('zoo:digits-bits')
    model = trace(hypernetwork.space.sample('test', 0, 0), (1, 16, 16, 3))
    data, params = hypernetwork.load_data(), hypernetwork.predict(model)
    frozen, x = freeze(of(model, params), data.normalized('train', 256)), data.normalized('test')
    found, expected = run(to_onnx(frozen), x), np.asarray(frozen.apply(x))
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
    assert (found.argmax(1) == data.test.labels).mean() > 0.9


def test_more_weights_than_a_file_holds_get_one_line(monkeypatch):
    monkeypatch.setattr(onnx_file, '_MOST', 500)
    with pytest.raises(ghn_jax.UserError, match='the weights take .* and an ONNX file has 500 at most'):
        to_onnx(freeze(lambda x: conv(x, W[:, :, :3]).reshape(x.shape[0], -1), images(2)))


@pytest.mark.slow
def test_the_command_writes_what_the_network_computes(tmp_path):
    """Predicted by a run's hypernetwork, its statistics those of training images."""
    workdir, arch, out = write_run(tmp_path / 'run'), tmp_path / 'net.json', tmp_path / 'net.onnx'
    hypernetwork = ghn_jax.load(workdir)
    spec = hypernetwork.space.sample('test', 0, 0)
    ghn_jax.save_networks(arch, [spec])
    how = f'--workdir={workdir}', f'--arch={arch}', '--calibration_images=64', f'--out={out}'
    code, said, error = command('ghn_jax.export', *how)
    assert code == 0 and 'net.onnx: ' in said, error
    x, weights = hypernetwork.load_data().normalized('train', 64), hypernetwork.predict(spec)
    expected = ghn_jax.run(spec, weights, x)
    np.testing.assert_allclose(run(out.read_bytes(), x), expected, atol=1e-4 * np.abs(expected).max())


def of_traced_sort():
    """A traced model that sorts."""
    apply = lambda p, x: jnp.sort(x, 1).mean((1, 2)) @ p['w']
    params = {'w': jnp.ones((4, 4))}
    model = trace(apply, (1, 16, 16, 4), params=params)
    return lambda x: model.apply(params, x)


def test_an_operation_without_a_rule_is_named_with_its_line():
    for function, said in (
        (lambda x: jnp.sort(x, 1), r"'sort' \(.*test_onnx.py:\d+.*\) cannot be written as ONNX: .* no rule"),
        (of_traced_sort(), r"'sort' \(.*test_onnx.py:\d+.*\) cannot be written as ONNX: .* no rule"),
        (lambda x: lax.conv_transpose(x, W[:, :, :, :4], (2, 2), 'SAME'), "'conv_general.*transposed"),
    ):  # fmt: skip
        frozen = freeze(
            lambda x, function=function: function(x).reshape(x.shape[0], -1), images()[..., [0] * 4]
        )
        with pytest.raises(ghn_jax.UserError, match=said) as caught:
            to_onnx(frozen)
        assert '\n' not in str(caught.value)
