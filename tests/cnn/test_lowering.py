"""Lowering: what holds for every network, on samples of the space; the instructions of small ones by hand."""

import collections
import contextlib

import jax
import numpy as np
import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.cnn.instructions import AvgPool, Conv, Copy, MaxPool, Norm, Zero
from ghn_jax.cnn.lowering import IMAGE, lower
from ghn_jax.cnn.packing import BLOCK, linear_pieces
from ghn_jax.cnn.reference import apply_reference
from ghn_jax.networks.graph import build_graph
from ghn_jax.networks.spaces import make_space
from tests.cnn.networks import quantized_names, random_parameters, small_network

SAMPLE = [
    space.sample(split, 0, i)
    for space in map(make_space, ('convnets250k', 'deepnets1m'))
    for split, n in (('train', 40), ('deep', 6), ('dense', 6), ('wide', 4))
    for i in range(n)
]


def body_pieces(net):
    return [piece for instruction in net.instructions for piece in instruction.pieces]


def test_the_sample_has_every_instruction():
    seen = {type(i.op).__name__ for spec in SAMPLE for i in lower(spec).instructions}
    convolutions = {'Conv', 'Depthwise', 'Reduce', 'Split'}
    assert seen >= convolutions | {
        'Excite',
        'Attention',
        'Mlp',
        'Position',
        'Norm',
        'MaxPool',
        'AvgPool',
        'Copy',
    }
    assert sum(spec.is_vit for spec in SAMPLE) > 8


def test_values_are_complete_before_they_are_read_and_all_reach_the_logits():
    for spec in SAMPLE:
        net = lower(spec)
        complete, written = {IMAGE}, {i.dst for i in net.instructions}
        last = {i.dst: k for k, i in enumerate(net.instructions)}
        for k, i in enumerate(net.instructions):
            assert i.src in complete and i.src in i.group and set(i.group) <= complete, (spec.name, i)
            if last[i.dst] == k:
                complete.add(i.dst)
        read = {v for i in net.instructions for v in i.group} | set(net.head.group)
        assert read == written | {IMAGE} == set(net.shapes) | {IMAGE}, spec.name


def test_every_value_has_its_place_in_one_group():
    for spec in SAMPLE:
        net = lower(spec)
        count = collections.Counter(v for group in net.groups for v in group)
        assert set(count) == set(net.shapes) - {IMAGE} and set(count.values()) == {1}
        for group in (*net.groups, net.head.group, *(i.group for i in net.instructions)):
            assert len({net.shapes[v] for v in group}) == 1
        assert {i.group for i in net.instructions if len(i.group) > 1} | {net.head.group} <= set(net.groups)


def matrix_shape(name, shape):
    """A parameter seen as [taps, in, out]."""
    if name == 'pos_enc.weight':  # [1, C, H, W]
        return shape[2] * shape[3], 1, shape[1]
    if len(shape) == 1:
        return 1, 1, *shape
    return int(np.prod(shape[2:])), shape[1], shape[0]


def test_pieces_hold_every_element_of_every_parameter_once():
    for spec in SAMPLE:
        shapes = {
            p.name: p.shape for p in build_graph(spec).parameters if not p.name.startswith('classifier')
        }
        seen = {name: np.zeros(matrix_shape(name, shape), int) for name, shape in shapes.items()}
        for piece in body_pieces(lower(spec)):
            if piece.name:
                matrix = seen[piece.name]  # [taps, in, out]
                assert piece.taps == len(matrix)
                matrix[:, piece.row : piece.row + piece.rows, piece.col : piece.col + piece.cols] += 1
        assert all(np.all(count == 1) for count in seen.values()), spec.name


def test_pieces_are_the_weights_that_their_instruction_reads_in_order():
    for spec in SAMPLE:
        net = lower(spec)
        for i in net.instructions:
            read = i.op.weight_shapes(net.shapes[i.src], net.shapes[i.dst])
            held = [piece.taps * piece.pad_rows * piece.pad_cols for piece in i.pieces]
            assert held == [int(np.prod(shape)) for shape in read], (spec.name, i)


def test_instructions_name_the_weights_whose_activations_they_quantize():
    for spec in SAMPLE:
        net = lower(spec)
        named = {name for i in net.instructions for name in i.quantized}
        first = {name for name in quantized_names(spec) if 'conv_2.' not in name and 'classifier' not in name}
        assert named == first  # what enters conv_1 of a FactorizedReduce enters conv_2 as well
        for i in net.instructions:
            own = {piece.name for piece in i.pieces}
            assert set(i.quantized) <= own or len(i.group) > 1


def test_networks_without_batch_norm_have_constants_in_its_place():
    with_norm, without = (
        lower(small_network([('conv_3x3', 0), ('sep_conv_3x3', 1)], C=16, norm=n)) for n in ('bnorm', None)
    )
    assert [i[:4] for i in with_norm.instructions] == [i[:4] for i in without.instructions]
    assert with_norm.has_norm and not without.has_norm
    for a, b in zip(body_pieces(with_norm), body_pieces(without), strict=True):
        assert a.size == b.size
        if a.name.endswith(('.op.2.weight', '.bias')) and not a.is_matrix:
            assert b.name is None and b.constant == float(a.name.endswith('.weight'))


