"""The optimizer against arithmetic done by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ghn_jax.training.optimizer import make_optimizer

FINE = {'schedule': 'constant', 'steps': 12, 'warmup_steps': 0, 'learning_rate': 0.5, 'weight_decay': 0.0}


def updates(gradients, params=0.0, **train):
    """The update of each step; the parameters stay as they are."""
    optimizer = make_optimizer(ConfigDict({'train': {**FINE, 'clip_norm': 5.0, **train}}))
    params = jnp.broadcast_to(jnp.float32(params), np.shape(gradients[0]))
    state, found = optimizer.init(params), []
    for g in gradients:
        update, state = optimizer.update(jnp.asarray(g, jnp.float32), state, params)
        found.append(np.asarray(update))
    return np.array(found)


@pytest.mark.parametrize(
    'train, rates',
    [
        ({}, [1] * 12),
        # GHN-2 divides by 10 after two thirds of the training, and after five sixths again.
        ({'schedule': 'step'}, [1] * 8 + [0.1] * 2 + [0.01] * 2),
        ({'schedule': 'step', 'steps': 1}, [1, 0.1, 0.01]),
        ({'schedule': 'cosine'}, (1 + np.cos(np.pi * np.arange(13) / 12)) / 2),
        ({'warmup_steps': 4}, [0, 0.25, 0.5, 0.75, 1, 1]),
        ({'schedule': 'step', 'warmup_steps': 9}, [*np.arange(8) / 9, 0.8 / 9, 0.1]),
    ],
    ids=['constant', 'step', 'shortest', 'cosine', 'warmup', 'step after warmup'],
)
def test_schedules_are_those_of_their_names(train, rates):
    # Adam steps by the rate alone where the gradient is always the same.
    np.testing.assert_allclose(
        updates([1.0] * len(rates), **train), -0.5 * np.array(rates), rtol=1e-4, atol=1e-6
    )


def test_gradients_are_clipped_by_their_norm_then_decayed_then_given_to_adam():
    gradients, params = [[30.0, 40.0], [0.3, -0.4], [-3.0, 1.0]], 2.0
    m = v = np.zeros(2)
    expected = []
    for step, g in enumerate(np.array(gradients), 1):
        g = g * min(1, 5 / np.linalg.norm(g)) + 0.1 * params
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        expected.append(-0.5 * m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8))
    np.testing.assert_allclose(updates(gradients, params, weight_decay=0.1), expected, rtol=1e-4)


def test_equal_settings_give_one_optimizer():
    """Compiled steps are found by it."""
    one, same, other = (
        make_optimizer(ConfigDict({'train': {**FINE, 'clip_norm': norm}})) for norm in (1.0, 1.0, 2.0)
    )
    assert one is same and one is not other
