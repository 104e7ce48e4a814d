"""Where the channels that are read lie in the tiles of weights: it follows from the layers that make them."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import ghn_jax
from ghn_jax.hypernet.tiles import count_items, decoder_table
from ghn_jax.models.channel_places import aligned
from ghn_jax.models.tracing import trace
from tests.models.linen_models import MODELS, DenseNet, ShuffleNet

IMAGES = (1, 16, 16, 3)


def places_of(module, images=IMAGES):
    """By parameter, where they are not 0, 1, 2, ..."""
    graph = aligned(trace(module, images))
    return {p.name: p.places for p in graph.parameters if p.places is not None}


def ranges(*parts):
    """(first, count) of each part -> the numbers of all."""
    return tuple(place for first, count in parts for place in range(first, first + count))


def conv(width: int, name: str | None = None, **of) -> nn.Conv:
    return nn.Conv(width, (3, 3), use_bias=False, name=name, **of)


class Joined(nn.Module):
    """Convolutions whose results are joined; a norm and layers read them."""

    widths: tuple[int, ...]
    nested: bool = False

    @nn.compact
    def __call__(self, x):
        parts = [conv(width)(x) for width in self.widths]
        if self.nested:
            parts = [jnp.concatenate(parts[:-1], -1), parts[-1]]
        x = nn.relu(nn.BatchNorm(use_running_average=False, name='norm')(jnp.concatenate(parts, -1)))
        x = nn.avg_pool(x, (2, 2), (2, 2))
        C = sum(self.widths)
        x = x + conv(C, 'depthwise', feature_group_count=C)(x)
        x = conv(8, 'after')(x)
        return nn.Dense(10, name='head')(nn.relu(x).mean((1, 2)))


@pytest.mark.parametrize('nested', [False, True])
def test_each_layer_of_a_concatenation_begins_at_a_multiple_of_16(nested):
    expected = ranges((0, 24), (32, 12), (48, 16), (64, 5))
    found = places_of(Joined((24, 12, 16, 5), nested))
    assert found == dict.fromkeys(('norm.scale', 'norm.bias', 'depthwise.kernel', 'after.kernel'), expected)


@pytest.mark.parametrize('widths', [(16, 32, 48), (8, 8), (8, 8, 16, 16), (16, 12)])
def test_the_places_of_what_a_training_has_stay(widths):
    """Multiples of 16, the halves of a FactorizedReduce, and a narrow layer at the end."""
    assert not places_of(Joined(widths))


class Mixed(nn.Module):
    """Two layers whose channels are moved about before others read them."""

    how: str

    @nn.compact
    def __call__(self, x):
        a, b = conv(12)(x), conv(12)(x)
        if self.how == 'added':
            x = jnp.concatenate([a, b], -1) + conv(24)(x)
        elif self.how == 'shuffled':
            x = jnp.concatenate([a, b], -1).reshape(*a.shape[:3], 2, 12).swapaxes(3, 4)
            x = x.reshape(*a.shape[:3], 24)
        elif self.how == 'split':
            _, x = jnp.split(jnp.concatenate([a, b], -1), 2, -1)
        elif self.how == 'cut':
            x = a[..., 4:]
        x = conv(16, 'after')(nn.relu(x))
        return nn.Dense(10)(nn.relu(x).mean((1, 2)))


@pytest.mark.parametrize(
    'how, expected',
    [
        ('added', None),  # one layer makes all of them, whatever it is added to
        ('shuffled', tuple(place for c in range(12) for place in (c, 16 + c))),
        ('split', None),
        ('cut', ranges((4, 8))),
    ],
)
def test_channels_keep_their_places_wherever_they_go(how, expected):
    assert places_of(Mixed(how)).get('after.kernel') == expected


@pytest.mark.parametrize('order', ['pixels first', 'channels first'])
def test_the_pixels_of_a_map_that_is_flattened_have_the_same_places(order):
    class Flat(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.max_pool(nn.relu(conv(12)(x)), (8, 8), (8, 8))
            if order == 'channels first':
                x = x.transpose(0, 3, 1, 2)
            return nn.Dense(10)(x.reshape(len(x), -1))

    each = tuple(range(12))
    expected = 4 * each if order == 'pixels first' else tuple(np.repeat(each, 4).tolist())
    assert places_of(Flat()) == {'Dense_0.kernel': expected}


def test_it_makes_no_difference_how_many_images_a_model_is_traced_with():
    assert places_of(DenseNet(), (1, 16, 16, 3)) == places_of(DenseNet(), (5, 16, 16, 3)) != {}


def test_a_model_that_runs_on_so_many_images_only_has_places():
    def apply(params, x):
        x = jnp.einsum('nhwc,cd->nd', x, params['first'])
        x = jnp.concatenate([x, x @ params['second']], -1).reshape(2, -1)  # two images, and no other number
        return x @ params['last']

    shapes = {'first': (3, 12), 'second': (12, 12), 'last': (24, 10)}
    params = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    model = ghn_jax.trace(apply, (2, 16, 16, 3), params=params)
    last = next(p for p in aligned(model).parameters if p.name == 'last')
    assert last.places == ranges((0, 12), (16, 12))


def test_networks_of_a_space_are_predicted_as_they_are_trained():
    space = ghn_jax.make_space('convnets250k', channels=(24,), cells=(4, 6))
    for index in range(4):
        model = trace(space.sample('train', 0, index), (2, 32, 32, 3))
        assert aligned(model) is model.graph
        assert all(p.places is None for p in model.graph.parameters)


def test_published_models_have_the_published_places():
    """All are as wide as multiples of 16 where they concatenate, but DenseNet of 12 channels a layer."""
    for name in ('densenet', 'inception', 'squeezenet', 'resnet18', 'mobilenet_v2'):
        assert bool(places_of(MODELS[name]())) == (name == 'densenet'), name
    assert not places_of(DenseNet((2, 3), growth=32))


def test_a_small_weight_is_decoded_as_large_as_its_places():
    """Of 30 channels, the last of which lie behind the quarter of a tile that small weights have."""
    graph = aligned(trace(Joined((10, 10, 10)), IMAGES))
    after = next(p for p in graph.parameters if p.name == 'after.kernel')
    assert after.shape[:2] == (8, 30) and max(after.places or ()) == 41
    room = count_items(graph)
    table, items = decoder_table(graph, max_dense=room['dense'], max_depth=room['depth'])
    _, first = items['after.kernel']
    assert int(table.n_small) <= first < int(table.n_dense)


@pytest.mark.parametrize('module', [DenseNet(), ShuffleNet()])
def test_models_work_that_join_narrow_layers_or_shuffle_channels(module):
    """They have 7 and 16 % where channels are read in order."""
    hypernetwork = ghn_jax.load('zoo:digits-broad')
    model = trace(module, IMAGES)
    data = hypernetwork.load_data()
    params, images = hypernetwork.predict(model), data.normalized('test', 120)
    logits = [model.apply(params, jnp.asarray(images[i : i + 60])) for i in (0, 60)]
    assert np.mean(np.concatenate(logits).argmax(-1) == data.test.labels[:120]) > 0.5
