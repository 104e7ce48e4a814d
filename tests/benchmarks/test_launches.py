"""The walk over networks' tables that the model of a GPU's step is given."""

import dataclasses

import numpy as np
import pytest

from ghn_jax.aot import targets
from ghn_jax.benchmarks import launches, programs
from ghn_jax.benchmarks.launches import Mix
from ghn_jax.benchmarks.options import BenchmarkOptions
from ghn_jax.cnn.building import build_program
from ghn_jax.cnn.covering import Family, training_program
from ghn_jax.cnn.tables import ACCUMULATE
from ghn_jax.hypernet.gnn import WAVES_A_TURN
from ghn_jax.runs.task import make_space_of
from tests.cnn.networks import small_network
from tests.small_run import small_config

STEP = """HloModule step

%fine (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  ROOT %n = f32[4]{0} negate(%a)
}

%none (b: f32[4]) -> f32[4] {
  ROOT %b = f32[4]{0} parameter(0)
}

%body (c: (s32[], f32[4])) -> (s32[], f32[4]) {
  %c = (s32[], f32[4]{0}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %v = f32[4]{0} get-tuple-element(%c), index=1
  %y = f32[4]{0} conditional(%i, %v, %v), branch_computations={%fine, %none}, metadata={op_name="f/forward_0/while/body/switch/cond"}
  ROOT %t = (s32[], f32[4]{0}) tuple(%i, %y)
}

%test (d: (s32[], f32[4])) -> pred[] {
  %d = (s32[], f32[4]{0}) parameter(0)
  %j = s32[] get-tuple-element(%d), index=0
  ROOT %k = pred[] compare(%j, %j), direction=LT
}

ENTRY %main (e: (s32[], f32[4])) -> (s32[], f32[4]) {
  %e = (s32[], f32[4]{0}) parameter(0)
  %g = f32[4]{0} get-tuple-element(%e), index=1
  %h = f32[4]{0} exponential(%g)
  ROOT %z = (s32[], f32[4]{0}) while(%e), condition=%test, body=%body, metadata={op_name="f/forward_0/while"}
}
"""  # noqa: E501


def test_mixes_hold_every_row_of_the_tables():
    spec = small_network([('conv_1x1', 0), ('max_pool_3x3', 1)], C=16)
    program = build_program([spec], image_size=16, max_params=1e6)
    tables = program.layout(spec).tables
    mixes = launches.mixes(program, [tables, tables])
    assert sum(mix.instructions for mix in mixes) == tables.bounds[-1]
    assert all(np.isclose(sum(mix.ops), 1) for mix in mixes if mix.instructions)
    added = sum(mix.instructions * mix.accumulates for mix in mixes)
    assert np.isclose(added, tables.rows[: tables.bounds[-1], ACCUMULATE].sum())


def test_instructions_are_told_from_the_rest_of_a_step():
    parts = launches.model(STEP, [Mix(6.0, (0.5, 0.5), 0.0)], networks=1)
    # Each of six turns: test, conditional, and a kernel in every other; a last test; a kernel outside.
    assert parts['step'].launches == 7 + 3 + 1
    assert parts['step'].trips == 7 + 6
    assert parts['instructions'].launches == 6 + 3
    assert parts['instruction forward'].launches == 1.5
    assert parts['instruction backward'].launches == 0


def test_a_loop_outside_of_them_turns_as_often_as_its_name_says_and_once_without():
    text = STEP.replace('f/forward_0/while', 'f/waves/while')
    of = lambda others: launches.model(text, [Mix(1.0, (1.0,), 0.0)], 1, others)['step'].launches
    assert of({'waves': 6.0}) == 7 + 6 * (of({}) - 3) + 1
    assert of({}) == of({'chunks_of_64_0': 6.0}) == 2 + 0.5 + 1


def test_turns_are_counted_of_the_networks_that_a_run_draws():
    config = small_config()
    space, each = make_space_of(config), Family(16)
    program = training_program(space, each, config.image_size)
    batches = launches.drawn(config, space, program, each)
    tables = launches.tables_of(batches)
    assert len(tables) >= launches.NETWORKS and tables[0].rows.ndim == 2
    turns = launches.turns_of(batches)
    waves = np.mean([int(batch.graphs.n_waves) for batch in batches])
    assert waves / WAVES_A_TURN <= turns['waves'] < waves / WAVES_A_TURN + 1
    tiles = [int(n) for batch in batches for n in batch.decoder.n_dense]
    dense = turns['chunks_of_64_0'] + turns['chunks_of_64_1']
    assert np.mean(tiles) / 64 <= dense < np.mean(tiles) / 64 + 2


def test_the_term_that_takes_longest_rules():
    parts = launches.model(STEP, [Mix(6.0, (0.5, 0.5), 0.0)], networks=1)
    rows = launches.rows_of(parts, {'bytes': 1.0, 'float32': 1.0}, 'float32', {})
    assert {row['rules'] for row in rows if row['part'] != 'instruction backward'} == {'bytes'}


@pytest.mark.slow
def test_a_compiled_step_is_modelled_and_its_instructions_are_most_of_it(monkeypatch):
    speed = {'bytes': 3e12, 'float32': 67e12}
    target = dataclasses.replace(targets.load('cpu'), speed=speed)
    monkeypatch.setattr(targets, 'load', lambda name: target)
    rows = programs.measure(BenchmarkOptions(config=small_config(), target='cpu', widths=(16,)))
    parts = {row['part']: row for row in rows if row['what'] == 'launches'}
    assert list(parts) == ['step', 'instructions', 'instruction forward', 'instruction backward']
    assert parts['step']['launches'] > parts['instructions']['launches'] > 0
    assert parts['instruction forward']['trips'] >= 2 and parts['instruction backward']['launches'] > 2
