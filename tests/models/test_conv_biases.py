"""Biases of convolutions: no space has any, so a traced model's are no nodes."""

import numpy as np
from flax import linen as nn

from ghn_jax.models.tracing import trace
from ghn_jax.networks.graph import build_graph
from ghn_jax.networks.spaces import make_space


def plain(*, use_bias: bool):
    """Two convolutions, the second of each channel by itself; a linear layer; a 1x1 one for the logits."""

    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(16, (3, 3), use_bias=use_bias)(x))
            x = nn.Conv(16, (3, 3), feature_group_count=16, use_bias=use_bias)(x)
            x = nn.Dense(16)(nn.relu(nn.BatchNorm(use_running_average=False)(x)))
            return nn.Conv(10, (1, 1))(x).mean((1, 2))

    return trace(Plain(), (2, 8, 8, 3))


def test_a_bias_of_a_convolution_is_no_node_but_that_of_the_last_layer():
    model, without = plain(use_bias=True), plain(use_bias=False)
    assert model.zeros.keys() == {'Conv_0.bias', 'Conv_1.bias'} and not without.zeros
    assert (
        model.graph.nodes == without.graph.nodes
        and [n.primitive for n in model.graph.nodes].count('bias') == 2
    )
    np.testing.assert_array_equal(model.graph.distance, without.graph.distance)
    assert model.graph.nodes[model.graph.class_bias].name == 'Conv_2.bias'


def test_no_space_has_a_bias_of_a_convolution():
    for space in ('convnets250k', 'deepnets1m'):
        for index in range(30):
            graph = build_graph(make_space(space).sample('train', 0, index))
            for v in (v for v, node in enumerate(graph.nodes) if node.primitive == 'bias'):
                (before,) = np.flatnonzero(graph.distance[:, v] == 1)
                assert graph.nodes[before].primitive == 'conv' and len(graph.nodes[before].shape) == 2
