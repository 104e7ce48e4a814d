"""Bad input is one line on stderr and exit code 2, for every command alike."""

import ast
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
from unittest import mock

import pytest
from absl import flags

from ghn_jax import config, config_file
from ghn_jax.base import cli
from ghn_jax.base.errors import UserError
from ghn_jax.networks.files import save_networks
from ghn_jax.networks.spaces import make_space
from tests.commands import COMMANDS, flags_of
from tests.small_run import command, is_one_error_line

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / 'configs').glob('*.py'))

TOOL = '''
"""A command of the tests."""
from absl import flags
from ghn_jax import config_file
from ghn_jax.base import cli
CONFIG = config_file.define_config()
WORKDIR = flags.DEFINE_string('workdir', None, 'Run directory.')
CRASH = flags.DEFINE_bool('crash', False, 'Fail for a reason that is no input.')
def main():
    c = config_file.read_config(CONFIG)
    cli.check_workdir(WORKDIR.value)
    if CRASH.value:
        raise ValueError('a fault of the program')
    print('steps', c.train.steps, 'channels', c.space.channels)
cli.run(main)
'''


@pytest.fixture(scope='module')
def tool(tmp_path_factory):
    path = tmp_path_factory.mktemp('tool') / 'tool.py'
    path.write_text(TOOL)

    def call(*args: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, str(path), *args],
            cwd=path.parent,
            env={**os.environ, 'PYTHONPATH': str(ROOT)},
            capture_output=True,
            text=True,
        )

    return call


GOOD = (f'--config={ROOT}/configs/test.py', '--workdir=run')


def test_a_good_command_line_runs_with_its_overrides_and_exits_0(tool):
    done = tool(*GOOD, '--config.train.steps=9', '--config.space.channels=(32, 48)')
    assert (done.returncode, done.stdout) == (0, 'steps 9 channels (32, 48)\n'), done.stderr


def test_help_shows_every_flag_and_exits_0(tool):
    done = tool('--help')
    assert done.returncode == 0 and 'Traceback' not in done.stderr
    for flag in ('--config:', '--workdir:', '--[no]crash:'):
        assert flag in done.stdout


def test_commands_are_thin_and_none_is_a_library_to_another():
    places = {name: ROOT.joinpath(*name.split('.')) for name in COMMANDS}
    files = {n: p / '__main__.py' if p.is_dir() else p.with_suffix('.py') for n, p in places.items()}
    assert len(files) == 16
    assert {n for n, p in places.items() if p.is_dir()} == {'ghn_jax.zoo', 'ghn_jax.export'}
    for name, file in files.items():
        assert len(file.read_text().splitlines()) < 120, name
    for name in files:
        _, module = name.split('.')
        others = (
            f for f in (ROOT / 'ghn_jax').rglob('*.py') if f.parent.name != module
        )  # than those of its room
        package = '\n'.join(file.read_text() for file in others)
        assert not re.search(
            rf'(from {name} import|import {name}$|from ghn_jax import .*\b{module}\b)', package
        ), name


@pytest.mark.parametrize('name', COMMANDS)
def test_help_of_a_command_shows_all_of_its_flags(name):
    code, shown, _ = command(name, '--help')
    assert code == 0
    missing = [flag for flag in flags_of(name) if f'--{flag}:' not in shown and f'--[no]{flag}:' not in shown]
    assert not missing


def test_a_fault_of_the_program_keeps_its_traceback_and_exits_1(tool):
    done = tool(*GOOD, '--crash')
    assert done.returncode == 1
    assert 'Traceback' in done.stderr and 'a fault of the program' in done.stderr


