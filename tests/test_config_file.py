"""Config files: what is no config is refused in one line that names the file and the fault."""

import numpy as np
import pytest

from ghn_jax import config_file
from ghn_jax.base.errors import UserError
from tests.small_run import ROOT, command, is_one_error_line

DEFAULT = 'from ghn_jax import config\ndef get_config():\n    '


@pytest.mark.parametrize(
    'text, message',
    [
        (
            'def get_config():\n    return {"seed": 1}\n',
            r"returns \{'seed': 1\}, of type dict",
        ),
        ('def get_config():\n    return 3\n', r'get_config\(\) returns 3, of type int'),
        ('def get_config():\n    pass\n', r'get_config\(\) returns None'),
        ('def config():\n    pass\n', 'has no function get_config'),
        ('get_config = 3\n', 'has no function get_config'),
        ('def get_config(:\n', 'does not load: SyntaxError'),
        ('import sys; sys.exit(0)\n', 'does not load: SystemExit'),
        ('def get_config(size):\n    pass\n', "missing 1 required positional argument: 'size'"),
        ('import nowhere.at_all\n', 'does not load: ModuleNotFoundError'),
        ('\0', 'does not load: SyntaxError'),
        (f'{DEFAULT}config.default().sede = 1\n', 'sede'),
        (f'{DEFAULT}return 1 / 0\n', r'division by zero \(line 3\)'),
    ],
)
def test_what_is_no_config_is_refused(text, message, tmp_path):
    file = tmp_path / 'mine.py'
    file.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        config_file.load(file)
    assert f'--config={file}' in str(error.value)
    # Overrides are looked up in what the file gives: the file's fault is told, not theirs.
    flags = f'--config={file}', '--config.train.steps=3', f'--workdir={tmp_path}/run'
    assert is_one_error_line(command('ghn_jax.train', *flags), str(file))


def test_a_config_of_another_program_is_refused(tmp_path):
    file = tmp_path / 'mine.py'
    file.write_text('from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict()\n')
    for name in ('ghn_jax.train', 'ghn_jax.study'):
        assert is_one_error_line(command(name, f'--config={file}', f'--workdir={tmp_path}/run'), 'default()')


def test_a_config_is_locked_and_gets_what_follows_the_colon(tmp_path, monkeypatch):
    file = tmp_path / 'mine.py'
    file.write_text(
        'from ghn_jax import config\ndef get_config(seed="1"):\n    c = config.default()\n'
        '    c.seed = int(seed)\n    return c.unlock()\n'
    )
    monkeypatch.chdir(tmp_path)
    parse = config_file.Parser().parse
    assert (parse('mine.py').seed, parse('mine.py:7').seed) == (1, 7)
    assert parse('mine.py').is_locked
    file.write_text(file.read_text().replace('"1"', '"2"'))  # within a second, of the same size
    assert parse('mine.py').seed == 2


def test_advice_is_what_works_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_one_error_line(command('ghn_jax.train'), '--config is missing', '--config=quickstart')
    assert config_file.Parser().parse('quickstart').train.steps
    assert ROOT != tmp_path


def test_convert_wants_its_own_kind_of_config(tmp_path):
    np.savez(tmp_path / 'x.npz', weight=np.zeros(2, np.float32))
    flags = f'--state={tmp_path}/x.npz', '--config=missing.json', f'--workdir={tmp_path}/run'
    result = command('ghn_jax.convert', *flags)
    assert is_one_error_line(result, 'missing.json', 'give the JSON file of the hypernetwork')
    assert 'quickstart' not in result[2]


@pytest.mark.parametrize('name', ['ghn_jax.train', 'ghn_jax.evaluate'])
def test_a_flagfile_that_cannot_be_read_is_one_line(name, tmp_path):
    (tmp_path / 'bytes').write_bytes(b'\xff\xfe')
    for file in ('missing', '', 'bytes'):
        assert is_one_error_line(command(name, f'--flagfile={tmp_path}/{file}'), 'flagfile')


def test_a_flagfile_gives_the_config_and_its_overrides(tmp_path):
    file = tmp_path / 'flags'
    file.write_text('--config=test\n--config.train.steps=-7\n')
    assert is_one_error_line(command('ghn_jax.train', f'--flagfile={file}'), '--config.train.steps=-7')
