"""Ranges with the least L2.4 error are those of a plain search; activations come one after another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.hypernet.policy_features import resolve
from ghn_jax.models.folding import Calibrated, calibrate
from ghn_jax.models.tracing import trace
from ghn_jax.quant.grid import fake_quantize, make_grid
from ghn_jax.quant.policy import Policy
from ghn_jax.tuning import ranges
from ghn_jax.tuning.ranges import least_error_range, power_error, round_nearest
from tests.tuning.models import Residual, calibrated, images


def plain_error(x, step, zero, top):
    levels = (np.clip(np.round(x / step) + zero, 0, top) - zero) * step
    return np.sum(np.abs(x - levels) ** 2.4)


def plain_search(x, bits):
    """The least error of all steps and zero points."""
    top, lo, hi = 2**bits - 1, min(x.min(), 0), max(x.max(), 0)
    zeros = range(top + 1) if lo < 0 < hi else [0] if lo == 0 else [top]
    steps = (hi - lo) * np.arange(1, 101) / 100 / top
    return min(plain_error(x, step, zero, top) for step in steps for zero in zeros)


@pytest.mark.parametrize('bits', [2, 3, 4])
def test_the_range_is_that_of_a_plain_search_over_all_steps_and_zero_points(bits):
    r = np.random.default_rng(bits)
    rows = np.stack([r.normal(size=60), r.exponential(size=60), -r.exponential(size=60), r.normal(3, 1, 60)])
    lo, hi = least_error_range(jnp.asarray(rows, jnp.float32), jnp.int32(bits))
    found = power_error(jnp.asarray(rows, jnp.float32), make_grid(lo, hi, bits, jnp.float32))
    np.testing.assert_allclose(found, [plain_search(x, bits) for x in rows], rtol=1e-4)
    assert lo[1] == 0 and hi[2] == 0
    full = power_error(
        jnp.asarray(rows, jnp.float32),
        make_grid(np.minimum(rows.min(1), 0), np.maximum(rows.max(1), 0), bits, jnp.float32),
    )
    assert np.all(found <= full * (1 + 1e-5)) and np.any(found < 0.97 * full)


def test_at_8_bits_of_the_zero_points_only_the_nearest_are_tried_and_zeros_have_a_range():
    x = np.random.default_rng(0).normal(size=(4, 60)).astype(np.float32)
    x[3] = 0
    lo, hi = least_error_range(jnp.asarray(x), jnp.int32(8))
    error = power_error(jnp.asarray(x), make_grid(lo, hi, 8, jnp.float32))
    assert np.all(error <= power_error(jnp.asarray(x), make_grid(x.min(1), x.max(1), 8, jnp.float32)))
    assert (lo[3], hi[3]) == (0, 0)


def test_errors_are_summed_over_a_sample_that_visits_every_channel(monkeypatch):
    monkeypatch.setattr(ranges, 'SAMPLES', 50)
    sampled = ranges.sample(jnp.arange(1000).reshape(1, -1))
    assert sampled.shape[1] <= 50 and set(np.asarray(sampled).ravel() % 8) == set(range(8))


@pytest.mark.parametrize('rule', ['minmax', 'mse'])
def test_weights_lie_on_their_grids_and_the_quantizer_of_the_model_leaves_them_there(rule):
    of, x = calibrated(Residual())
    policy = Policy(2, 3, edges=(8, 8))
    rounded = round_nearest(of, x, resolve(policy, of.model.graph), rule)
    for name, w in rounded.weights.items():
        bits = 8 if name in ('Conv_0.kernel', 'Dense_0.kernel') else 2
        assert max(len(np.unique(row)) for row in w.reshape(len(w), -1)) <= 2**bits
        lo, hi = (a.reshape(-1, *[1] * (w.ndim - 1)) for a in rounded.weight_ranges[name])
        again = fake_quantize(jnp.asarray(w), lo, hi, bits)
        np.testing.assert_array_equal(again, w)
        np.testing.assert_array_equal(rounded.quantizer(policy).weight(name, jnp.asarray(w)), w)
    assert set(rounded.ranges) == set(rounded.weights)
    lo, hi = rounded.ranges['Conv_0.kernel']
    if rule == 'minmax':
        assert (lo, hi) == (x.min(), x.max())
    assert np.isfinite(jax.jit(Calibrated.apply)(rounded, x, rounded.quantizer(policy))).all()


def test_activations_that_one_weight_reads_have_the_range_of_all_their_values():
    def twice(params, x):
        return (20 * jnp.maximum(x @ params['w'], 0)) @ params['w']

    params, x = {'w': jnp.eye(3)}, images(8)[:, 0, 0]
    model = trace(twice, (1, 3), params=params)
    of = calibrate(model, params, [x])
    rounded = round_nearest(of, x, resolve(Policy(8, 8), model.graph), 'minmax')
    np.testing.assert_allclose(rounded.ranges['w'], (x.min(), 20 * x.max()), rtol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize('rule', ['minmax', 'mse'])
def test_at_32_bits_nothing_changes(rule):
    of, x = calibrated(Residual())
    rounded = round_nearest(of, x, resolve(Policy(), of.model.graph), rule)
    np.testing.assert_array_equal(rounded.apply(x, rounded.quantizer(Policy())), of.apply(x))


def test_bits_that_a_rule_has_no_grid_for_are_refused():
    of, x = calibrated(Residual())
    for policy, rule, said in ((Policy(1, 4), 'mse', '1 bits'), (Policy(0, 4), 'minmax', 'ternary')):
        with pytest.raises(UserError, match=said):
            round_nearest(of, x, resolve(policy, of.model.graph), rule)
