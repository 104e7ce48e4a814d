"""`ghn_jax.compile`: programs compiled ahead are the ones that training and evaluation run."""

import collections
import json
import subprocess
import sys

import jax
import pytest

from ghn_jax import config as configs
from ghn_jax.aot import programs, targets
from ghn_jax.aot.compiling import compile_job
from ghn_jax.base import executables
from ghn_jax.evaluation import compiled
from tests.aot import agreement
from tests.small_run import ROOT, command, is_one_error_line, small_config, write_run

CONFIG = """
from tests.small_run import small_config

def get_config():
    c = small_config(mode='qat')
    c.train.steps, c.train.batch_size = 2, 6
    c.save_every_steps, c.eval.every_steps, c.eval.num_images = 2, {every}, 12
    return c
"""
SCORED = ('--num_networks=2', '--num_images=12', '--batch_size=6')


@pytest.fixture
def compiled_functions():
    """How often functions of ours were compiled since, by name."""
    names = collections.Counter()

    def count(event, seconds, **about):
        if event == '/jax/core/compile/backend_compile_duration':
            names[str(about.get('fun_name')).removeprefix('jit(').removesuffix(')')] += 1

    jax.monitoring.register_event_duration_secs_listener(count)
    yield names
    jax.monitoring.unregister_event_duration_listener(count)


@pytest.fixture
def loaded(monkeypatch):
    """How many executables were loaded since."""
    calls = []
    load = executables.serialize_executable.deserialize_and_load
    monkeypatch.setattr(
        executables.serialize_executable,
        'deserialize_and_load',
        lambda *a, **k: (calls.append(1), load(*a, **k))[1],
    )
    compiled.predictor.cache_clear()  # what this process has found for other tests
    compiled.runner.cache_clear()
    yield calls
    executables.read_from(None)


def of_ours(names):
    return {
        name: n
        for name, n in names.items()
        if any(own in name for own in ('training_step', 'predict', 'measure', 'score'))
    }


def test_what_is_compiled_ahead_is_what_training_validation_and_evaluation_ask_for():
    config = agreement.config_for()
    assert agreement.asked(config) == agreement.made(config)


