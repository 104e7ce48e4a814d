"""The search stays within its budget, finds the fewest bits, and says when it cannot."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import linen as nn

from ghn_jax.base.errors import UserError
from ghn_jax.tuning import fixed_point_search
from ghn_jax.tuning.fixed_point import LEAST_BITS, MOST_BITS, best_points, to_network
from ghn_jax.tuning.fixed_point_network import check_budget
from ghn_jax.tuning.fixed_point_search import Search, each_alone, layer_wise, narrowed, network_wise, uniform
from tests.tuning.models import Plain, calibrated


@pytest.fixture(scope='module')
def search() -> Search:
    """Labels are what the network says itself, but for one image in eight; it says all classes."""
    network, x = calibrated(Plain(), 64)
    (last,) = [name for name in network.weights if 'Dense' in name]
    biases = dict(network.biases) | {last: network.biases[last] - np.mean(network.apply(x), 0)}
    network = dataclasses.replace(network, biases=biases)
    labels = np.argmax(network.apply(x), 1)
    return Search.of(network, x, np.where(np.arange(64) % 8, labels, (labels + 1) % 10))


def correct(search: Search, formats: np.ndarray) -> int:
    """Counted with the quantized network that is made of formats."""
    made, policy = to_network(search.calibrated, search.tensors, formats)
    apply = jax.jit(lambda x: made.apply(x, made.quantizer(policy)))
    return sum(int(np.sum(np.argmax(apply(x), 1) == y)) for x, y in search.batches)


def test_layer_after_layer_stays_within_the_budget_and_takes_the_fewest_bits(search):
    kept = []
    in_float = search.score(search.float_formats()).correct
    assert in_float == 56
    found = layer_wise(search, 20, keep=lambda layers, formats: kept.append((layers, formats)))
    assert in_float - correct(search, found) <= 0.2 * 64
    assert correct(search, found) == search.score(found).correct
    assert found[:, 0].min() < MOST_BITS
    # One bit fewer of the last tensor would be too few, whichever of the points that are tried it gets.
    last = len(found) - 1
    assert found[last, 0] > LEAST_BITS
    points = best_points(search.values(found, search.tensors[last]), [found[last, 0] - 1])
    for point in (min(points[found[last, 0] - 1] + more, found[3:5, 1].sum()) for more in (-1, 0, 1)):
        fewer = found.copy()
        fewer[last] = found[last, 0] - 1, point
        assert search.score(fewer).correct < search.least_correct(20)
    # Stopped after the first layer and taken up again, it is the same.
    assert [layers for layers, _ in kept] == [1, 2]
    np.testing.assert_array_equal(layer_wise(search, 20, begun=kept[0]), found)


def test_a_bias_has_no_more_bits_behind_the_point_than_the_products(search):
    for formats in (uniform(search, 3), layer_wise(search, 20), each_alone(search, 20)):
        for k in (0, 3):
            assert formats[k + 2, 1] <= formats[k, 1] + formats[k + 1, 1]


def test_one_width_for_all_is_the_least_within_the_budget(search):
    found = network_wise(search, 20)
    (bits,) = set(found[:, 0].tolist())
    least = search.least_correct(20)
    assert search.score(found).correct >= least > search.score(uniform(search, bits - 1)).correct


def test_all_candidates_run_in_one_program(search):
    search.score(search.float_formats())  # compiles it, if no test did so before
    programs = fixed_point_search._run._cache_size()
    layer_wise(search, 20)
    assert len(search.scores) > 5
    assert fixed_point_search._run._cache_size() == programs


def test_two_uses_of_a_parameter_have_one_width():
    network, x = calibrated(Twice(), 16)
    of = Search.of(network, x, np.argmax(network.apply(x), 1))
    shared = [i for i, tensor in enumerate(of.tensors) if tensor.kind == 'weight' and tensor.layer in (1, 2)]
    found = narrowed(of, uniform(of, MOST_BITS), shared[0], 0)
    assert found[shared, 0].tolist() == [LEAST_BITS, LEAST_BITS]
    to_network(network, of.tensors, narrowed(of, found, shared[1], 0))


class Twice(nn.Module):
    """A convolution that is used twice."""

    @nn.compact
    def __call__(self, x, train: bool = True):
        x, again = nn.relu(nn.Conv(4, (3, 3))(x)), nn.Conv(4, (3, 3))
        return nn.Dense(10)(again(nn.relu(again(x))).mean((1, 2)))


def test_a_budget_that_nothing_meets_and_images_without_labels_are_told(search):
    with pytest.raises(UserError, match=r'budget=1: with 8 bits everywhere .* loses \d+\.\d+ points'):
        layer_wise(search, 1)
    x = search.batches[0][0]
    for labels in (None, np.zeros(3, int)):
        with pytest.raises(UserError, match='needs images, and one for each'):
            Search.of(search.calibrated, x, labels)
    with pytest.raises(UserError, match='needs images'):
        Search.of(search.calibrated, x[:0], np.zeros(0, int))
    for budget in (-1, 101, float('nan')):
        with pytest.raises(UserError, match='expected points of accuracy, from 0 to 100'):
            check_budget(budget)
