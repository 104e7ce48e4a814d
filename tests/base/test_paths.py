"""Paths from people: on a disk or in a bucket, `~` is the home directory, files of `configs/` have names."""

import pathlib
import tomllib

import pytest
from absl import flags

from ghn_jax import config
from ghn_jax.base import buckets, lock, paths
from ghn_jax.base.errors import UserError
from ghn_jax.datasets.load import load
from ghn_jax.evaluation.evaluate import evaluate
from ghn_jax.evaluation.evaluation_spec import EvaluationSpec
from ghn_jax.evaluation.results import read_result
from ghn_jax.networks.files import load_networks, save_networks
from ghn_jax.networks.spaces import make_space
from ghn_jax.quant.policy import load_policy
from ghn_jax.runs.conversion import convert
from ghn_jax.runs.run import load_run
from ghn_jax.studies.study import study
from ghn_jax.studies.study_runs import read_strategies
from tests.commands import COMMANDS, flags_of
from tests.small_run import ROOT, command, is_one_error_line

URLS = ('s3://bucket/run', 'S3A://bucket/a,b', 'GS://bucket/run', 'file:///tmp/run')
IN_BUCKETS = (
    'workdir', 'json', 'plot', 'out', 'against', 'result', 'compare', 'arch', 'archs', 'policy', 'pack',
    'unpack', 'executables', 'add',
)  # fmt: skip


@pytest.fixture
def without_gcs(monkeypatch):
    """The extra is not installed."""
    monkeypatch.setattr(buckets, '_installed', lambda: False)


def takes_text(flag: flags.Flag) -> bool:
    return type(flag.parser) in (flags.ArgumentParser, flags.ListParser) and not flag.boolean


@pytest.mark.parametrize('name', COMMANDS)
def test_a_command_refuses_addresses_for_each_of_its_paths(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = [flag for flag, about in flags_of(name).items() if takes_text(about) or flag == 'config']
    assert texts
    for flag in texts:
        for url in URLS:
            result = command(name, f'--{flag}={url}')
            assert is_one_error_line(result, f'--{flag}={url.split(",")[0]}'), (flag, result)
            assert ('not supported here' in result[2]) != url.startswith('file:')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', COMMANDS)
def test_a_command_takes_a_bucket_for_the_paths_of_runs_and_results_alone(
    name, tmp_path, monkeypatch, without_gcs
):
    monkeypatch.chdir(tmp_path)
    for flag, about in flags_of(name).items():
        if takes_text(about) or flag == 'config':
            result = command(name, f'--{flag}=gs://bucket/run')
            assert is_one_error_line(result, f'--{flag}=gs://bucket/run'), (flag, result)
            expected = "pip install 'ghn-jax[gcs]'" if flag in IN_BUCKETS else 'not supported here'
            assert expected in result[2], (flag, result)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'address',
    ['gs://bucket', 'gs://bucket/', 'gs:///run', 'gs://B/run', 'gs://bucket//run', 'gs://bucket/*', 'gs://bucket/a#1',
     'gs://bucket/../run', 'gs://bucket/a/./b', 'gs://bucket/a\nb', 'gs://bucket/[a]', 'gs://' + 'b' * 9000],
)  # fmt: skip
def test_an_address_that_is_no_name_in_a_bucket_is_refused(address, without_gcs):
    with pytest.raises(UserError, match="^workdir='?gs://.*expected a name in a bucket") as error:
        paths.check_place(address, 'workdir')
    assert len(str(error.value)) < 400 and '\n' not in str(error.value)
    with pytest.raises(UserError, match='expected a name in a bucket'):
        paths.place(address, 'workdir')


def test_the_paths_of_the_commands_are_among_what_is_judged():
    flags_by_command = {name: flags_of(name) for name in COMMANDS}
    named = {f for known in flags_by_command.values() for f, about in known.items() if takes_text(about)}
    assert named >= {
        'workdir', 'json', 'plot', 'out', 'arch', 'archs', 'policy', 'data_dir', 'archive', 'against',
        'state', 'strategies', 'result', 'compare',
    }  # fmt: skip


@pytest.mark.parametrize('key', ['data_dir', 'init_from'])
def test_a_config_has_no_addresses_but_that_of_a_run(key, tmp_path, monkeypatch, without_gcs):
    monkeypatch.chdir(tmp_path)
    c = config.default()
    c[key] = 'gs://bucket/a' if key == 'data_dir' else 'gs://bucket/*'
    with pytest.raises(UserError, match=f'^{key}=gs://bucket/'):
        config.freeze(c)
    assert config.RunConfig(init_from='gs://bucket/a')  # what is there is seen when it is read
    given = command('ghn_jax.train', '--config=test', f'--config.{key}=gs://b/a', '--workdir=a')
    assert is_one_error_line(given, f'--config.{key}=gs://b/a') and not list(tmp_path.iterdir())
    given = command('ghn_jax.train', '--config=test', f'--config.{key}=s3://b', '--workdir=a')
    assert is_one_error_line(given, f'--config.{key}=s3://b') and not list(tmp_path.iterdir())


