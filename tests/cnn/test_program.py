"""Programs: every network of a space fits its program; what does not fit is refused, saying what is full."""

import collections
import dataclasses

import numpy as np
import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.cnn.building import build_program
from ghn_jax.cnn.covering import Family, program_for
from ghn_jax.cnn.lowering import lower
from ghn_jax.cnn.packing import BLOCK
from ghn_jax.cnn.program import Program
from ghn_jax.cnn.tables import ACCUMULATE, DST, G_DST, G_SRC, SEEN, SRC, WEIGHTS
from ghn_jax.networks.spaces import make_space
from ghn_jax.networks.spec import NetworkSpec
from ghn_jax.quant import Policy
from tests.cnn.networks import fits, quantized_names, random_parameters, shapes, small_network

SPACE = make_space('convnets250k')
TINY = make_space(
    'convnets250k', ops=('none', 'skip_connect', 'conv_3x3', 'sep_conv_3x3'), channels=(16,), ks=(3,),
    fc_dims=(24, 304), cells=(4, 6), max_steps=2,
)  # fmt: skip


@pytest.fixture(scope='module')
def program() -> Program:
    return program_for(TINY, 'train', Family(16), 32)


def networks(n, split='train', space=TINY) -> list[NetworkSpec]:
    return [space.sample(split, 0, i) for i in range(n)]


def test_programs_are_equal_and_hash_alike_when_built_alike(program):
    other = program_for(TINY, 'train', Family(16), 32)
    assert other == program and hash(other) == hash(program) and other is not program
    assert program_for(TINY, 'train', Family(16), 16) != program


def test_a_class_comes_after_all_that_lead_to_it(program):
    position = {c: k for k, c in enumerate(program.tape_shapes)} | {program.image_shape: -1}
    assert all(s.src == s.dst or position[s.src] < position[s.dst] for s in program.segments)
    order = [(position[s.dst], s.src == s.dst) for s in program.segments]
    assert order == sorted(order)  # what leads into a class runs before what stays in it


# ---- tables


def test_tables_of_all_networks_have_the_same_shapes_and_types(program):
    policy, form = Policy(4, 4), set()
    for spec in networks(20):
        layout = program.layout(spec)
        leaves = (*layout.tables._replace(head=None), *layout.tables.head, *program.bits(layout, policy))
        form.add(tuple((x.shape, x.dtype) for x in leaves if x is not None))
    assert len(form) == 1


def test_in_the_order_of_execution_values_are_complete_before_they_are_read(program):
    for spec in networks(20):
        layout = program.layout(spec)
        last = {i.dst: r for r, i in enumerate(layout.instructions)}
        assert all(r > last.get(v, -1) for r, i in enumerate(layout.instructions) for v in i.group)


def test_a_row_adds_to_what_an_earlier_one_wrote_forward_and_backward(program):
    for spec in networks(20):
        layout = program.layout(spec)
        tables, written, steps = layout.tables, set(), []
        for k, segment in enumerate(program.segments):
            for r in range(tables.bounds[k], tables.bounds[k + 1]):
                row = tables.rows[r]
                dst = (segment.dst, row[DST])
                assert row[ACCUMULATE] == (dst in written)
                written.add(dst)
                steps.append((r, segment))
        head_class, _ = program.heads[tables.head.variant]
        seen = {(head_class, tables.head.slot + k) for k in range(tables.head.parts)}
        for r, segment in reversed(steps):
            src = (segment.src, tables.rows[r, SRC])
            assert tables.rows[r, SEEN] == (src in seen)
            seen.add(src)


