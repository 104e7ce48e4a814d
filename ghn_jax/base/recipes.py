"""All that a compiled program depends on, as facts that two machines can compare."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np

from ghn_jax.base.source_files import source_files

_LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax')
_PLUGINS = {'tpu': ('libtpu',), 'gpu': ('jax-cuda12-pjrt', 'jax-cuda13-pjrt')}
"""What compiles for a platform and runs there, where that is not jaxlib."""

_OF_THE_PROCESS = (  # parts of the names of JAX's settings that change no program
    'cache', 'platform', 'visible_devices', 'num_cpu_devices', 'mock_', 'distributed', 'log', 'dump',
    'address', 'timeout', 'traceback',
)  # fmt: skip
_ANOTHER = {  # what to say where a fact that nobody can read differs
    'settings': 'JAX is set otherwise',
    'host': 'it is for another processor',
    'source': 'it is of other source code',
    'static': 'it is of another program, or of a config with another optimizer or scheme',
    'arguments': 'it takes arguments of other shapes',
}

Facts = dict[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A function of `jax.jit` and its static arguments: with the types of the others, a program.

    Attributes:
      function: of `jax.jit`.
      static: its static arguments, by name.
      named: what these are made of, as text.
      made_by: functions that make static arguments and that the module of `function` does not import: their
        code counts as well.
    """

    function: Any
    static: Mapping[str, Any]
    named: str
    made_by: tuple[Callable, ...] = ()


def facts_of(recipe: Recipe, arguments: tuple[Any, ...], devices: Sequence[Any]) -> Facts:
    """Return what the program of a recipe depends on, the facts that are best read first.

    Args:
      recipe: of the program.
      arguments: arrays, or their shapes.
      devices: that it runs on, in the order of their mesh; they need not be here.
    """
    on_cpu = devices[0].platform == 'cpu'
    return {
        'function': recipe.function.__name__,
        **platform_facts(devices),
        **{name: metadata.version(name) for name in _LIBRARIES},
        'python': '{}.{}'.format(*sys.version_info),
        'flags': ' '.join(filter(None, map(os.environ.get, ('XLA_FLAGS', 'LIBTPU_INIT_ARGS')))),
        'settings': _hash(_settings()),
        'host': _hash(_host()) if on_cpu else '',
        'source': _source((recipe.function, *recipe.made_by)),
        'static': _hash(recipe.named),
        'arguments': _hash(types_of(arguments)),
    }


def platform_facts(devices: Sequence[Any]) -> Facts:
    """Return what devices are, and what compiles for them."""
    numbers = ','.join(str(d.id) for d in devices)
    found = []
    for name in _PLUGINS.get(devices[0].platform, ()):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f'{name} {metadata.version(name)}')
    return {
        'device': f'{len(devices)} x {devices[0].device_kind} ({numbers})',
        'plugin': ', '.join(found),
    }


def types_of(arguments: tuple[Any, ...]) -> str:
    """Return the types of arguments, and how they lie on devices, as text."""
    leaves, structure = jax.tree.flatten(arguments)
    return '\0'.join([str(structure), *map(_type, leaves)])


def digest_of(facts: Facts) -> str:
    """Return a name for the program of these facts."""
    return _hash(json.dumps(facts))


def difference(found: Facts, wanted: Facts) -> str:
    """Say in what the program that was found differs from the one that is wanted, by the first such fact."""
    for name, ours in wanted.items():
        if (theirs := found.get(name, '')) != ours:
            return _ANOTHER.get(name) or f'it is for {name} {theirs or "(none)"}, here is {ours or "(none)"}'
    return ''


def devices_of(arguments: tuple[Any, ...]) -> list[Any]:
    """Return the devices that arrays are spread over, in the order of their mesh."""
    shardings = [s for x in jax.tree.leaves(arguments) if (s := getattr(x, 'sharding', None)) is not None]
    widest = max(shardings, key=lambda sharding: len(sharding.device_set), default=None)
    if isinstance(widest, jax.sharding.NamedSharding) and isinstance(widest.mesh, jax.sharding.Mesh):
        return list(widest.mesh.devices.flat)
    return sorted(widest.device_set, key=lambda d: d.id) if widest else jax.devices()[:1]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _type(x: Any) -> str:
    x = x if hasattr(x, 'dtype') else np.asarray(x)
    sharding = getattr(x, 'sharding', None)
    placed = ''
    if isinstance(sharding, jax.sharding.NamedSharding) and sharding.mesh.size > 1:
        placed = f'{sharding.spec} {dict(sharding.mesh.shape)}'
    dtype = jax.dtypes.canonicalize_dtype(x.dtype, allow_extended_dtype=True)  # as JAX takes it
    return f'{dtype}{tuple(x.shape)} {getattr(x, "weak_type", False)} {placed}'


def _settings() -> str:
    values = jax.config.values.items()
    return str(sorted((k, str(v)) for k, v in values if not any(part in k for part in _OF_THE_PROCESS)))


def _host() -> str:
    """What machine code of a CPU depends on. Code for other vector units ends the process."""
    try:
        lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
        about = sorted({line for line in lines if line.startswith(('flags', 'model name', 'Features'))})
    except OSError:  # not Linux
        about = [*os.uname()]
    client = jax.devices('cpu')[0].client
    threads = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    threads = max(threads or 1, len(client.devices()))  # as XLA has them, among which it divides loops
    return str([*about, threads, client.platform_version])


def _source(functions: tuple[Callable, ...]) -> str:
    digest = hashlib.sha256()
    for file in source_files(*_files_of(functions)):
        digest.update(file.name.encode() + b'\0' + file.read_bytes())
    return digest.hexdigest()[:32]


def _files_of(functions: Iterable[Callable]) -> list[pathlib.Path]:
    """The files that functions are defined in; one that was typed in has none."""
    files = (getattr(sys.modules.get(f.__module__), '__file__', None) for f in functions)
    return [pathlib.Path(file) for file in files if file]