@pytest.mark.parametrize(
    'args, message',
    [
        ((), '--config is missing'),
        (('--config=nope.py',), '--config=nope.py: there is no such file: give one, or a name of'),
        (
            ('--flagfile=nope', GOOD[0]),
            'Unable to open flagfile: [Errno 2] No such file',
        ),
        ((*GOOD, '--config.quant.bits=w4a4\r'), 'ends in a carriage return'),
        ((GOOD[0],), '--workdir is missing'),
        ((GOOD[0], '--workdir=tool.py'), '--workdir=tool.py is a file'),
        ((GOOD[0], '--workdir=tool.py/run'), 'lies under the file'),
        ((*GOOD, '--config.train.stepz=3'), 'no such config key: \'stepz\' Did you mean "steps"'),
        ((*GOOD, '--config.train.steps=many'), '--config.train.steps=many: invalid literal for int()'),
        ((*GOOD, '--config.quant.mode=int'), "--config.quant.mode='int': expected one of float, qat, noise"),
        ((*GOOD, '--wrkdir=x'), "Unknown command line flag 'wrkdir'. Did you mean: workdir"),
        ((*GOOD, 'more'), "unexpected argument 'more'"),
    ],
)
def test_bad_input_is_one_line_on_stderr_and_exit_code_2(tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    pathlib.Path('tool.py').write_text(TOOL)
    assert is_one_error_line(command('tool.py', *args), message)


def test_the_data_command_has_help_and_wants_to_know_what():
    usage = ast.get_docstring(ast.parse((ROOT / 'ghn_jax' / 'data.py').read_text()))
    assert usage is not None and 'python -m ghn_jax.data --prepare=cifar10' in usage
    shown = command('ghn_jax.data', '--help')
    assert shown[0] == 0
    for flag in ('--prepare:', '--archive:', '--data_dir:'):
        assert flag in shown[1]
    assert is_one_error_line(command('ghn_jax.data'), '--prepare is missing')


def load_config(path: pathlib.Path, *overrides: str):
    values = flags.FlagValues()
    flag = config_file.define('', values)
    argv = ['test', f'--config={path}', *overrides]
    with mock.patch.object(sys, 'argv', argv):  # where ml_collections looks for overrides
        values(argv)
        return config_file.read_config(flag)


def test_there_are_the_configs_that_are_promised():
    names = {p.stem for p in CONFIGS}
    assert names >= {'quickstart', 'ghn2_cifar10', 'ghn_qat_cifar10', 'ghn_q_cifar10', 'test'}


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_a_config_is_possible_and_survives_json(path):
    c = load_config(path)
    back = config.from_json(config.to_json(c))
    assert back == c and isinstance(back.space.cells, tuple)
    assert f'configs/{path.name}' in path.read_text(), 'its docstring names the command that runs it'


def test_overrides_reach_nested_keys_and_keep_types():
    overrides = '--config.quant.bits=w2a2', '--config.train.clip_norm=1'
    c = load_config(ROOT / 'configs/ghn_qat_cifar10.py', *overrides)
    assert c.quant.bits == 'w2a2' and c.train.clip_norm == 1.0 and isinstance(c.train.clip_norm, float)


@pytest.mark.parametrize(
    'override, message',
    [
        ('space.cells=(4,)', r'expected \(fewest, most\)'),
        ('quant.bits=w4a4\r', 'remove the white space'),
        ("eval.bits=('w8a8', ' w4a4')", 'remove the white space'),
        ("space.channels=('a',)", 'space.channels=.*expected a tuple of int'),
        ('train.meta_batch=0', 'expected an integer from 1 to 4,096'),
        ('train.steps=-1', 'expected an integer from 0 to'),
        ('train.learning_rate=nan', 'learning_rate=nan: expected a number from 1e-30 to'),
        ('train.schedule=linear', 'expected one of step, cosine, constant'),
    ],
)
def test_impossible_values_name_the_key(override, message):
    with pytest.raises(UserError, match=message):
        load_config(ROOT / 'configs/test.py', f'--config.{override}')


def test_a_config_older_than_a_key_has_its_default():
    c = load_config(ROOT / 'configs/quickstart.py')
    older = json.loads(config.to_json(c))
    del older['devices'], older['train']['clip_norm']
    back = config.from_json(json.dumps(older))
    assert back.devices == config.RunConfig().devices and back.train.clip_norm == 5.0
    assert back.train.meta_batch == c.train.meta_batch


def test_a_config_of_another_version_is_refused_by_the_keys_it_has_beyond_ours():
    text = config.to_json(config.default())
    with pytest.raises(UserError, match=r'train.stepz.*train again'):
        config.from_json(text.replace('"steps"', '"stepz"'))
    with pytest.raises(UserError, match='train again'):
        config.from_json('no json')


def test_a_workdir_is_judged_but_not_made(tmp_path):
    assert cli.check_workdir(tmp_path / 'a' / 'b') == tmp_path / 'a' / 'b'
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match='does not exist'):
        cli.check_workdir(tmp_path / 'a', must_exist=True)
    with pytest.raises(UserError, match='missing'):
        cli.check_workdir(None)


def test_an_output_file_is_judged_before_the_work(tmp_path):
    assert cli.check_output(tmp_path / 'x.json', 'json') == tmp_path / 'x.json'
    with pytest.raises(UserError, match=r'json=.* is a directory'):
        cli.check_output(tmp_path, 'json')
    with pytest.raises(UserError, match=r'out=.*does not exist'):
        cli.check_output(tmp_path / 'a' / 'x', 'out')


ARCH = ('--arch=net.json', '--out=o')