@pytest.mark.slow
def test_so_it_is_for_several_devices():
    done = subprocess.run(
        [sys.executable, '-m', 'tests.aot.agreement'], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_evaluation_loads_what_was_compiled_ahead_and_compiles_none(
    tmp_path, quick_reference, compiled_functions, loaded
):
    """So does training, which the slow test below has."""
    (tmp_path / 'c.py').write_text(CONFIG.format(every=0))
    config, out = f'--config={tmp_path}/c.py', tmp_path / 'out'
    run, read = f'--workdir={write_run(tmp_path / "run", mode="qat")}', f'--executables={out}'
    result = command('ghn_jax.compile', config, '--target=cpu', '--splits=val,test', f'--out={out}',
                     f'--json={tmp_path}/r.json', *SCORED)  # fmt: skip
    assert result[0] == 0, result
    rows = json.loads((tmp_path / 'r.json').read_text())['rows']  # none for val: the run has no validations
    assert [(row['function'], row['split']) for row in rows] == [('predict', 'test'), ('score', 'test')]
    assert all(row['fits'] and row['collectives'] == [] for row in rows)
    assert {path.name for path in out.iterdir()} == {row['file'] for row in rows}
    ours = of_ours(compiled_functions)
    assert ours == {'predict': 1, 'score': 1}
    code, _, errors = command('ghn_jax.evaluate', run, read, '--devices=1', '--bits=w4a4', *SCORED)
    assert code == 0 and 'compiled anew' not in errors, errors
    assert of_ours(compiled_functions) == ours and len(loaded) == 2


@pytest.mark.slow
def test_training_and_validation_load_theirs_and_another_evaluation_is_told_what_it_lacks(
    tmp_path, quick_reference, compiled_functions, loaded
):
    (tmp_path / 'c.py').write_text(CONFIG.format(every=2))
    config, out = f'--config={tmp_path}/c.py', tmp_path / 'out'
    how = *SCORED, '--bn=calibrated', '--ranges=calibrated', '--calibration_batches=2'
    assert command('ghn_jax.compile', config, '--target=cpu', f'--out={out}', *how)[0] == 0
    ours = of_ours(compiled_functions)
    # Of predictions there is one program where the networks of both splits have room in as many nodes.
    assert ours == {'training_step': 1, 'predict': ours['predict'], 'score': 2, 'measure': 1}
    train = command('ghn_jax.train', config, f'--workdir={tmp_path}/run', f'--executables={out}')
    assert train[0] == 0 and 'validation' in train[1] and 'compiled anew' not in train[2]
    evaluate = ('ghn_jax.evaluate', f'--workdir={tmp_path}/run', f'--executables={out}', '--devices=1')
    result = command(*evaluate, *how)
    assert result[0] == 0 and 'compiled anew' not in result[2]
    assert of_ours(compiled_functions) == ours and len(loaded) == sum(ours.values())
    other = command(*evaluate, *SCORED, '--batch_size=4')
    assert other[0] == 0 and 'there is no score' in other[2] and 'other shapes: compiled anew' in other[2]


def test_bad_input_is_one_line(tmp_path):
    given = 'ghn_jax.compile', '--config=test'
    assert is_one_error_line(command(*given), '--target is missing', 'h100', 'tpu-v5e-2x4')
    assert is_one_error_line(command(*given, '--target=tpu-v99'), '--target=tpu-v99', 'tpu-v4')
    assert is_one_error_line(command('ghn_jax.compile', '--target=cpu'), '--config is missing')
    assert is_one_error_line(command(*given, '--target=cpu', '--widths=48'), '--widths=48', 'train has 16')
    few = '--splits=test', '--num_images=16', '--batch_size=17'
    assert is_one_error_line(command(*given, '--target=cpu', *few), '--batch_size=17', '16 images')
    absent = f'--workdir={tmp_path}/run', f'--executables={tmp_path}/absent'
    assert is_one_error_line(command('ghn_jax.train', '--config=test', *absent), '--executables=', 'holds no')


@pytest.mark.parametrize('name, extra', [('tpu-v5e', 'aot-tpu'), ('h100', 'aot-gpu')])
def test_an_absent_compiler_is_one_line_that_says_what_to_install(name, extra, monkeypatch):
    monkeypatch.setattr(targets, '_is_installed', lambda module: False)
    result = command('ghn_jax.compile', '--config=test', f'--target={name}')
    assert is_one_error_line(result, f'target {name}', f"pip install 'ghn-jax[{extra}]'")


def test_every_target_is_described_and_the_description_is_of_a_platform_with_an_extra():
    assert set(targets.NAMES) == {
        'cpu',
        'h100',
        'h200',
        'tpu-v4',
        'tpu-v5e',
        'tpu-v5e-2x4',
        'tpu-v5e-4x4',
        'tpu-v6e',
    }
    for name in targets.NAMES:
        target = targets.load(name)
        assert target.about and target.memory_bytes > 2**30 and target.backend in ('cpu', 'gpu', 'tpu')


# ---- what is not here


def small(**changes):
    """A program of few branches at a batch that fills a TPU's lanes."""
    c = small_config(mode='qat')
    c.train.batch_size = 128
    c.update_from_flattened_dict(changes)
    return configs.freeze(c)


ALL_HEADS = {'image_size': 32, 'space.flat_head_share': 0.1}  # pooled, and flattened, which want 32 pixels


def step_for(name, config):
    """The figures of a config's training step, compiled for a target; skipped without its compiler."""
    target = targets.load(name)
    targets.prepare_process()
    if needed := targets.missing(target):
        pytest.skip(f'{name}: the compiler is not installed (pip install {needed})')
    (job,) = programs.training_jobs(config, target.devices())
    return compile_job(job, target)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['h100', 'tpu-v5e'])
def test_the_small_step_for_an_accelerator_fits_and_copies_no_tape_in_a_loop_or_branch(name):
    row = step_for(name, small(**ALL_HEADS))
    assert row['fits'] and row['collectives'] == []
    assert row['tape_copies']['inside'] == 0, [c for c in row['copies'] if any(c['place'].values())]


@pytest.mark.slow
def test_chips_that_share_a_network_exchange_in_loops_and_branches_among_themselves_alone():
    config = small(
        **{'devices.per_process': 0, 'devices.images': 2, 'train.batch_size': 256, 'train.meta_batch': 4}
    )
    row = step_for('tpu-v5e-2x4', config)
    assert row['fits'] and {c['op'] for c in row['collectives']} == {'all-reduce'}
    inside = [c for c in row['collectives'] if any(c['place'].values())]
    assert any(c['place']['branches'] for c in inside) and {c['group'] for c in inside} == {2}


@pytest.mark.slow
def test_a_tpu_multiplies_bfloat16_where_the_config_says_so():
    """All but the classifier and the hypernetwork, which stay float32."""
    operands = step_for('tpu-v5e', small(**{'train.dtype': 'bfloat16'}))['operands']
    assert operands['bf16'] > 0.9 * sum(operands.values()), operands


@pytest.mark.slow
def test_the_small_step_for_eight_chips_exchanges_once_a_step_outside_of_loops_and_branches():
    row = step_for('tpu-v5e-2x4', small(**{'devices.per_process': 0, 'train.meta_batch': 8}))
    assert row['fits']
    assert {c['op'] for c in row['collectives']} == {'all-reduce'}
    assert not any(any(c['place'].values()) for c in row['collectives'])
