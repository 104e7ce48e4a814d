"""For the tests of all commands: which there are, and the flags of each."""

import runpy
import warnings
from unittest import mock

from absl import flags

from tests.small_run import ROOT

COMMANDS = tuple(
    '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__main__')
    for path in sorted((ROOT / 'ghn_jax').rglob('*.py'))
    if '\n    cli.run(' in path.read_text()
)


def flags_of(command: str) -> dict[str, flags.Flag]:
    """The flags that a command defines, by name; they are not left defined."""
    known = set(flags.FLAGS)
    with mock.patch('ghn_jax.base.cli.run'), warnings.catch_warnings():
        warnings.simplefilter('ignore', RuntimeWarning)  # runpy: the module is imported already
        runpy.run_module(command, run_name='__main__')
    found = {name: flags.FLAGS[name] for name in set(flags.FLAGS) - known}
    for name in found:
        delattr(flags.FLAGS, name)
    return found
