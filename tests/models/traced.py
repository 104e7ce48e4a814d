"""Small models and functions, and what is seen of their graphs, for tests of tracing."""

from collections import Counter

import jax
import jax.numpy as jnp
from flax import linen as nn

from ghn_jax.models.tracing import trace
from ghn_jax.networks.graph import Graph


def kinds(graph: Graph) -> Counter:
    return Counter(node.primitive for node in graph.nodes)


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


class Normed(nn.Module):
    """A norm of a convolution and one of a linear layer."""

    make: type
    options: dict

    @nn.compact
    def __call__(self, x):
        x = self.make(**self.options)(nn.Conv(8, (3, 3), use_bias=False)(x))
        x = self.make(**self.options)(nn.Dense(8, use_bias=False)(nn.relu(x).mean((1, 2))))
        return nn.Dense(10, use_bias=False)(nn.relu(x))


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
