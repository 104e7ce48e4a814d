"""AdaRound begins at the float weights, ends on the grid, and its regularizer has the paper's limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghn_jax.quant.grid import make_grid
from ghn_jax.tuning import adaround


def weights_and_grid(bits=3):
    w = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 3, 2)), jnp.float32)
    rows = w.reshape(4, -1)
    return w, make_grid(rows.min(1), rows.max(1), bits, jnp.float32)


def test_h_and_the_regularizer_are_those_of_the_paper():
    v = np.linspace(-6, 6, 101)
    h = np.clip(1.2 / (1 + np.exp(-v)) - 0.1, 0, 1)
    np.testing.assert_allclose(adaround.rectified_sigmoid(jnp.asarray(v)), h, atol=1e-6)
    for beta in (20, 5, 2):
        expected = np.sum(1 - np.abs(2 * h - 1) ** beta)
        np.testing.assert_allclose(adaround.regularizer(jnp.asarray(v), beta), expected, rtol=1e-4)


def test_the_regularizer_is_0_where_h_is_0_or_1_and_counts_the_weights_that_are_half_way():
    assert adaround.regularizer(jnp.asarray([-8.0, 8.0, 30.0]), 3.0) == 0
    assert adaround.regularizer(jnp.zeros(7), 3.0) == 7


def test_beta_stays_at_20_for_a_fifth_of_the_steps_and_falls_in_a_line_to_2():
    expected = {0: 20, 0.1: 20, 0.2: 20, 0.6: 11, 1: 2}
    for progress, beta in expected.items():
        assert adaround.beta_at(progress) == pytest.approx(beta, rel=1e-5)


def test_learning_begins_at_the_float_weights():
    w, grid = weights_and_grid()
    inside = adaround.soft(w, adaround.start(w, grid), grid)
    reach = (np.asarray((grid.top - grid.zero) * grid.scale), np.asarray(-grid.zero * grid.scale))
    reach = [a.reshape(4, 1, 1, 1) for a in reach]
    np.testing.assert_allclose(inside, np.clip(w, reach[1], reach[0]), atol=1e-5)


def test_the_regularizer_alone_drives_h_to_0_or_1_where_soft_and_hard_weights_agree():
    w, grid = weights_and_grid()
    v = adaround.start(w, grid)
    descend = jax.jit(lambda v: v - 0.3 * jnp.sign(jax.grad(adaround.regularizer)(v, 2.0)))
    for _ in range(30):
        v = descend(v)
    h = adaround.rectified_sigmoid(v)
    assert np.all((np.asarray(h) < 0.01) | (np.asarray(h) > 0.99))
    soft, hard = adaround.soft(w, v, grid), adaround.hard(w, v, grid)
    np.testing.assert_allclose(soft, hard, atol=0.02 * float(grid.scale.max()))


def test_hard_weights_are_neighbouring_levels():
    w, grid = weights_and_grid()
    v = jnp.asarray(np.random.default_rng(1).normal(size=w.shape), jnp.float32)
    scale, zero = (np.asarray(a).reshape(4, 1, 1, 1) for a in (grid.scale, grid.zero))
    q = np.asarray(adaround.hard(w, v, grid)) / scale + zero
    np.testing.assert_allclose(q, np.round(q), atol=1e-4)
    below = np.floor(np.asarray(w) / scale) + zero
    expected = np.clip(below + (np.asarray(v) >= 0), 0, float(grid.top))
    np.testing.assert_allclose(q, expected, atol=1e-4)
