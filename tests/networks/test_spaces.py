"""Spaces: networks are functions of their index, splits keep their rules, and other rules are obeyed."""

import collections
import concurrent.futures
import dataclasses
import hashlib

import numpy as np
import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.networks import drawing, spaces
from ghn_jax.networks.counts import count_parameters
from ghn_jax.networks.genotype import OPS
from ghn_jax.networks.spaces import SPACES, SPLITS, make_space
from ghn_jax.networks.spec import NetworkSpec

CONV, FULL = SPACES['convnets250k'], SPACES['deepnets1m']
BOTH = pytest.mark.parametrize('space', [CONV, FULL], ids=lambda space: space.name)


def sample(space, split, n, seed=0):
    return [space.sample(split, seed, i) for i in range(n)]


# ---------------------------------------------------------------------- functions of the index


@BOTH
def test_a_network_depends_on_space_split_seed_and_index_only(space):
    forth = sample(space, 'train', 20)
    back = [space.sample('train', 0, i) for i in reversed(range(20))]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        threads = list(pool.map(lambda i: make_space(space.name).sample('train', 0, i), range(20)))
    assert forth == back[::-1] == threads


def test_networks_of_other_spaces_splits_seeds_and_indices_differ():
    unnamed = lambda spec: dataclasses.replace(spec, name='')
    streams = [
        [unnamed(space.sample(split, seed, i)) for i in range(start, start + 30)]
        for space in (CONV, FULL)
        for split in SPLITS
        if split != 'wide'
        for seed in (0, 1)
        for start in (0, 100)
    ]
    networks = [spec for stream in streams for spec in stream]
    assert len(set(networks)) > 0.99 * len(networks)


def test_splits_stay_what_they_are():
    """Results compare on the same networks only. If this fails, say so loudly, then change the digest."""
    text = '\n'.join(
        space.sample(split, 0, i).to_json() for space in (CONV, FULL) for split in SPLITS for i in range(10)
    )
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == '4ef908fd40e5f345'


def test_sizes_names_and_bounds_of_splits():
    assert (CONV.size('train'), FULL.size('train'), CONV.size('test')) == (250_000, 1_000_000, 500)
    assert CONV.sample('train', 0, 249_999).name == 'convnets250k-train-249999'
    for split, index in [('train', 250_000), ('test', 500), ('test', -1), ('test', True), ('test', 0.0)]:
        with pytest.raises(UserError, match=f'index is {index}'):
            CONV.sample(split, 0, index)
    with pytest.raises(UserError, match='seed is -1'):
        CONV.sample('test', -1, 0)
    for call in (CONV.size, lambda split: CONV.sample(split, 0, 0)):
        with pytest.raises(UserError, match="'tset' is unknown: choose one of train, val, test, wide"):
            call('tset')


# ---------------------------------------------------------------------- rules of the splits


@BOTH
def test_wide_networks_are_the_test_networks_with_4_times_the_channels(space):
    for test, wide in zip(sample(space, 'test', 20), sample(space, 'wide', 20)):
        assert wide.C == 4 * test.C == 128
        assert dataclasses.replace(wide, C=test.C, name=test.name) == test


@BOTH
def test_splits_keep_their_rules(space):
    drawn = {split: sample(space, split, 150) for split in SPLITS}
    for split, specs in drawn.items():
        low, high = (10, 36) if split == 'deep' else (4, 18)
        assert {low, high} <= {s.n_cells for s in specs} | {low, high}
        assert all(low <= s.n_cells <= high for s in specs)
        assert max(s.n_cells for s in specs) > high - 3 and min(s.n_cells for s in specs) < low + 3
        limit = 10**8 if split in ('deep', 'dense') else 10**7
        assert all(count_parameters(dataclasses.replace(s, C=32, fc_dim=256)) <= limit for s in specs)
        if split != 'train':
            assert {(s.C, s.fc_dim) for s in specs} == {(128 if split == 'wide' else 32, 256)}
        for s in specs:
            genotype = s.genotype
            assert (
                genotype.normal_concat == genotype.reduce_concat
                and genotype.normal_concat[-1] == genotype.steps + 1
            )
            for cell in (genotype.normal, genotype.reduce):
                ops = [op for op, _ in cell]
                assert sum(op in ('conv_5x5', 'conv_7x7') for op in ops) <= 1 and ops.count('cse') <= 1
                assert all(a != b for (_, a), (_, b) in zip(cell[::2], cell[1::2]))  # two different sources
                assert genotype.steps > 1 or 'none' not in ops
            assert any('conv' in op or op == 'msa' for op in genotype.ops)
            assert s.glob_avg or not s.is_vit
            assert s.preproc or (s.is_vit and s.C_mult == 1 and genotype.steps == 1)
    plain = [s for split in ('train', 'val', 'test') for s in drawn[split]]
    assert all(s.genotype.steps <= (4 if s.n_cells <= 10 else 2) for s in plain)
    assert all(s.glob_avg or s.n_cells <= 10 for s in plain)
    assert all(s.norm == 'bnorm' or (s.n_cells <= 5 and s.genotype.steps <= 2) for s in plain)
    assert {s.norm for s in drawn['bnfree']} == {None}
    steps = {s.genotype.steps for s in drawn['dense']}
    assert min(steps) == 2 and max(steps) >= 7
    assert ({'msa', 'cse'} <= {op for s in plain for op in s.genotype.ops}) == (space is FULL)
    assert all(s.genotype.ops <= set(space.ops) for specs in drawn.values() for s in specs)


