"""Graphs and layers of traced models are those that people would write down."""

import math
from collections import Counter
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import ghn_jax
from ghn_jax.models.names import named_leaves
from ghn_jax.models.tracing import trace
from ghn_jax.networks.graph import Graph, build_graph
from ghn_jax.networks.spaces import make_space
from ghn_jax.tuning.initialization import RANDOM, random_params
from tests.models import linen_models, nnx_models


def kinds(graph: Graph) -> Counter:
    return Counter(node.primitive for node in graph.nodes)


def size(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def function(apply, *shapes, input_shape=(2, 8, 8, 3), **options):
    """The model of a function of a list of parameters of these shapes."""
    params = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return trace(apply, input_shape, params=params, **options)


def conv(x, w, **options):
    options = {
        'window_strides': (1, 1),
        'padding': 'SAME',
        'dimension_numbers': ('NHWC', 'HWIO', 'NHWC'),
    } | options
    return jax.lax.conv_general_dilated(x, w, **options)


def slow_but(quick: str, names) -> list:
    """Parameters of a test, all but some of them for the slow suite."""
    return [name if name in quick.split() else pytest.param(name, marks=pytest.mark.slow) for name in names]


def check_same_as_specs(space: str, indices: range) -> None:
    for index in indices:
        spec = make_space(space).sample('test', seed=3, index=index)
        expected, found = build_graph(spec), trace(spec, (2, 32, 32, 3)).graph
        described = [[(n.primitive, n.name, n.shape) for n in graph.nodes] for graph in (expected, found)]
        assert described[0] == described[1], spec.name
        np.testing.assert_array_equal(expected.distance, found.distance)
        tensors = [
            {(p.name, p.shape, p.node, p.row) for p in graph.parameters} for graph in (expected, found)
        ]
        assert tensors[0] == tensors[1]
        assert expected.class_nodes == found.class_nodes


def test_the_graph_traced_from_the_plain_applier_equals_the_one_built_from_the_spec():
    check_same_as_specs('deepnets1m', range(8))
    check_same_as_specs('convnets250k', range(4))


@pytest.mark.slow
def test_200_traced_graphs_equal_those_built_from_specs():
    check_same_as_specs('deepnets1m', range(20, 170))
    check_same_as_specs('convnets250k', range(20, 70))


def test_resnet50_has_the_published_layers_and_parameters():
    """53 convolutions with a norm each, 16 sums, 25,557,032 parameters with 1,000 classes."""
    model = trace(linen_models.MODELS['resnet50'](classes=1000), (1, 224, 224, 3))
    expected = {'conv': 54, 'bn': 53, 'sum': 16, 'max_pool': 1, 'glob_avg': 1, 'input': 1, 'bias': 1}
    assert kinds(model.graph) == expected
    assert size(model.params) == 25_557_032 == sum(math.prod(p.shape) for p in model.graph.parameters)
    assert [layer.kind for layer in model.layers] == ['conv'] * 53 + ['linear']
    first = model.layers[0]
    assert (first.parameter, first.shape, first.stride, first.groups) == (
        'Conv_0.kernel',
        (64, 3, 7, 7),
        (2, 2),
        1,
    )


def described(model) -> int:
    """Numbers in the tensors of the graph and in those that are 0."""
    leaves = named_leaves(model.params)
    assert not {p.name for p in model.graph.parameters} & {*model.zeros}
    zeros = sum(math.prod(leaves[name].shape) for name in model.zeros)
    return zeros + sum(math.prod(p.shape) for p in model.graph.parameters)


PUBLISHED = {  # parameters with 10 classes, and numbers of some nodes
    'resnet18': (11_173_962, {'bn': 20, 'sum': 8}),
    'mobilenet_v2': (2_236_682, {'sep_conv': 17, 'bn': 52, 'sum': 10}),
    'efficientnet_b0': (4_020_358, {'sep_conv': 16, 'cse': 16, 'bn': 49, 'sum': 9}),
}


@pytest.mark.parametrize('name', slow_but('resnet18', PUBLISHED))
def test_linen_models_have_the_published_number_of_parameters(name):
    model = trace(linen_models.MODELS[name](), (2, 32, 32, 3))
    count, nodes = PUBLISHED[name]
    assert size(model.params) == count == described(model)
    assert kinds(model.graph) | nodes == kinds(model.graph)


OTHERS = {
    'vgg': {'max_pool': 5},
    'wide_resnet': {'bn': 13, 'sum': 6},
    'densenet': {'concat': 7, 'avg_pool': 1},
    'squeezenet': {'concat': 3, 'glob_avg': 1},
    'inception': {'concat': 4, 'avg_pool': 2, 'max_pool': 2},
    'convnext': {'sep_conv': 3, 'sum': 3, 'ln': 6},
}


@pytest.mark.parametrize('name', slow_but('convnext squeezenet', OTHERS))
def test_linen_models_are_predicted_whole(name):
    model = trace(linen_models.MODELS[name](), (2, 32, 32, 3))
    assert kinds(model.graph) | OTHERS[name] == kinds(model.graph)
    assert size(model.params) == described(model)
    assert not model.kept


@pytest.mark.parametrize('name', slow_but('mobilenet_v3 convnext', nnx_models.MODELS))
def test_nnx_models_are_predicted_whole(name):
    model = trace(nnx_models.abstract(name), (2, 32, 32, 3))
    assert size(model.params) == described(model)
    layers = kinds(model.graph)
    assert len(model.layers) == layers['conv'] + layers['sep_conv'] + layers['dil_conv']


def test_linen_and_nnx_give_the_same_graph():
    linen = linen_models.ResNet((1, 1), linen_models.BasicBlock, imagenet_stem=False)
    of_nnx = nnx.eval_shape(lambda: nnx_models.ResNet((1, 1), rngs=nnx.Rngs(0)))
    graphs = [trace(model, (2, 32, 32, 3)).graph for model in (linen, of_nnx)]
    assert [node.primitive for node in graphs[0].nodes] == [node.primitive for node in graphs[1].nodes]
    np.testing.assert_array_equal(graphs[0].distance, graphs[1].distance)


# ---- odd cases


class Normed(nn.Module):
    """A norm of a convolution and one of a linear layer."""

    make: type
    options: dict

    @nn.compact
    def __call__(self, x):
        x = self.make(**self.options)(nn.Conv(8, (3, 3), use_bias=False)(x))
        x = self.make(**self.options)(nn.Dense(8, use_bias=False)(nn.relu(x).mean((1, 2))))
        return nn.Dense(10, use_bias=False)(nn.relu(x))


BATCH = {'use_running_average': False}


@pytest.mark.parametrize(
    'make, options, kind, tensors',
    [
        (nn.BatchNorm, BATCH, 'bn', 2),
        (nn.BatchNorm, BATCH | {'use_bias': False}, 'bn', 1),
        (nn.BatchNorm, BATCH | {'use_scale': False}, 'bn', 1),
        (nn.BatchNorm, BATCH | {'use_scale': False, 'use_bias': False}, 'bn', 0),
        (nn.BatchNorm, BATCH | {'use_fast_variance': False}, 'bn', 2),
        (nn.LayerNorm, {}, 'ln', 2),
        (nn.LayerNorm, {'use_scale': False}, 'ln', 1),
        (nn.RMSNorm, {}, 'ln', 1),
        (nn.GroupNorm, {'num_groups': 4}, 'ln', 2),
        (nn.GroupNorm, {'num_groups': None, 'group_size': 1}, 'ln', 2),
    ],
)
def test_norms_are_one_node_with_their_scale_and_shift(make, options, kind, tensors):
    model = trace(Normed(make, options), (2, 8, 8, 3))
    expected = {'input': 1, 'conv': 3, 'glob_avg': 1, kind: 2}
    assert kinds(model.graph) == expected
    assert len(model.graph.parameters) == 3 + 2 * tensors
    assert [node.shape for node in model.graph.nodes if node.primitive == kind] == [(8,)] * 2
    assert model.graph.class_bias is None


def test_a_norm_folded_by_hand_into_one_scale_and_one_shift_is_a_norm():
    def apply(params, x):
        w, gain, offset, head = params
        x = conv(x, w)
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        scale = gain / jnp.sqrt(variance + 1e-5)
        return (x * scale + (offset - mean * scale)).mean((1, 2)) @ head

    model = function(apply, (3, 3, 3, 8), (8,), (8,), (8, 10))
    assert kinds(model.graph) == {'input': 1, 'conv': 2, 'bn': 1, 'glob_avg': 1}
    assert [(p.name, p.row) for p in model.graph.parameters if len(p.shape) == 1] == [('1', 0), ('2', 1)]


def test_layouts_of_weights_are_found_through_reshapes_and_transposes():
    def apply(params, x):
        nchw, flat, turned = params
        x = jnp.transpose(x, (0, 3, 1, 2))
        x = jax.lax.conv_general_dilated(x, nchw, (2, 2), 'SAME')
        x = jnp.transpose(x, (0, 2, 3, 1))
        x = conv(x, flat.reshape(1, 1, 8, 4).astype(jnp.float32))
        return jnp.einsum('nhwc,oc->no', x, jnp.flip(turned, 0))

    model = function(apply, (8, 3, 3, 3), (32,), (10, 4))
    assert [layer.shape for layer in model.layers] == [(8, 3, 3, 3), (4, 8, 1, 1), (10, 4)]
    assert [layer.stride for layer in model.layers] == [(2, 2), (1, 1), ()]
    rng = np.random.default_rng(0)
    values = [rng.normal(size=shape) for shape in ((8, 3, 3, 3), (32,), (10, 4))]
    seen = {0: values[0], 1: values[1].reshape(8, 4).T[:, :, None, None], 2: values[2][::-1]}
    for k, value in enumerate(values):
        np.testing.assert_array_equal(model.tensors[str(k)].to_parameter(seen[k], value.shape), value)


def test_convolutions_that_share_a_parameter_are_two_nodes_of_one_tensor():
    model = function(lambda p, x: conv(jnp.tanh(conv(conv(x, p[0]), p[1])), p[1]).mean((1, 2)) @ p[2],
                     (3, 3, 3, 8), (3, 3, 8, 8), (8, 10))  # fmt: skip
    assert kinds(model.graph) == {'input': 1, 'conv': 4, 'glob_avg': 1}
    assert [p.name for p in model.graph.parameters] == ['0', '1', '2']
    assert [layer.name for layer in model.layers] == ['0', '1', '1#2', '2']


def test_images_of_one_pixel_one_channel_outputs_and_checkpointed_blocks_are_traced():
    def apply(params, x):
        x = jax.checkpoint(lambda x: jax.nn.silu(conv(x, params[0])))(x)
        return jax.jit(lambda x: conv(x, params[1]))(x).reshape(len(x), -1) @ params[2]

    model = function(apply, (1, 1, 3, 8), (3, 3, 8, 1), (1, 10), input_shape=(1, 1, 1, 3))
    assert [layer.shape for layer in model.layers] == [(8, 3, 1, 1), (1, 8, 3, 3), (10, 1)]
    assert kinds(model.graph) == {'input': 1, 'conv': 3}


def test_dilated_depthwise_and_grouped_convolutions_are_told_apart():
    def apply(params, x):
        for w, options in zip(params[:3], ({'rhs_dilation': (2, 2)}, {}, {})):
            x = conv(x, w, feature_group_count=x.shape[-1] // w.shape[2], **options)
        return x.mean((1, 2)) @ params[3]

    model = function(apply, (3, 3, 1, 6), (5, 5, 1, 6), (3, 3, 3, 8), (8, 10), input_shape=(2, 8, 8, 6))
    assert [n.primitive for n in model.graph.nodes] == [
        'input',
        'dil_conv',
        'sep_conv',
        'conv',
        'glob_avg',
        'conv',
    ]
    assert [layer.groups for layer in model.layers] == [6, 6, 2, 1]


class Vit(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(16, (4, 4), (4, 4))(x)
        x = x.reshape(len(x), -1, 16)
        x = x + self.param('positions', nn.initializers.normal(0.02), (1, x.shape[1], 16))
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=4)(y, y)
        x = x + nn.Dense(16)(nn.gelu(nn.Dense(32)(nn.LayerNorm()(x))))
        return nn.Dense(10)(nn.LayerNorm()(x).mean(1))


def test_attention_and_positions_are_nodes():
    model = trace(Vit(), (2, 16, 16, 3))
    assert kinds(model.graph) == {
        'input': 1, 'conv': 8, 'bias': 7, 'pos_enc': 1, 'ln': 3, 'msa': 1, 'sum': 3, 'glob_avg': 1,
    }  # fmt: skip
    positions = next(p for p in model.graph.parameters if p.name == 'positions')
    assert positions.shape == (1, 16, 4, 4)
    value = np.arange(256.0).reshape(1, 16, 16)
    predicted = value.reshape(1, 4, 4, 16).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(model.tensors['positions'].to_parameter(predicted, (1, 16, 16)), value)


# ---- what cannot be


def recurrent(params, x):
    x = conv(x, params[0])
    x, _ = jax.lax.scan(lambda x, _: (jnp.tanh(conv(x, params[1])), None), x, length=3)
    return x.mean((1, 2)) @ params[2]


RECURRENT = (3, 3, 3, 8), (3, 3, 8, 8), (8, 10)


def test_a_loop_over_a_parameter_is_named_with_its_line():
    with pytest.raises(
        ghn_jax.UserError, match=r"parameter '1' enters 'scan' \(.*test_tracing.py:\d+.*\), a loop"
    ):
        function(recurrent, *RECURRENT)


def test_what_cannot_be_predicted_is_kept_and_listed_where_that_is_asked_for():
    model = function(recurrent, *RECURRENT, unsupported='keep')
    assert list(model.kept) == ['1']
    assert [p.name for p in model.graph.parameters] == ['0', '2']


class Prelu(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(nn.PReLU()(nn.Dense(8)(x.mean((1, 2)))))


def test_one_factor_for_all_channels_is_no_scale_of_a_norm_and_stays_as_initialised():
    with pytest.raises(
        ghn_jax.UserError, match="parameter 'PReLU_0.negative_slope' enters 'mul' .* one factor"
    ):
        trace(Prelu(), (2, 8, 8, 3))
    model = trace(Prelu(), (2, 8, 8, 3), unsupported='keep')
    assert kinds(model.graph) == {'input': 1, 'glob_avg': 1, 'conv': 2, 'bias': 2}
    assert list(model.kept) == ['PReLU_0.negative_slope']
    slope = random_params(model, RANDOM['he'], 0)['PReLU_0']['negative_slope']
    np.testing.assert_allclose(slope, 0.01)  # a slope of 1 would leave the model linear


def test_the_digest_of_a_model_says_what_it_computes_and_what_its_parameters_are_called():
    def digest(act=jax.nn.relu, factor=None, name='w', width=8):
        factor = np.float32([1, 2, 3]) if factor is None else factor
        params = {name: np.ones((3, 3, 3, width), np.float32), 'head': np.ones((width, 10), np.float32)}
        apply = lambda p, x: act(conv(x * factor, p[name])).mean((1, 2)) @ p['head']
        return trace(apply, (2, 8, 8, 3), params=params).digest

    assert digest() == digest() == digest(jax.checkpoint(lambda x: jax.nn.relu(x)))
    key = jax.random.normal(jax.random.key(0), 3)
    others = [dict(act=jax.nn.silu), dict(factor=np.float32([1, 2, 4])), dict(factor=key), dict(name='v')]
    assert len({digest(), *(digest(**other) for other in [*others, dict(width=9)])}) == 6


def test_a_weight_that_is_computed_from_a_parameter_is_named():
    standardised = lambda p, x: conv(x, (p[0] - p[0].mean()) / p[0].std()).mean((1, 2)) @ p[1]
    with pytest.raises(
        ghn_jax.UserError, match=r"parameter '0' enters 'reduce_sum' .*no convolution, linear"
    ):
        function(standardised, (3, 3, 3, 8), (8, 10))


def test_an_operation_without_a_rule_is_named_with_its_line():
    with pytest.raises(
        ghn_jax.UserError, match=r"operation 'cholesky' \(.*test_tracing.py:\d+.*\) has no rule"
    ):
        function(lambda p, x: jnp.linalg.cholesky(x[:, :3, :3, 0]).reshape(2, -1) @ p[0], (9, 10))


linear = lambda p, x: x.mean((1, 2)) @ p[0]
RUNNING = {'use_running_average': True}


class Other(nn.Module):
    """An operation of a model's own."""

    do: Callable

    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(self.do(self, x).mean((1, 2)))


drop = lambda module, x: x * jax.random.bernoulli(module.make_rng('droppath'), 0.9, (len(x), 1, 1, 1))
buffer = lambda module, x: x * module.variable('buffers', 'scale', lambda: jnp.ones(3)).value


class Big(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(nn.Dense(31_623)(nn.Dense(31_623)(x.mean((1, 2)))))


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda: trace(3, (1, 8, 8, 3)), 'the model is 3: expected a Flax module'),
        (lambda: trace([Vit()], (1, 16, 16, 3)), 'expected a Flax module'),  # whose repr has many lines
        (lambda: trace(Vit, (1, 16, 16, 3)), 'expected a Flax module .an instance'),
        (lambda: trace(Vit(), (1, 16)), r'cannot be run on images of shape \(1, 16\): '),
        (lambda: trace(Vit(), 'big'), "input_shape is 'big': expected the number of images and their shape"),
        (lambda: trace(Vit(), (1, 0, 16, 3)), 'input_shape is'),
        (lambda: trace(recurrent, (1, 8, 8, 3)), 'params is missing'),
        (lambda: trace(recurrent, (1, 8, 8, 3), params=['a']), 'params is .*expected a pytree of arrays'),
        (lambda: function(lambda p, x: x.mean((1, 2))), 'has no parameters'),
        (lambda: function(lambda p, x: x @ p[0], (3, 10)), r'returns shape \(2, 8, 8, 10\) for 2 images'),
        (lambda: trace(linear, (1, 8, 8, 3), params=[np.ones((3, 10), int)]), "'0' is int.*floating-point"),
        (lambda: function(lambda p, x: p[0], (2, 10)), 'do not depend on the images'),
        (lambda: trace(Big(), (1, 8, 8, 3)), 'has 1,000,488,484 parameters, more than'),
        (lambda: trace(Normed(nn.BatchNorm, RUNNING), (1, 8, 8, 3)), "'batch_stats.*as in training"),
        (lambda: trace(Other(drop), (1, 8, 8, 3)), "random numbers other than .*droppath.*: give them"),
        (lambda: trace(Other(buffer), (1, 8, 8, 3)), "variable 'buffers.scale', .* write constants into the"),
        (lambda: function(lambda p, x: conv(conv(x, p[0]), p[1], padding='VALID').reshape(2, 10),
                          (1, 1, 3, 10), (8, 8, 10, 10)), 'no linear layer or 1x1 convolution .* 10 logits'),
        (lambda: trace(Vit(), (1, 16, 16, 3), params={}), 'params are for a function'),
        (lambda: trace(Vit(), (1, 16, 16, 3), dtype='wide'), "dtype is 'wide': expected that of"),
        (lambda: trace(Vit(), (1, 16, 16, 3), unsupported='drop'), "expected 'raise' or 'keep'"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line(make, message):
    with pytest.raises(ghn_jax.UserError, match=message) as caught:
        make()
    assert '\n' not in str(caught.value)
