"""Integers and shifts give the numbers of the rounded network to the bit, and refuse what they cannot do."""

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ghn_jax.base.errors import UserError
from ghn_jax.models.folding import fold
from ghn_jax.models.tracing import trace
from ghn_jax.tuning.fixed_point import best_points, tensors_of, to_network
from ghn_jax.tuning.integer_run import integer_logits
from ghn_jax.tuning.shifts import INT32_MAX, ScaledInteger, shift_right, to_format
from tests.cnn.networks import small_network
from tests.tuning.models import Plain, images, parameters


class Branches(nn.Module):
    """What models have between layers: sums, pools, a concatenation, a cut, a clipped ReLU."""

    @nn.compact
    def __call__(self, x, train: bool = True):
        norm = partial(nn.BatchNorm, use_running_average=not train)
        x = nn.relu(norm()(nn.Conv(8, (3, 3), use_bias=False)(x)))
        a = norm()(nn.Conv(8, (3, 3), feature_group_count=8, use_bias=False)(jnp.where(x > 0.5, x, 0)))
        b = nn.max_pool(nn.relu6(nn.Conv(8, (1, 1))(x)), (3, 3), (1, 1), 'SAME')
        x = nn.relu(jnp.concatenate([x + a, x - b], -1))
        x = nn.avg_pool(nn.Conv(8, (3, 3), (2, 2))(x[..., 3:]), (2, 2), (2, 2))
        return nn.Dense(10)(x.mean((1, 2)))


def in_fixed_point(calibrated, seed: int):
    """With 3 to 8 bits for each tensor, points near the best; a bias has no more bits than the products."""
    r, formats, products = np.random.default_rng(seed), {}, 0
    tensors = tensors_of(calibrated)
    for tensor in tensors:
        bits = int(r.integers(3, 9))
        if tensor.kind == 'activation':
            formats[tensor] = bits, int(r.integers(bits - 5, bits - 1))
            continue
        of = calibrated.weights if tensor.kind == 'weight' else calibrated.biases
        point = best_points(of[tensor.name], [bits])[bits]
        if tensor.kind == 'weight':
            entering = next(f for t, f in reversed(formats.items()) if t.kind == 'activation')
            products = entering[1] + point
        formats[tensor] = bits, point if tensor.kind == 'weight' else min(point, products)
    return to_network(calibrated, tensors, np.array([formats[t] for t in tensors], np.int32))


@pytest.mark.parametrize('seed', [0, pytest.param(1, marks=pytest.mark.slow)])
def test_integers_and_shifts_give_the_logits_of_the_rounded_network_to_the_bit(seed):
    model, x = trace(Branches(), (1, 8, 8, 3)), images(16)
    network, policy = in_fixed_point(fold(model, parameters(model, seed), [x]), seed)
    found = integer_logits(network, policy, x)
    assert found.x.dtype == np.int32 and len(np.unique(found.x)) > 20
    assert np.abs(found.x).max() <= found.bound
    expected = jax.jit(lambda x: network.apply(x, network.quantizer(policy)))(x)
    np.testing.assert_array_equal(found.real, np.asarray(expected, np.float64))


@pytest.mark.slow
def test_a_network_of_deepnets_gives_the_same_logits_to_the_bit_in_float64():
    ops = [('sep_conv_3x3', 0), ('max_pool_3x3', 0), ('skip_connect', 0), ('conv_1x1', 1)]
    spec = small_network(ops, C=16, n_cells=2, stem_type=1)
    with jax.enable_x64(True):
        x = images(8, size=16).astype(jnp.float64)
        model = trace(spec, (1, 16, 16, 3), dtype=jnp.float64)
        network, policy = in_fixed_point(fold(model, parameters(model), [x]), 0)
        expected = jax.jit(lambda x: network.apply(x, network.quantizer(policy)))(x)
        found = integer_logits(network, policy, x)
    assert found.x.dtype == np.int32 and len(np.unique(found.x)) > 20
    np.testing.assert_array_equal(found.real, expected)


def test_shifts_round_as_exact_fractions_do_and_stay_within_int32():
    r = np.random.default_rng(0)
    x = np.concatenate([r.integers(-(2**31), 2**31, 200), np.arange(-40, 40), [INT32_MAX, -(2**31)]])
    x = x.astype(np.int32)
    for places in (0, 1, 2, 5, 30, 31, 32, 40):
        expected = [round(Fraction(int(v), 2**places)) for v in x]  # half to even
        np.testing.assert_array_equal(shift_right(jnp.asarray(x), places), expected)
    for bits, point in ((8, 3), (2, 10), (5, 12), (4, 40)):  # of values with 10 bits behind the point
        found = to_format(ScaledInteger(jnp.asarray(x), 10, 2**31), bits, point)
        exact = [round(Fraction(int(v)) * Fraction(2) ** (point - 10)) for v in x]
        np.testing.assert_array_equal(found.x, np.clip(exact, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1))
        assert found.point == point and found.bound == 2 ** (bits - 1)


class Ending(nn.Module):
    """A layer, something that shifts may not be able to do, and another layer."""

    between: Callable

    @nn.compact
    def __call__(self, x, train: bool = True):
        return nn.Dense(10)(self.between(nn.Conv(4, (3, 3))(x)).mean((1, 2)))


@pytest.mark.parametrize(
    'between, said',
    [
        (nn.sigmoid, "'logistic' .* none of shifts, sums and comparisons"),
        (lambda x: x * 0.3, 'no product with a power of two'),
        (lambda x: nn.relu(x + 1e-8), 'no fixed-point number of 32 bits'),
        (lambda x: (x * 2.0**-20) + x, 'int32 has 32'),
    ],
)
def test_what_shifts_cannot_do_is_told_in_a_line(between, said):
    model, x = trace(Ending(between), (1, 8, 8, 3)), images(2)
    network, policy = in_fixed_point(fold(model, parameters(model), [x]), 0)
    with pytest.raises(UserError, match=said):
        integer_logits(network, policy, x)


def test_a_network_that_is_not_in_fixed_point_is_told():
    model, x = trace(Plain(), (1, 8, 8, 3)), images(2)
    network, policy = in_fixed_point(fold(model, parameters(model), [x]), 0)
    for part, changed in (('weight_ranges', {}), ('ranges', {name: (-1.0, 1.0) for name in network.ranges})):
        with pytest.raises(UserError, match='quantize the network with method fixed_point'):
            integer_logits(dataclasses.replace(network, **{part: changed}), policy, x)
    between_levels = {name: w + np.float32(1e-5) for name, w in network.weights.items()}
    with pytest.raises(UserError, match='not on its levels'):
        integer_logits(dataclasses.replace(network, weights=between_levels), policy, x)
