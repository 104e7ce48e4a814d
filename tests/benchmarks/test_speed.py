"""Programs, curves over cells, parts of a step: what their rows must satisfy, without long compilations."""

import time

import jax
import jax.numpy as jnp
import pytest

from ghn_jax.aot.compiling import compiled_figures
from ghn_jax.aot.programs import families
from ghn_jax.base.errors import UserError
from ghn_jax.benchmarks import benchmark, cells, picture, profile, programs
from ghn_jax.benchmarks.options import BenchmarkOptions
from ghn_jax.cnn.covering import family
from ghn_jax.networks.spaces import make_space
from ghn_jax.quant.strategy import Strategy
from ghn_jax.runs.task import make_space_of
from tests.pictures import check_picture, drawn, lengths_of_bars, texts
from tests.small_run import command, is_one_error_line, small_config


@pytest.fixture(scope='module')
def config():
    return small_config(mode='qat')


# ---- compile


@pytest.mark.parametrize('split', ['train', 'test', 'wide'])
@pytest.mark.parametrize('name', ['convnets250k', 'deepnets1m'])
def test_every_network_of_a_split_is_of_a_family_that_is_counted(name, split):
    space = make_space(name)
    known = families(space, split)
    assert {family(space.sample(split, 0, i)) for i in range(40)} <= set(known)
    assert len(known) == len(set(known)) == len({f.width for f in known}) * (2 if name == 'deepnets1m' else 1)


@pytest.mark.parametrize(
    ('split', 'functions'),
    [
        pytest.param('train', ['training_step'], marks=pytest.mark.slow),  # `test_shared_step` traces it
        ('test', ['predict', 'score']),
    ],
)
def test_every_function_that_a_split_needs_is_compiled(config, quick_reference, split, functions):
    config = config.copy_and_resolve_references()  # of few ops: they take long to compile
    config.quant.mode, config.space.ops, config.space.cells = 'float', ('skip_connect', 'conv_1x1'), (1, 1)
    rows = programs.measure(BenchmarkOptions(config=config, split=split))
    assert [row['function'] for row in rows] == functions
    for row in rows:
        assert (row['width'], row['msa'], row['split']) == (16, False, split)
        assert row['branches'] >= row['segments'] > 0
        assert min(row[k] for k in ('workspace_bytes', 'argument_bytes', 'executable_bytes')) > 0
        assert row['compile_s'] > 0 or row['cached']
    with drawn() as figures:
        check_picture(picture.picture({'machine': MACHINE, 'rows': rows}))
    (panel,) = figures[0].axes
    assert lengths_of_bars(panel) == [row['compile_s'] for row in rows]
    assert [label.get_text().split(', ')[1] for label in panel.get_yticklabels()] == functions


def test_figures_of_a_compiled_function():
    x = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    compiled, figures = compiled_figures(lambda: jax.jit(lambda a, b: jnp.sin(a) @ b).trace(x, x))
    assert figures['argument_bytes'] == 2 * 64 * 64 * 4
    assert not figures['cached']
    assert 0 < figures['compile_s'] == figures['load_s']
    assert compiled(jnp.zeros((64, 64)), jnp.ones((64, 64))).sum() == 0


def test_a_width_that_a_split_does_not_have_is_refused(config):
    with pytest.raises(UserError, match='train has 16'):
        programs.measure(BenchmarkOptions(config=config, widths=(48,)))


@pytest.mark.parametrize('what', ['compile', 'profile'])
def test_without_a_config_what_needs_one_is_refused(what):
    assert is_one_error_line(command('ghn_jax.benchmark', f'--what={what}'), '--config')


def test_lists_of_numbers_are_checked():
    assert is_one_error_line(
        command('ghn_jax.benchmark', '--what=cells', '--cells=4,x'), "--cells='4,x': expected integers"
    )


# ---- cells


