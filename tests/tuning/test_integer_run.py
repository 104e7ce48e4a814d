"""Integers and shifts give the numbers of the rounded network to the bit, and refuse what they cannot do."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ghn_jax.base.errors import UserError
from ghn_jax.export.integers import to_integers
from ghn_jax.models.folding import fold
from ghn_jax.models.tracing import trace
from ghn_jax.tuning.fixed_point import best_points, tensors_of, to_network
from ghn_jax.tuning.integer_run import integer_logits
from ghn_jax.tuning.shifts import Fixed, shift_right, to_format
from tests.tuning.models import images, parameters


class Branches(nn.Module):
    """What specs and users' models have between layers: sums, pools, a concatenation, a cut, a clipped ReLU."""

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


@pytest.mark.parametrize('seed', [0, 1])
def test_integers_and_shifts_give_the_logits_of_the_rounded_network_to_the_bit(seed):
    model, x = trace(Branches(), (1, 8, 8, 3)), images(16)
    network, policy = in_fixed_point(fold(model, parameters(model, seed), [x]), seed)
    found = integer_logits(network, policy, x)
    assert found.x.dtype == np.int32 and len(np.unique(found.x)) > 20
    assert np.abs(found.x).max() <= found.bound
    expected = jax.jit(lambda x: network.apply(x, network.quantizer(policy)))(x)
    np.testing.assert_array_equal(found.real, np.asarray(expected, np.float64))
