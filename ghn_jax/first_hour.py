"""Runs what is run first on a new accelerator: checks its numbers, measures it, tries flags, trains.

python -m ghn_jax.first_hour --out=DIR --minutes=12
python -m ghn_jax.first_hour --out=DIR --minutes=12 --config=ghn_qat_cifar10 --unpack=FILE
python -m ghn_jax.first_hour --write_references=FILE.json

Each part is a process of its own with a limit of time, and one that fails does not stop the next; where one
did, or where numbers are wrong, the exit code is 1. DIR gets first_hour.json, rewritten whole with every
result, log.txt, a profile, and of a training its pack and its metrics. A config is trained only where one is
given; without, ghn_qat_cifar10 is measured, on random images.
"""

import pathlib
import signal
import sys
import threading

from absl import flags

from ghn_jax import config as configs
from ghn_jax import config_file
from ghn_jax.base import bounds, cli, paths
from ghn_jax.base.errors import FieldError, UserError
from ghn_jax.base.start import define_executables
from ghn_jax.bringup import numbers, summary
from ghn_jax.bringup.hour import RESULT, run_hour
from ghn_jax.bringup.runner import DONE, Ended
from ghn_jax.bringup.settings import Settings
from ghn_jax.config import RunConfig

_DEFAULT = 'ghn_qat_cifar10'

_CONFIG = config_file.define_config(
    f'Run to measure and to train: a config file, or a name. Default: {_DEFAULT}, which is not trained.'
)
_OUT = flags.DEFINE_string('out', 'runs/first_hour', 'Write the results to this directory.')
_MINUTES = bounds.define_integer('minutes', 12, 'How many minutes all of it may take.')
_UNPACK = flags.DEFINE_string('unpack', None, 'Train on from this file of ghn_jax.train --pack.')
_READ_EXECUTABLES = define_executables()
_GOLDEN = flags.DEFINE_string(
    'golden', None, 'Also check against the numbers of the published GHN-2 in this folder.'
)
_WRITE = flags.DEFINE_string(
    'write_references',
    None,
    'Only compute the numbers that devices are checked against, on this CPU, and write them to this file.',
)


def main() -> None:
    """Run the command."""
    if _WRITE.value:
        numbers.write_references(cli.check_output(_WRITE.value, 'write_references', ('.json',)))
        return
    out, config = _folder(), _config()
    if _UNPACK.value and _CONFIG.value is None:
        raise UserError('--unpack without --config: give the config of the packed run')
    _READ_EXECUTABLES()  # the parts do: this finds out whether they can
    settings = Settings(
        config=config, out=out, train=_CONFIG.value is not None, unpack=_there(_UNPACK.value, 'unpack'),
        executables=_there(flags.FLAGS.executables, 'executables'), golden=_there(_GOLDEN.value, 'golden'),
    )  # fmt: skip
    # The handler does not raise: in a callback of the garbage collector, as JAX has one, that would be lost.
    terminated = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: terminated.set())
    try:
        result = run_hour(settings, 60 * _MINUTES.value, terminated.is_set)
    except Ended:
        sys.exit(143)
    finally:
        signal.signal(signal.SIGTERM, before)
    print(summary.text(result))
    print(f'result: {out / RESULT}')
    bad = {
        'not done': [r['part'] for r in result['parts'] if r['status'] != DONE],
        'wrong': [r['part'] for r in result['parts'] if (r['result'] or {}).get('good') is False],
    }
    if said := [f'{what}: {", ".join(names)}' for what, names in bad.items() if names]:
        cli.fail('; '.join(said), 1)


def _folder() -> pathlib.Path:
    """The folder of results, which processes add to: no bucket."""
    return pathlib.Path(cli.check_folder(paths.local(_OUT.value, 'out'), 'out'))


def _config() -> RunConfig:
    if _CONFIG.value is not None:
        return config_file.read_config(_CONFIG)
    return configs.freeze(config_file.load(paths.find(_DEFAULT, '--config', '.py')))


def _there(path: str | None, name: str) -> str:
    """The absolute path of a file or folder that is read; '' where none is given."""
    if not path:
        return ''
    found = paths.local(path, name).absolute()
    if not found.exists():
        raise FieldError(name, f'={path} does not exist: give another, or none')
    return str(found)


if __name__ == '__main__':
    cli.run(main)