@BOTH
def test_the_larger_a_training_network_the_fewer_its_widths(space):
    for s in sample(space, 'train', 400):
        size = count_parameters(dataclasses.replace(s, C=32, fc_dim=256))
        large = bool({'conv_5x5', 'conv_7x7'} & s.genotype.ops)
        if size > 800_000 or not s.glob_avg or large or s.n_cells > 12:
            most = 32
        elif size > 400_000 or s.n_cells > 10:
            most = 48
        elif size > 200_000 or s.n_cells > 8:
            most = 64
        else:
            most = 128
        assert 32 <= s.C <= most and s.C % 16 == 0
        assert s.fc_dim % 64 == 0 and 64 <= s.fc_dim <= (512 if most == 128 and s.C <= 64 else 256)


def test_cells_are_distributed_as_darts_reads_them_off_random_weights():
    """Against the slow way: weights for edges and ops, softmax, the two heaviest edges, the heaviest op."""
    space, rng = (
        make_space('convnets250k', ops=('none', 'skip_connect', 'conv_1x1', 'conv_3x3')),
        np.random.default_rng(0),
    )
    ops, n, found, slow = space.ops, 6000, collections.Counter(), collections.Counter()
    for _ in range(n):
        cell = drawing._genotype(space, 2, rng).normal
        found[cell] += 1
        entries, weights = [], 1e-3 * rng.standard_normal((5, len(ops)))
        weights = np.exp(weights) / np.exp(weights).sum(axis=1, keepdims=True)
        for rows in (weights[:2], weights[2:]):
            edges = sorted(range(len(rows)), key=lambda j: -rows[j].max())[:2]  # noqa: B023
            entries += [(ops[int(rows[j].argmax())], j) for j in edges]
        slow[tuple(entries)] += 1
    kinds = 2 * len(ops) ** 2 * 6 * len(ops) ** 2
    assert set(found) | set(slow) and len(set(found) | set(slow)) <= kinds
    for view in (
        lambda c: c[0],
        lambda c: c[:2],
        lambda c: c[2:],
        lambda c: (c[0][0], c[2][0]),
        lambda c: (c[1][1], c[3][1]),
    ):
        one, other = collections.Counter(), collections.Counter()
        for cell, count in found.items():
            one[view(cell)] += count
        for cell, count in slow.items():
            other[view(cell)] += count
        keys = set(one) | set(other)
        chi2 = sum((one[k] - other[k]) ** 2 / (one[k] + other[k]) for k in keys)
        assert chi2 < len(keys) + 4 * np.sqrt(2 * len(keys))


@pytest.mark.parametrize('split', SPLITS)
def test_deep_and_dense_networks_may_have_ten_times_the_parameters(split):
    space = make_space('convnets250k', channels=(16,), fc_dims=(64,), max_params=50_000)
    limit = space.max_params * (10 if split in ('deep', 'dense') else 1)
    assert spaces.split_rules(space, split).max_params == limit
    before = lambda s: dataclasses.replace(s, C=16)  # wide networks are measured before they are widened
    sizes = [count_parameters(before(s)) for s in sample(space, split, 30)]
    assert 0.5 * limit < max(sizes) <= limit


# ---------------------------------------------------------------------- other rules


