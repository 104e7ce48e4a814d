"""Numbers from people have a least and a most: on the command line, in a config, as arguments."""

import math

import pytest
from absl import flags

from ghn_jax import config
from ghn_jax.base import bounds
from ghn_jax.base.errors import UserError
from ghn_jax.benchmarks.benchmark import benchmark
from ghn_jax.benchmarks.options import BenchmarkOptions
from ghn_jax.evaluation.evaluation_spec import EvaluationSpec
from ghn_jax.evaluation.protocol import Protocol
from ghn_jax.quant.strategy import strategy_of
from ghn_jax.runs.run import load_run
from ghn_jax.runs.task import make_ghn, make_space_of
from ghn_jax.studies.study import StudySpec
from tests.commands import COMMANDS, flags_of
from tests.small_run import command, is_one_error_line

NUMERIC = flags.IntegerParser, flags.FloatParser


@pytest.mark.parametrize('name', COMMANDS)
def test_every_numeric_flag_of_a_command_has_bounds(name):
    for flag, about in flags_of(name).items():
        if isinstance(about.parser, NUMERIC):
            least, most = about.parser.lower_bound, about.parser.upper_bound
            assert least is not None and most is not None, flag
            for value in (least - 1, most + 1, -3, 3_000_000_000, 10**30, '9' * 5000, 'nan', '1e3'):
                assert is_one_error_line(command(name, f'--{flag}={value}'), f'--{flag}='), (flag, value)


def test_the_commands_have_numeric_flags():
    found = {
        f for name in COMMANDS for f, about in flags_of(name).items() if isinstance(about.parser, NUMERIC)
    }
    assert found >= {
        'batch_size',
        'devices',
        'num_networks',
        'num_images',
        'seed',
        'layers',
        'line',
        'repeats',
    }


@pytest.mark.parametrize('flag', ['cells', 'widths'])
@pytest.mark.parametrize('value', ['0', '-4', '2000000', '9' * 5000, '1.5', 'nan', '16,x'])
def test_lists_of_numbers_have_bounds(flag, value):
    result = command('ghn_jax.benchmark', '--what=cells,compile', f'--{flag}={value}')
    assert is_one_error_line(result, f'--{flag}=', 'expected integers from')


@pytest.mark.parametrize('step', ['-1', '9' * 5000, '1e3', 'newest'])
def test_a_step_is_a_number_or_one_of_two_words(step, tmp_path):
    with pytest.raises(UserError, match='expected latest, best or a number'):
        load_run(tmp_path, step)


@pytest.mark.parametrize(
    'values',
    [
        *({'batch_size': value} for value in (-3, 0, 2.0, True, None, 3_000_000_000)),
        {'num_networks': -1},
        {'num_images': -1}, {'num_images': 10**30}, {'seed': -1}, {'devices': 20_000},
        {'devices': -1}, {'calibration_batches': 0},
    ],
)  # fmt: skip
def test_functions_have_the_bounds_of_the_flags(values):
    with pytest.raises(UserError, match='expected an integer from'):
        EvaluationSpec(**values)


@pytest.mark.parametrize('integer', [-1, 2**70])
def test_so_has_a_protocol(integer):
    with pytest.raises(UserError, match='integer=.*: expected an integer from'):
        Protocol(batch_norm='calibrated', ranges='calibrated', integer=integer)


def test_so_have_those_that_measure_and_compare(tmp_path):
    for name in ('batch_size', 'meta_batch', 'num_images', 'repeats', 'width', 'devices'):
        with pytest.raises(UserError, match=f'{name}=-3: expected an integer from'):
            benchmark(['probe'], BenchmarkOptions(**{name: -3}))
    with pytest.raises(UserError, match='layers=-1'):
        StudySpec(layers=-1)


def test_bounds_themselves_are_within():
    for name, (least, most) in bounds.BOUNDS.items():
        bounds.check(**{name: least})
        bounds.check(**{name: most})
        for value in (least - 1, most + 1):
            with pytest.raises(UserError, match=f'{name}={value}: expected an integer from {least}'):
                bounds.check(**{name: value})


def leaves(values, prefix=''):
    for key, value in values.items():
        yield from leaves(value, f'{prefix}{key}.') if hasattr(value, 'items') else [(prefix + key, value)]


NUMBERS = {k: v for k, v in leaves(config.default()) if type(v) in (int, float)}


@pytest.mark.parametrize('key', NUMBERS)
def test_every_number_of_a_config_has_bounds(key):
    assert judge(key, NUMBERS[key]) is None
    huge = [-(2**70), 2**70] if type(NUMBERS[key]) is int else [-1e300, 1e300, math.inf, -math.inf, math.nan]
    for value in huge:
        assert key.rpartition('.')[2] in (judge(key, value) or ''), value


@pytest.mark.parametrize('key', ['cells', 'channels', 'fc_dims', 'ks', 'C_mults'])
def test_so_have_lists_of_numbers(key):
    for value in (-(2**70), 2**70, 0):
        assert judge(f'space.{key}', (value, value) if key == 'cells' else (value,))


def judge(key, value):
    """Why a run refuses the value of a key; None if it does not."""
    c = config.default()
    *parts, last = key.split('.')
    holder = c
    for part in parts:
        holder = holder[part]
    holder[last] = value
    try:
        config.freeze(c)
        make_space_of(c)
        make_ghn(c)
        strategy_of(c)
    except UserError as e:
        return str(e)
    return None