def test_a_gradient_is_not_overwritten_while_it_is_needed(program):
    for spec in networks(20):
        layout = program.layout(spec)
        tables, holds = layout.tables, {}  # (class, slot) -> the value whose gradient is there
        head_class, _ = program.heads[tables.head.variant]
        group = lower(spec, program.image_size).head.group
        holds |= {(head_class, k): v for k, v in enumerate(group)}
        waiting = set(group)
        makers = collections.Counter(i.dst for i in layout.instructions)
        for r in reversed(range(len(layout.instructions))):
            i, row = layout.instructions[r], tables.rows[r]
            segment = program.segments[int(np.searchsorted(tables.bounds, r, side='right')) - 1]
            assert holds[segment.dst, row[G_DST]] == i.dst
            makers[i.dst] -= 1
            if not makers[i.dst]:
                waiting.discard(i.dst)
            if segment.src == program.image_shape:
                continue
            there = (segment.src, row[G_SRC])
            assert row[G_SRC] < program.gradient_slots[segment.src]
            if row[SEEN]:
                assert holds[there] == i.src
            else:
                assert holds.get(there) not in waiting
                holds[there] = i.src
                waiting.add(i.src)
        assert not waiting


def test_gradients_take_few_slots(program):
    assert sum(program.gradient_slots.values()) < sum(program.slots.values()) / 2


def test_gradients_padded_to_their_segment_never_run_into_what_is_written_before_them(program):
    for spec in networks(20):
        layout = program.layout(spec)
        tables, done = layout.tables, 0
        body = [r for r in range(len(layout.instructions))]
        start = min(tables.rows[r, WEIGHTS] for r in body)
        for r in reversed(body):
            k = int(np.searchsorted(tables.bounds, r, side='right')) - 1
            size = sum(piece.size for piece in layout.instructions[r].pieces) // BLOCK
            first, padded = tables.rows[r, WEIGHTS], program.segments[k].weight_floats // BLOCK
            assert first == start + done and size <= padded
            assert first + padded <= program.capacity.blocks
            done += size
        assert tables.n_blocks == start + done


def test_unpacking_what_was_packed_gives_every_parameter_back(program):
    for spec in networks(20):
        layout, params = program.layout(spec), random_parameters(spec, 0)
        flat = program.pack(layout, params)
        back = program.unpack(layout, flat, shapes(spec))
        assert back.keys() == params.keys()
        for name, value in params.items():
            np.testing.assert_array_equal(back[name], value, err_msg=name)
        if spec.norm:  # without, constants stand for the norms
            assert np.count_nonzero(flat) == sum(map(np.count_nonzero, params.values()))


def test_blocks_belong_to_the_tensor_whose_elements_they_hold(program):
    for spec in networks(8):
        layout, names = program.layout(spec), quantized_names(spec)
        assert set(layout.tensors) == set(names)
        params = {name: np.zeros(shape, 'float32') for name, shape in shapes(spec).items()}
        for name in names:
            params[name] += 1 + layout.tensors[name]
        flat = program.pack(layout, params).reshape(-1, BLOCK)
        tensor = layout.tables.block_tensor[:, None]
        owned = tensor < len(names)
        assert np.all((flat == 0) | (flat == np.where(owned, tensor + 1, 1)))
        count = np.bincount((flat * owned).astype(int).ravel(), minlength=len(names) + 1)
        assert all(count[1 + layout.tensors[name]] == params[name].size for name in names)


def test_bits_follow_the_names_of_weights(program):
    spec = small_network(
        [('sep_conv_3x3', 0), ('skip_connect', 1)], n_cells=4, C=16, fc_layers=2, fc_dim=24, stem_pool=True
    )  # fmt: skip
    layout = program.layout(spec)
    policy = Policy(
        4, 8, ((r'stem\..*', 2, 3), (r'.*\.op\.6\.weight', 5, 6), (r'classifier\.3\.weight', 7, 9))
    )
    bits = program.bits(layout, policy)
    for name, index in layout.tensors.items():
        assert bits.weights[index] == policy.widths(name)[0]
    assert np.all(bits.weights[len(layout.tensors) :] == 32)
    assert list(bits.head) == [8, 9]
    for r, i in enumerate(layout.instructions):
        for k, name in enumerate(i.quantized):
            assert bits.activations[r, k] == policy.widths(name)[1]
    assert {2, 4, 5, 7} < set(bits.weights) and {3, 6, 8} <= set(bits.activations.ravel())


