"""Graphs and layers of traced models are those that people would write down."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from ghn_jax.models.names import named_leaves
from ghn_jax.models.tracing import trace
from ghn_jax.networks.graph import build_graph
from ghn_jax.networks.spaces import make_space
from tests.models import linen_models, nnx_models
from tests.models.traced import Normed, Vit, conv, function, kinds


def size(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


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