@pytest.mark.parametrize(
    'name, args, words',
    [
        ('finetune', ['--out=o'], '--arch and --model are missing'),
        ('finetune', ['--arch=none.json', '--out=o'], "'none.json' cannot be read"),
        ('finetune', [*ARCH, '--init=he,none'], '--init=none: expected predicted, he'),
        ('finetune', [*ARCH, '--dataset=digits'], '--workdir and --dataset are both given'),
        ('finetune', [*ARCH, '--workdir=', '--dataset=digits'], '--init=predicted: there is no hypernetwork'),
        ('squeeze', [*ARCH, '--image_size=8'], '--image_size is for --dataset'),
        ('quantize', [*ARCH, '--dataset=digits'], '--workdir and --dataset are both given'),
        (
            'quantize',
            [*ARCH, '--workdir=', '--dataset=digits'],
            '--params is missing: --dataset has no hyper',
        ),
        (
            'export',
            ['--arch=net.json', '--out=o.onnx', '--dataset=digits'],
            '--workdir and --dataset are both',
        ),
        (
            'export',
            ['--arch=net.json', '--out=o.onnx', '--workdir=', '--dataset=digits'],
            '--params is missing',
        ),
        ('evaluate', ['--archs=net.json', '--image_size=16'], '--image_size is for --dataset'),
        ('evaluate', ['--archs=net.json', '--workdir=', '--dataset=digits'], 'give --params, --initial or'),
        ('evaluate', ['--workdir=', '--dataset=digits', '--step=3'], '--step is of a run'),
        ('squeeze', ['--out=o'], '--arch and --model are missing'),
        ('squeeze', ['--arch=none.json', '--out=o'], "'none.json' cannot be read"),
        ('quantize', ['--arch=none.json', '--out=o'], "'none.json' cannot be read"),
        ('quantize', ['--arch=two.json', '--out=o'], 'holds 2 networks: give a file of one'),
        ('export', ['--arch=none.json', '--out=o.onnx'], "'none.json' cannot be read"),
        ('export', ['--arch=two.json', '--out=o.onnx'], 'holds 2 networks: give a file of one'),
        ('predict', ['--arch=none.json', '--out=o.npz'], "'none.json' cannot be read"),
        ('evaluate', ['--archs=net.json', '--splits=test'], '--archs and --splits are both given'),
        ('evaluate', ['--archs=net.json', '--num_networks=3'], '--archs and --num_networks are both given'),
        ('evaluate', ['--archs=net.json', '--seed=3'], '--archs and --seed are both given'),
        ('evaluate', ['--model=nets:net', '--seed=3'], '--model and --seed are both given'),
        ('evaluate', ['--model=nets:net', '--deepnets=d'], '--model and --deepnets are both given'),
        ('evaluate', ['--quantized=d', '--seed=3'], '--quantized and --seed are both given'),
        ('report', ['--archs=net.json', '--deepnets=d', '--out=o'], '--archs and --deepnets are both given'),
        (
            'evaluate',
            ['--json=a.png', '--plot=./a.png'],
            '--plot=./a.png: the result of --json',
        ),
        (
            'study',
            ['--config=test', '--workdir=o', '--strategies=none'],
            '--strategies=none: there is',
        ),
        ('study', ['--config=test', '--workdir=o', '--strategies=recipe', '--bits=x'], "bits 'x'"),
        ('study', ['--config=test', '--workdir=o', '--strategies=recipe', '--layers=3'], '--layers=3: give'),
        ('benchmark', ['--what=train,models', '--archs=none.json'], "'none.json' cannot be read"),
        ('benchmark', ['--compare=a,b'], '--workdir is for what=models: leave it out'),
        ('convert', ['--state=net.npz', '--workdir='], '--workdir is missing'),
    ],
)
def test_a_bad_command_line_is_refused_before_devices_start(tmp_path, monkeypatch, name, args, words):
    monkeypatch.chdir(tmp_path)
    space = make_space('convnets250k')
    save_networks('net.json', [space.sample('test', 0, 0)])
    save_networks('two.json', [space.sample('test', 0, i) for i in range(2)])
    monkeypatch.setattr('ghn_jax.base.environment.start_devices', lambda: pytest.fail('devices are started'))
    assert is_one_error_line(command(f'ghn_jax.{name}', '--workdir=zoo:digits-bits', *args), words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['net.json', 'two.json']


@pytest.mark.parametrize('flag', ['json', 'out'])
def test_an_output_file_that_must_not_be_written_is_refused_before_the_work(tmp_path, flag):
    read_only = tmp_path / 'read_only'
    read_only.touch(mode=0o444)
    (tmp_path / 'link').symlink_to(read_only)
    (tmp_path / 'loop').symlink_to('loop')
    (tmp_path / 'nowhere').symlink_to('absent/x')
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / 'socket'))
    for name, reason in {
        'read_only': 'read-only', 'link': 'read-only', 'loop': 'symbolic links', 'socket': 'a socket',
        'nowhere': r'absent does not exist',
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=rf'{flag}=.*/{name}\b.*{reason}'):
            cli.check_output(tmp_path / name, flag)


def test_a_pipe_a_device_and_a_link_to_a_file_are_output_files_and_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / 'pipe')  # opening it would wait for a reader
    (tmp_path / 'link').symlink_to('x')
    for path in (tmp_path / 'pipe', tmp_path / 'link', '/dev/null'):
        assert cli.check_output(path, 'json') == pathlib.Path(path)