def test_narrow_small_spaces_obey_their_overrides():
    ops = ('none', 'skip_connect', 'conv_3x3', 'sep_conv_3x3')
    space = make_space('convnets250k', cells=[4, 6], channels=[16], max_params=200_000, ops=ops, num_train=50)
    specs = sample(space, 'train', 50)
    assert space.size('train') == 50
    assert {s.C for s in specs} == {16} and {s.n_cells for s in specs} == {4, 5, 6}
    assert all(s.genotype.ops <= set(ops) and count_parameters(s) <= 200_000 for s in specs)
    assert {s.C for s in sample(space, 'wide', 5)} == {64}
    assert hash(space) == hash(
        make_space('convnets250k', cells=(4, 6), channels=(16,), max_params=200_000, ops=ops, num_train=50)
    )


def test_choices_of_one_leave_nothing_else():
    one = dict(ks=(5,), stem_types=(1,), C_mults=(2,), fc_layers=(1,), fc_dims=(96,), norms=('bnorm',))
    space = make_space('convnets250k', flat_head_share=0, num_classes=7, max_steps=1, **one)
    for s in sample(space, 'train', 30):
        assert (s.ks, s.stem_type, s.C_mult, s.fc_layers, s.fc_dim, s.norm) == (5, 1, 2, 1, 96, 'bnorm')
        assert s.glob_avg and s.num_classes == 7 and s.genotype.steps == 1


def test_numbers_that_equal_a_choice_are_that_choice():
    space = make_space('convnets250k', ks=[3.0], stem_types=(np.int64(1),))
    assert space.ks == (3,) and type(space.ks[0]) is type(space.stem_types[0]) is int
    assert space.sample('train', 0, 0).ks == 3


def test_ops_without_pooling_make_reduction_cells_like_normal_ones():
    space = make_space('convnets250k', ops=('conv_1x1', 'conv_3x3'))
    assert {op for s in sample(space, 'train', 20) for op in s.genotype.ops} == {'conv_1x1', 'conv_3x3'}


@pytest.mark.parametrize('change', [{'max_params': 1000}, {'ops': ('max_pool_3x3',)}, {'redrawn_ops': OPS}])
def test_a_space_that_admits_nothing_says_so_and_ends(change, monkeypatch):
    monkeypatch.setattr(spaces, '_MAX_CANDIDATES', 200)
    with pytest.raises(UserError, match='admits no network in 200 candidates for train .*: widen its rules'):
        make_space('convnets250k', **change).sample('train', 0, 0)


@pytest.mark.parametrize(
    ('change', 'told'),
    [
        ({'cels': (4, 6)}, 'cels is no field'),
        ({'cells': (6, 4)}, 'cells='),
        ({'cells': 4}, 'cells=4'),
        ({'cells': (4, 5, 6)}, 'cells='),
        ({'cells': (True, 4)}, 'cells='),
        ({'ops': ('conv_9x9',)}, 'conv_9x9'),
        ({'ops': ()}, 'ops='),
        ({'ops': ('none',)}, 'at least one besides none'),
        ({'ops': ('conv_1x1', 'conv_1x1')}, 'different values'),
        ({'ops': 'conv_1x1'}, 'ops='),
        ({'channels': (15,)}, 'has 15'),
        ({'channels': ()}, 'channels='),
        ({'channels': (16.0,)}, 'channels='),
        ({'max_params': 0}, 'max_params=0'),
        ({'max_params': 1e6}, 'max_params=1000000.0'),
        ({'min_steps': 3}, 'min_steps=3'),
        ({'pool_only_share': 2}, 'pool_only_share=2'),
        ({'flat_head_share': float('nan')}, 'flat_head_share=nan'),
        ({'plain_share': -0.1}, 'plain_share=-0.1'),
        ({'plain_share': 0.5, 'ops': ('conv_1x1',)}, 'plain_share=0.5: plain networks are made of none'),
        ({'plain_share': 0.5, 'ops': ('none', 'max_pool_3x3')}, 'and a convolution'),
        ({'norms': ('bn',)}, "norms has 'bn'"),
        ({'ks': (4,)}, 'ks has 4'),
        ({'name': ''}, 'name='),
    ],
)
def test_bad_overrides_are_refused_in_one_line(change, told):
    with pytest.raises(UserError) as error:
        make_space('convnets250k', **change)
    assert told in str(error.value) and '\n' not in str(error.value)


