"""Removing channels: the cost counted by hand, and that what is removed has no part in anything."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ghn_jax.base.errors import UserError
from ghn_jax.cnn.reference import apply_reference
from ghn_jax.models.tracing import trace
from ghn_jax.networks.genotype import Genotype
from ghn_jax.networks.spec import NetworkSpec
from ghn_jax.quant.policy import parse_bits
from ghn_jax.quant.scheme import QAT
from ghn_jax.tuning.initialization import RANDOM, random_params
from ghn_jax.tuning.removal import LEAST, Removal, least_cost, narrow
from tests.tuning.models import Residual, images, parameters
from tests.tuning.nets import Net

MODEL = trace(Residual(), (1, 8, 8, 3))
WIDTHS = {layer.name: (2, 8) for layer in MODEL.layers} | {'Conv_0.kernel': (8, 8)}
REMOVAL = Removal.of(MODEL, WIDTHS)
CELL = (('sep_conv_3x3', 0), ('skip_connect', 1), ('conv_1x1', 2), ('none', 0))
SPEC = NetworkSpec(
    C=8, n_cells=1, ks=3, stem_type=1, stem_pool=False, norm='bnorm', preproc=True, C_mult=1, fc_layers=2,
    fc_dim=12, glob_avg=True, name='net',
    genotype=Genotype(normal=CELL, normal_concat=(2, 3), reduce=CELL, reduce_concat=(2, 3)),
)  # fmt: skip

pytestmark = pytest.mark.usefixtures('quick_reference')


def without(removal: Removal, *channels: int) -> np.ndarray:
    alive = removal.all()
    alive[list(channels)] = False
    return alive


def some_of(removal: Removal, seed: int = 0) -> np.ndarray:
    """About two thirds of the channels."""
    left = np.random.default_rng(seed).random(removal.channels.count + 1) < 0.67
    return left | removal.channels.kept


def masked(params, masks):
    return jax.tree.map(lambda p, m: np.asarray(p * m), params, masks)


def test_the_cost_of_what_is_left_is_that_counted_by_hand():
    rows = REMOVAL.channels.rows
    outer, inner = rows['Conv_0.kernel'], rows['Conv_1.kernel']
    alive = without(REMOVAL, outer[0], outer[5], outer[7], inner[2])
    area, kernel = 8 * 8, 3 * 3
    by_hand = {
        'Conv_0.kernel': area * kernel * 3 * 5 * 8 * 8,  # pixels have 3 channels, which stay
        'Conv_1.kernel': area * kernel * 5 * 7 * 2 * 8,
        'Conv_2.kernel': area * kernel * 7 * 5 * 2 * 8,  # tied to the first
        'Conv_3.kernel': area * 1 * 5 * 8 * 2 * 8,
        'Conv_4.kernel': area * kernel * 8 * 5 * 2 * 8,
        'Dense_0.kernel': 5 * 10 * 2 * 8,
    }
    assert REMOVAL.cost(alive) == sum(by_hand.values())
    bits = {name: a * b for name, (a, b) in WIDTHS.items()}
    assert REMOVAL.remaining_macs(alive) == {name: n // bits[name] for name, n in by_hand.items()}


def test_a_depthwise_layer_costs_what_is_left_of_its_channels():
    removal = Removal.of(trace(Net(), (1, 8, 8, 3)), {})
    alive = without(removal, *removal.channels.rows['Conv_0.kernel'][:2])
    assert removal.remaining_macs(alive) == {
        'Conv_0.kernel': 16 * 9 * 3 * 4,
        'Conv_1.kernel': 16 * 9 * 4,
        'Dense_0.kernel': 4 * 10,
    }
    assert removal.cost(alive) == sum(removal.remaining_macs(alive).values()) * 32 * 32


@pytest.mark.parametrize('model', [MODEL, trace(Net(), (1, 8, 8, 3))], ids=['tied', 'depthwise'])
def test_what_a_channel_saves_is_what_the_cost_is_less_without_it(model):
    removal = Removal.of(model, WIDTHS if model is MODEL else {})
    alive = some_of(removal)
    saved = removal.savings(alive)
    for channel in np.flatnonzero(alive[1:]) + 1:
        less = alive.copy()
        less[channel] = False
        assert saved[channel] == removal.cost(alive) - removal.cost(less)
    assert not saved[~alive].any() and saved[0] == 0


def test_random_numbers_in_the_place_of_removed_channels_change_nothing():
    alive = some_of(REMOVAL)
    params = masked(parameters(MODEL), REMOVAL.masks(alive))
    REMOVAL.check(params, alive, images(4))


def test_a_network_that_has_diverged_is_no_fault_of_removal():
    params = jax.tree.map(lambda a: np.full(a.shape, np.nan, a.dtype), MODEL.params)
    REMOVAL.check(params, some_of(REMOVAL), images(4))


def test_a_tie_that_is_broken_is_noticed():
    outer = REMOVAL.channels.rows['Conv_0.kernel'][0]
    rows = REMOVAL.channels.rows['Conv_2.kernel'].copy()
    rows[0] = REMOVAL.channels.rows['Conv_1.kernel'][0]  # as if the block's end had another channel
    others = {**REMOVAL.channels.rows, 'Conv_2.kernel': rows}
    broken = dataclasses.replace(REMOVAL.channels, rows=others)
    removal = dataclasses.replace(REMOVAL, channels=broken)
    alive = without(removal, REMOVAL.channels.rows['Conv_1.kernel'][0])
    params = masked(parameters(MODEL), removal.masks(alive))
    with pytest.raises(RuntimeError, match='has a part in the logits'):
        removal.check(params, alive, images(4))
    alive = without(REMOVAL, outer)
    with pytest.raises(RuntimeError, match='has a part in the logits'):
        REMOVAL.check(parameters(MODEL), alive, images(4))  # which are not masked


@pytest.mark.parametrize(
    'bits', ['w1a8', *(pytest.param(b, marks=pytest.mark.slow) for b in ('w2a8', 'w4a4', 'w32a32'))]
)
def test_removed_channels_and_smaller_arrays_come_to_the_same_at_any_bits(bits):
    model = trace(SPEC, (1, 16, 16, 3))
    removal = Removal.of(model, {})
    alive = some_of(removal, 1)
    masks = removal.masks(alive)
    params = masked(random_params(model, RANDOM['he'], 0), masks)
    small = narrow(params, masks)
    assert sum(map(np.size, small.values())) < 0.6 * sum(map(np.size, params.values()))
    run, shape = lambda p, x: apply_reference(SPEC, p, x), (1, 16, 16, 3)
    cut = Removal.of(trace(run, shape, params=small), {})
    assert cut.cost(cut.all()) == removal.cost(alive)
    logits = []
    with jax.enable_x64(True):  # a sum without its zeros is taken in another order, and may round otherwise
        x, policy = jnp.asarray(images(4, size=16), np.float64), parse_bits(bits)
        for given in (small, params):
            given = jax.tree.map(np.float64, given)
            m = trace(run, shape, params=given, dtype=np.float64)
            run_it = jax.jit(lambda p, m=m: m.apply(p, x, m.quantizer(policy, QAT)))
            logits.append(np.asarray(run_it(given)))
    assert logits[0].dtype == np.float64 and np.std(logits[0]) > 0.01
    np.testing.assert_allclose(*logits, atol=1e-9)


def test_channels_go_by_scale_for_each_bop_until_the_cost_is_met_and_no_layer_goes_below_its_least():
    wide, r = REMOVAL.cost(REMOVAL.all()), np.random.default_rng(0)
    scales = r.random(REMOVAL.channels.count + 1)
    worth = scales / np.maximum(REMOVAL.savings(REMOVAL.all()), 1)
    alive = REMOVAL.remove(REMOVAL.all(), scales, 0.7 * wide)
    assert 0.6 * wide < REMOVAL.cost(alive) <= 0.7 * wide
    assert worth[~alive].max() < worth[alive & ~REMOVAL.channels.kept].min()
    last = ~alive & (worth == worth[~alive].max())
    assert REMOVAL.cost(alive | last) > 0.7 * wide, 'no more than necessary'
    worth = scales / np.maximum(REMOVAL.savings(alive), 1)  # a channel costs less once others are gone
    further = REMOVAL.remove(alive, scales, 0.4 * wide)
    assert worth[alive & ~further].max() < worth[further & ~REMOVAL.channels.kept].min()
    least = REMOVAL.remove(alive, scales, 0)
    assert not np.any(least & ~alive)
    for name, rows in REMOVAL.channels.rows.items():
        assert least[rows].sum() == (10 if name == 'Dense_0.kernel' else LEAST * 8)
    assert REMOVAL.cost(least) == least_cost(REMOVAL)


def test_the_scale_of_a_channel_is_that_of_its_norms_or_of_the_weights_that_make_it():
    params = parameters(MODEL)
    found = np.asarray(jax.jit(REMOVAL.scales)(params))
    rows, magnitude = REMOVAL.channels.rows, lambda i: np.abs(params[f'BatchNorm_{i}']['scale'])
    share = lambda i: magnitude(i) / magnitude(i).mean()
    np.testing.assert_allclose(found[rows['Conv_1.kernel']], share(1), rtol=1e-5)
    outer = (share(0) + share(2) + share(3)) / 3
    np.testing.assert_allclose(found[rows['Conv_0.kernel']], outer, rtol=1e-5)
    rms = np.sqrt(np.square(params['Conv_3']['kernel']).mean((0, 1, 2)))
    np.testing.assert_allclose(found[rows['Conv_3.kernel']], rms / rms.mean(), rtol=1e-4)
    assert np.all(found[rows['Dense_0.kernel']] == 0) and found[0] == 0


def test_a_layer_of_small_scales_does_not_lose_its_channels_first():
    params = parameters(MODEL)
    small = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf / 20 if 'BatchNorm_1' in str(path) else leaf, params
    )
    each = [np.asarray(REMOVAL.scales(of)) for of in (params, small)]
    np.testing.assert_allclose(*each, rtol=1e-5)


def test_the_scale_of_what_is_removed_is_0_and_has_a_gradient_that_is_a_number():
    alive = some_of(REMOVAL)
    params = masked(parameters(MODEL), REMOVAL.masks(alive))
    total = lambda p: (jnp.sum(scales := REMOVAL.scales(p)), scales)
    gradient, scales = jax.jit(jax.grad(total, has_aux=True))(params)
    assert np.all(np.asarray(scales)[~alive] < 1e-4)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradient))
    left = alive[REMOVAL.channels.rows['Conv_1.kernel']]
    factor = params['BatchNorm_1']['scale'][left]
    expected = np.sign(factor) / np.abs(factor).mean()  # of an l1 norm: the mean is taken for a constant
    np.testing.assert_allclose(gradient['BatchNorm_1']['scale'][left], expected, rtol=1e-4)


def test_arrays_that_are_not_full_are_not_cut():
    with pytest.raises(UserError, match='leave it masked'):
        narrow({'a': np.ones((2, 2))}, {'a': np.eye(2)})


def test_a_layer_whose_weight_is_kept_gets_one_line():
    def apply(params, x):
        y = jnp.einsum('nhwc,cd->nhwd', x, params['a'])
        z = lax.scan(lambda carry, _: (carry @ params['a'][:3, :3], None), x, None, length=2)[0]
        return jnp.einsum('nc,cd->nd', (y + z).mean((1, 2)), params['b'])

    params = {'a': jnp.ones((3, 3)), 'b': jnp.ones((3, 10))}
    model = trace(apply, (1, 8, 8, 3), params=params, unsupported='keep')
    with pytest.raises(UserError, match="parameter 'a' of model 'apply' is used in a way that leaves it"):
        Removal.of(model, {})
