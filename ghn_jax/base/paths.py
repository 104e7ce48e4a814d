"""Paths as people give them: on the command line, in a config, to a function."""

import os
import pathlib
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

from ghn_jax.base import buckets
from ghn_jax.base.errors import FieldError, shown

if TYPE_CHECKING:
    from etils import epath

    Place: TypeAlias = pathlib.Path | epath.Path
else:
    Place: TypeAlias = pathlib.PurePath  # which both are
"""A path on a disk, or one in a bucket: `files` reads and writes both."""

# `pathlib` makes one slash of two: a Path of gs://bucket begins with gs:/.
_SCHEME = re.compile(r'([A-Za-z][A-Za-z0-9+.-]*):/')

# The flags that take a bucket's addresses. All others are of this machine.
_IN_BUCKETS = frozenset(
    ('workdir', 'json', 'plot', 'out', 'against', 'result', 'compare', 'arch', 'archs', 'policy',
     'pack', 'unpack', 'executables', 'add', 'config.init_from')
)  # fmt: skip


def place(path: str | os.PathLike, what: str) -> Place:
    """Return a path on a disk as `local` does, or one in a bucket, gs://bucket/name.

    Raises:
      FieldError: as `local` and `buckets.path`.
    """
    return buckets.path(os.fspath(path), what) if in_bucket(path) else local(path, what)


def absolute(path: str | os.PathLike, what: str) -> Place:
    """Return the absolute path of a place. Raises FieldError as `place`."""
    found = place(path, what)
    return found if in_bucket(found) else pathlib.Path(found).absolute()


def in_bucket(path: str | os.PathLike) -> bool:
    """Return whether this is the address of something in a bucket."""
    return _text(path).startswith(buckets.URL_PREFIX)


def check_place(path: str | os.PathLike, what: str) -> None:
    """Raise FieldError for what `place` never takes; nothing is asked of a disk or a bucket."""
    if in_bucket(path):
        buckets.check(os.fspath(path), what)
    else:
        check_local(path, what)


def is_file_name(name: str) -> bool:
    """Return whether a file in any folder can have this name: it is no path, and not hidden."""
    return bool(name) and not name.startswith('.') and not {'/', os.sep, '\0'} & set(name)


ZOO = 'zoo:'
"""What a name of the zoo begins with, in the place of a run directory."""


def zoo_name(path: str | os.PathLike) -> str | None:
    """Return NAME of `zoo:NAME`, a hypernetwork that comes with the package; None of any other path."""
    text = _text(path)
    return text.removeprefix(ZOO) if text.startswith(ZOO) else None


def local(path: str | os.PathLike, what: str) -> pathlib.Path:
    """Return the path, its `~` replaced by the home directory. what: its name, for messages (`archs`).

    Raises:
      FieldError: as `check_local`; a home directory that nobody has.
    """
    check_local(path, what)
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError as e:
        raise FieldError(what, f'={_named(os.fspath(path))} cannot be used ({e}): give another') from None


def check_local(path: str | os.PathLike, what: str) -> None:
    """Raise FieldError for what is no path, or has a scheme: gs://bucket/run would be a folder `gs:` here."""
    if not isinstance(path, str | os.PathLike):
        raise FieldError(what, f'={shown(path)}: expected a path')
    text = os.fspath(path)
    if not (match := _SCHEME.match(text)):
        return
    if match[1].lower() == 'file':
        raise FieldError(what, f'={_named(text)}: give the path alone, without {match[1]}://')
    if text.startswith('gs:/') and not in_bucket(text):
        raise FieldError(what, f'={_named(text)}: pathlib makes gs:/ of gs://: give the address as text')
    raise FieldError(
        what,
        f'={_named(text)}: addresses of {match[1]}:// are not supported here: give a local path',
    )


def tfds_folder(data_dir: str | os.PathLike | None) -> str | None:
    """Return where TFDS data lie; None is its own place. Raises FieldError unless that is a local one."""
    if data_dir:
        return str(local(data_dir, 'data_dir'))
    # TFDS would make a folder called `~` where there is no home directory.
    local(os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets'), 'TFDS_DATA_DIR')
    return None


def check_flags(flags: Iterable[Any]) -> None:
    """Raise UserError for the first flag that was given an address that it does not take.

    All flags of text are judged, and most take none: so none is forgotten. A bucket that is given must be
    there and can be used.
    """
    for flag in flags:
        values = flag.value if isinstance(flag.value, list) else [flag.value]
        for value in values if flag.present else ():
            if isinstance(value, str):
                (_judge if flag.name in _IN_BUCKETS else check_local)(value, f'--{flag.name}')


def _judge(path: str, what: str) -> None:
    check_place(path, what)
    if in_bucket(path):
        place(path, what)


def shipped(suffix: str) -> dict[str, pathlib.Path]:
    """Return the files of `configs/` that end in `suffix`, by their names without it.

    They lie in the package where it is installed, beside it in the repository.
    """
    package = pathlib.Path(__file__).parents[1]
    folder = next((f for f in (package / 'configs', package.parent / 'configs') if f.is_dir()), None)
    return {file.stem: file for file in sorted(folder.glob(f'*{suffix}'))} if folder else {}


def find(name: str | os.PathLike, what: str, suffix: str) -> pathlib.Path:
    """Find the file of this path, or the one of `configs/` that has this name.

    Raises:
      FieldError: as `local`; there is neither, with the names that there are.
    """
    file = local(name, what)
    name, known = os.fspath(name), shipped(suffix)
    try:
        if name in known and not file.is_file():
            return known[name]
        if file.exists():  # whatever it is: who reads it says what is wrong with it
            return file
    except OSError as e:  # too long a name, a folder that is closed to us
        raise FieldError(what, f'={_named(name)} cannot be read ({e.strerror}): give another file') from None
    names = f', or a name of {", ".join(known)}' if known else ''
    raise FieldError(what, f'={_named(name)}: there is no such file: give one{names}')


def _text(path: str | os.PathLike) -> str:
    """The path as text; '' of what is none, which `check_local` refuses."""
    return os.fspath(path) if isinstance(path, str | os.PathLike) else ''


def _named(path: str) -> str:
    """The path as it is, where that fits a line."""
    return path if path.isprintable() and len(path) <= 200 else shown(path)