def test_the_instructions_of_a_small_network():
    entries = [('skip_connect', 1), ('none', 0)]
    spec = small_network(entries, n_cells=1, C=16, stem_pool=True)
    net = lower(spec, 8)
    ops = [(i.op, net.shapes[i.src], net.shapes[i.dst]) for i in net.instructions]
    image, stem, cell = (8, 3), (8, 48), (4, 16)
    assert ops == [
        (Conv(3, 3, 1, False), image, stem),
        (Norm(), stem, stem),
        (MaxPool(2), stem, (4, 48)),
        (Conv(1, 1, 1, True), (4, 48), cell),  # of the second input only: nothing reads the first
        (Norm(), cell, cell),
        (Copy(), cell, cell),
    ]
    assert net.head == (net.head.group, True, None, 'classifier.0', 0, 16)


def test_sums_are_terms_written_to_one_value_and_concatenations_are_groups():
    entries = [('max_pool_3x3', 0), ('avg_pool_3x3', 1), ('skip_connect', 2), ('none', 0)]
    net = lower(small_network(entries, normal_concat=(3, 2), reduce_concat=(3, 2), n_cells=2, C=16), 8)
    pools = [i for i in net.instructions if i.op in (MaxPool(1), AvgPool(1))]
    assert len(pools) == 2 and pools[0].dst == pools[1].dst
    copy = next(i for i in net.instructions if i.op == Copy())
    assert copy.src == pools[0].dst
    parts = [i for i in net.instructions if len(i.group) == 2]  # the second cell's input
    assert {i.group for i in parts} == {(copy.dst, copy.src)}
    assert [i.src for i in parts] == [copy.dst, copy.src] and parts[0].dst == parts[1].dst
    assert [(p.row, p.rows) for i in parts for p in i.pieces] == [(0, 16), (16, 16)]


def test_absent_states_of_a_concatenation_are_zeros():
    entries = [('conv_1x1', 0), ('conv_1x1', 1), ('none', 0), ('none', 1)]
    net = lower(small_network(entries, normal_concat=(3, 2), reduce_concat=(2, 3), n_cells=1, C=16), 8)
    zeros = [i for i in net.instructions if i.op == Zero()]
    assert len(zeros) == 1 and net.head.group[0] == zeros[0].dst
    assert net.head.features == 32


@pytest.mark.parametrize('rows, cols, panel', [(10, 10, 16), (256, 24, 256), (300, 520, 256), (2560, 10, 16)])
def test_linear_weights_are_panels_that_fit_blocks(rows, cols, panel):
    seen = np.zeros((rows, cols), int)
    for piece in linear_pieces('w', rows, cols, panel):
        assert piece.pad_rows == BLOCK and piece.pad_cols == panel and piece.size == BLOCK * panel
        seen[piece.row : piece.row + piece.rows, piece.col : piece.col + piece.cols] += 1
    assert np.all(seen == 1)


def test_sizes_halve_at_stems_and_reductions():
    for size in (8, 16, 32, 64):
        for stem in ({'stem_type': 1}, {'stem_pool': True}, {}):
            net = lower(small_network([('conv_3x3', 0), ('conv_3x3', 1)], C=16, **stem), size)
            assert net.shapes[net.head.group[0]][0] == size // (8 if stem else 4)


@pytest.mark.parametrize('stem', [{'stem_type': 1}, {'stem_pool': True}, {}], ids=str)
def test_images_are_halved_to_whole_pixels_or_refused(stem):
    """By the reference, too, where a FactorizedReduce cannot halve."""
    for cells in (1, 2, 3):
        halvings = len(stem) + cells - 1
        spec = small_network([('conv_3x3', 0), ('skip_connect', 1)], C=16, n_cells=cells, **stem)
        params = random_parameters(spec, 0)
        for size in range(8, 18):
            run = lambda x, spec=spec, params=params: apply_reference(spec, params, x)
            image = jax.ShapeDtypeStruct((1, size, size, 3), 'float32')
            if size % 2**halvings:
                with pytest.raises(UserError, match=f'halves images {halvings} times, and {size} pixels'):
                    lower(spec, size)
                with contextlib.suppress(UserError):
                    jax.eval_shape(run, image)
            else:
                net = lower(spec, size)
                assert net.shapes[net.head.group[0]][0] == size // 2**halvings
                assert jax.eval_shape(run, image).shape == (1, 10)


def test_what_the_executor_cannot_run_is_a_user_error():
    with pytest.raises(UserError, match="'net' uses msa, whose positional encodings are for images of 32"):
        lower(small_network([('msa', 0), ('cse', 1)], C=16, name='net'), 16)
    with pytest.raises(UserError, match='C=24: the executor runs widths that are multiples of 16'):
        lower(small_network([('conv_3x3', 0), ('none', 1)], C=24))
    with pytest.raises(UserError, match='fc_dim=20: the executor runs hidden layers that are multiples of 8'):
        lower(small_network([('conv_3x3', 0), ('none', 1)], C=16, fc_layers=2, fc_dim=20))
