"""Weights of a file: rounded to the bits of each, and their integers can be had back."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.quant import Policy, Scheme, fake_quantize, min_max
from ghn_jax.quant.policy import TERNARY
from ghn_jax.quant.rounding import round_weights

WEIGHTS = {
    'a.weight': (8, 4, 3, 3),
    'positive.weight': (6, 5),
    'negative.weight': (5, 7, 1, 1),
    'wide.weight': (3, 500),
    'norm.weight': (8,),
    'pos_enc.weight': (1, 8, 11, 11),
}
NAMES = tuple(WEIGHTS)[:4]


@pytest.fixture(scope='module')
def weights():
    r = np.random.default_rng(0)
    made = {name: r.normal(size=shape).astype('float32') for name, shape in WEIGHTS.items()}
    made['positive.weight'] = np.abs(made['positive.weight'])
    made['negative.weight'] = -np.abs(made['negative.weight'])
    return made


@pytest.mark.parametrize(
    'options', [{}, {'granularity': 'channel', 'weight_range': 'sigma'}, {'symmetric': True}]
)
def test_integers_and_scales_give_the_floats_back_bit_for_bit_at_every_width(weights, options):
    for bits in (TERNARY, *range(1, 17)):
        rounded, how = round_weights(weights, Policy(bits, 32), Scheme('qat', **options))
        how = json.loads(json.dumps(how))
        assert tuple(how) == NAMES
        for name, w in rounded.items():
            assert w.dtype == np.float32 and w.shape == WEIGHTS[name]
            if name not in how:
                np.testing.assert_array_equal(w, weights[name])
                continue
            assert how[name]['bits'] == bits
            assert all(type(z) is int for z in np.atleast_1d(np.array(how[name]['zero_point'], object)))
            scale, zero = (
                np.resize(how[name][key], (len(w), *[1] * (w.ndim - 1))) for key in ('scale', 'zero_point')
            )
            scale = scale.astype('float32')
            q = np.round(w / scale).astype(int) + zero
            np.testing.assert_array_equal((q - zero).astype('float32') * scale, w)
            # A sign, or a level from 0; what is on both sides has all of them.
            least, most = (-1, 1) if bits < 2 else (0, 2**bits - (2 if 'symmetric' in options else 1))
            assert least <= q.min() and q.max() <= most
            if bits < 2:
                assert not np.any(zero)
            if name == 'a.weight' and bits <= 3:
                levels = {1: (-1, 1), TERNARY: (-1, 0, 1)}.get(bits, tuple(range(most + 1)))
                assert tuple(np.unique(q)) == levels


def test_one_bit_is_two_values_and_ternary_three_but_a_weight_of_zero_stays_zero(weights):
    for bits, values in ((1, 2), (TERNARY, 3)):
        rounded, how = round_weights(weights, Policy(bits, 2))
        s = np.float32(how['a.weight']['scale'])
        np.testing.assert_array_equal(np.unique(rounded['a.weight']), [-s, s] if values == 2 else [-s, 0, s])
        assert (
            len(np.unique(rounded['positive.weight']))
            == len(np.unique(rounded['negative.weight']))
            == values - 1
        )
    some = weights | {'a.weight': np.where(weights['a.weight'] > 2, 0, weights['a.weight'])}
    rounded, _ = round_weights(some, Policy(1, 2))
    np.testing.assert_array_equal(rounded['a.weight'] == 0, some['a.weight'] == 0)


@pytest.mark.parametrize('bits', [2, 4, 8])
def test_by_default_the_grid_is_that_of_all_weights_of_a_tensor(weights, bits):
    rounded, _ = round_weights(weights, Policy(bits, 8))
    for name in NAMES:
        expected = jax.jit(lambda w: fake_quantize(w, *min_max(w), bits))(weights[name])
        np.testing.assert_allclose(rounded[name], expected, rtol=1e-6, atol=0)


def test_a_tensor_of_zeros_has_a_scale_of_zero():
    rounded, how = round_weights({'a.weight': np.zeros((4, 4), np.float32)}, Policy(2, 8))
    assert not np.any(rounded['a.weight'])
    assert how == {'a.weight': {'bits': 2, 'scale': 0.0, 'zero_point': 0}}


def test_a_policy_decides_for_every_tensor_and_the_edges_keep_their_width():
    weights = {name: np.ones((2, 2), np.float32) for name in ('stem.weight', 'b.weight', 'head.weight')}
    assert set(round_weights(weights, Policy(4, 4, (('stem.*', 32, 32),)))[1]) == {'b.weight', 'head.weight'}
    how = round_weights(weights, Policy(2, 2, edges=(8, 8)))[1]
    assert [how[name]['bits'] for name in weights] == [8, 2, 8]
    rounded, how = round_weights(weights, Policy())
    assert how == {} and rounded == weights
    with pytest.raises(UserError, match='matches none'):
        round_weights(weights, Policy(4, 4, (('nothing', 8, 8),)))


def test_networks_of_all_shapes_share_a_program(weights, count_compiles):
    round_weights(weights, Policy(4, 4))
    with count_compiles() as compiles:
        round_weights(
            {'b.weight': weights['wide.weight'], 'c.weight': np.ones((9, 9), np.float32)}, Policy(TERNARY, 4)
        )
    assert compiles.n == 0


@pytest.mark.parametrize('dtype', [ml_dtypes.bfloat16, np.float16, np.float32])
@pytest.mark.parametrize('bits', [TERNARY, 1, 4])
def test_weights_of_16_bits_are_rounded_as_the_same_numbers_in_32(bits, dtype):
    w = np.random.default_rng(0).choice([-2.0, -0.5, 1.0], (4, 20_000)).astype(dtype)
    w[0, 0] = 40_000  # many of which have a sum beyond float16
    rounded, how = round_weights({'a.weight': w}, Policy(bits, 32))
    expected = round_weights({'a.weight': w.astype(np.float32)}, Policy(bits, 32))
    np.testing.assert_array_equal(rounded['a.weight'], expected[0]['a.weight'])
    assert how == expected[1] and rounded['a.weight'].dtype == np.float32


def test_what_is_no_policy_is_one_clear_error(weights):
    with pytest.raises(UserError, match="policy is 'w4a4': expected"):
        round_weights(weights, 'w4a4')  # type: ignore[arg-type]
