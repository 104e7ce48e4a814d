"""The model of a step's time on a GPU: counts of a program written by hand, and of one that is compiled."""

import jax
import jax.numpy as jnp
import pytest

from ghn_jax.aot import hlo, targets
from ghn_jax.aot.gpu_time import LAUNCH_S, TRIP_S, Work, work

LOOP = """HloModule m

%small (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  ROOT %n = f32[4]{0} negate(%a)
}

%large (b: f32[4]) -> f32[4] {
  %b = f32[4]{0} parameter(0)
  %m = f32[4]{0} negate(%b)
  ROOT %o = f32[4]{0} exponential(%m)
}

%body (c: (s32[], f32[4], s32[])) -> (s32[], f32[4], s32[]) {
  %c = (s32[], f32[4]{0}, s32[]) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %v = f32[4]{0} get-tuple-element(%c), index=1
  %w = s32[] get-tuple-element(%c), index=2
  %y = f32[4]{0} conditional(%w, %v, %v), BRANCHES, metadata={op_name="loop/while/body/cond"}
  ROOT %t = (s32[], f32[4]{0}, s32[]) tuple(%i, %y, %w)
}

%test (d: (s32[], f32[4], s32[])) -> pred[] {
  %d = (s32[], f32[4]{0}, s32[]) parameter(0)
  %j = s32[] get-tuple-element(%d), index=0
  ROOT %k = pred[] compare(%j, %j), direction=LT
}

ENTRY %main (e: (s32[], f32[4], s32[])) -> (s32[], f32[4], s32[]) {
  %e = (s32[], f32[4]{0}, s32[]) parameter(0)
  ROOT %z = (s32[], f32[4]{0}, s32[]) while(%e), condition=%test, body=%body, metadata={op_name="loop/while"}
}
"""
INDEXED = 'branch_computations={%small, %large}'
PREDICATED = 'true_computation=%large, false_computation=%small'


def counted(branches, turns=3.0, taken=(0.75, 0.25)):
    module = hlo.read(LOOP.replace('BRANCHES', branches))
    at = lambda scope: turns if scope == 'loop/while' else None
    shares = lambda scope, count: taken if scope.endswith('/cond') and count == 2 else None
    return work(module, at, shares)


@pytest.mark.parametrize('branches', [INDEXED, PREDICATED])
def test_a_loop_costs_its_turns_and_tests_and_a_conditional_the_branches_that_are_taken(branches):
    # Four tests of three turns, each a kernel and a value for the host; of a turn one conditional.
    found = counted(branches)
    assert found.launches == 4 + 3 * (0.75 * 1 + 0.25 * 2)
    assert found.trips == 4 + 3
    assert found.bytes == 4 * 9 + 3 * (0.75 * 32 + 0.25 * 64)


def test_a_loop_of_known_length_asks_nobody():
    text = LOOP.replace('BRANCHES', INDEXED).replace(
        'body=%body,', 'body=%body, backend_config={"known_trip_count":{"n":"5"}},'
    )
    assert work(hlo.read(text), lambda scope: None, lambda scope, count: (1, 0)) == Work(5, 5, 5 * 32, 0)


def test_products_count_their_operations():
    product = jax.jit(lambda a, b: a @ b).lower(jnp.ones((8, 16)), jnp.ones((16, 4)))
    text = product.compile().as_text() or ''
    assert work(hlo.read(text), lambda scope: None, lambda scope, count: None).flops == 2 * 8 * 16 * 4


def test_seconds_are_those_of_each_term():
    seconds = Work(10, 2, 3.35e9, 67e9).seconds(targets.load('h100').speed, 'float32')
    assert seconds == pytest.approx(
        {'launches': 10 * LAUNCH_S, 'host': 2 * TRIP_S, 'bytes': 1e-3, 'flops': 1e-3}
    )