def test_a_rule_that_matches_nothing_is_a_user_error(program):
    with pytest.raises(UserError, match="'conv9.*' matches none"):
        program.bits(program.layout(networks(1)[0]), Policy(4, 4, (('conv9.*', 8, 8),)))


# ---- what does not fit


def with_capacity(program, **changes):
    return dataclasses.replace(program, capacity=dataclasses.replace(program.capacity, **changes))


@pytest.mark.parametrize(
    'field, room, message',
    [
        ('rows', 20, 'instructions, this program has room for 20'),
        ('blocks', 200, 'weight blocks, this program has room for 200'),
        ('tensors', 5, 'weight tensors, this program has room for 4'),
        ('parts', 1, 'parts of a concatenation, this program has room for 1'),
        ('hidden_panels', 1, 'panels of hidden units, this program has room for 1'),
    ],
)
def test_a_full_table_or_buffer_is_refused_by_name(program, field, room, message):
    spec = next(
        s
        for s in networks(200)
        if s.fc_layers == 2 and s.fc_dim == 304 and len(s.genotype.normal_concat) == 2
    )
    with pytest.raises(ValueError, match=rf'network \'{spec.name}\' needs \d+ {message}'):
        with_capacity(program, **{field: room}).layout(spec)


def test_a_full_tape_is_refused_by_class(program):
    for c, slots in program.capacity.slots:
        fewer = tuple((d, 3 if d == c else n) for d, n in program.capacity.slots)
        if any((s.src, s.dst) == (c, c) for s in program.segments) and slots > 40:
            with pytest.raises(ValueError, match=r'slots of shape \(\d+, \d+\), this program has room for 3'):
                for spec in networks(60):
                    with_capacity(program, slots=fewer).layout(spec)


@pytest.mark.parametrize(
    'field, what',
    [
        ('pieces', 'pieces'),
        ('rectangles', 'rectangles'),
        ('dense_tiles', 'max_dense'),
        ('depth_tiles', 'max_depth'),
    ],
)
def test_a_full_table_of_the_hypernetwork_is_refused_by_name(program, field, what):
    with pytest.raises(ValueError, match=rf'network \'.*\' .*{what}'):
        for spec in networks(60):
            fits(with_capacity(program, **{field: 4}), spec)


def test_a_program_has_just_the_room_its_networks_take():
    spec = networks(1)[0]
    program = build_program([spec], image_size=32, max_params=1e7)
    program.layout(spec)
    assert program.capacity.rows == len(program.layout(spec).instructions)
    for field in ('rows', 'tensors', 'parts', 'pieces', 'rectangles'):
        with pytest.raises(ValueError):
            fits(with_capacity(program, **{field: getattr(program.capacity, field) - 1}), spec)


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'op': 'conv_7x7'}, r'instruction Conv\(height=7, width=7, stride=1, rectify=True, .*\)'),
        ({'ks': 7}, r'instruction Conv\(height=7, width=7, stride=1, rectify=False, .*\) from \(32, 3\)'),
        ({'C': 32}, r'tensors of shape|does not hold'),
        ({'num_classes': 7}, '7 classes, this program has 10'),
        ({'n_cells': 60}, r'room for \d+'),
    ],
)
def test_a_network_of_another_space_is_refused(program, changes, message):
    fields = {'op': 'conv_3x3', 'C': 16, 'n_cells': 4, 'name': 'other'} | changes
    op = fields.pop('op')
    spec = small_network([(op, 0), (op, 1)], **fields)
    with pytest.raises(ValueError, match=f"network 'other'.*({message})"):
        program.layout(spec)


def test_a_classifier_that_the_program_does_not_have_is_refused(program):
    heads = tuple(h for h in program.heads if h[1])
    spec = small_network([('conv_3x3', 0), ('conv_3x3', 1)], C=16, n_cells=4, glob_avg=False)
    program.layout(spec)
    with pytest.raises(ValueError, match='the classifier of network'):
        dataclasses.replace(program, heads=heads).layout(spec)
