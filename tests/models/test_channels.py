"""The channels of models whose ties one knows by looking at them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from ghn_jax.models.channels import NONE
from ghn_jax.models.tracing import trace
from tests.tuning.models import Residual


def channels(module):
    return trace(module, (1, 8, 8, 3)).channels


def alike(a, b) -> bool:
    return np.array_equal(np.ravel(a), np.ravel(b)) and NONE not in a


def conv(width: int, name: str, **of) -> nn.Conv:
    return nn.Conv(width, (3, 3), name=name, **of)


class Ends(nn.Module):
    """Whatever makes logits of a map of 6 channels."""

    change: str = ''

    @nn.compact
    def __call__(self, x):
        x = conv(6, 'a')(x)
        if self.change == 'concatenated':
            x = jnp.concatenate([nn.relu(x), conv(4, 'b')(x)], -1)
            x = x[:, ::2, ::2, :].transpose(0, 3, 1, 2)
            return nn.Dense(10, name='d')(x.reshape(len(x), -1))
        if self.change == 'depthwise':
            x = nn.silu(conv(12, 'b', feature_group_count=6)(x))
        elif self.change == 'grouped':
            x = conv(4, 'b', feature_group_count=2)(x)
        elif self.change == 'gated':
            gate = nn.Dense(6, name='c')(nn.relu(nn.Dense(2, name='b')(x.mean((1, 2)))))
            x = nn.max_pool(x * nn.sigmoid(gate)[:, None, None], (2, 2), (2, 2))
        elif self.change == 'normed':
            x = nn.LayerNorm(name='b')(x)
        elif self.change == 'sorted':
            x = jnp.sort(x, -1)
        elif self.change == 'shared':
            again = conv(6, 'b')
            x = again(nn.relu(again(x)))
        elif self.change == 'padded':
            x = conv(4, 'b', padding='VALID')(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))))
        return nn.Dense(10, name='d')(x.mean((1, 2)))


def test_the_ends_of_residual_blocks_are_tied_and_logits_and_pixels_stay():
    found = channels(Residual())
    outer, inner, second = (found.rows[f'Conv_{i}.kernel'] for i in (0, 1, 3))
    assert found.count == 3 * 8 + 10 and len({*outer, *inner, *second}) == 24
    for name in ('Conv_2.kernel', 'Conv_4.kernel'):
        assert alike(found.rows[name], outer)
    for name, expected in (('1', outer), ('2', inner), ('3', outer), ('4', second)):
        assert alike(found.columns[f'Conv_{name}.kernel'], expected)
    assert np.all(found.columns['Conv_0.kernel'] == NONE)
    for name, expected in (('BatchNorm_1.scale', inner), ('BatchNorm_3.bias', outer), ('Conv_4.bias', outer)):
        assert alike(found.others[name], expected)
    logits = found.rows['Dense_0.kernel']
    assert set(np.flatnonzero(found.kept)) == {NONE, *logits}


def test_concatenation_and_reshaping_move_channels_about():
    found = channels(Ends('concatenated'))
    joined = np.concatenate([found.rows['a.kernel'], found.rows['b.kernel']])
    assert alike(found.columns['d.kernel'], np.repeat(joined, 16)) and len(set(joined)) == 10


def test_a_depthwise_convolution_goes_on_with_the_channels_it_reads_and_groups_read_their_own():
    found = channels(Ends('depthwise'))
    assert alike(found.rows['b.kernel'], np.repeat(found.rows['a.kernel'], 2))
    assert alike(found.columns['d.kernel'], found.rows['b.kernel'])
    found = channels(Ends('grouped'))
    assert alike(found.columns['b.kernel'], found.rows['a.kernel']) and found.columns['b.kernel'].shape == (
        2,
        3,
    )
    assert not {*found.rows['b.kernel']} & {*found.rows['a.kernel']}


def test_a_gate_is_tied_to_what_it_multiplies():
    found = channels(Ends('gated'))
    assert alike(found.rows['c.kernel'], found.rows['a.kernel'])
    assert alike(found.columns['d.kernel'], found.rows['a.kernel'])
    assert len(set(found.rows['b.kernel'])) == 2 and not found.kept[found.rows['b.kernel']].any()


def test_padding_is_of_no_channel():
    found = channels(Ends('padded'))
    assert alike(found.columns['b.kernel'], found.rows['a.kernel'])
    assert not found.kept[found.rows['a.kernel']].any()


@pytest.mark.parametrize('change', ['normed', 'sorted'])
def test_what_is_computed_from_several_channels_keeps_them(change):
    found = channels(Ends(change))
    assert found.kept[found.rows['a.kernel']].all()


def test_two_layers_of_one_weight_have_the_same_channels():
    found = channels(Ends('shared'))
    first, again = 'b.kernel', 'b.kernel#2'
    assert alike(found.rows[first], found.rows[again])
    assert alike(found.columns[first], found.columns[again])
    assert alike(found.columns[again], found.rows[first]), 'the second reads what the first makes'
    assert alike(found.columns[first], found.rows['a.kernel'])


def test_attention_keeps_what_enters_it():
    def apply(params, x):
        x = lax.conv(x.transpose(0, 3, 1, 2), params['a'], (2, 2), 'SAME').reshape(len(x), 6, -1)
        q, k, v = (jnp.einsum('nct,dc->ntd', x, params[name]) for name in 'qkv')
        attended = jax.nn.softmax(q @ k.transpose(0, 2, 1)) @ v
        return jnp.einsum('ntd,ed->ne', attended, params['d'])

    shape = lambda *of: jax.ShapeDtypeStruct(of, jnp.float32)
    params = {'a': shape(6, 3, 3, 3), 'd': shape(10, 4), **{name: shape(4, 6) for name in 'qkv'}}
    found = trace(apply, (1, 8, 8, 3), params=params).channels
    assert not found.kept[found.rows['a']].any() and alike(found.columns['q'], found.rows['a'])
    assert all(found.kept[found.rows[name]].all() for name in 'qkv')


@pytest.mark.parametrize('how', ['split', 'unstack'])
def test_channels_are_followed_through_cuts_of_fixed_sizes_and_stay(how):
    class Cut(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = conv(6, 'a')(x)
            if how == 'split':
                _, x = jnp.split(x, [2], -1)
            else:
                _, x = jnp.unstack(x.reshape(*x.shape[:3], 2, 3), axis=3)
            return nn.Dense(10, name='d')(conv(4, 'b')(x).mean((1, 2)))

    found = channels(Cut())
    assert alike(found.columns['b.kernel'], found.rows['a.kernel'][2 if how == 'split' else 3 :])
    assert found.kept[found.rows['a.kernel']].all() and not found.kept[found.rows['b.kernel']].any()


def test_channels_are_followed_through_a_shuffle():
    class Shuffle(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = jnp.stack([conv(3, 'a')(x), conv(3, 'b')(x)], -1)
            return nn.Dense(10, name='d')(x.reshape(*x.shape[:3], 6).mean((1, 2)))

    found = channels(Shuffle())
    a, b = found.rows['a.kernel'], found.rows['b.kernel']
    assert alike(found.columns['d.kernel'], np.stack([a, b], 1))
