"""Fixed point at its bounds: the largest values there may be come out of every operation as they should.

Random data stay far from the bounds. A bound just below a power of two leaves the least room: values of up to
2^30 - 1 in magnitude.
"""

from fractions import Fraction

import numpy as np
import pytest

from ghn_jax.cnn.deploy.int32_arithmetic import (
    FixedReal,
    added,
    averaged,
    int32,
    make_factor,
    moved,
    point_for,
    rescale,
    rescaled,
)

BOUND = 4 - 2.0**-28  # its values are 2^30 - 1 at most


def at_bound(*shape, signs=1):
    """BOUND everywhere, with the signs given."""
    x = FixedReal(np.full(shape, 2**30 - 1, np.int32) * np.int32(signs), 28, BOUND)
    assert point_for(BOUND) == x.point and np.all(np.abs(x.real) == BOUND)
    return x


@pytest.mark.parametrize('x', [0, 1, -1, 12345, -(2**31), 2**31 - 1])
def test_rescaling_rounds_the_exact_product(x):
    for factor in (0.0, 1.0, -0.75, 1 / 3, 3e-9, 1e-30, 77.7):
        m = make_factor(factor)
        assert abs(int(m.multiplier)) < 2**31
        exact = Fraction(int(m.multiplier), 2 ** int(m.shift)) * x
        assert abs(float(exact) - factor * x) <= 2**-30 * abs(factor * x) + 1e-9
        assert rescale(np.array([x]), m)[0] == (exact + Fraction(1, 2)).__floor__()


def test_factors_differ_by_channel():
    m = make_factor(np.array([0.5, 2.0, 0.25]))
    np.testing.assert_array_equal(rescale(np.full((2, 3), 6, np.int32), m), [[3, 12, 2]] * 2)


def test_what_does_not_fit_is_an_error():
    ends = np.array([-(2**31), 2**31 - 1])
    np.testing.assert_array_equal(int32(ends), ends)
    assert int32(ends).dtype == np.int32 and int32(np.zeros((0, 3), np.int64)).size == 0
    for beyond in (ends + 1, ends - 1):
        with pytest.raises(OverflowError, match='do not fit int32: a bound is wrong'):
            int32(beyond)


def test_points_leave_room_for_bounds():
    assert [point_for(b) for b in (0, 0.9, 1, 3, 4, 1e-6)] == [30, 30, 29, 28, 27, 49]
    np.testing.assert_array_equal(moved(FixedReal(np.array([2**30, -3]), 28, 4.0), 26).x, [2**28, -1])


@pytest.mark.parametrize('sign', [1, -1])
@pytest.mark.parametrize('count', [1, 2, 3, 4, 6, 8, 9, 32, 64, 121])
def test_the_mean_of_values_at_the_bound_is_the_bound(count, sign):
    x = averaged(at_bound(3, count, signs=sign), lambda v: v.sum(1), count)
    room = count.bit_length()
    assert x.x.shape == (3,) and x.point == 28 and x.bound == BOUND
    np.testing.assert_allclose(x.real, sign * BOUND, rtol=2.0 ** (room - 30))


def test_means_are_as_exact_as_their_room_allows_and_of_their_own_counts():
    r = np.random.default_rng(0)
    values = r.integers(-(2**30) + 1, 2**30, (50, 9)).astype(np.int32)
    counts = r.integers(1, 10, 50)
    of = np.arange(9) < counts[:, None]
    x = averaged(FixedReal(values, 28, BOUND), lambda v: (v * of).sum(1), counts)
    expected = (values * of).sum(1) / counts
    assert np.abs(x.x - expected).max() <= 2**4 / 2 + 2**3 + 1


def test_a_long_chain_of_means_stays_exact():
    x = at_bound(9, signs=np.array([1, -1, 1, 1, -1, 1, 1, 1, 1]))
    expected = x.real
    for _ in range(40):
        x = averaged(x, lambda v: np.convolve(v, np.ones(3, np.int64), 'same'), np.array([2, *[3] * 7, 2]))
        expected = np.convolve(expected, np.ones(3), 'same') / [2, *[3] * 7, 2]
    np.testing.assert_allclose(x.real, expected, atol=40 * 2.0**2 * 2**-28)


@pytest.mark.parametrize('sign', [1, -1])
def test_sums_of_values_at_the_bound_are_exact_and_the_sum_of_the_bounds_bounds_them(sign):
    total = at_bound(1, signs=sign)
    for count in range(2, 40):
        total = added(total, at_bound(1, signs=sign))
        assert total.bound == count * BOUND and total.point == point_for(count * BOUND)
        np.testing.assert_allclose(total.real, sign * count * BOUND, rtol=count * 2.0**-29)


def test_terms_of_unlike_sizes_add_up():
    large, small = at_bound(1), FixedReal(np.array([-(2**30) + 1], np.int32), 40, BOUND * 2**-12)
    for a, b in ((large, small), (small, large)):
        np.testing.assert_allclose(added(a, b).real, BOUND * (1 - 2**-12), rtol=2.0**-28)


@pytest.mark.parametrize('sign', [1, -1])
def test_sums_of_a_layer_at_their_bound_take_the_whole_room(sign):
    bound = np.array([2.0**31 - 1, 255.0])
    x = rescaled(sign * bound.astype(np.int64), np.array([1e-6, 2.0]), bound, sign * np.array([3.0, 0.5]))
    largest = (2.0**31 - 1) * 1e-6 + 3
    assert x.bound == largest and x.point == point_for(largest)
    np.testing.assert_allclose(x.real, [sign * largest, sign * 510.5], rtol=2.0**-29)
    assert np.abs(x.x).max() > 2**29


@pytest.mark.filterwarnings('error')  # of factors that do not fit
def test_channels_without_weights_leave_the_others_their_scale():
    """Their sums are 0 and their scale may be anything: of a norm over nothing, hundreds of times theirs."""
    x = rescaled(np.array([[255, 0]]), np.array([1e-3, 1e12]), np.array([255.0, 0.0]), np.array([0.0, 0.125]))
    np.testing.assert_allclose(x.real, [[0.255, 0.125]], rtol=2.0**-29)
