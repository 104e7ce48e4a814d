"""What studies of single networks share: their command line, and what is said below their tables."""

import argparse
import datetime
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from ghn_jax.base import cli
from ghn_jax.datasets.sizes import SIZES
from ghn_jax.tuning.training import TrainingSpec


class Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line in one line, and prints descriptions as they are."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> Any:
        cli.fail(message)


def case_parser(module: str, description: str | None, cases: Sequence[str]) -> argparse.ArgumentParser:
    """Return what reads the command line of a study of one of some cases: its name, and a folder."""
    made = Parser(prog=f'python -m {module}', description=description)
    made.add_argument('case', nargs='?', default=cases[0], choices=list(cases))
    made.add_argument('workdir', metavar='WORKDIR', nargs='?', default=f'runs/{module.split(".")[-1]}')
    return made


def make_parser(
    module: str, description: str | None, *, epochs: int, batch_size: int, seeds: str
) -> argparse.ArgumentParser:
    """Return what reads the command line of `python -m MODULE`, to which a study adds arguments of its own.

    epochs, batch_size, seeds: what they are where the command line does not say.
    """
    made = Parser(prog=f'python -m {module}', description=description)
    made.add_argument('dataset', help=f'{", ".join(SIZES)}, or FILE.npz')
    made.add_argument('out', metavar='DIR', help='of all that is made; a study there goes on')
    made.add_argument('--data_dir', help='where TFDS data or FILE.npz lie')
    made.add_argument('--image_size', type=int, default=16, help='pixels on a side')
    made.add_argument('--hypernetwork', help='run, or zoo:NAME, that predicts')
    made.add_argument('--seeds', default=seeds, help='a list')
    made.add_argument('--epochs', type=int, default=epochs, help='passes over the training images')
    made.add_argument('--batch_size', type=int, default=batch_size, help='images of a step')
    made.add_argument('--learning_rate', type=float, default=3e-3, help='of the first step')
    made.add_argument('--augment', action='store_true', help='crop, and mirror where the data allow it')
    return made


def training_of(args: argparse.Namespace, **changes: Any) -> TrainingSpec:
    """Return how networks are trained. Raises FieldError for a number out of its bounds."""
    names = 'epochs', 'batch_size', 'learning_rate', 'augment'
    return TrainingSpec(**{name: getattr(args, name) for name in names} | changes)


def count_passes(passes: int) -> str:
    """Return the number of passes in words of a table."""
    return f'{passes} pass{"es" if passes > 1 else ""}'


def command_line(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> str:
    """Return the command as a shell takes it; arguments None: those of this process."""
    return f'{parser.prog} {shlex.join(arguments or sys.argv[1:])}'


def provenance(command: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `about` of a table: when, where and by which command its figures were taken, and `said`.

    What is None or '' in `said` is left out.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    device = f'{jax.devices()[0].device_kind}, {cpus} of {os.cpu_count()} CPU cores'
    given = {key: value for key, value in said.items() if value not in (None, '')}
    return {'date': datetime.date.today().isoformat(), 'device': device, **given, 'command': command}