TAKING_PATHS = pytest.mark.parametrize(
    'call',
    [
        load_run,
        load_networks,
        load_policy,
        read_result,
        read_strategies,
        lambda url: convert(url, 'ghn.json', 'run'),
        lambda url: convert('state.npz', url, 'run'),
        lambda url: convert('state.npz', 'ghn.json', url),
        lambda url: evaluate(None, EvaluationSpec(against=url)),
        lambda url: lock.holding(url).__enter__(),
        lambda url: study(config.default(), {'a': {}}, url),
        lambda url: load('cifar10', data_dir=url),
        lambda url: load('own.npz', data_dir=url),
        lambda url: save_networks(url, [make_space('convnets250k').sample('test', 0, 0)]),
    ],
)


@TAKING_PATHS
@pytest.mark.parametrize('url', ['s3://bucket/x', pathlib.Path('gs://bucket/x')], ids=['text', 'Path'])
def test_functions_refuse_addresses(call, url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match='not supported here|give the address as text'):
        call(url)
    assert not list(tmp_path.iterdir())


@TAKING_PATHS
@pytest.mark.parametrize('path', [3, b'run', ['run']])
def test_what_is_no_path_is_said_to_be_none(call, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=': expected a path$'):
        call(path)
    assert not list(tmp_path.iterdir())


def test_the_place_of_tfds_is_judged_where_none_is_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ('gs://bucket', '~nobody-here/x'):
        monkeypatch.setenv('TFDS_DATA_DIR', place)
        with pytest.raises(UserError, match=f'TFDS_DATA_DIR={place}'):
            load('cifar10')
        result = command('ghn_jax.data', '--prepare=cifar10', '--archive=none')
        assert is_one_error_line(result, f'TFDS_DATA_DIR={place}')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('path', ['runs/a', './gs:/x', 'a/gs://x', 'c:x', 'run:1', '', '~/x:/y', '1:/x'])
def test_other_paths_pass(path):
    paths.check_local(path, '--workdir')


def test_home_is_found_wherever_a_path_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert paths.local('~/x', '--archs') == tmp_path / 'x'
    (tmp_path / 'policy.json').write_text('{"weight_bits": 4, "activation_bits": 8}')
    assert load_policy('~/policy.json').widths('a') == (4, 8)
    with pytest.raises(UserError, match='--archs=~nobody-here/x cannot be used'):
        paths.local('~nobody-here/x', '--archs')


@pytest.mark.parametrize('folder', ['ghn_jax/configs', 'configs'], ids=['installed', 'repository'])
def test_configs_are_found_by_name_from_anywhere(folder, tmp_path, monkeypatch):
    (tmp_path / folder).mkdir(parents=True)
    shipped = tmp_path / folder / 'quickstart.py'
    shipped.touch()
    (tmp_path / 'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path / 'elsewhere')
    monkeypatch.setattr(paths, '__file__', str(tmp_path / 'ghn_jax' / 'base' / 'paths.py'))
    assert paths.find('quickstart', '--config', '.py') == shipped
    with pytest.raises(UserError, match='--config=quick: there is no such file.*a name of quickstart$'):
        paths.find('quick', '--config', '.py')
    pathlib.Path('quickstart').mkdir()  # a folder of runs: no config
    assert paths.find('quickstart', '--config', '.py') == shipped
    pathlib.Path('quickstart').rmdir()
    pathlib.Path('quickstart').touch()  # a file of this name goes first
    assert paths.find('quickstart', '--config', '.py') == pathlib.Path('quickstart')


def test_the_repositorys_configs_have_names_and_go_into_the_wheel(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert paths.find('quickstart', '--config', '.py') == ROOT / 'configs/quickstart.py'
    assert 'w4a4' in read_strategies('strategies')
    wheel = tomllib.loads((ROOT / 'pyproject.toml').read_text())['tool']['hatch']['build']['targets']['wheel']
    assert wheel['force-include'] == {'configs': 'ghn_jax/configs'}


@pytest.mark.parametrize('name', ['x' * 300, 'a\0b'])
def test_a_name_that_no_file_can_have_is_refused(name):
    with pytest.raises(UserError, match='^strategies='):
        read_strategies(name)