# A cell of s steps has up to 13 + 17 s operations, a network 4096.
@pytest.mark.parametrize(
    ('fits', 'more', 'count'),
    [
        # shallow networks have most steps: no more cells than the space, nor than the largest threshold
        ({'cells': (4, 18), 'max_steps': 23}, {'max_steps': 24}, '4,210'),
        ({'cells': (4, 5), 'max_steps': 47}, {'max_steps': 48}, '4,145'),
        ({'cells': (4, 18), 'max_steps': 23, 'deep_cells': (7, 10)}, {'deep_cells': (11, 7)}, '4,444'),
        # deep ones most cells
        ({'cells': (4, 136), 'max_steps': 1}, {'cells': (4, 137)}, '4,110'),
        (
            {'cells': (4, 64), 'max_steps': 3, 'max_steps_deep': 3},
            {'cells': (4, 65)},
            '4,160',
        ),  # 4096 just fit
        ({'cells': (4, 64), 'max_steps': 4, 'max_steps_deep': 3}, {'max_steps_deep': 4}, '5,184'),
    ],
)
def test_networks_beyond_the_limit_of_operations_are_refused(fits, more, count):
    make_space('convnets250k', **fits)
    with pytest.raises(UserError, match=f'networks of up to {count} operations, more than 4,096: give fewer'):
        make_space('convnets250k', **fits | more)


@pytest.mark.parametrize(
    ('split', 'field', 'value'),
    [('deep', 'deep_split_cells', (500, 512)), ('dense', 'dense_split_steps', (60, 64))],
)
def test_a_split_beyond_the_limit_names_its_own_field_and_the_others_are_drawn(split, field, value):
    space = make_space('convnets250k', **{field: value})
    assert isinstance(space.sample('test', 0, 0), NetworkSpec)
    with pytest.raises(UserError, match=f'^{field}: cells=.* operations, more than 4,096: give fewer'):
        space.sample(split, 0, 0)


def test_with_the_highest_limit_of_parameters_every_split_has_networks():
    space = make_space('convnets250k', max_params=10**12)
    for split in SPLITS:
        assert isinstance(space.sample(split, 0, 0), NetworkSpec)


@pytest.mark.parametrize(
    ('field', 'least', 'most'),
    [
        ('channels', 2, 1024),
        ('fc_dims', 1, 65536),
        ('deep_cells', 0, 512),
        ('max_steps', 1, 64),
        ('max_params', 1, 10**12),
        ('num_train', 1, 10**12),
        ('num_eval', 1, 10**12),
        ('num_classes', 1, 65536),
    ],
)
def test_numbers_have_bounds_and_reach_them(field, least, most):
    value = lambda v: (v,) if field in ('channels', 'fc_dims', 'deep_cells') else v
    small = {'cells': (1, 2)}  # which no limit of operations stops
    for v in (least, most):
        assert getattr(make_space('convnets250k', **small, **{field: value(v)}), field) == value(v)
    for v in (least - 1, most + 1):
        with pytest.raises(UserError, match=f'{field}=.*from {least} to {most:,}'):
            make_space('convnets250k', **small, **{field: value(v)})


def test_widths_of_networks_are_even_and_hidden_widths_of_heads_are_free():
    for width in (2, 18, 34):
        assert make_space('convnets250k', channels=(width,)).channels == (width,)
        with pytest.raises(UserError, match=f'channels has {width + 1}: expected multiples of 2'):
            make_space('convnets250k', channels=(width, width + 1))
    odd = make_space('convnets250k', channels=(8,), fc_dims=(1, 77), fc_layers=(2,), max_params=200_000)
    assert {s.fc_dim for s in sample(odd, 'train', 20)} == {1, 77}


def test_at_most_16_widths_are_taken_each_counted_once():
    widths = tuple(range(2, 34, 2))
    make_space('convnets250k', channels=widths + widths)
    with pytest.raises(UserError, match='channels has 17 widths, .* give at most 16'):
        make_space('convnets250k', channels=(*widths, 34))


@pytest.mark.parametrize('name', ['convnets', None, []])
def test_unknown_spaces_are_refused(name):
    with pytest.raises(UserError, match='is unknown: choose one of deepnets1m, convnets250k'):
        make_space(name)


def test_attention_needs_widths_its_heads_divide():
    with pytest.raises(UserError, match='has 20: expected multiples of 8'):
        make_space('deepnets1m', channels=(20,))
    for width in (8, 24):
        assert isinstance(make_space('deepnets1m', channels=(width,)).sample('train', 0, 0), NetworkSpec)
