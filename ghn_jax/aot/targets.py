"""The devices that programs are compiled for: each is described by a file of `targets/`.

A TPU or a GPU need not be here: JAX makes devices that compile and do not run from a description
(`jax.experimental.topologies`), with the compiler of their platform, which is a package of its own.
"""

import dataclasses
import importlib.util
import os
import pathlib
import shutil
import sysconfig
import tomllib
from collections.abc import Mapping
from typing import Any

import jax
import psutil
from jax.experimental import topologies

from ghn_jax.base.backends import Backend
from ghn_jax.base.errors import FieldError, UserError, one_line

_FOLDER = pathlib.Path(__file__).with_name('targets')
_PLUGINS = {'tpu': ('libtpu',), 'cuda': ('jax_plugins.xla_cuda12', 'jax_plugins.xla_cuda13')}
_EXTRAS = {'tpu': 'aot-tpu', 'cuda': 'aot-gpu'}

_TPU_VARIABLES = {  # without the last three libtpu complains that it finds no TPU
    'TPU_SKIP_MDS_QUERY': '1',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_STDERR_LOG_LEVEL': '3',
}

NAMES = tuple(sorted(file.stem for file in _FOLDER.glob('*.toml')))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """Devices of one kind that run a program together.

    Attributes:
      name: of the file that describes it.
      about: what it is, in words.
      platform: as JAX names it when a program is lowered: cpu, cuda or tpu.
      topology: the name of their arrangement, for JAX.
      memory_gib: of a device; 0 is that of this machine.
      options: what else JAX wants to know to make the devices.
      speed: of a device, a second: 'bytes' of its memory, operations by type. {}: it is not modelled.
    """

    name: str
    about: str
    platform: str
    topology: str = ''
    memory_gib: float = 0
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    speed: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def backend(self) -> Backend:
        """What the program is built for."""
        return {'cpu': 'cpu', 'cuda': 'gpu', 'tpu': 'tpu'}[self.platform]  # pyright: ignore

    @property
    def memory_bytes(self) -> int:
        """Bytes of a device."""
        return int(self.memory_gib * 2**30) or psutil.virtual_memory().total

    def devices(self) -> list[Any]:
        """Make the devices.

        Raises:
          UserError: what compiles for them is not installed, or is not of JAX's version.
        """
        if self.platform == 'cpu':
            return jax.devices('cpu')
        check_plugin(self)
        try:
            description = topologies.get_topology_desc(
                topology_name=self.topology, platform=self.platform, **self.options
            )
        except Exception as e:  # each plugin has its own
            raise UserError(
                f'target {self.name}: its compiler does not start with jax {jax.__version__} '
                f'({one_line(e)}): install {_needed(self)} again'
            ) from None
        return list(description.devices)


def load(name: str) -> Target:
    """Read the description of a target.

    Raises:
      FieldError: there is none of this name.
    """
    if name not in NAMES:
        raise FieldError('target', f'={name}: choose from {", ".join(NAMES)}')
    return Target(name=name, **tomllib.loads((_FOLDER / f'{name}.toml').read_text(encoding='utf-8')))


def prepare_process() -> None:
    """Let this process compile for devices that are not here; to be called before JAX starts its own.

    It keeps to the CPU whatever else is here, asks no server about TPUs, leaves them to other processes, and
    finds the assembler of GPUs that was installed as a package.
    """
    jax.config.update('jax_platforms', 'cpu')
    for name, value in _TPU_VARIABLES.items():
        os.environ.setdefault(name, value)
    packages = pathlib.Path(sysconfig.get_path('purelib')) / 'nvidia'
    folders = [str(found.parent) for found in sorted(packages.glob('*/bin/ptxas'))]
    os.environ['PATH'] = os.pathsep.join([*folders, os.environ.get('PATH', '')])


def missing(target: Target) -> str:
    """Name what has to be installed for a target; '' where all is there."""
    if target.platform == 'cpu':
        return ''
    found = any(map(_is_installed, _PLUGINS[target.platform]))
    if not found or (target.platform == 'cuda' and shutil.which('ptxas') is None):
        return _needed(target)
    return ''


def check_plugin(target: Target) -> None:
    """Raise UserError where what compiles for a target is not installed."""
    if needed := missing(target):
        raise UserError(
            f'target {target.name} needs a compiler that is not installed here: pip install {needed}'
        )


def _needed(target: Target) -> str:
    return f"'ghn-jax[{_EXTRAS[target.platform]}]'"


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it would be in
        return False
