"""Limits of what a file may ask for: at them, one beyond them, and the formulas counted by hand.

That the formulas bound what is made from random networks is in tests/fuzz/test_accepted.py.
"""

import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.networks import counts, files
from ghn_jax.networks.counts import count_parameters
from ghn_jax.networks.genotype import OPS
from tests.cnn.networks import small_network

# (operations, kernel positions) of one op of a cell.
COSTS = {
    'none': (0, 0), 'max_pool_3x3': (1, 0), 'avg_pool_3x3': (1, 0), 'skip_connect': (6, 2),
    'sep_conv_3x3': (8, 2 * (9 + 1)), 'sep_conv_5x5': (8, 2 * (25 + 1)),
    'dil_conv_3x3': (4, 9 + 1), 'dil_conv_5x5': (4, 25 + 1),
    'conv_1x1': (3, 1), 'conv_3x3': (3, 9), 'conv_5x5': (3, 25), 'conv_7x7': (3, 49),
    'conv_7x1_1x7': (4, 7 + 7), 'msa': (14, 4), 'cse': (9, 2),
    'mbconv_3x3': (8, 1 + 9 + 1),
}  # fmt: skip


def network(op, *, steps=1, **fields):
    entries = [(op, 0), ('conv_1x1', 1), *[(op, 1)] * 2 * (steps - 1)]
    return small_network(
        entries, normal_concat=range(2, 2 + steps), reduce_concat=range(2, 2 + steps), **fields
    )


def test_the_limits_are_what_files_were_promised():
    """A file that was accepted stays accepted; the spaces' own largest networks are well within."""
    assert 500 < files.MAX_NETWORKS == 10_000
    assert 160e6 < counts.MAX_PARAMETERS == 200e6
    assert 1400 < counts.MAX_OPERATIONS == 4096
    assert 2500 < counts.MAX_TILES == 256 * 2**20 / (64 * 64 * 4)  # 256 MiB of float32
    assert 7 < counts.MAX_FAMILIES == 16


@pytest.mark.parametrize('op', OPS)
def test_a_cell_is_counted_op_by_op(op):
    """The stem has 9 and 7x7 + 2 of 3x3, the head 6 and 1, a cell's start 12 and 4, its end 2."""
    operations, tiles = counts.bounds(network(op, n_cells=1))
    positions = 11 * 11 if op == 'msa' else 0
    assert operations == 9 + 6 + 12 + 2 + COSTS['conv_1x1'][0] + COSTS[op][0]
    assert tiles == 49 + 18 + 1 + 4 + COSTS['conv_1x1'][1] + COSTS[op][1] + positions


def test_normal_and_reduction_cells_are_counted_apart():
    def counted(n_cells):
        return counts.bounds(
            small_network(
                [('conv_7x7', 0), ('conv_1x1', 1)], [('conv_3x3', 0), ('conv_1x1', 1)], n_cells=n_cells
            )
        )

    cell = (12 + 2 + 3, 4 + 1)
    for more, fewer in ((7, 6), (12, 11)):  # two of each are reductions
        assert [a - b for a, b in zip(counted(more), counted(fewer))] == [cell[0] + 3, cell[1] + 49]
    assert counted(6) == (15 + 6 * (cell[0] + 3), 68 + 6 * cell[1] + 4 * 49 + 2 * 9)


@pytest.mark.parametrize('steps', [1, 4, 10])
def test_no_cell_of_so_many_states_has_more_operations(steps):
    one, two = (counts.bounds(network('sep_conv_3x3', steps=steps, n_cells=n))[0] for n in (1, 2))
    assert counts.operations_of_cell(steps) == two - one + (COSTS['sep_conv_3x3'][0] - COSTS['conv_1x1'][0])
    assert COSTS['sep_conv_3x3'][0] == max(
        cost for op, (cost, _) in COSTS.items() if op not in ('msa', 'cse')
    )


@pytest.mark.parametrize(
    'limit, count, word',
    [
        ('MAX_PARAMETERS', count_parameters, 'parameters'),
        ('MAX_OPERATIONS', lambda spec: counts.bounds(spec)[0], 'operations'),
        ('MAX_TILES', lambda spec: counts.bounds(spec)[1], 'kernel positions to decode'),
    ],
)
def test_a_network_at_a_limit_is_accepted_and_one_beyond_it_is_refused(monkeypatch, limit, count, word):
    spec = network('conv_3x3', name='mine')
    monkeypatch.setattr(counts, limit, count(spec))
    counts.check_size(spec)
    monkeypatch.setattr(counts, limit, count(spec) - 1)
    with pytest.raises(UserError, match=rf"network 'mine' has .*{count(spec):,} {word}, more than "):
        counts.check_size(spec)


def test_sixteen_widths_are_accepted_and_those_with_attention_count_apart():
    widths = range(16, 16 * 16 + 1, 16)
    plain = [network('conv_1x1', C=c) for c in widths]
    counts.check_families([*plain, *plain])
    attentive = [network('msa', C=c) for c in widths]
    counts.check_families([*plain[:8], *attentive[8:]])
    with pytest.raises(UserError, match='17 different widths'):
        counts.check_families([*plain, attentive[0]])


@pytest.mark.parametrize(
    'op, fields, size',
    [
        ('conv_1x1', {'ks': 3}, 3),
        ('conv_1x1', {'ks': 7}, 7),
        ('sep_conv_5x5', {'ks': 3}, 5),
        ('conv_7x1_1x7', {'ks': 5}, 7),
        ('max_pool_3x3', {'ks': 5}, 5),
        ('msa', {}, 11),
    ],
)
def test_the_largest_kernel_is_that_of_the_stem_or_of_an_op(op, fields, size):
    assert counts.largest_kernel(network(op, **fields)) == size
