"""Norms on the tape against the function of a whole value, part by part and whole, in float64."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from ghn_jax.cnn import tape_norms
from ghn_jax.cnn.batch_norm import batch_norm
from ghn_jax.cnn.branches import NetworkRun
from ghn_jax.cnn.building import build_program
from ghn_jax.cnn.capacity import Segment
from ghn_jax.cnn.dispatch import read_weights
from ghn_jax.cnn.instructions import Norm
from ghn_jax.cnn.packing import BLOCK
from ghn_jax.cnn.quantizer import Quantization, with_sizes
from ghn_jax.cnn.tables import ACCUMULATE, DST, G_DST, G_SRC, SEEN, SRC, WEIGHTS
from ghn_jax.quant.policy import Policy
from ghn_jax.quant.scheme import Scheme
from tests.cnn.comparison import QUICK
from tests.cnn.networks import small_network

BATCH, SIZE = 4, 8
jit = functools.partial(jax.jit, compiler_options=QUICK)
SPEC = small_network([('sep_conv_3x3', 0), ('conv_1x1', 1)], C=16, n_cells=2)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=[1, 10**9], ids=['images', 'whole'])
def parts(request, monkeypatch):
    """A part is one image, or the batch."""
    monkeypatch.setattr(tape_norms, '_PART', request.param)


class Case(NamedTuple):
    run: NetworkRun
    segment: Segment
    r: int
    row: np.ndarray
    values: Array
    gradients: Array


def make_case(scheme: Scheme, accumulate: int, on: float = 1.0, seen: int = 0) -> Case:
    """A row that holds a norm, with random tapes and weights; the slots it may not read hold no numbers."""
    program = build_program([SPEC], image_size=SIZE, max_params=1e6)
    layout, random = program.layout(SPEC), np.random.default_rng(0)
    rows, bounds = layout.tables.rows.copy(), layout.tables.bounds
    k = next(k for k, s in enumerate(program.segments) if s.src == s.dst == (SIZE, 16))
    r = next(r for r in range(bounds[k], bounds[k + 1]) if layout.instructions[r].op == Norm())
    rows[r, [ACCUMULATE, SEEN]] = accumulate, seen
    draw = lambda *shape: jnp.asarray(3 * random.normal(size=shape) + 1)
    tape = lambda slots: draw(slots[program.segments[k].dst], BATCH, SIZE, SIZE, 16)
    values, gradients = tape(program.slots), tape(program.gradient_slots)
    if not accumulate:
        values = values.at[rows[r, DST]].set(jnp.nan)
    if not seen and rows[r, G_SRC] != rows[r, G_DST]:
        gradients = gradients.at[rows[r, G_SRC]].set(jnp.nan)
    tables = layout.tables._replace(rows=rows, has_norm=np.float64(on))
    bits = program.bits(layout, Policy(4, 4)).activations
    run = NetworkRun(
        program, draw(program.capacity.blocks * BLOCK), jax.tree.map(jnp.asarray, tables),
        draw(BATCH, SIZE, SIZE, 3), Quantization(scheme, jnp.asarray(bits), program.capacity.parts),
    )  # fmt: skip
    return Case(run, program.segments[k], r, rows[r], values, gradients)


def forward(case: Case):
    """The tape, its sizes and the normalizers after the norm; and what the sizes were before."""
    sizes = case.run.quantization.no_sizes(len(case.values), jnp.float64)
    kept = tape_norms.no_normalizers(case.run.program, jnp.float64)
    run = jit(lambda r, *a: tape_norms.normalize(case.run, case.segment, r, *a))
    return *run(jnp.int32(case.r), case.values, sizes, kept), sizes


def normed(case: Case) -> tuple[Any, tuple]:
    """The function of a whole value, and what it is given."""
    scale, shift = read_weights(Norm(), case.segment, case.run.weights, case.row[WEIGHTS])
    apply = lambda x, scale, shift: batch_norm(x, scale, shift, case.run.has_norm())
    return apply, (case.values[case.row[SRC]], scale, shift)


@pytest.mark.parametrize(
    ('scheme', 'accumulate'),
    [(Scheme('float'), 0), (Scheme('qat'), 1), (Scheme('qat', activation_range='sigma'), 1)],
    ids=['float', 'minmax', 'sigma'],
)
def test_the_value_and_its_size_are_those_of_batch_norm(parts, scheme, accumulate):
    case = make_case(scheme, accumulate)
    tape, sizes, _, before = forward(case)
    apply, inputs = normed(case)
    expected = apply(*inputs) + (case.values[case.row[DST]] if accumulate else 0)
    np.testing.assert_allclose(tape[case.row[DST]], expected, rtol=1e-11, atol=1e-11)
    others = np.arange(len(tape)) != case.row[DST]
    np.testing.assert_array_equal(tape[others], case.values[others])
    if scheme.mode != 'float':
        before = with_sizes(before, expected, case.row[DST], None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11), sizes, before)


@pytest.mark.parametrize(('on', 'seen'), [(1.0, 0), (0.0, 1)])
def test_gradients_are_those_of_batch_norm(parts, on, seen):
    case = make_case(Scheme('float'), 0, on, seen)
    *_, kept, _ = forward(case)
    run = jit(lambda r, *a: tape_norms.differentiate(case.run, case.segment, r, *a))
    gradients, flat = run(jnp.int32(case.r), case.values, kept, case.gradients, case.run.weights)
    apply, inputs = normed(case)
    g_x, *of_weights = jax.vjp(apply, *inputs)[1](case.gradients[case.row[G_DST]])
    expected = g_x + (case.gradients[case.row[G_SRC]] if seen else 0)
    np.testing.assert_allclose(gradients[case.row[G_SRC]], expected, rtol=1e-10, atol=1e-10)
    others = np.arange(len(gradients)) != case.row[G_SRC]
    np.testing.assert_array_equal(gradients[others], case.gradients[others])
    written = read_weights(Norm(), case.segment, flat, case.row[WEIGHTS])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), written, of_weights)