def test_each_length_has_a_program_of_its_own_and_that_of_the_longest(quick_reference):
    options = BenchmarkOptions(cells=(1, 2), modes=('float',), batch_size=2, repeats=2)
    rows = cells.measure(options)
    assert sorted((r['cells'], r['room']) for r in rows) == [(1, 1), (1, 2), (2, 2)]
    memory = {(r['cells'], r['room']): r for r in rows}
    assert all(0 < r['used_bytes'] <= r['workspace_bytes'] for r in rows)
    allocated = {which: row['workspace_bytes'] for which, row in memory.items()}
    assert allocated[1, 1] < allocated[2, 2] == allocated[1, 2]
    assert memory[1, 1]['used_bytes'] == memory[1, 2]['used_bytes'] < memory[2, 2]['used_bytes']
    assert all(r['compile_s'] > 0 and r['temp_bytes'] > 0 and r['median_s'] > 0 for r in rows)
    assert memory[1, 2]['compile_s'] == memory[2, 2]['compile_s'] != memory[1, 1]['compile_s']
    assert all(
        r['us_per_instruction'] * r['instructions'] == pytest.approx(r['median_s'] * 1e6) for r in rows
    )
    with drawn() as figures:
        check_picture(picture.picture({'machine': MACHINE, 'rows': rows}))
    time_panel, memory_panel = figures[0].axes
    own, shared = (line.get_ydata().tolist() for line in time_panel.lines)
    us = {(r['cells'], r['room']): r['us_per_instruction'] for r in rows}
    assert own == [us[1, 1], us[2, 2]] and shared == [us[1, 2], us[2, 2]]
    drawn_bytes = memory_panel.lines[0].get_ydata() * 2**20
    assert drawn_bytes.tolist() == [allocated[1, 1], allocated[2, 2]]


# ---- profile

PARTS = {
    'decoding forward': 0.2, 'executor forward': 0.3, 'executor backward': 0.4, profile.STEP: 1.0,
    'host: preparation': 0.5, 'host: wait, not hidden': 0.1,
}  # fmt: skip
MACHINE = {'device': 'cpu', 'cpus': 2, 'jax': '0'}


def test_the_parts_and_the_rest_are_the_step():
    about = {'networks': 4, 'meta_batch': 4, 'images_per_step': 8}
    rows = profile.rows_of(PARTS, 'qat', about)
    by_part = {row['part']: row for row in rows}
    inside = [row for row in rows if row['part'] not in (profile.STEP, *profile.BESIDE)]
    assert sum(row['share_percent'] for row in inside) == pytest.approx(100)
    assert by_part[profile.REST]['step_ms'] == pytest.approx(100)
    assert by_part[profile.STEP]['mean_s'] == 0.25
    assert by_part['host: preparation']['share_percent'] == 50
    assert 'executor backward' in benchmark.text({'machine': MACHINE, 'rows': rows})
    with drawn() as figures:
        check_picture(picture.picture({'machine': MACHINE, 'rows': rows}))
    (panel,) = figures[0].axes
    assert lengths_of_bars(panel) == [row['step_ms'] for row in rows]
    assert {row['part'] for row in rows} <= set(texts(figures[0]))


def test_waiting_is_told_from_stepping_and_the_first_step_left_out():
    def ahead():
        for k in range(4):
            if k == 2:
                time.sleep(0.05)
            yield k

    seen = []
    waited, stepped = profile.waits(ahead(), seen.append)
    assert seen == [0, 1, 2, 3]
    assert len(waited) == len(stepped) == 3
    assert max(waited) == waited[1] >= 0.05  # of item 2


def test_the_prepared_steps_are_of_one_family(config):
    config = config.copy_and_resolve_references()
    config.space.channels = (16, 32)
    space = make_space_of(config)
    wanted = family(profile.draw(space, config.seed, 0, 2)[0])
    ahead = profile.OfFamily(config, space, Strategy(), wanted, 3)
    assert ahead.steps == sorted(set(ahead.steps))
    assert len({program for program, _ in ahead.ahead(0, 3)}) == 1
    drawn = [family(profile.draw(space, config.seed, step, 2)[0]) for step in range(ahead.steps[-1] + 1)]
    assert [step for step, each in enumerate(drawn) if each == wanted] == ahead.steps


@pytest.mark.slow
def test_the_profile_of_a_small_step(config):
    rows = profile.measure(BenchmarkOptions(config=config, modes=('float', 'qat'), repeats=1))
    parts = {(row['mode'], row['part']) for row in rows}
    assert ('qat', 'weight quantization forward') in parts
    assert ('float', 'weight quantization forward') not in parts
    assert all(row['step_ms'] > 0 for row in rows if row['part'].endswith('forward'))
    for mode in ('float', 'qat'):
        assert {(mode, 'training step'), (mode, 'host: wait, not hidden')} <= parts
