"""What is read from optimised programs, on ones whose answer is known: written and compiled ones."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from ghn_jax.aot import hlo, program_costs
from ghn_jax.aot.gpu_time import work
from ghn_jax.aot.hlo import Collective, Place
from ghn_jax.aot.report import about_text, is_tape, text
from ghn_jax.assembly.memory import tree_bytes
from tests.cnn.comparison import QUICK

EXCHANGING = """
HloModule jit_step, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%inside (p: f32[4]) -> f32[2] {
  %p = f32[4]{0} parameter(0)
  ROOT %s = f32[2]{0} reduce-scatter(%p), replica_groups={{0,1},{2,3}}, dimensions={0}, to_apply=%add
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %all-reduce.1 = f32[2,500]{1,0} all-reduce(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %r = (f32[8]{0}, s32[]) all-reduce(%a, %b), replica_groups=[1,8]<=[8], use_global_device_ids=true
  %m = f32[8]{0} all-reduce(%x), replica_groups=mesh['network'=4,'image'=2] {'network'}, to_apply=%add
  %both = f32[4]{0} all-reduce(%x), replica_groups=mesh['a'=2,'b'=8] {'a','b':(1)4}, to_apply=%add
  %start = bf16[64]{0:T(256)} all-reduce-start(bf16[64]{0} %x), replica_groups={}, to_apply=%add
  %done = bf16[64]{0} all-reduce-done(%start)
  %g = (f32[4]{0}, f32[16]{0}) all-gather-start(f32[4]{0} %x), replica_groups=[2,4]<=[8], dimensions={0}
  %g.done = f32[16]{0} all-gather-done(%g)
  %s = ((f32[32]{0}, f32[8]{0}), (f32[8]{0}, f32[2]{0})) reduce-scatter-start(%x.2, %x.3), replica_groups={}
  %fusion = f32[8]{0} fusion(%all-reduce.1), kind=kLoop, calls=%c, metadata={op_name="all-reduce(x)"}
  %scatter = f32[2]{0} fusion(%g), kind=kCustom, calls=%inside
  ROOT %get = f32[8]{0} get-tuple-element(%r), index=0
}
"""

# A tape of 4 MiB: a branch in a loop copies it, once as a copy and once as a fusion that does nothing else;
# so does the beginning of the program. A fusion that computes with what it transposes counts for nothing, and
# bringing the tape into another memory is no copy.
COPYING = """
HloModule jit_step

%wrapped_copy (p.0: f32[16,256,256]) -> f32[16,256,256] {
  %p.0 = f32[16,256,256]{2,1,0} parameter(0)
  ROOT %copy.9 = f32[16,256,256]{0,2,1} copy(%p.0)
}

%doubled (p.1: f32[16,256,256]) -> f32[16,256,256] {
  %p.1 = f32[16,256,256]{2,1,0:T(8,128)(2,1)} parameter(0)
  %transpose.9 = f32[16,256,256]{0,2,1} transpose(%p.1), dimensions={2,1,0}
  ROOT %add.9 = f32[16,256,256]{0,2,1} add(%transpose.9, %transpose.9)
}

%one (t.1: f32[16,256,256]) -> f32[256,256] {
  %t.1 = f32[16,256,256]{2,1,0} parameter(0)
  %copy.1 = f32[16,256,256]{0,2,1:T(8,128)} copy(%t.1), metadata={op_name="jit(step)/body=%other"}
  %fusion.1 = f32[16,256,256]{0,2,1} fusion(%copy.1), kind=kLoop, calls=%wrapped_copy
  %fusion.2 = f32[16,256,256]{0,2,1} fusion(%copy.1), kind=kLoop, calls=%doubled
  ROOT %slice.1 = f32[256,256]{1,0} slice(%fusion.2), slice={[0:1], [0:256], [0:256]}
}

%other (t.2: f32[16,256,256]) -> f32[256,256] {
  %t.2 = f32[16,256,256]{2,1,0} parameter(0)
  ROOT %slice.2 = f32[256,256]{1,0} slice(%t.2), slice={[0:1], [0:256], [0:256]}
}

%body (c.1: (s32[], f32[16,256,256])) -> (s32[], f32[16,256,256]) {
  %c.1 = (s32[], /*index=1*/f32[16,256,256]{2,1,0:T(8,128)}) parameter(0)
  %i.1 = s32[] get-tuple-element(%c.1), index=0
  %t.3 = f32[16,256,256]{2,1,0} get-tuple-element(%c.1), index=1
  %y.1 = f32[256,256]{1,0} conditional(%i.1, %t.3, %t.3), branch_computations={%one, %other}
  %small.1 = f32[256,256]{0,1} copy(%y.1)
  %near.1 = f32[16,256,256]{2,1,0:T(8,128)S(1)} copy(%t.3)
  ROOT %next.1 = (s32[], f32[16,256,256]{2,1,0}) tuple(%i.1, %t.3)
}

%condition (c.2: (s32[], f32[16,256,256])) -> pred[] {
  %c.2 = (s32[], f32[16,256,256]{2,1,0}) parameter(0)
  ROOT %more.1 = pred[] constant(true)
}

ENTRY %main (t.0: f32[16,256,256]) -> (s32[], f32[16,256,256]) {
  %t.0 = f32[16,256,256]{2,1,0} parameter(0)
  %start.1 = (f32[16,256,256]{0,1,2}, f32[16,256,256]{2,1,0}, u32[]) copy-start(%t.0)
  %done.1 = f32[16,256,256]{0,1,2} copy-done(%start.1)
  %zero.1 = s32[] constant(0)
  %c.0 = (s32[], f32[16,256,256]{0,1,2}) tuple(%zero.1, %done.1)
  ROOT %w.1 = (s32[], f32[16,256,256]{2,1,0}) while(%c.0), condition=%condition, body=%body
}
"""
TAPE = jax.ShapeDtypeStruct((16, 4, 64, 256, 1), jnp.float32)


def test_copies_are_found_with_the_loops_and_branches_that_they_run_in():
    found = hlo.copies(hlo.read(COPYING), tree_bytes(TAPE))
    assert [(c.opcode, str(c.shape), c.place, c.count) for c in found] == [
        ('copy-start', 'f32[16,256,256]', Place(0, 0), 1),
        ('move', 'f32[16,256,256]', Place(1, 0), 1),
        ('copy', 'f32[16,256,256]', Place(1, 1), 1),
        ('fusion', 'f32[16,256,256]', Place(1, 1), 1),
    ]
    assert len(hlo.copies(hlo.read(COPYING), 1)) == 5  # and that of one slot


def test_the_report_tells_copies_of_tapes_in_loops_and_branches_from_others():
    row = about_text(COPYING, [TAPE])
    assert row['tape_copies'] == {'inside': 2, 'outside': 1}
    assert row['loops'] == [{'loops': 0, 'branches': 0, 'count': 1}]
    assert row['conditionals'] == [{'loops': 1, 'branches': 0, 'count': 1}]
    clean = '\n'.join(
        line for line in COPYING.splitlines() if ' copy' not in line and '%fusion.1' not in line
    )
    assert about_text(clean, [TAPE])['tape_copies'] == {'inside': 0, 'outside': 0}


def test_a_slot_of_one_tape_is_not_taken_for_a_whole_one_of_as_many_values():
    tapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((9, 64, 16, 16, 16), (4, 64, 8, 8, 16))]
    sizes = (64, 16, 16, 16), (4, 64, 8, 8, 16), (64, 4, 16, 8, 8), (9, 16384, 16), (9, 64, 8, 8, 16)
    found = [is_tape(hlo.Shape('f32', dims), tapes) for dims in sizes]
    assert found == [False, True, True, True, False]


def test_images_of_as_many_values_as_a_tape_are_none():
    tape = jax.ShapeDtypeStruct((4, 64, 8, 8, 16), jnp.float32)
    types = 'f32', 'bf16', 'u8', 's32'
    assert [is_tape(hlo.Shape(kind, tape.shape), [tape]) for kind in types] == [True, True, False, False]


def test_collectives_are_read_with_bytes_shapes_groups_and_those_in_fusions():
    assert hlo.collectives(hlo.read(EXCHANGING)) == [
        Collective('all-reduce', 4000, 'f32[2,500]', 4),
        Collective('all-reduce', 36, 'f32[8], s32[]', 8),
        Collective('all-reduce', 32, 'f32[8]', 4),
        Collective('all-reduce', 16, 'f32[4]', 8),
        Collective('all-reduce', 128, 'bf16[64]', 0),
        Collective('all-gather', 64, 'f32[4], f32[16]', 4),
        Collective('reduce-scatter', 40, 'f32[32], f32[8], f32[8], f32[2]', 0),
        Collective('reduce-scatter', 8, 'f32[2]', 2),
    ]


@pytest.mark.parametrize(
    ('op', 'made', 'begun'),
    [
        ('all-reduce', 'f32[64]', 'f32[64]'),
        ('all-gather', 'f32[512]', '(f32[64], f32[512])'),
        ('reduce-scatter', 'f32[8]', '((f32[64]), f32[8])'),
        ('collective-permute', 'f32[64]', '(f32[64], f32[64], u32[], u32[])'),
        ('copy', 'f32[64]', '(f32[64], f32[64], u32[])'),
        ('slice', 'f32[16]', '((f32[64]), f32[16], u32[])'),
    ],
)
def test_what_runs_beside_others_moves_as_much_as_by_itself(op, made, begun):
    head = 'ENTRY %main (x: f32[64]) -> f32[64] {\n  %x = f32[64]{0} parameter(0)\n'
    alone = f'{head}  ROOT %y = {made} {op}(%x)\n}}'
    beside = f'{head}  %b = {begun} {op}-start(%x)\n  ROOT %y = {made} {op}-done(%b)\n}}'
    read, never = map(hlo.read, (alone, beside)), lambda *_: None
    one, two = (work(module, never, never) for module in read)
    assert one == two and one.launches == 1 and one.bytes > 0


def compiled(f, *arguments, **options):
    text = jax.jit(f, compiler_options=QUICK | options).lower(*arguments).compile().as_text()
    return hlo.read(text)


def walking(*, write_inside):
    """A loop over instructions, each of which squares or negates a slot of a tape, as the executor walks.

    write_inside: the branches write the slot, and return the tape, its slots transposed: XLA moves all of it.
    """
    write = lambda tape, y, row: lax.dynamic_update_index_in_dim(tape, y, row[2], 0)
    read = lambda tape, row: lax.dynamic_index_in_dim(tape, row[1], keepdims=False)

    def step(tape, rows):
        def body(r, tape):
            ops = (lambda x: x @ x, lambda x: -x)
            if write_inside:
                branches = [lambda t, row, op=op: write(t, op(read(t, row)), row).mT for op in ops]
                return lax.switch(rows[r, 0], branches, tape, rows[r])
            branches = [lambda t, row, op=op: op(read(t, row)) for op in ops]
            return write(tape, lax.switch(rows[r, 0], branches, tape, rows[r]), rows[r])

        return lax.fori_loop(0, rows.shape[0], body, tape)

    return compiled(step, jnp.zeros((24, 64, 64)), jnp.zeros((5, 3), jnp.int32))


def test_a_compiled_walk_that_copies_its_tape_in_the_branches_is_told_from_one_that_does_not():
    tape = 24 * 64 * 64 * 4
    bad, good = (hlo.copies(walking(write_inside=inside), tape) for inside in (True, False))
    assert [c for c in good if any(c.place)] == []
    assert Place(1, 1) in {c.place for c in bad}


def test_a_program_of_one_device_has_no_collectives_and_a_loop_is_a_loop():
    module = compiled(lambda x: lax.fori_loop(0, 3, lambda i, x: jnp.sin(x @ x), x), jnp.ones((4, 4)))
    assert hlo.collectives(module) == []
    assert hlo.counts(module)['while', Place(0, 0)] == 1


@pytest.mark.parametrize('groups', [1, 4])
@pytest.mark.parametrize('stride', [1, 2])
def test_flops_of_convolutions_leave_out_padding_and_agree_with_those_of_the_definition(groups, stride):
    x, w = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4 // groups, 8))

    def convolve(x, w):
        return lax.conv_general_dilated(
            x, w, (stride, stride), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
            feature_group_count=groups,
        )  # fmt: skip

    met = float(jnp.sum(convolve(x, w)))  # each product is of two ones, or of padding
    assert program_costs.cost(compiled(convolve, x, w)).flops == 2 * met


# A matrix unit is given bfloat16 by a convolution of a branch and by a product in a fusion, two thirds
# of the operations; the others have one operand of each type.
MULTIPLYING = """
HloModule jit_step

%fused (p.0: bf16[64,16], p.1: bf16[16,16]) -> bf16[64,16] {
  %p.0 = bf16[64,16]{1,0} parameter(0)
  %p.1 = bf16[16,16]{1,0} parameter(1)
  ROOT %dot.1 = bf16[64,16]{1,0} dot(%p.0, %p.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%one (x.1: bf16[1,8,8,16], w.1: bf16[1,1,16,16]) -> f32[1,8,8,16] {
  %x.1 = bf16[1,8,8,16]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %w.1 = bf16[1,1,16,16]{3,2,1,0} parameter(1)
  ROOT %c.1 = f32[1,8,8,16]{3,2,1,0} convolution(%x.1, %w.1), window={size=1x1}, dim_labels=b01f_01io->b01f
}

%other (x.2: f32[1,8,8,16], w.2: bf16[1,1,16,8]) -> f32[1,8,8,8] {
  %x.2 = f32[1,8,8,16]{3,2,1,0} parameter(0)
  %w.2 = bf16[1,1,16,16]{3,2,1,0} parameter(1)
  ROOT %c.2 = f32[1,8,8,16]{3,2,1,0} convolution(%x.2, %w.2), window={size=1x1}, dim_labels=b01f_01io->b01f
}

ENTRY %main (i.0: s32[], x.0: bf16[1,8,8,16]) -> f32[1,8,8,16] {
  %i.0 = s32[] parameter(0)
  %x.0 = bf16[1,8,8,16]{3,2,1,0} parameter(1)
  %a.0 = bf16[64,16]{1,0} parameter(2)
  %b.0 = bf16[16,16]{1,0} parameter(3)
  %fusion.0 = bf16[64,16]{1,0} fusion(%a.0, %b.0), kind=kOutput, calls=%fused
  ROOT %y.0 = f32[1,8,8,16]{3,2,1,0} conditional(%i.0, %x.0, %x.0), branch_computations={%one, %other}
}
"""


def test_operations_are_told_apart_by_the_wider_type_of_what_they_multiply():
    each = 2 * 64 * 16 * 16
    assert program_costs.operand_types(hlo.read(MULTIPLYING)) == {'bf16': 2 * each, 'f32': each}
    row = about_text(MULTIPLYING, [TAPE])
    assert row['operands'] == {'bf16': 2 * each, 'f32': each}
    assert 'bf16 67%, f32 33%' in table_of(row)
    assert about_text(COPYING, [TAPE])['operands'] == {}


def table_of(row):
    about = {'function': 'f', 'split': 'train', 'width': 16, 'msa': False, 'branches': 2}
    made = dict.fromkeys(('target', 'about', 'device', 'jax', 'compiler', 'out'), '')
    return text({'rows': [about | row], **made})


def test_the_cost_of_a_program_is_that_of_a_pass_with_the_dearest_branches():
    n, square, wide = 64, 2 * 64**3, 2 * 64 * 64 * 512

    def step(x, w, i):
        branches = (lambda x: x @ x, lambda x: (x @ w) @ w.T)
        return lax.fori_loop(0, 7, lambda _, x: lax.switch(i, branches, x @ x), x)

    cost = program_costs.cost(compiled(step, jnp.ones((n, n)), jnp.ones((n, 512)), 0))
    assert cost.flops == square + 2 * wide


def test_bytes_of_a_slot_that_is_written_in_place_are_those_of_the_slot():
    tape, slot = jnp.zeros((100, 256)), 256 * 4

    def write(tape, x):
        return lax.fori_loop(0, 5, lambda i, t: lax.dynamic_update_index_in_dim(t, x * 2, i, 0), tape)

    moved = program_costs.cost(compiled(write, tape, jnp.ones(256))).bytes
    assert slot < moved < 2 * tape.size * 4 + 10 * slot  # the tape is copied once, where the loop begins
