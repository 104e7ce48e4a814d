"""Norms that are one instruction with the op before them: which, and that all else of a network stays."""

import dataclasses

import numpy as np
import pytest

from ghn_jax.base import backends
from ghn_jax.cnn.covering import Family, program_for, training_program
from ghn_jax.cnn.instructions import Norm
from ghn_jax.cnn.joined_norms import Normed, join_norms
from ghn_jax.cnn.lowering import lower
from ghn_jax.networks.spaces import make_space

SPACE = make_space('convnets250k', channels=(16,))


def sampled():
    return [SPACE.sample('train', 0, i) for i in range(20)]


def pieces(lowered):
    return sorted(str(p) for i in lowered.instructions for p in i.pieces)


def test_a_third_of_the_instructions_go_and_no_parameter_and_no_rounding_with_them():
    before, after = 0, 0
    for spec in sampled():
        plain = lower(spec)
        joined = join_norms(plain)
        assert pieces(joined) == pieces(plain)
        quantized = [[n for i in net.instructions for n in i.quantized] for net in (plain, joined)]
        assert sorted(quantized[0]) == sorted(quantized[1])
        assert all(i.op.quantizes == len(i.quantized) for i in joined.instructions)
        before, after = before + len(plain.instructions), after + len(joined.instructions)
    assert 0.6 < after / before < 0.75


def test_what_lies_between_is_gone_and_a_norm_of_a_sum_stays():
    for spec in sampled():
        plain, joined = lower(spec), join_norms(lower(spec))
        touched = {v for i in joined.instructions for v in (i.src, i.dst, *i.group)} | set(joined.head.group)
        assert touched == set(joined.shapes) == {0, *(v for group in joined.groups for v in group)}
        norms = [i for i in plain.instructions if i.op == Norm()]
        sums = [i for i in norms if sum(j.dst == i.src for j in plain.instructions) > 1]
        assert [i for i in joined.instructions if i.op == Norm()] == sums
        assert sum(isinstance(i.op, Normed) for i in joined.instructions) == len(norms) - len(sums)


@pytest.mark.parametrize('reader', ['head', 'instruction'])
def test_a_value_that_something_else_reads_stays(reader):
    lowered = lower(SPACE.sample('train', 0, 0))
    gone = lambda: set(lowered.shapes) - set(join_norms(lowered).shapes)
    before = gone()
    value = min(before)
    if reader == 'head':
        lowered = lowered._replace(head=lowered.head._replace(group=(*lowered.head.group, value)))
    else:
        *others, last = lowered.instructions
        lowered = lowered._replace(instructions=(*others, last._replace(group=(*last.group, value))))
    assert gone() == before - {value}


def test_a_value_that_lies_beside_another_stays():
    lowered = lower(SPACE.sample('train', 0, 0))
    before = set(lowered.shapes) - set(join_norms(lowered).shapes)
    pair = tuple(sorted(before))[:2]
    groups = tuple(group for group in lowered.groups if group[0] not in pair)
    joined = join_norms(lowered._replace(groups=(*groups, pair)))
    assert set(lowered.shapes) - set(joined.shapes) == before - {*pair}


def test_every_value_is_complete_before_it_is_read():
    for spec in sampled():
        done = join_norms(lower(spec)).instructions
        for k, i in enumerate(done):
            assert not any(j.dst in i.group for j in done[k:])


@pytest.mark.slow
def test_training_on_a_gpu_joins_and_nothing_else_does():
    space, small = dataclasses.replace(SPACE, ops=('conv_1x1', 'none')), Family(16)
    with backends.built_for('gpu'):
        program = training_program(space, small, 32)
        assert program.joins_norms and not program_for(space, 'train', small, 32).joins_norms
    plain = training_program(space, small, 32)
    assert not plain.joins_norms
    for spec in (space.sample('train', 0, i) for i in range(3)):
        joined, apart = program.layout(spec), plain.layout(spec)
        assert len(joined.instructions) < len(apart.instructions) and joined.tensors == apart.tensors
        assert np.array_equal(joined.tables.n_blocks, apart.tables.n_blocks)
    assert sum(dict(program.slots).values()) < sum(dict(plain.slots).values())
