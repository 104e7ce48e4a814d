"""Config files: programs whose `get_config()` returns the configuration of a run."""

import contextlib
import pathlib
import sys
import traceback
import types

from absl import flags
from ml_collections import ConfigDict, config_flags

from ghn_jax import config as configs
from ghn_jax.base import cli, paths
from ghn_jax.base.errors import UserError, prefixed, shown

flags.disclaim_key_flags()  # --help shows --config as a flag of the command that defines it


def define(help_string: str, flag_values: flags.FlagValues = flags.FLAGS) -> flags.FlagHolder:
    """Define --config, read with `Parser`, and --config.key=value for every key of what it says.

    Raises:
      flags.Error: --flagfile cannot be read; ml_collections looks for overrides there.
    """
    holder = config_flags.DEFINE_config_file('config', help_string=help_string, flag_values=flag_values)
    flag_values['config'].parser = Parser()
    return holder


def define_config(
    help_string: str = (
        'Configuration of the run: a Python file, or a name that ghn_jax has, such as quickstart. '
        '--config.KEY=VALUE changes a key, as in --config.train.steps=1000.'
    ),
) -> flags.FlagHolder:
    """Define --config for a command, as `define`; leave with code 2 where --flagfile cannot be read."""
    try:
        return define(help_string)
    except (flags.Error, ValueError) as e:
        cli.fail(cli.flag_error(e))


def read_config(flag: flags.FlagHolder) -> configs.RunConfig:
    """Return the value of a `define_config` flag, judged and frozen.

    Raises:
      UserError: it is absent or impossible.
    """
    if flag.value is None:
        raise UserError('--config is missing: give a file or a name, as in --config=quickstart')
    with named_by_flags():
        return configs.freeze(flag.value)


def named_by_flags() -> contextlib.AbstractContextManager[None]:
    """Let errors about keys of the config that leave the block name the flags that set them."""
    return prefixed('--config.', configs.KEYS)


class Parser(flags.ArgumentParser):
    """Reads --config: a file, or the name of one in `configs/`; FILE:TEXT calls `get_config(TEXT)`."""

    syntactic_help = 'a config file, or the name of one of ghn_jax'

    def parse(self, argument: str) -> ConfigDict:
        """Return the config, locked. Raises UserError."""
        paths.check_local(argument, '--config')
        name, *text = argument.split(':', 1)
        return load(paths.find(name, '--config', '.py'), *text)

    def flag_type(self) -> str:
        """Return what the flag takes, for --help."""
        return 'config file'


def load(file: pathlib.Path, *arguments: str) -> ConfigDict:
    """Return what the file's `get_config(*arguments)` returns, locked: its keys are all there are.

    Raises:
      UserError: the file does not load, has no such function, or that returns something else.
    """
    where = f'--config={file}'
    module = types.ModuleType('ghn_jax_config_file')
    module.__file__ = str(file)
    sys.modules[module.__name__] = module  # as an import does: dataclasses look there
    try:
        exec(compile(file.read_bytes(), str(file), 'exec'), module.__dict__)
        get_config = getattr(module, 'get_config', None)
        config = get_config(*arguments) if callable(get_config) else None
    except (Exception, SystemExit) as e:  # whatever it may raise: it is the user's program
        lines = [f.lineno for f in traceback.extract_tb(e.__traceback__) if f.filename == str(file)]
        line = f' (line {lines[-1]})' if lines else ''
        raise UserError(f'{where} does not load: {type(e).__name__}: {e}{line}') from e
    if not callable(get_config):
        raise UserError(f'{where} has no function get_config: expected one that returns the config')
    if not isinstance(config, ConfigDict):
        raise UserError(
            f'{where}: get_config() returns {shown(config)}, of type {type(config).__name__}: '
            'expected a changed ghn_jax.config.default()'
        )
    return config.lock()
