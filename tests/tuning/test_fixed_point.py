"""Fixed point: numbers are those of exact fractions, ranges keep them, and costs are counted by hand."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.quant.grid import fake_quantize, make_grid
from ghn_jax.tuning.fixed_point import (
    FARTHEST,
    FixedPoint,
    activation_formats,
    best_points,
    costs_of,
    point_of,
    range_of,
    round_to,
    tensors_of,
    to_network,
    with_rounded,
)
from tests.tuning.models import Plain, Residual, calibrated


def in_fractions(x: float, bits: int, point: int) -> Fraction:
    """The formula, exactly; Python rounds fractions half to even."""
    q = round(Fraction(x) * Fraction(2) ** point)
    return min(max(q, -(2 ** (bits - 1))), 2 ** (bits - 1) - 1) / Fraction(2) ** point


def ties_and_others(point: int) -> np.ndarray:
    r = np.random.default_rng(0)
    ties = (np.arange(-300, 300) / 2 + r.choice([-1e-4, 0, 0, 1e-4], 600)) * 2.0**-point
    return np.concatenate([ties, r.normal(size=200), [0, 1e30, -1e30]]).astype(np.float32)


@pytest.mark.parametrize('point', [-3, 0, 5, 20])
def test_rounding_is_that_of_exact_fractions(point):
    x = ties_and_others(point)
    for bits in (2, 5, 8):
        expected = [float(in_fractions(float(v), bits, point)) for v in x]
        np.testing.assert_array_equal(jax.jit(round_to)(x, bits, point), np.float32(expected))
    np.testing.assert_array_equal(round_to(jnp.asarray(x), 32, point), x)


def test_a_grid_over_the_range_of_a_format_has_its_levels_to_the_bit():
    fitted = jax.jit(lambda lo, hi, bits: make_grid(lo, hi, bits, jnp.float32), static_argnames='bits')
    for bits in (*range(2, 9), 16):
        for point in (-4, 0, 7, 20):
            grid = fitted(*range_of(bits, point), bits=bits)
            assert (grid.scale, grid.zero, grid.top) == (2.0**-point, 2 ** (bits - 1), 2**bits - 1)
            assert point_of(range_of(bits, point), bits, 'x') == point
    x = jnp.asarray(ties_and_others(5))
    np.testing.assert_array_equal(fake_quantize(x, *range_of(4, 5), 4), round_to(x, 4, 5))
    for ends in (None, range_of(8, 3), (-1.0, 1.0), (np.array([-1.0, -2.0]), np.array([0.75, 1.5]))):
        with pytest.raises(UserError, match='no range of 3-bit fixed point'):
            point_of(ends, 3, 'x')


def test_the_best_point_has_the_least_squared_error_of_all():
    r = np.random.default_rng(0)
    for x in (r.normal(size=500), r.uniform(0, 1e-3, 500), 100 * r.standard_t(2, 500), np.zeros(5)):
        for bits, point in best_points(x, (2, 3, 8)).items():
            errors = {
                f: np.sum((np.array([float(in_fractions(v, bits, f)) for v in x]) - x) ** 2)
                for f in range(point - 8, point + 9)
            }
            assert errors[point] == min(errors.values())


def test_a_tensor_beyond_all_points_gets_the_nearest_one():
    assert best_points(np.array([2.0**40]), (2, 8)) == {2: -FARTHEST, 8: -FARTHEST}
    assert best_points(np.array([2.0**-50]), (2, 8)) == {2: FARTHEST, 8: FARTHEST}


def formats_of(tensors) -> np.ndarray:
    widths = {'activation': 4, 'weight': 3, 'bias': 6}
    return np.array([[widths[t.kind] + (t.layer == 0), 2] for t in tensors], np.int32)


def test_memory_and_multiplications_are_those_counted_by_hand():
    network, _ = calibrated(Plain())
    tensors = tensors_of(network)
    assert [(t.kind, t.layer) for t in tensors] == [
        (kind, layer) for layer in (0, 1) for kind in ('activation', 'weight', 'bias')
    ]
    cost = costs_of(network, tensors, formats_of(tensors))
    assert cost.parameters == (3 * 3 * 3 * 8) * 4 + 8 * 7 + (8 * 10) * 3 + 10 * 6
    assert cost.activations == (8 * 8 * 3) * 5 + 8 * 4
    assert cost.multiplications == (4 * 4 * 8 * 27) * 4 * 5 + (8 * 10) * 3 * 4
    assert cost.memory == cost.parameters + cost.activations


def test_a_network_in_formats_is_a_quantized_one_with_the_same_logits_to_the_bit():
    network, x = calibrated(Residual(), 8)
    tensors = tensors_of(network)
    formats = formats_of(tensors)
    made, policy = to_network(network, tensors, formats)
    quantizer = made.quantizer(policy)
    found = jax.jit(lambda x: made.apply(x, quantizer))(x)

    @jax.jit
    def run(network, formats, x):
        formats_by_name = activation_formats(tensors, formats)
        return with_rounded(network, tensors, formats).apply(x, FixedPoint(formats_by_name))

    np.testing.assert_array_equal(found, run(network, formats, x))
    first = tensors[1].name
    assert np.all(np.abs(made.weights[first]) <= 2.0) and len(np.unique(made.weights[first])) <= 16
    assert quantizer.widths[first] == (4, 5) and str(policy) == 'fixed_point'
