"""Costs of a model are those that one counts by hand."""

from flax import linen as nn

from ghn_jax.models.costs import bit_operations, count_activations, count_macs
from ghn_jax.models.tracing import trace


class Four(nn.Module):
    """A strided convolution, a depthwise one, a product of tokens and a linear layer."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), (2, 2), name='a')(x))
        x = nn.relu(nn.Conv(8, (5, 3), feature_group_count=8, name='b')(x))
        x = nn.relu(nn.Dense(6, name='c')(x))
        return nn.Dense(10, name='d')(x.mean((1, 2)))


def test_macs_and_bit_operations_are_those_counted_by_hand():
    expected = {
        'a.kernel': (4 * 4 * 8) * (3 * 3 * 3),
        'b.kernel': (4 * 4 * 8) * (5 * 3),
        'c.kernel': (4 * 4 * 6) * 8,
        'd.kernel': 10 * 6,
    }
    read = {'a.kernel': 8 * 8 * 3, 'b.kernel': 4 * 4 * 8, 'c.kernel': 4 * 4 * 8, 'd.kernel': 6}
    for images in (1, 3):
        model = trace(Four(), (images, 8, 8, 3))
        assert count_macs(model) == expected and count_activations(model) == read
    weights = {'a.kernel': 8, 'b.kernel': 4, 'c.kernel': 2, 'd.kernel': 8}
    activations = {'a.kernel': 8, 'b.kernel': 2, 'c.kernel': 3, 'd.kernel': 1}
    by_hand = 3456 * 64 + 1920 * 8 + 768 * 6 + 60 * 8
    assert bit_operations(expected, weights, activations) == by_hand


class Shared(nn.Module):
    """Two layers read one activation, and one of them reads another, too."""

    @nn.compact
    def __call__(self, x):
        a, b = nn.Dense(4, name='a'), nn.Dense(4, name='b')
        x = nn.relu(x + 1)
        return nn.Dense(10, name='c')((a(x) + b(x) + a(nn.relu(x - 1))).mean((1, 2)))


def test_an_activation_counts_once_however_many_layers_read_it():
    model = trace(Shared(), (1, 8, 8, 3))
    assert count_activations(model) == {'a.kernel': 2 * 8 * 8 * 3, 'c.kernel': 4}
    assert count_macs(model)['a.kernel#2'] == 8 * 8 * 3 * 4
