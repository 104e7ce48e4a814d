"""PD-Quant: its terms are those of the formulas, and what it learns is nearer to float than rounding is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import rel_entr, softmax

from ghn_jax.base.errors import UserError
from ghn_jax.hypernet.policy_features import resolve
from ghn_jax.models.norm_statistics import measure
from ghn_jax.quant.grid import fake_quantize, make_grid
from ghn_jax.quant.policy import Policy
from ghn_jax.runs.calibrated_file import FILE, load
from ghn_jax.tuning import reconstruction
from ghn_jax.tuning.blocks import blocks_of
from ghn_jax.tuning.correction import corrected, mismatch, norm_statistics
from ghn_jax.tuning.pd_quant import CHUNK, pd_quant
from ghn_jax.tuning.quantize import Network, quantize_into
from ghn_jax.tuning.ranges import round_nearest
from ghn_jax.tuning.reconstruction import Grids, Learned, ReconstructionOptions, divergence, round_by_step
from tests.tuning.models import Plain, Residual, calibrated, images

OPTIONS = ReconstructionOptions(iterations=150, batch_size=8, correction_steps=5)
POLICY = Policy(2, 2, edges=(2, 2))


def test_the_prediction_difference_is_the_kl_divergence_of_the_softened_predictions():
    r = np.random.default_rng(0)
    f, g = r.normal(0, 3, (2, 5, 10))
    expected = rel_entr(softmax(f / 4, 1), softmax(g / 4, 1)).sum(1).mean()
    assert divergence(jnp.asarray(f), jnp.asarray(g), 4.0) == pytest.approx(expected, rel=1e-4)
    assert divergence(jnp.asarray(f), jnp.asarray(f), 4.0) == 0


def test_a_learned_step_begins_as_the_grid_and_has_the_gradient_of_lsq():
    x = jnp.asarray(np.random.default_rng(0).normal(size=200), jnp.float32)
    grid = make_grid(-1.0, 1.5, 3, jnp.float32)
    s, z, n = (float(part) for part in grid[:3])
    log_step = jnp.log(grid.scale)
    np.testing.assert_allclose(round_by_step(x, log_step, grid), fake_quantize(x, -1.0, 1.5, 3), atol=1e-6)
    found = jax.grad(lambda t: round_by_step(x, t, grid).sum())(log_step)
    v = np.asarray(x) / s
    inside = (np.round(v) + z >= 0) & (np.round(v) + z <= n)
    by_step = np.where(inside, np.round(v) - v, np.clip(np.round(v) + z, 0, n) - z)  # eq. 3
    assert found == pytest.approx(by_step.sum() * s, rel=1e-3)


@pytest.mark.parametrize('drop, share', [(True, 0.5), (False, 0)])
def test_with_drop_half_of_the_entries_of_an_activation_stay_float(drop, share):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(40, 50)), jnp.float32)
    grid = make_grid(-3.0, 3.0, 2, jnp.float32)
    learned = Learned({}, {'a': jnp.log(grid.scale)})
    soft = reconstruction._Soft(learned, Grids({}, {'a': grid}, {}), jax.random.key(0), jnp.asarray(drop))
    assert np.mean(soft.activation('a', x, x) == x) == pytest.approx(share, abs=0.03)
    assert soft.activation('b', x, x) is x


def test_two_activations_of_one_shape_have_coins_of_their_own():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(40, 50)), jnp.float32)
    grid = make_grid(-3.0, 3.0, 2, jnp.float32)
    learned = Learned({}, dict.fromkeys('ab', jnp.log(grid.scale)))
    grids, drop = Grids({}, dict.fromkeys('ab', grid), {}), jnp.asarray(True)
    soft = reconstruction._Soft(learned, grids, jax.random.key(0), drop)
    stays = [np.asarray(soft.activation(name, x, x) == x) for name in 'ab']
    assert np.mean(stays[0] & stays[1]) == pytest.approx(0.25, abs=0.03)


def test_coins_are_fair_and_none_tells_of_another():
    coins = np.asarray(reconstruction.toss(jax.random.key(1), (50, 77)))  # no multiple of 32
    assert coins.shape == (50, 77) and coins.dtype == bool
    flat = coins.reshape(-1).astype(float)
    assert abs(flat.mean() - 0.5) < 0.04
    for apart in (1, 2, 8, 32, 77):
        assert abs(np.corrcoef(flat[:-apart], flat[apart:])[0, 1]) < 0.06, apart
    each_bit = flat[: len(flat) // 32 * 32].reshape(-1, 32).mean(0)
    assert 0.25 < each_bit.min() and each_bit.max() < 0.75


@pytest.mark.slow
def test_norm_statistics_are_those_of_what_enters_the_norms_folded_or_not():
    of, x = calibrated(Residual())
    found = norm_statistics(of.model, of.params, [x])
    expected = measure(of.model, of.params, [x])
    for known, moments in zip(found, expected, strict=True):
        np.testing.assert_allclose(known.mean, moments.mean, atol=1e-5)
        np.testing.assert_allclose(known.deviation, np.sqrt(moments.variance), rtol=1e-4)
    # On the images that the first norm is fixed by there is nothing to correct at it.
    assert mismatch(of, blocks_of(of, len(x))[0], found, (x,)) < 1e-6


def test_distribution_correction_moves_what_norms_read_towards_the_statistics_they_know():
    of, x = calibrated(Plain())
    known = norm_statistics(of.model, of.params, [x])
    others = images(8, seed=5) * 1.5 + 0.5
    block = blocks_of(of, 8)[0]
    off = lambda x: float(mismatch(of, block, known, x))
    free, held = (corrected(of, known, (others,), k=0, steps=300, pull=pull) for pull in (1e3, 1e-4))
    assert off(free) < 0.8 * off((others,))
    assert off(free) < off(held) and np.abs(held[0] - others).max() < np.abs(free[0] - others).max()
    without = corrected(of, known, (jnp.ones((8, 8)),), k=1, steps=100, pull=1.0)
    np.testing.assert_array_equal(without[0], 1)


@pytest.fixture(scope='module')
def plain():
    of, x = calibrated(Plain(), 16)
    return of, x, norm_statistics(of.model, of.params, [x])


@pytest.mark.slow
def test_learned_weights_lie_on_their_grids_and_logits_are_nearer_to_float(plain):
    of, x, known = plain
    widths, calls = resolve(POLICY, of.model.graph), []
    (found,) = pd_quant(of, x, [(widths, OPTIONS)], known, done=calls.append)
    assert sum(calls) == 2 * -(-OPTIONS.iterations // CHUNK)
    nearest = round_nearest(of, x, widths, 'mse')
    for name, w in found.weights.items():
        lo, hi = (a.reshape(-1, *[1] * (w.ndim - 1)) for a in found.weight_ranges[name])
        np.testing.assert_array_equal(fake_quantize(jnp.asarray(w), lo, hi, 2), w)
        step = (hi - lo) / 3
        assert np.all(np.abs(w - np.clip(of.weights[name], lo, hi)) <= step * (1 + 1e-4))
    assert any(np.any(found.weights[name] != nearest.weights[name]) for name in found.weights)
    assert all(lo < 0 or lo == 0 < hi for lo, hi in found.ranges.values())
    off = lambda network: float(
        divergence(of.apply(x), network.apply(x, network.quantizer(POLICY)), OPTIONS.temperature)
    )
    assert off(found) < 0.8 * off(nearest)


@pytest.mark.slow
def test_at_32_bits_nothing_changes_and_settings_side_by_side_are_those_alone(plain):
    of, x, known = plain
    options = dataclasses.replace(OPTIONS, iterations=10)
    settings = [(resolve(policy, of.model.graph), options) for policy in (Policy(), POLICY)]
    settings.append((settings[1][0], dataclasses.replace(options, drop=False)))
    as_it_was, rounded, other = pd_quant(of, x, settings, known)
    np.testing.assert_array_equal(as_it_was.apply(x, as_it_was.quantizer(Policy())), of.apply(x))
    (alone,) = pd_quant(of, x, settings[1:2], known)
    for a, b in zip(jax.tree.leaves(rounded), jax.tree.leaves(alone), strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(rounded), jax.tree.leaves(other), strict=True))


@pytest.mark.slow
def test_what_was_stopped_goes_on_in_its_folder_to_the_same_network(plain, tmp_path, capsys):
    of, x, _ = plain
    options = dataclasses.replace(OPTIONS, iterations=10)
    network = Network(of, of.params, x[None])
    labels = np.zeros(len(x), int)
    calls = []

    def write(folder, options=options, last=99):
        def done(parts):
            calls.append(parts)
            if len(calls) > last:
                raise KeyboardInterrupt

        calls.clear()
        source = {'model': 'tests.tuning.models:plain'}
        return quantize_into(folder, network, POLICY, 'pd_quant', options, source, (x, labels), done)

    assert write(tmp_path / 'whole')['blocks_from_before'] == 0
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / 'stopped', last=1)
    with pytest.raises(UserError, match='is not finished: run the same ghn_jax.quantize again'):
        load(tmp_path / 'stopped')
    other = dataclasses.replace(options, seed=1)
    unfinished = (tmp_path / 'stopped' / FILE).read_bytes()
    assert 'begun anew' not in capsys.readouterr().err
    assert write(tmp_path / 'stopped', options=other)['blocks_from_before'] == 0, 'it is another network'
    assert 'is the unfinished one of another command: it is begun anew' in capsys.readouterr().err
    (tmp_path / 'stopped' / FILE).write_bytes(unfinished)
    assert write(tmp_path / 'stopped')['blocks_from_before'] == 1 and len(calls) == 2
    whole, stopped = (load(tmp_path / name) for name in ('whole', 'stopped'))
    assert whole.about == stopped.about and whole.about['method'] == 'pd_quant'
    arrays = [
        {name: getattr(each.calibrated, name) for name in ('weights', 'biases', 'ranges', 'weight_ranges')}
        for each in (whole, stopped)
    ]
    jax.tree.map(np.testing.assert_array_equal, *arrays)


def test_what_cannot_be_learned_is_refused(plain):
    of, x, known = plain
    widths = resolve(POLICY, of.model.graph)
    with pytest.raises(UserError, match='at least one batch of 8'):
        pd_quant(of, x[:7], [(widths, OPTIONS)], known)
    with pytest.raises(UserError, match='method pd_quant takes 2 to 16 bits'):
        pd_quant(of, x, [(resolve(Policy(1, 4), of.model.graph), OPTIONS)], known)
    for field, value in (('iterations', 0), ('temperature', 0.0), ('pull', float('nan'))):
        with pytest.raises(UserError, match=field):
            dataclasses.replace(OPTIONS, **{field: value})
