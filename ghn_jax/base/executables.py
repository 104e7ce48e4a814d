"""Compiled functions kept on disk whole, and found again without tracing them.

JAX's own cache finds a program by its text, and making the text of a training step takes most of a start.
This one finds it by what the text is made from: the code that the function imports, the versions of the
libraries, the machine, the arguments' types, and what the caller says. The files lie in the user's own cache
folder and are unpickled: whoever can write there can run code, as with any cache of machine code.
"""

import contextlib
import functools
import hashlib
import os
import pathlib
import pickle
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import jax
import numpy as np
from jax.experimental import serialize_executable

from ghn_jax.base import counters, files
from ghn_jax.base.errors import UserError
from ghn_jax.base.source_files import source_files

_LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy')
_BLOCK = 4096  # bytes; those of disks are multiples of it
_MOST = 64
"""Files to keep, of 2 to 5 MB each: those of earlier versions would stay for ever."""


def kept(
    function: Any,
    arguments: tuple[Any, ...],
    static: Mapping[str, Any],
    *,
    named: str,
    made_by: Sequence[Callable] = (),
) -> Callable:
    """Find or compile `function` for arguments of these types.

    It comes from the disk or is compiled and written there, unless JAX's cache has it. Where compiled
    programs are not kept, and where several processes run together, it is compiled at its first call.

    Args:
      function: of `jax.jit`.
      arguments: of the types that it will be called with.
      static: its static arguments, by name.
      named: what the static arguments are made of, as text.
      made_by: functions that make static arguments and that the module of `function` does not import: their
        code counts as well.

    Returns:
      a function of such arguments alone.
    """
    folder = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if not folder or '://' in folder or jax.process_count() > 1:  # what JAX writes to, this may not
        return functools.partial(function, **static)
    digest = _digest(named, arguments, (function, *made_by))
    path = pathlib.Path(folder) / f'{function.__name__}-{digest}.executable'
    if (found := _load(path, _devices_of(arguments))) is None:
        counters.start_counting()
        before = counters.compilations(), counters.cache_hits()
        found = function.lower(*arguments, **static).compile()
        # What XLA:CPU did not compile but read from JAX's cache lacks parts when it is written again, and may
        # come from this process' memory the next time.
        if counters.compilations() > before[0] and counters.cache_hits() == before[1]:
            _save(path, found)
    return found


def drop_torn(folder: pathlib.Path) -> None:
    """Remove entries of JAX's own cache that a full disk has cut short.

    JAX replaces none that is there, and would fail to read them at every start.

    Such a file ends with a block of the disk, so only few are read. One in 4096 whole ones does, too.
    """
    with contextlib.suppress(OSError):  # a folder that is not ours to see
        for path in folder.glob('*-cache'):
            with contextlib.suppress(OSError):  # another process may be at it, too
                if path.stat().st_size % _BLOCK == 0 and not _is_whole(path.read_bytes()):
                    path.unlink()


def _is_whole(entry: bytes) -> bool:
    """Whether an entry of JAX's cache can be unpacked; one of zstd, which JAX may have, counts as torn."""
    try:
        zlib.decompress(entry)
    except zlib.error:
        return False
    return True


def _digest(named: str, arguments: tuple[Any, ...], functions: tuple[Callable, ...]) -> str:
    leaves, structure = jax.tree.flatten(arguments)
    parts = [named, str(structure), *map(_type, leaves), *_machine()]
    parts += [f'{name} {version(name)}' for name in _LIBRARIES]
    digest = hashlib.sha256('\0'.join(parts).encode())
    for file in source_files(*_files_of(functions)):
        digest.update(file.name.encode() + b'\0' + file.read_bytes())
    return digest.hexdigest()[:32]


def _files_of(functions: Iterable[Callable]) -> list[pathlib.Path]:
    """The files that functions are defined in; one that was typed in has none."""
    files = (getattr(sys.modules.get(f.__module__), '__file__', None) for f in functions)
    return [pathlib.Path(file) for file in files if file]


def _type(x: Any) -> str:
    x = x if isinstance(x, jax.Array) else np.asarray(x)
    return f'{x.dtype}{x.shape} {getattr(x, "weak_type", False)} {getattr(x, "sharding", None)}'


def _machine() -> list[str]:
    """All that machine code depends on but for the program. Code for other vector units ends the process."""
    client = jax.devices()[0].client
    flags = [os.environ.get(name, '') for name in ('XLA_FLAGS', 'LIBTPU_INIT_ARGS')]
    try:
        lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
        flags += sorted({line for line in lines if line.startswith(('flags', 'model name', 'Features'))})
    except OSError:  # not Linux
        flags += [*os.uname()]
    settings = sorted((k, str(v)) for k, v in jax.config.values.items() if 'cache' not in k)
    devices = [f'{d.id} {d.device_kind}' for d in jax.devices()]
    threads = str(len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count())
    return [sys.version, client.platform_version, str(settings), threads, *devices, *flags]


def _devices_of(arguments: tuple) -> list[jax.Device]:  # pyright: ignore[reportInvalidTypeForm]
    """Those that the arguments are spread over, in the order of their mesh. JAX would take all there are."""
    shardings = [x.sharding for x in jax.tree.leaves(arguments) if isinstance(x, jax.Array)]
    widest = max(shardings, key=lambda sharding: len(sharding.device_set), default=None)
    if isinstance(widest, jax.sharding.NamedSharding) and isinstance(widest.mesh, jax.sharding.Mesh):
        return list(widest.mesh.devices.flat)
    return sorted(widest.device_set, key=lambda d: d.id) if widest else jax.devices()[:1]


def _load(path: pathlib.Path, devices: list[jax.Device]) -> Callable | None:  # pyright: ignore[reportInvalidTypeForm]
    """None if the file is absent, not whole, or cannot be loaded; it is removed then. devices: that it runs
    on.
    """
    try:
        data = path.read_bytes()
    except OSError:
        return None
    try:
        digest, data = data[:32], zlib.decompress(data[32:])
        if hashlib.sha256(data).digest() != digest:
            raise ValueError('not whole')
        found = serialize_executable.deserialize_and_load(*pickle.loads(data), execution_devices=devices)
    except Exception:  # XLA and pickle each have their own
        # It is compiled, but maybe not written again: the next start would fail to load it, too.
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    with contextlib.suppress(OSError):  # a cache that is not ours to write
        os.utime(path)  # the least recently used go first
    return found


def _save(path: pathlib.Path, compiled: Any) -> None:
    try:
        data = pickle.dumps(serialize_executable.serialize(compiled))
    except Exception:  # not every backend can, each says so in its own way; JAX's own cache is left
        return
    try:
        with files.writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write(path, hashlib.sha256(data).digest() + zlib.compress(data, 1))
    except UserError as e:
        print(f'{e}; the next start compiles again', file=sys.stderr)
    else:
        _prune(path.parent)


def _prune(folder: pathlib.Path) -> None:
    """Removes all but the _MOST files last used."""
    used = []
    for path in folder.glob('*.executable'):
        with contextlib.suppress(OSError):  # another process may be at it, too
            used.append((path.stat().st_mtime_ns, path))
    for _, path in sorted(used)[:-_MOST]:
        with contextlib.suppress(OSError):  # another user's, in a folder of all
            path.unlink()
