"""Compiled functions kept on disk whole, and found again without tracing them.

JAX's own cache finds a program by its text, and making the text of a training step takes most of a start.
This one finds it by what the text is made from (`recipes.facts_of`): the code that the function imports, the
versions of the libraries, the device, the arguments' types, and what the caller says. A file begins with
these facts and is named by them.

Files lie in the user's own cache folder, or in one that `ghn_jax.compile` has filled for this machine, maybe
on another one (`read_from`). They are unpickled: whoever can write there can run code, as with any cache of
machine code.
"""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import pickle
import sys
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental import serialize_executable

from ghn_jax.base import counters, files, paths, recipes
from ghn_jax.base.errors import FieldError, UserError
from ghn_jax.base.paths import Place
from ghn_jax.base.recipes import Facts, Recipe

_BLOCK = 4096  # bytes; those of disks are multiples of it
_MOST = 64
"""Files to keep, of 2 to 5 MB each: those of earlier versions would stay for ever."""

_ahead: list[Place] = []  # the folder of programs compiled ahead, if there is one


def read_from(folder: str | os.PathLike | None) -> None:
    """Let `find_or_compile` look first in a folder that `ghn_jax.compile` has filled; None: in none.

    It is for this process, as the folder of JAX's cache is.

    Raises:
      FieldError: it holds no programs.
    """
    _ahead.clear()
    if folder is None:
        return
    path = paths.absolute(folder, 'executables')
    if not any(name.endswith('.executable') for name in files.names(path)):
        raise FieldError(
            'executables',
            f'={folder} holds no *.executable: give what ghn_jax.compile has written with --out',
        )
    _ahead.append(path)


def find_or_compile(recipe: Recipe, arguments: tuple[Any, ...]) -> Callable:
    """Find or compile the program of a recipe for arguments of these types.

    It comes from the folder of `read_from` or from the disk, or is compiled and written there, unless JAX's
    cache has it. Where compiled programs are not kept, and where several processes run together and the
    folder has none, it is compiled at its first call. Each process of several loads the program by itself.

    Args:
      recipe: of the program.
      arguments: of the types that it will be called with.

    Returns:
      a function of such arguments alone.
    """
    later = functools.partial(recipe.function, **recipe.static)
    folder, alone = _cache_folder(), jax.process_count() == 1
    if not alone:
        folder = None
    if not (folder or _ahead):
        return later
    devices = recipes.devices_of(arguments)
    facts = recipes.facts_of(recipe, arguments, devices)
    for ahead in _ahead:
        if found := _load(ahead / _name(facts), devices):
            return found
        print(f'{ahead}: {_why_none(ahead, facts)}: compiled anew', file=sys.stderr)
    if folder is None:
        return later
    path = folder / _name(facts)
    if (found := _load(path, devices)) is None:
        with contextlib.suppress(OSError):
            path.unlink()  # it may not be written again: the next start would fail to load it, too
        counters.start_counting()
        before = counters.compilations(), counters.cache_hits()
        found = recipe.function.lower(*arguments, **recipe.static).compile()
        # What XLA:CPU did not compile but read from JAX's cache lacks parts when it is written again, and may
        # come from this process' memory the next time.
        if counters.compilations() > before[0] and counters.cache_hits() == before[1]:
            _save(path, facts, found)
    return found


class KeptFunction:
    """The function of a recipe, whose programs are kept on disk.

    Called like the function: for each type of arguments, a program is found or compiled once.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self._found: dict[str, Callable] = {}

    def __call__(self, *arguments: Any) -> Any:
        types = recipes.types_of(arguments)
        if types not in self._found:
            self._found[types] = find_or_compile(self.recipe, arguments)
        return self._found[types](*arguments)


def write(folder: Place, recipe: Recipe, arguments: tuple[Any, ...], compiled: Any) -> tuple[str, int]:
    """Write a compiled program where `find_or_compile` finds it after `read_from(folder)`.

    Args:
      folder: is made where it is absent.
      recipe: of the program.
      arguments: their shapes, each with its sharding on the devices that the program is for.
      compiled: of `recipe.function.lower(*arguments).compile()`.

    Returns:
      the name of the file, and its bytes.

    Raises:
      UserError: it cannot be written.
      Exception: of the backend, where it cannot serialise the program.
    """
    facts = recipes.facts_of(recipe, arguments, recipes.devices_of(arguments))
    return _name(facts), _write(folder / _name(facts), facts, compiled)


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


def _cache_folder() -> pathlib.Path | None:
    folder = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    return None if not folder or '://' in folder else pathlib.Path(folder)  # JAX writes there, this may not


def _name(facts: Facts) -> str:
    return f'{facts["function"]}-{recipes.digest_of(facts)}.executable'


def _load(path: Place, devices: Sequence[Any]) -> Callable | None:
    """None if the file is absent, not whole, or cannot be loaded. devices: that it runs on."""
    try:
        with files.opened(path) as file:
            head, _, rest = file.read().partition(b'\n')
    except OSError:
        return None
    try:
        digest, data = rest[:32], zlib.decompress(rest[32:])
        if hashlib.sha256(head + data).digest() != digest:
            raise ValueError('not whole')
        found = serialize_executable.deserialize_and_load(*pickle.loads(data), execution_devices=devices)
    except Exception:  # XLA and pickle each have their own
        return None
    if not paths.in_bucket(path):
        with contextlib.suppress(OSError):  # a cache that is not ours to write
            os.utime(path)  # the least recently used go first
    return found


def _why_none(folder: Place, facts: Facts) -> str:
    """Say why a folder has no program of these facts, by the one there that differs least."""
    function, others = facts['function'], []
    if files.exists(folder / _name(facts)):
        return f'{_name(facts)} is damaged, or this device cannot run it'
    for name in sorted(files.names(folder)):
        if name.startswith(f'{function}-') and name.endswith('.executable'):
            with contextlib.suppress(OSError, ValueError), files.opened(folder / name) as file:
                others.append(json.loads(file.readline(1_000_000)))
    if not others:
        return f'there is no {function}'
    nearest = min(others, key=lambda other: sum(other.get(key) != facts[key] for key in facts))
    return f'there is no {function} for this; of the nearest: {recipes.difference(nearest, facts)}'


def _save(path: pathlib.Path, facts: Facts, compiled: Any) -> None:
    try:
        _write(path, facts, compiled)
    except UserError as e:
        print(f'{e}; the next start compiles again', file=sys.stderr)
    except Exception:  # not every backend can serialise, each says so in its own way; JAX's own cache is left
        return
    else:
        _prune(path.parent)


def _write(path: Place, facts: Facts, compiled: Any) -> int:
    """Write a program, and return its bytes."""
    data, head = pickle.dumps(serialize_executable.serialize(compiled)), json.dumps(facts).encode()
    whole = head + b'\n' + hashlib.sha256(head + data).digest() + zlib.compress(data, 1)
    with files.writing(path.parent):
        if not paths.in_bucket(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, whole)
    return len(whole)


def _prune(folder: pathlib.Path) -> None:
    """Remove all but the _MOST files last used."""
    used = []
    for path in folder.glob('*.executable'):
        with contextlib.suppress(OSError):  # another process may be at it, too
            used.append((path.stat().st_mtime_ns, path))
    for _, path in sorted(used)[:-_MOST]:
        with contextlib.suppress(OSError):  # another user's, in a folder of all
            path.unlink()
