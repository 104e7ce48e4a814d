"""The optimizer against arithmetic done by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ghn_jax.config import RunConfig, TrainConfig
from ghn_jax.hypernet.ghn import GHNConfig, init_params
from ghn_jax.runs.checkpoint import Checkpoints
from ghn_jax.training.optimizer import _matrices, make_optimizer

FINE = {'schedule': 'constant', 'steps': 12, 'warmup_steps': 0, 'learning_rate': 0.5, 'weight_decay': 0.0}


def optimizer_of(**train):
    return make_optimizer(dataclasses.replace(RunConfig(), train=TrainConfig(**FINE | train)))


def updates(gradients, params=0.0, **train):
    """The update of each step; the parameters stay as they are."""
    optimizer = optimizer_of(**train)
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


def test_the_decay_of_adamw_is_of_the_parameters_alone():
    gradients, params = [[0.3, 0.4], [0.3, -0.4]], np.array([2.0, -1.0])
    plain = updates(gradients, params, optimizer='adamw')
    np.testing.assert_allclose(plain, updates(gradients, params), rtol=1e-6)
    decayed = updates(gradients, params, optimizer='adamw', weight_decay=0.1)
    np.testing.assert_allclose(decayed, plain - 0.5 * 0.1 * params, rtol=1e-5)


@pytest.fixture(scope='module')
def ghn():
    """Parameters with the names that a hypernetwork has, and gradients of them."""
    rng = np.random.default_rng(0)
    some = lambda *shape: rng.normal(size=shape).astype(np.float32)
    make = lambda: {
        'decoder': {'fc_kernel': some(3, 4, 6), 'fc_bias': some(3, 6), 'out_kernel': some(6, 2, 4)},
        'gnn': {'kernel_0': some(4, 6)},
        'norm': {'scale': some(4)},
        'embedding': {'channel': some(3, 6)},
        'bits': {'weights': some(3, 6)},
    }
    return make(), make()


def first_update(ghn, **train):
    params, gradients = ghn
    optimizer = optimizer_of(clip_norm=1e30, **train)
    return jax.device_get(jax.jit(optimizer.update)(gradients, optimizer.init(params), params)[0])


def test_muon_makes_the_updates_of_kernels_orthogonal_and_of_adams_size_and_leaves_the_rest_to_adam(ghn):
    params, gradients = ghn
    muon, adam = first_update(ghn, optimizer='muon'), optax.nadam(0.5)
    adam, _ = jax.jit(adam.update)(gradients, adam.init(params))
    kernels = 0
    for (path, update), by_adam in zip(jax.tree_util.tree_leaves_with_path(muon), jax.tree.leaves(adam)):
        name = path[-1].key
        if 'kernel' not in name:
            np.testing.assert_allclose(update, by_adam, rtol=1e-5, err_msg=name)
            continue
        kernels += 1
        matrices = update if name == 'fc_kernel' else update.reshape(1, len(update), -1)
        values = np.linalg.svd(matrices, compute_uv=False)
        # Five steps of Newton and Schulz bring singular values near 1, not to it.
        scale = 0.5 * 0.2 * np.sqrt(max(matrices.shape[1:]))
        assert np.all(values > 0.3 * scale) and np.all(values < 1.3 * scale), name
    assert kernels == 3


@pytest.mark.parametrize('optimizer', ['adam', 'muon'])
def test_the_rates_of_parts_scale_their_updates_alone(ghn, optimizer):
    plain = first_update(ghn, optimizer=optimizer)
    scales = {'decoder': 0.5, 'gnn': 2.0, 'norm': 2.0, 'embedding': 0.0, 'bits': 0.0}
    rates = {'decoder_rate': 0.5, 'gnn_rate': 2.0, 'embedding_rate': 0.0}
    found = first_update(ghn, optimizer=optimizer, **rates)
    assert found.keys() == scales.keys()
    for part, scale in scales.items():
        jax.tree.map(lambda a, b, s=scale: np.testing.assert_array_equal(a, s * b), found[part], plain[part])


def test_every_kernel_of_a_hypernetwork_is_a_matrix_to_muon_and_its_parts_have_rates():
    for fields in ({}, {'hypernet': 'graphormer'}):
        config = GHNConfig(hid=8, bits=True, **fields)
        params = jax.eval_shape(lambda config=config: init_params(config, jax.random.key(0)))
        kernels = [path for path, _ in jax.tree_util.tree_leaves_with_path(_matrices(params))]
        assert len(kernels) > 2 * 9  # each has two kinds of axes
        assert params.keys() == {'decoder', 'gnn', 'norm', 'embedding', 'bits'}
    axes = _matrices(params)['gnn']['layers']
    assert all(axes[name] == (1, 2) for name in ('qkv_kernel', 'out_kernel', 'kernel_0', 'kernel_1'))


def test_the_state_of_muon_survives_a_checkpoint(ghn, tmp_path):
    params, gradients = ghn
    optimizer = optimizer_of(optimizer='muon', decoder_rate=0.5)
    update = jax.jit(optimizer.update)
    _, state = update(gradients, optimizer.init(params), params)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {'opt_state': state}, {}, wait=True)
        restored, _ = checkpoints.restore({'opt_state': optimizer.init(params)})
    assert jax.tree.structure(restored['opt_state']) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored['opt_state'], state)
    updates = [update(gradients, s, params)[0] for s in (state, restored['opt_state'])]
    jax.tree.map(np.testing.assert_array_equal, *updates)


def test_equal_settings_give_one_optimizer():
    """Compiled steps are found by it."""
    one, same, other = (optimizer_of(clip_norm=norm) for norm in (1.0, 1.0, 2.0))
    assert one is same and one is not other
