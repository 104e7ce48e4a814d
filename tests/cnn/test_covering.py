"""Covering: the program of a family holds every network of a space that is of it."""

import dataclasses
import itertools

import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.cnn.covering import Family, covering_networks, family, program_for, widths
from ghn_jax.networks.spaces import SPLITS, make_space
from ghn_jax.networks.spec import NetworkSpec
from tests.cnn.networks import fits

SPACE = make_space('convnets250k')


def networks(space, split: str, n: int) -> list[NetworkSpec]:
    return [space.sample(split, 0, i) for i in range(n)]


def test_training_networks_of_the_most_frequent_width_fit_their_program():
    program, width = program_for(SPACE, 'train', Family(32), 32), 32
    count = 0
    for i in range(240):
        spec = SPACE.sample('train', 0, i)
        if spec.C == width:
            fits(program, spec)
            count += 1
    assert count > 180


def test_training_networks_with_attention_fit_their_program():
    space = make_space('deepnets1m')
    specs = [spec for spec in networks(space, 'train', 240) if family(spec) == Family(32, True)]
    program = program_for(space, 'train', Family(32, True), 32)
    assert len(specs) > 20
    for spec in specs:
        fits(program, spec)


def test_wide_networks_fit_their_program_whatever_the_width_they_were_counted_at():
    space = make_space(
        'convnets250k',
        channels=(16, 32),
        fc_dims=(64,),
        cells=(2, 8),
        max_params=500_000,
        flat_head_share=0.0,
    )
    program = program_for(space, 'wide', Family(64), 16)
    own = [spec for spec in networks(space, 'wide', 5) if spec.C == 64]
    assert len(own) == 4
    for spec in own:
        fits(program, spec)


def test_plain_networks_fit_the_program_of_a_space_that_has_some():
    space = make_space('convnets250k', plain_share=1.0, channels=(16,), fc_dims=(64,), cells=(2, 4))
    program, without = (
        program_for(each, 'train', Family(16), 32)
        for each in (space, dataclasses.replace(space, plain_share=0.0))
    )
    missing = 0
    for spec in networks(space, 'train', 40):
        fits(program, spec)
        try:
            fits(without, spec)
        except ValueError:
            missing += 1
    assert missing > 0  # the others are not covered by chance


def test_networks_with_inverted_bottlenecks_fit_their_program():
    ops = (*SPACE.ops, 'mbconv_3x3')
    space = make_space('convnets250k', ops=ops, plain_share=0.4, channels=(16,), fc_dims=(64,), cells=(2, 6))
    program = program_for(space, 'train', Family(16), 32)
    some = [spec for spec in networks(space, 'train', 150) if 'mbconv_3x3' in spec.genotype.ops]
    assert {spec.preproc for spec in some} == {True, False} and len(some) > 20
    for spec in some:
        fits(program, spec)


@pytest.mark.slow
@pytest.mark.parametrize('space', ['convnets250k', 'deepnets1m'])
@pytest.mark.parametrize('split', SPLITS)
def test_every_network_of_a_split_fits_the_program_of_its_family(split, space):
    n, space = 1500 if split == 'train' else 100, make_space(space)
    count = 0
    for each, specs in itertools.groupby(sorted(networks(space, split, n), key=family), key=family):
        assert each.width in widths(space, split)
        program = program_for(space, split, each, 32)
        for spec in specs:
            fits(program, spec)
            count += 1
    assert count == n


@pytest.mark.parametrize('split, expected', [('train', (16, 32)), ('test', (16, 32)), ('wide', (64, 128))])
def test_widths_of_splits(split, expected):
    assert widths(make_space('convnets250k', channels=(32, 16)), split) == expected
    assert widths(SPACE, split) == {'train': tuple(range(32, 129, 16)), 'test': (32,), 'wide': (128,)}[split]


def test_a_family_that_a_space_does_not_have_has_no_program():
    for ops, vit in ((('msa', 'none'), False), (('conv_3x3',), True)):
        space = make_space('deepnets1m', ops=ops)
        with pytest.raises(UserError, match='there are no networks with'):
            list(covering_networks(space, 'train', Family(32, vit)))
