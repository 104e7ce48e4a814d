"""What a training step makes of gradients and losses, by hand. No network is run here: see `test_steps`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ghn_jax.quant import Scheme
from ghn_jax.training import step as steps
from ghn_jax.training.refinements import AS_PUBLISHED, Refinements


@pytest.fixture
def step_with(monkeypatch):
    """step_with(optimizer, state, gradients, loss, accuracy, finite) -> state, metrics of `train_step` where
    the networks have these.
    """

    def step(optimizer, state, gradients, loss, accuracy, finite, refinements=AS_PUBLISHED):
        per_network = {'loss': jnp.array(loss), 'accuracy': jnp.array(accuracy), 'finite': jnp.array(finite)}
        monkeypatch.setattr(steps, 'meta_gradients', lambda *args, **options: (gradients, per_network, None))
        state, metrics, _ = steps.train_step(
            None,
            None,
            optimizer,
            state,
            None,
            None,
            None,
            workspace=None,
            key=None,
            scheme=Scheme('float'),
            refinements=refinements,
        )
        return jax.tree.map(np.asarray, (state, metrics))

    return step


def test_a_step_is_the_optimizers_and_its_metrics_are_those_of_the_finite_networks(step_with):
    optimizer, params = optax.sgd(0.5, momentum=0.25), {'a': jnp.array([1.0, 2.0]), 'b': jnp.array(-1.0)}
    state = steps.TrainState(jnp.int32(6), params, optimizer.init({'a': jnp.zeros(2), 'b': jnp.zeros(())}))
    gradients = {'a': jnp.array([3.0, 4.0]), 'b': jnp.array(12.0)}
    nan = np.nan
    two, metrics = step_with(
        optimizer, state, gradients, [1.0, nan, 4.0, 9.0], [0.25, 1.0, 1.0, 1.0], [True, False, True, False]
    )
    assert metrics == {
        'loss': (1 + 4) / 2,
        'accuracy': (0.25 + 1) / 2,
        'gradient_norm': 13,  # of 3, 4, 12
        'skipped': 0,
        'faults': pytest.approx([steps.FINE, steps.BAD_LOSS, steps.FINE, steps.BAD_GRADIENT], abs=0),
    }
    assert (steps.FINE, steps.BAD_GRADIENT, steps.BAD_LOSS) == (0, 1, 2)  # as journals have them
    assert metrics['skipped'].dtype == metrics['faults'].dtype == np.int32
    assert two.step == 7
    np.testing.assert_array_equal(two.params['a'], [1 - 0.5 * 3, 2 - 0.5 * 4])
    np.testing.assert_array_equal(two.params['b'], -1 - 0.5 * 12)
    # Momentum is kept: 1/4 of the step before is in the next.
    three, metrics = step_with(optimizer, two, gradients, [2.0], [0.5], [True])
    assert (metrics['loss'], metrics['accuracy'], metrics['gradient_norm']) == (2, 0.5, 13)
    np.testing.assert_array_equal(three.params['b'], -7 - 0.5 * (12 + 0.25 * 12))


def test_the_average_forgets_where_it_began_and_then_decays_as_it_is_told(step_with):
    optimizer, params = optax.sgd(1.0), {'a': jnp.array([1.0, 2.0])}
    state = steps.TrainState(jnp.int32(0), params, optimizer.init(params), params)
    assert steps.TrainState(0, params, ()).used is params
    expected, refinements = np.array([1.0, 2.0]), Refinements(ema=0.5)
    for step in range(12):
        finite = step != 9
        before, gradients = state, {'a': jnp.array([step + 1.0, -1.0])}
        state, _ = step_with(optimizer, state, gradients, [1.0], [0.5], [finite], refinements)
        decay = min(0.5, (1 + step) / (10 + step))
        if finite:
            expected = decay * expected + (1 - decay) * state.params['a']
        np.testing.assert_allclose(state.ema['a'], expected, rtol=1e-6)
        assert state.used is state.ema and finite == bool(np.any(state.ema['a'] != before.ema['a']))


@pytest.mark.parametrize(
    ('gradient', 'rate', 'finite'),
    [
        (12.0, 0.5, [False, False]),  # no network is finite
        (1e20, 1e-10, [True, True]),  # the norm is not, though gradient and update are
        (12.0, 1e38, [True, True]),  # the update is not, though the gradient is
        (np.nan, 0.5, [True, True]),
    ],
)
def test_a_step_that_is_not_sound_is_counted_and_skipped(step_with, gradient, rate, finite):
    optimizer, params = optax.sgd(rate, momentum=0.5), {'a': jnp.array([1.0, 2.0])}
    state = steps.TrainState(jnp.int32(6), params, optimizer.init(params))
    new, metrics = step_with(optimizer, state, {'a': jnp.full(2, gradient)}, [1.0, 2.0], [0.5, 0.5], finite)
    assert metrics['skipped'] == 1 and new.step == 7
    jax.tree.map(np.testing.assert_array_equal, (new.params, new.opt_state), (params, state.opt_state))
