"""The executor op by op, on small networks: the reference's results, whatever its buffers held before.

In float64, as in `test_executor`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghn_jax.base import backends
from ghn_jax.cnn.building import build_program
from ghn_jax.cnn.covering import Family, covering_networks
from ghn_jax.cnn.instructions import Subsample
from ghn_jax.cnn.lowering import lower
from ghn_jax.networks.spaces import SPACES, make_space
from ghn_jax.quant import Policy
from tests.cnn.comparison import (
    Executor,
    assert_close,
    assert_identical,
    assert_no_tape_copies,
    make_inputs,
    reference,
    tape_copies,
)
from tests.cnn.executor_checks import BATCH, SIZE, check, inputs_for, quantized_policy
from tests.cnn.networks import small_network
from tests.quick_compiler import OF_USERS

W4A4 = Policy(4, 4)
pytestmark = pytest.mark.usefixtures('quick_reference')


def two_cells(*entries, **fields):
    """A normal cell and a reduction, in which ops that read the cell's inputs are strided."""
    both = {'normal_concat': (2, 3), 'reduce_concat': (2, 3)} if len(entries[0]) == 4 else {}
    return small_network(*entries, **both, n_cells=2, C=16, **fields)


SMALL = [
    two_cells(
        [('conv_1x1', 0), ('sep_conv_3x3', 1), ('conv_3x3', 0), ('max_pool_3x3', 1)],
        fc_layers=2, fc_dim=24, stem_type=1, name='a',
    ),
    two_cells(
        [('conv_7x1_1x7', 1), ('cse', 1), ('none', 0), ('none', 1)],
        [('conv_7x1_1x7', 0), ('cse', 1), ('conv_7x7', 1), ('skip_connect', 0)],
        ks=7, name='b',
    ),
    two_cells(
        [('conv_5x5', 0), ('sep_conv_5x5', 1), ('dil_conv_3x3', 1), ('avg_pool_3x3', 0)],
        ks=5, norm=None, name='c',
    ),
    two_cells([('dil_conv_5x5', 0), ('conv_7x7', 1)], glob_avg=False, name='d'),
    small_network([('skip_connect', 0), ('avg_pool_3x3', 1)], C=16, stem_type=1, preproc=False, name='e'),
    two_cells([('mbconv_3x3', 1), ('skip_connect', 0)], [('mbconv_3x3', 0), ('mbconv_3x3', 1)], name='f'),
]  # fmt: skip


@pytest.fixture(scope='module')
def small():
    with jax.enable_x64(True):
        return Executor(build_program(SMALL, image_size=SIZE, max_params=1e6), batch=BATCH)


def test_the_small_networks_have_each_op_there_is_but_those_of_attention(small):
    ops = SPACES['convnets250k'].ops + ('mbconv_3x3',)
    spaces = make_space('convnets250k', ops=ops), make_space('deepnets1m', channels=(32,))
    every = {
        i.op
        for space in spaces
        for spec in covering_networks(space, 'train', Family(32))
        for i in lower(spec).instructions
    } | {Subsample(True), Subsample(False)}  # of networks without preprocessing
    assert {op for segment in small.program.segments for op in segment.ops} == every
    assert len(every) == 35


@pytest.mark.parametrize('spec', SMALL, ids=lambda spec: spec.name)
def test_each_op_equals_the_reference(small, spec):
    check(small, spec, 0, [quantized_policy(spec, kind) for kind in (0, 1)])


def check_on_gpu(specs):
    """Training programs for GPUs: each norm that can be is one instruction with the op before it."""
    with jax.enable_x64(True), backends.built_for('gpu'):
        program = build_program(specs, image_size=SIZE, max_params=1e6, joins_norms=True)
        run = Executor(program, batch=BATCH)
        for spec in specs:
            run.fill(np.nan)
            check(run, spec, 0, [quantized_policy(spec, 0)])


def test_what_is_compiled_for_gpus_equals_the_reference():
    check_on_gpu(SMALL[:1])


@pytest.mark.slow
def test_so_does_each_op_that_is_joined_to_its_norm():
    check_on_gpu(SMALL)


# ---- what the buffers hold


@pytest.mark.parametrize('value', [np.nan, 1e30])
def test_what_the_buffers_held_before_changes_nothing(small, value):
    with jax.enable_x64(True):
        for spec in SMALL:
            small.fill(0)
            expected = small(spec, inputs_for(spec), W4A4)
            small.fill(value)
            assert_identical(small(spec, inputs_for(spec), W4A4), expected)
            assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(expected))


def test_results_do_not_depend_on_the_networks_run_before(small):
    with jax.enable_x64(True):
        first = {spec.name: small(spec, inputs_for(spec), W4A4) for spec in SMALL}
        for spec in [*SMALL[::-1], *SMALL[::2], *SMALL[1::2]]:
            assert_identical(small(spec, inputs_for(spec), W4A4), first[spec.name])


# ---- compiled text


def test_tape_copies_are_found_where_there_are_some():
    def two(tape):
        return jax.lax.fori_loop(0, 3, lambda i, t: t.at[i].set(t[::-1][i] + t[2 - i]), tape), tape

    text = jax.jit(two).lower(jnp.ones((3, 4, 8, 8, 5))).compile().as_text()
    assert tape_copies(text, {(3, 4, 8, 8, 5)})
    assert not tape_copies(text, {(3, 4, 8, 8, 6)})


def test_no_whole_tape_of_the_small_networks_is_copied(small):
    with jax.enable_x64(True):
        small(SMALL[0], inputs_for(SMALL[0]))
    assert_no_tape_copies(small, BATCH)


def test_no_whole_tape_is_copied_in_training_as_users_compile_it():
    # The gradient of the 5x5 kernel is so large that its instruction runs in a loop of its own.
    cells = [('sep_conv_3x3', 0), ('max_pool_3x3', 1)], [('conv_5x5', 0), ('max_pool_3x3', 1)]
    specs = [small_network(entries, C=32, stem_pool=True, n_cells=3) for entries in cells]
    program = build_program(specs, image_size=8, max_params=1e6)
    executor = Executor(program, batch=3, dtype='float32', options=OF_USERS)
    inputs = make_inputs(specs[1], 0, size=8, batch=3, dtype='float32')
    assert_close(executor(specs[1], inputs), reference(specs[1], inputs), 1e-2)  # in float32
    assert_no_tape_copies(executor, 3)
