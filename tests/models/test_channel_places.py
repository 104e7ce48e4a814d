"""Concatenations of tensors that are no multiple of 16 wide: each begins at one in the tiles of weights."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import ghn_jax
from ghn_jax.hypernet.tiles import count_items, decoder_table
from ghn_jax.models.tracing import trace
from tests.models.linen_models import MODELS, DenseNet

IMAGES = (2, 16, 16, 3)


def places_of(module):
    """By parameter, where they are not 0, 1, 2, ..."""
    graph = trace(module, IMAGES).graph
    return {p.name: p.places for p in graph.parameters if p.places is not None}


class Joined(nn.Module):
    """Convolutions whose results are joined; a norm and layers read them."""

    widths: tuple[int, ...]
    nested: bool = False

    @nn.compact
    def __call__(self, x):
        parts = [nn.Conv(width, (1, 1), use_bias=False, name=f'part_{width}_{i}')(x)
                 for i, width in enumerate(self.widths)]  # fmt: skip
        if self.nested:
            parts = [jnp.concatenate(parts[:-1], -1), parts[-1]]
        x = nn.relu(nn.BatchNorm(use_running_average=False, name='norm')(jnp.concatenate(parts, -1)))
        x = nn.avg_pool(x, (2, 2), (2, 2))
        C = sum(self.widths)
        x = x + nn.Conv(C, (3, 3), feature_group_count=C, use_bias=False, name='depthwise')(x)
        x = nn.Conv(8, (1, 1), use_bias=False, name='after')(x)
        return nn.Dense(10, name='head')(nn.relu(x).mean((1, 2)))


def ranges(*parts):
    return tuple(place for first, count in parts for place in range(first, first + count))


@pytest.mark.parametrize('nested', [False, True])
def test_every_tensor_of_a_concatenation_begins_at_a_multiple_of_16(nested):
    expected = ranges((0, 24), (32, 12), (48, 16), (64, 5))
    found = places_of(Joined((24, 12, 16, 5), nested))
    assert found == dict.fromkeys(('norm.scale', 'norm.bias', 'depthwise.kernel', 'after.kernel'), expected)


@pytest.mark.parametrize('widths', [(16, 32, 48), (12, 12), (16, 12)])
def test_the_places_of_what_a_training_has_stay(widths):
    """Multiples of 16, the halves of a FactorizedReduce, and a narrow tensor at the end."""
    assert not places_of(Joined(widths))


def test_a_sum_of_what_lies_differently_is_read_in_order():
    class Sum(nn.Module):
        @nn.compact
        def __call__(self, x):
            conv = lambda width: nn.Conv(width, (1, 1), use_bias=False)(x)
            x = jnp.concatenate([conv(12), conv(20)], -1) + conv(32)
            return nn.Dense(10)(x.mean((1, 2)))

    assert not places_of(Sum())


def test_networks_of_a_space_are_predicted_as_they_are_trained():
    space = ghn_jax.make_space('convnets250k', channels=(24,), cells=(4, 6))
    for index in range(4):
        graph = trace(space.sample('train', 0, index), (2, 32, 32, 3)).graph
        assert all(p.places is None for p in graph.parameters)


def test_published_models_have_the_published_places():
    """All are as wide as multiples of 16 wherever they concatenate, but DenseNet of 12 channels a layer."""
    assert {name for name in ('densenet', 'inception', 'squeezenet') if places_of(MODELS[name]())} == {
        'densenet'
    }
    assert not places_of(DenseNet((2, 3), growth=32))


def test_a_small_weight_is_decoded_as_large_as_its_places():
    """Of 30 channels, the last of which lie behind the quarter of a tile that small weights have."""
    graph = trace(Joined((10, 10, 10)), IMAGES).graph
    after = next(p for p in graph.parameters if p.name == 'after.kernel')
    assert after.shape[:2] == (8, 30) and max(after.places or ()) == 41
    room = count_items(graph)
    table, items = decoder_table(graph, max_dense=room['dense'], max_depth=room['depth'])
    _, first = items['after.kernel']
    assert int(table.n_small) <= first < int(table.n_dense)


def test_a_densenet_of_narrow_layers_works():
    """It has 7 % where the tensors are read one behind the other."""
    hypernetwork = ghn_jax.load('zoo:digits-broad')
    model = trace(MODELS['densenet'](), (1, 16, 16, 3))
    data = hypernetwork.load_data()
    params, images = hypernetwork.predict(model), data.normalized('test', 120)
    logits = [model.apply(params, jnp.asarray(images[i : i + 60])) for i in (0, 60)]
    assert np.mean(np.concatenate(logits).argmax(-1) == data.test.labels[:120]) > 0.5
