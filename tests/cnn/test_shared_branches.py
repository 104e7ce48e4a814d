"""Ops that share a branch on a TPU: each gives the values and the gradients that it has alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghn_jax.base import backends
from ghn_jax.cnn import shared_branches
from ghn_jax.cnn.building import build_program
from ghn_jax.cnn.capacity import Segment
from ghn_jax.cnn.instructions import Conv, Copy, Depthwise, Kind, Norm
from ghn_jax.cnn.packing import block_floats
from ghn_jax.cnn.tables import OP, WEIGHTS
from ghn_jax.quant import Policy
from tests.cnn.comparison import QUICK, Executor, assert_close, make_inputs, reference
from tests.cnn.networks import small_network

C, O = 3, 4  # channels


def segment(stride: int = 1) -> Segment:
    ops = (
        Conv(1, 1, stride, True), Conv(3, 3, stride, True), Conv(5, 5, stride, True), Copy(),
        Conv(7, 7, stride, True), Conv(7, 1, 1, False), Depthwise(3, 1, stride), Depthwise(3, 2, stride),
        Depthwise(5, 1, stride), Depthwise(5, 2, stride), Norm(), Conv(3, 3, stride, False),
    )  # fmt: skip
    return Segment((8, C), (8 // stride, O), ops)


def numbers(found: list[shared_branches.Branch]) -> list[tuple[int, ...]]:
    return [branch.numbers for branch in found]


def test_on_a_tpu_kernels_that_differ_in_zeros_around_and_between_their_taps_share_one():
    with backends.built_for('tpu'):
        found = shared_branches.branches_of(segment(1), range(12))
    assert numbers(found) == [(0,), (1, 2, 4), (3,), (5,), (6,), (7, 8), (9,), (10,), (11,)]
    assert found[1].kind == Conv(7, 7, 1, True) and found[5].kind == Depthwise(5, 1, 1)
    assert all(found[k].kind == segment(1).ops[found[k].numbers[0]] for k in (0, 2, 3, 4, 6, 7, 8))


def test_of_strided_kernels_which_are_rare_small_ones_lie_in_large_ones_too():
    with backends.built_for('tpu'):
        found = shared_branches.branches_of(segment(2), range(12))
    assert numbers(found) == [(0, 1, 2, 4), (3,), (5,), (6, 7, 8), (9,), (10,), (11,)]
    assert found[0].kind == Conv(7, 7, 2, True) and found[3].kind == Depthwise(5, 1, 2)


@pytest.mark.parametrize('backend', ['cpu', 'gpu', 'tpu'])
def test_elsewhere_and_in_segments_of_few_ops_each_has_its_own(backend):
    whole = segment()
    with backends.built_for(backend):
        few = whole._replace(ops=whole.ops[:9])
        assert numbers(shared_branches.branches_of(few, range(9))) == [(n,) for n in range(9)]
        if backend != 'tpu':
            assert numbers(shared_branches.branches_of(whole, [4, 2, 1])) == [(4,), (2,), (1,)]


class Plain:
    """Rounds nothing."""

    quantize_relu = staticmethod(lambda x: x)
    quantize = staticmethod(lambda x, which: x)


def value_and_gradients(kind: Kind, x: jax.Array, w: list[jax.Array], g: jax.Array, shape: tuple[int, ...]):
    apply = lambda w, x: kind.apply(x, w, Plain(), jnp.ones(()), shape)
    y, pull = jax.vjp(apply, w, x)
    return y, *pull(g)


@pytest.mark.parametrize(
    ('stride', 'group'), [(1, (1, 2, 4)), (2, (0, 1, 2, 4)), (1, (7, 8)), (2, (6, 7, 8))],
    ids=['dense', 'dense, strided', 'depthwise', 'depthwise, strided'],
)  # fmt: skip
def test_each_op_of_a_shared_branch_gives_its_value_and_its_gradients(stride, group):
    of = segment(stride)
    if isinstance(of.ops[group[0]], Depthwise):
        of = of._replace(dst=(8 // stride, C))
    shape = (2, *(of.dst[0],) * 2, of.dst[1])
    with jax.enable_x64(True), backends.built_for('tpu'):
        (branch,) = shared_branches.branches_of(of, group)
        assert branch.numbers == group
        floats = max(of.ops[n].weight_floats(of.src, of.dst) for n in group)
        r = np.random.default_rng(0)
        flat, x, g = (jnp.asarray(r.normal(size=s)) for s in (floats + 256, (2, 8, 8, C), shape))

        @jax.jit
        def shared(row):
            w = branch.read_weights(of, flat, row)
            y, g_w, g_x = value_and_gradients(branch.kind, x, w, g, shape)
            return y, branch.flat_gradient(of, g_w, row, floats, flat.dtype), g_x

        shared = shared.lower(jnp.zeros(10, jnp.int32)).compile(QUICK)
        for n in group:
            own = shared_branches.Branch((n,), of.ops[n])
            row = np.zeros(10, np.int32)
            row[[OP, WEIGHTS]] = n, 1
            row = jnp.asarray(row)
            w = own.read_weights(of, flat, row)
            expected = jax.jit(value_and_gradients, static_argnums=(0, 4))(of.ops[n], x, w, g, shape)
            y, g_flat, g_x = shared(row)
            np.testing.assert_allclose(y, expected[0], rtol=1e-10, atol=1e-10)
            np.testing.assert_allclose(g_x, expected[2], rtol=1e-10, atol=1e-10)
            size = expected[1][0].size
            np.testing.assert_allclose(g_flat[:size], expected[1][0].ravel(), rtol=1e-10, atol=1e-10)
            assert len(g_flat) == floats >= block_floats(w[0].shape) and not g_flat[size:].any()


@pytest.mark.slow
@pytest.mark.parametrize('policy', [Policy(), Policy(32, 4)], ids=str)
def test_a_network_of_shared_branches_has_the_losses_logits_and_gradients_of_the_reference(
    policy, monkeypatch
):
    monkeypatch.setattr(shared_branches, '_MANY', 1)
    ops = [('conv_3x3', 0), ('conv_5x5', 1), ('dil_conv_3x3', 0), ('sep_conv_5x5', 1)]
    spec = small_network(ops, normal_concat=(2, 3), reduce_concat=(2, 3), C=16, n_cells=2)
    with jax.enable_x64(True), backends.built_for('tpu'):
        program = build_program([spec], image_size=16, max_params=1e6)
        shared = [shared_branches.branches_of(s, range(len(s.ops))) for s in program.segments]
        assert any(len(branch.numbers) > 1 for found in shared for branch in found)
        inputs = make_inputs(spec, 0, size=16, batch=5)
        result = Executor(program, batch=5)(spec, inputs, policy)
        assert_close(result, reference(spec, inputs, policy), 1e-9)
