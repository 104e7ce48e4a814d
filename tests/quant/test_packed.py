"""Packed weights: as small as their bits, and exactly the rounded floats when they are read back."""

import json

import numpy as np
import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.quant import Policy, Scheme
from ghn_jax.quant.packed import SCALE, ZERO_POINT, pack_bits, pack_weights, unpack_bits, unpack_weights
from ghn_jax.quant.policy import TERNARY
from ghn_jax.quant.rounding import round_weights

SHAPES = {'a.weight': (6, 5, 3, 3), 'linear.weight': (7, 11), 'norm.weight': (8,)}


@pytest.fixture(scope='module')
def weights():
    rng = np.random.default_rng(0)
    made = {name: rng.normal(size=shape).astype('float32') for name, shape in SHAPES.items()}
    made['a.weight'][2] = 0  # a channel of zeros: a scale of 0
    return made


@pytest.mark.parametrize('width', range(1, 17))
def test_codes_take_just_their_bits_and_come_back(width):
    codes = np.random.default_rng(width).integers(0, 2**width, 1003)
    stream = pack_bits(codes, width)
    assert stream.dtype == np.uint8 and len(stream) == -(-1003 * width // 8)
    np.testing.assert_array_equal(unpack_bits(stream, width, 1003), codes)


def test_the_first_code_lies_in_the_lowest_bits_of_the_first_byte():
    assert pack_bits(np.array([0x1, 0x2, 0xF]), 4).tolist() == [0x21, 0x0F]
    assert pack_bits(np.array([3, 0, 1, 2]), 2).tolist() == [0b10_01_00_11]
    assert pack_bits(np.array([1, 0, 0, 0, 0, 0, 0, 1]), 1).tolist() == [0b10000001]
    assert pack_bits(np.array([0b101, 0b011, 0b110]), 3).tolist() == [0b10_011_101, 0b1]


@pytest.mark.parametrize('axis', [0, -1])
@pytest.mark.parametrize('options', [{}, {'granularity': 'channel'}, {'symmetric': True}])
def test_unpacked_weights_are_the_rounded_ones_at_every_width(weights, options, axis):
    for bits in (TERNARY, 1, 2, 3, 4, 7, 8, 12, 16):
        rounded, how = round_weights(weights, Policy(bits, 32), Scheme('qat', **options))
        if axis == -1:
            rounded = {name: np.moveaxis(w, 0, -1) for name, w in rounded.items()}
        arrays, table = pack_weights(rounded, how, axis=axis)
        back = unpack_weights(arrays, json.loads(json.dumps(table)))
        assert back.keys() == rounded.keys()
        for name, w in rounded.items():
            assert back[name].dtype == w.dtype
            np.testing.assert_array_equal(back[name], w)
        assert arrays['norm.weight'] is rounded['norm.weight']
        # The zeros of `a` are a third value, beside the two signs.
        width = {TERNARY: 2, 1: 2}.get(bits, bits)
        assert arrays['a.weight'].nbytes == -(-rounded['a.weight'].size * width // 8)
        if bits == 1:
            assert arrays['linear.weight'].nbytes == -(-77 // 8)


def test_weights_that_lie_on_no_such_grid_are_not_packed(weights):
    _, how = round_weights(weights, Policy(4, 4))
    with pytest.raises(ValueError, match='a.weight is not rounded to 4 bits'):
        pack_weights(weights, how)


@pytest.mark.parametrize('bits', [1, 4])
@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_in_one_line(bits, value):
    w = np.ones((2, 3), np.float32)
    w[1, 1] = value
    with pytest.raises(UserError, match='the weight a.weight has values that are not finite'):
        pack_weights({'a.weight': w}, {'a.weight': {'bits': bits, 'scale': 1.0, 'zero_point': 0}})


def test_a_damaged_table_is_one_clear_error(weights):
    rounded, how = round_weights(weights, Policy(4, 4))
    arrays, table = pack_weights(rounded, how)
    entry = table['a.weight']
    for changed in (None, {}, entry | {'width': 99}, entry | {'axis': 7}, entry | {'shape': [-1, 2]}):
        with pytest.raises(UserError, match='a.weight is described by'):
            unpack_weights(arrays, table | {'a.weight': changed})
    with pytest.raises(UserError, match=r'a.weight is uint8 \(135,\), expected uint8 \(1,\)'):
        unpack_weights(arrays, table | {'a.weight': entry | {'shape': [2]}})
    with pytest.raises(UserError, match='a.weight is absent'):
        unpack_weights({name: w for name, w in arrays.items() if name != 'a.weight'}, table)
    with pytest.raises(UserError, match='lack quantization.scale'):
        unpack_weights({name: w for name, w in arrays.items() if name != SCALE}, table)
    with pytest.raises(UserError, match='have 2 scales and 1 zero points, expected 2'):
        unpack_weights(arrays | {ZERO_POINT: arrays[ZERO_POINT][:1]}, table)
    more = {name: np.repeat(arrays[name], 2) for name in (SCALE, ZERO_POINT)}
    with pytest.raises(UserError, match='have 4 scales and 4 zero points, expected 2'):
        unpack_weights(arrays | more, table)
    for name, dtype in ((SCALE, np.int32), (ZERO_POINT, np.float32)):
        with pytest.raises(UserError, match='expected floats and unsigned integers'):
            unpack_weights(arrays | {name: arrays[name].astype(dtype)}, table)
