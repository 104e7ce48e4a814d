"""Searched weights: their values, the hard limit, gradients, and logits that are set by distance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.models.quantizer import FakeQuantizer
from ghn_jax.quant.grid import Grid, make_grid, quantize
from ghn_jax.quant.policy import TERNARY
from ghn_jax.quant.scheme import Scheme
from ghn_jax.tuning.slb import (
    MOST_BITS,
    SearchSpec,
    count_values,
    hard_weights,
    logits_of,
    random_logits,
    range_of,
    soft_weights,
    temperature,
    values_of,
)

MOST = 2**MOST_BITS
BITS = (TERNARY, 1, 2, 4)
SHAPE = (5, 3, 3, 2)


def weights(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


def grid_of(w: np.ndarray, bits: int, **scheme) -> Grid:
    quantizer = FakeQuantizer({'w': (bits, 32)}, Scheme('qat', granularity='channel', **scheme))
    return quantizer.weight_and_grid('w', jnp.asarray(w))[1]


def near(w: np.ndarray, bits: int):
    """Logits near given weights, values and how many of these there are."""
    values = values_of(grid_of(w, bits), bits, MOST)
    count = count_values(bits)
    return logits_of(jnp.asarray(w), values, count), values, count


def obvious_weights(logits, values, count: int, tau: float) -> np.ndarray:
    """w = sum v exp(tau A) / sum exp(tau A), weight by weight, in float64."""
    out = np.zeros(logits.shape[:-1])
    for place in np.ndindex(out.shape):
        a = np.float64(tau) * np.float64(logits[place][:count])
        share = np.exp(a - a.max())
        out[place] = share @ np.float64(values[place[0]][:count]) / share.sum()
    return out


@pytest.mark.parametrize('bits', BITS)
def test_soft_weights_are_the_means_of_the_values_that_there_are(bits):
    rng = np.random.default_rng(1)
    _, values, count = near(weights(), bits)
    logits = rng.normal(size=(*SHAPE, MOST)).astype(np.float32)
    found = soft_weights(logits, values, count, 1.7)
    expected = obvious_weights(logits, values, int(count), 1.7)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    # What stands in the place of values that there are not makes no difference.
    logits[..., int(count) :] = 1e3
    np.testing.assert_array_equal(soft_weights(logits, values, count, 1.7), found)
    np.testing.assert_array_equal(
        hard_weights(logits, values, count),
        obvious_weights(logits, values, int(count), 1e5).astype(np.float32),
    )


def test_a_rising_temperature_leads_to_hard_weights_and_infinity_is_hard():
    logits, values, count = near(weights(), 2)
    hard = hard_weights(logits, values, count)
    errors = [float(jnp.abs(soft_weights(logits, values, count, tau) - hard).mean()) for tau in (1, 10, 1e3)]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    np.testing.assert_array_equal(soft_weights(logits, values, count, jnp.inf), hard)
    np.testing.assert_allclose(soft_weights(logits, values, count, 1e7), hard, atol=1e-5)


def test_gradients_are_those_of_the_softmax_and_none_flow_when_weights_are_hard():
    """dw / dA_k = tau p_k (v_k - w), and finite differences of the obvious formula."""
    logits, values, count = near(weights(), 2)
    towards = np.random.default_rng(2).normal(size=SHAPE).astype(np.float32)
    loss = lambda a, tau: jnp.sum(towards * soft_weights(a, values, count, tau))
    found = jax.grad(loss)(logits, 3.0)
    share = np.exp(3.0 * np.float64(logits[..., :4]))
    share /= share.sum(-1, keepdims=True)
    v = np.float64(values)[:, None, None, None, :4]
    w = np.sum(share * v, -1, keepdims=True)
    np.testing.assert_allclose(found[..., :4], towards[..., None] * 3.0 * share * (v - w), atol=1e-5)
    assert not np.any(found[..., 4:])
    place, step = (1, 2, 0, 1, 2), 1e-4
    moved = np.float64(logits), np.float64(logits)
    moved[0][place] += step
    moved[1][place] -= step
    up, down = (np.sum(towards * obvious_weights(a, np.asarray(values), 4, 3.0)) for a in moved)
    assert float(found[place]) == pytest.approx((up - down) / (2 * step), rel=1e-3)
    assert not np.any(jax.grad(loss)(logits, jnp.inf))


@pytest.mark.parametrize('bits', BITS)
def test_logits_by_distance_begin_near_given_weights_and_their_hard_weights_are_the_nearest_values(bits):
    w = weights()
    logits, values, count = near(w, bits)
    existing = np.asarray(values)[:, : int(count)]
    each = existing[:, None, None, None]
    nearest = np.take_along_axis(
        np.broadcast_to(each, (*SHAPE, int(count))), np.abs(w[..., None] - each).argmin(-1)[..., None], -1
    )[..., 0]
    np.testing.assert_array_equal(hard_weights(logits, values, count), nearest)
    soft = np.asarray(soft_weights(logits, values, count, 1.0))
    step = (existing[:, 1] - existing[:, 0]).reshape(-1, 1, 1, 1)
    lo, hi = (end.reshape(-1, 1, 1, 1) for end in (existing[:, 0], existing[:, -1]))
    reached = np.clip(w, lo, hi)
    assert np.abs((soft - reached) / (hi - lo)).max() < (0.042 if bits >= 2 else 0.13)
    inner = np.abs(w - (lo + hi) / 2) < (hi - lo) / 4
    assert bits < 2 or np.abs((soft - w) / step)[inner].max() < 0.03


@pytest.mark.parametrize('bits, symmetric', [(TERNARY, False), (1, False), (2, False), (2, True)])
def test_values_are_levels_of_our_grids(bits, symmetric):
    w = weights()
    grid = grid_of(w, bits, symmetric=symmetric)
    values = np.asarray(values_of(grid, bits, MOST))[:, : int(count_values(bits))]
    lo, hi = (end[:, None] for end in range_of(grid, bits))
    again = make_grid(lo, hi, bits, jnp.float32)
    np.testing.assert_allclose(quantize(jnp.asarray(values), again, bits), values, atol=1e-5)
    rounded = FakeQuantizer(
        {'w': (bits, 32)}, Scheme('qat', granularity='channel', symmetric=symmetric)
    ).weight('w', jnp.asarray(w))
    distance = np.abs(np.asarray(rounded).reshape(len(w), -1, 1) - values[:, None]).min(-1)
    assert distance.max() < 1e-5, 'what straight-through rounding makes of weights is among the values'


def test_random_logits_have_the_published_variance():
    logits = random_logits(jax.random.key(0), (64, 16, 3, 3), 4)
    assert logits.shape == (64, 16, 3, 3, 4)
    assert float(logits.var()) == pytest.approx(2 / (64 * 9), rel=0.03)


def test_the_temperature_rises_from_start_to_end_and_then_weights_are_hard():
    spec = SearchSpec(temperature=0.5, growth=1.5, start=0.2, end=0.6)
    found = [float(temperature(spec, passes, 10)) for passes in (0, 2, 3, 4.5, 5.9, 6, 10)]
    assert found == pytest.approx([0.5, 0.5, 0.75, 0.5 * 1.5**2.5, 0.5 * 1.5**3.9, np.inf, np.inf])
    of_itself = SearchSpec(temperature=2, start=0.5, end=1.0)
    assert float(temperature(of_itself, 7.999, 8)) == pytest.approx(200, rel=0.01)
    assert float(temperature(SearchSpec(start=0.5, end=0.5), 3, 8)) == 1


@pytest.mark.parametrize(
    'field, value',
    [('temperature', 0), ('growth', 0.5), ('start', 0.9), ('end', 2), ('rate', -1), ('logits', 'he')],
)
def test_a_setting_out_of_bounds_gets_one_line(field, value):
    with pytest.raises(UserError, match=f'^{field if field != "start" else "end"}='):
        SearchSpec(**{field: value})
