"""The budget is kept on images that had no part in the choice of formats."""

import dataclasses

import numpy as np
import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.tuning.fixed_point import MOST_BITS, to_network
from ghn_jax.tuning.fixed_point_budget import SHARES, count_parts, labelled, within_budget
from ghn_jax.tuning.fixed_point_search import Search, layer_wise, uniform
from tests.tuning.models import Plain, calibrated, images

BUDGET = 12.5


@pytest.fixture(scope='module')
def network():
    """It says all classes."""
    network, x = calibrated(Plain(), 64)
    (last,) = [name for name in network.weights if 'Dense' in name]
    biases = dict(network.biases) | {last: network.biases[last] - np.mean(network.apply(x), 0)}
    return dataclasses.replace(network, biases=biases)


def searched(network, x) -> Search:
    """Labels are what the network says of the images itself."""
    return Search.of(network, x, np.argmax(network.apply(x), 1))


@pytest.fixture(scope='module')
def check(network) -> Search:
    return searched(network, images(128, seed=4))


def lost(search: Search, formats: np.ndarray) -> float:
    return 100 * (search.images - search.score(formats).correct) / search.images


def is_kept(search: Search, formats: np.ndarray) -> bool:
    """Whether the budget has room for what is lost; in float nothing is lost."""
    return lost(search, formats) <= BUDGET


def test_the_largest_share_that_keeps_the_budget_where_it_is_checked_is_spent(network, check):
    choose = searched(network, images(64, seed=5))
    parts, kept = [], []
    found, share = within_budget(choose, check, BUDGET, parts.append, None, kept.append)
    assert lost(choose, found) <= BUDGET and is_kept(check, found)
    assert 0 < share < 1 and found[:, 0].min() < MOST_BITS
    for larger in SHARES[: SHARES.index(share)]:
        assert not is_kept(check, layer_wise(choose, BUDGET, larger))
    np.testing.assert_array_equal(found, layer_wise(choose, BUDGET, share))
    assert sum(parts) == count_parts(choose.layers)

    # Stopped anywhere and taken up again, it is the same, and tells of as many parts.
    assert [(a.number, a.layers) for a in kept] == [
        (n, k) for n in range(kept[-1].number + 1) for k in (1, 2)
    ]
    for begun in kept:
        parts.clear()
        again, same = within_budget(choose, check, BUDGET, parts.append, begun)
        np.testing.assert_array_equal(again, found)
        assert same == share and sum(parts) == count_parts(choose.layers)


def test_where_no_share_is_small_enough_it_is_8_bits_everywhere(network, check):
    choose = searched(network, images(32, seed=3))
    assert not any(is_kept(check, layer_wise(choose, BUDGET, share)) for share in SHARES)
    found, share = within_budget(choose, check, BUDGET)
    assert share == 0 and found[:, 0].tolist() == [MOST_BITS] * len(found)


def test_a_budget_that_8_bits_do_not_meet_where_it_is_checked_is_told(network):
    choose = searched(network, x := images(64, seed=5))
    wrong = lost(choose, uniform(choose, MOST_BITS))
    made, policy = to_network(network, choose.tensors, uniform(choose, MOST_BITS))
    said = np.argmax(made.apply(x, made.quantizer(policy)), 1)
    only_wrong = searched(network, x[said != np.argmax(network.apply(x), 1)])
    assert 0 < wrong < BUDGET and only_wrong.images < 64
    with pytest.raises(UserError, match=rf'loses 100\.00 points on {only_wrong.images} calibration images'):
        within_budget(choose, only_wrong, BUDGET)


def test_images_that_check_are_validation_images_and_no_image_does_both():
    class Split:
        def __init__(self, first, count):
            self.labels = np.arange(first, first + count)

    class Data:
        val, train = Split(0, 30), Split(100, 50)

        def normalized(self, split, count):
            return getattr(self, split).labels[:count].astype(np.float32)

    for count, choosing, checking in (
        (20, range(10, 20), range(10)),
        (40, [*range(20, 30), *range(100, 110)], range(20)),
        (70, range(100, 140), range(30)),
        (500, range(100, 150), range(30)),
    ):
        choose, check = labelled(Data(), count)
        for (x, y), expected in ((choose, choosing), (check, checking)):
            assert x.tolist() == y.tolist() == list(expected)
    with pytest.raises(UserError, match='images=1: half of them choose formats and half check them'):
        labelled(Data(), 1)
