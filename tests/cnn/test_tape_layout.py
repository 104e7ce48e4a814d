"""Tapes as a TPU has them, on the CPU: the same numbers in another order.

Programs are built for a TPU but compiled for the CPU, with the formulations that other backends share.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghn_jax.base import backends
from ghn_jax.cnn import tape_layout
from ghn_jax.cnn.building import build_program
from ghn_jax.cnn.deploy import observer
from ghn_jax.cnn.executor import make_tapes
from ghn_jax.cnn.tables import RunnableNetwork
from ghn_jax.quant import Policy
from ghn_jax.quant.scheme import QAT
from tests.cnn.comparison import FLOAT, QUICK, Executor, assert_close, make_inputs, reference
from tests.cnn.networks import small_network

SIZE = 8
pytestmark = pytest.mark.usefixtures('quick_reference')


@pytest.mark.parametrize(
    ('batch', 'channels', 'axes'),
    [
        (128, 32, 'HWCN'),  # images fill the lanes
        (64, 32, 'HWCN'),  # images fill half of them, channels a quarter
        (64, 64, 'HWNC'),
        (64, 96, 'HWNC'),
        (128, 64, 'HWCN'),
        (128, 128, 'HWNC'),  # both fill them: channels, as convolutions want them
        (128, 192, 'HWCN'),
    ],
)
def test_on_a_tpu_the_innermost_axis_is_that_which_fills_the_lanes(batch, channels, axes):
    with backends.built_for('tpu'):
        layout = tape_layout.layout_of((16, channels), batch)
    lengths = {'N': batch, 'H': 16, 'W': 16, 'C': channels}
    assert layout.axes == axes and layout.shape(3) == (3, *(lengths[axis] for axis in axes))


@pytest.mark.parametrize('backend', ['cpu', 'gpu'])
def test_elsewhere_channels_are_innermost_and_branches_read_the_tape(backend):
    with backends.built_for(backend):
        layout = tape_layout.layout_of((16, 32), 128)
    assert layout.axes == 'NHWC' and layout.reads_in_branches and layout.shape(3) == (3, 128, 16, 16, 32)


@pytest.mark.parametrize('axes', ['NHWC', 'HWCN', 'HWNC'])
def test_values_come_back_from_a_tape_as_they_were(axes):
    layout = tape_layout.TapeLayout((2, 4, 5, 3), axes, reads_in_branches=axes == 'NHWC')
    x = jnp.arange(120.0).reshape(layout.value_shape)
    tape = tape_layout.set_slot(jnp.zeros(layout.shape(3)), layout.as_stored(x), jnp.int32(1))
    read = lambda index: layout.as_images(layout.read(layout.operand(tape, index), index))
    np.testing.assert_array_equal(read(jnp.int32(1)), x)
    np.testing.assert_array_equal(read(jnp.int32(2)), jnp.zeros_like(x))
    np.testing.assert_array_equal(layout.as_images(tape[1:])[0], x)  # slots at once


def test_slots_of_a_long_tape_lie_in_groups_where_they_would_fill_lanes_better_than_images():
    with backends.built_for('tpu'):
        long, full = (tape_layout.layout_of((16, 32), batch) for batch in (64, 128))
    assert long.shape(64) == (64, 16, 16, 32, 64) and full.shape(300) == (300, 16, 16, 32, 128)
    assert long.shape(164) == (3, 55, 16, 16, 32, 64)
    tape = jax.eval_shape(lambda: jnp.zeros(long.shape(164)))
    inside = jax.eval_shape(tape_layout.ungrouped, {(16, 32): tape})
    assert inside[16, 32].shape == (165, 16, 16, 32, 64)
    assert jax.eval_shape(tape_layout.grouped_like, inside, {(16, 32): tape}) == {(16, 32): tape}


def test_what_a_tpu_pads_counts_as_bytes():
    shape, bytes_of = (3, 5, 20, 64), tape_layout.array_bytes
    assert bytes_of(shape) == 3 * 5 * 20 * 64 * 4
    with backends.built_for('tpu'):
        assert bytes_of(shape) == 3 * 5 * 24 * 128 * 4
        assert bytes_of(shape, jnp.bfloat16) == 3 * 5 * 32 * 128 * 2
        assert bytes_of((100,)) == 400


# ---- the executor

SPECS = {
    'separable': small_network(
        [('sep_conv_3x3', 0), ('max_pool_3x3', 1)] * 2,
        **{'C': 16, 'n_cells': 2, 'fc_layers': 2, 'normal_concat': (2, 3), 'reduce_concat': (2, 3)},
    ),
    'flat': small_network([('conv_3x3', 1), ('skip_connect', 0)], C=16, n_cells=2, glob_avg=False, norm=None),
}
IMAGES = 17  # more than 16 channels, fewer than the 48 of the stem or slots: tapes of each kind


@pytest.fixture(scope='module')
def executor():
    with jax.enable_x64(True), backends.built_for('tpu'):
        return Executor(build_program(SPECS.values(), image_size=SIZE, max_params=1e6), batch=IMAGES)


@pytest.mark.parametrize(('name', 'policy'), [('separable', Policy(32, 4)), ('flat', FLOAT)])
def test_on_the_tapes_of_a_tpu_losses_logits_and_gradients_are_those_of_the_reference(executor, name, policy):
    shapes = {c: tape.shape for c, tape in executor.buffers[0].values.items()}
    assert shapes[8, 16] == (2, 11, 8, 8, 16, IMAGES) and shapes[8, 48][1:] == (8, 8, IMAGES, 48)
    spec = SPECS[name]
    inputs = make_inputs(spec, 0, size=SIZE, batch=IMAGES)
    with jax.enable_x64(True):
        with backends.built_for('tpu'):
            result = executor(spec, inputs, policy)
        assert_close(result, reference(spec, inputs, policy), 1e-9, name)


def test_what_is_observed_on_the_tapes_of_a_tpu_is_what_is_observed_elsewhere():
    spec = SPECS['separable']
    program = build_program([spec], image_size=SIZE, max_params=1e6)
    layout, inputs = program.layout(spec), make_inputs(spec, 0, size=SIZE, batch=IMAGES)
    index, bounds = observer.make_index(program, layout), np.tile([-2, 2.0], (program.capacity.tensors, 1))
    wanted = observer.make_wanted(program, moments=True, activations=True, noise=True, bounds=bounds)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def observed(flat, tables, bits, images, index, wanted):
        tapes = make_tapes(program, IMAGES, flat.dtype, train=False)
        network = RunnableNetwork(flat, tables, bits)
        return observer.observe(program, network, images, tapes, index, wanted, scheme=QAT)[:2]

    flat, bits = program.pack(layout, inputs.params, np.float64), program.bits(layout, Policy(4, 4))
    with jax.enable_x64(True):
        arguments = flat, layout.tables, bits, inputs.images, index, wanted
        here = observed(*arguments)
        with backends.built_for('tpu'):
            there = observed(*arguments)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9), there, here)
