"""Files on a disk or in a bucket, of which `paths.place` gives the paths.

What is written is whole or as it was, and what is no file is written to, not replaced.
"""

import contextlib
import errno
import io
import json
import os
import pathlib
import stat
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO, Protocol

from ghn_jax.base import buckets, paths
from ghn_jax.base.errors import UserError
from ghn_jax.base.paths import Place

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NAME = 32  # characters of a file's name in that of its part, for names have at most 255 bytes


def write(path: str | os.PathLike, data: bytes | str) -> None:
    """Write a file as `replacing` does. Text is UTF-8, with ? for what has no place there.

    Raises:
      UserError: it cannot be written; what stood there stays.
    """
    with replacing(path) as file:
        file.write(data.encode(errors='replace') if isinstance(data, str) else data)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write a result as JSON, which has no NaN. Raises UserError as `write`."""
    write(path, json.dumps(value, indent=1, allow_nan=False) + '\n')


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path` when the context ends without an error: by a rename, or in a
    bucket by being uploaded then.

    Readers see the old content or all of the new. A link stays, what it leads to is replaced; permissions
    stay, and the owner where the system lets them. A pipe or a device is written to as it is: opening a named
    pipe waits for its reader, as in any tool.

    Raises:
      UserError: it cannot be written.
    """
    if paths.in_bucket(path):
        yield (content := io.BytesIO())
        with writing(path):
            buckets.write(paths.place(path, 'path'), content.getvalue())
        return
    with writing(path):
        target = destination(path)
        if target is None:
            with _open_through(path) as file:
                yield file
            return
        part = target.with_name(f'.{target.name[:_NAME]}.{os.getpid()}.part')
        try:
            part.unlink(missing_ok=True)  # left by a process of this number, or a link to somewhere else
            with open(part, 'xb') as file:
                yield file
                file.flush()
                _take_permissions(file.fileno(), target)
                os.fsync(file.fileno())
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Turn what the system raises inside into a UserError of one line, about `path`."""
    try:
        yield
    except OSError as e:
        advice = 'make room there, or give another place' if e.errno in _FULL else 'give another place'
        raise UserError(f'{os.fspath(path)} cannot be written ({e.strerror or e}): {advice}') from None
    except Exception as e:  # of the libraries behind a bucket
        if isinstance(e, UserError) or not buckets.is_failure(e):
            raise
        raise UserError(f'{os.fspath(path)} cannot be written ({buckets.reason(e)}): try again') from None


def destination(path: str | os.PathLike) -> pathlib.Path | None:
    """Return the file that writing to `path` replaces by a rename, there or not yet; links are followed.

    None is for a pipe or a device, which is written through, and for what is in a bucket. Nothing is opened.

    Raises:
      OSError: it must not be written: a directory, a disk, a socket, a file that is read-only (whoever asks:
        to the administrator the system would open it).
    """
    if paths.in_bucket(path):
        if buckets.kind(paths.place(path, 'path')) == 'folder':
            raise IsADirectoryError(errno.EISDIR, 'it is a directory')
        return None
    path = pathlib.Path(path)
    target = pathlib.Path(os.path.realpath(path))
    try:
        about = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return target
    if stat.S_ISDIR(about.st_mode):
        raise IsADirectoryError(errno.EISDIR, 'it is a directory')
    if _stream_behind(path):
        return None
    if stat.S_ISBLK(about.st_mode) or stat.S_ISSOCK(about.st_mode):
        raise OSError(errno.EINVAL, 'it is a disk or a socket')
    if not about.st_mode & 0o222 or not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, 'it is read-only')
    # Behind /dev/fd/3 may be a file that has no name any more.
    same = target.exists() and os.path.samestat(target.stat(), about)
    return target if same and stat.S_ISREG(about.st_mode) else None


def may_write(folder: Place) -> bool:
    """Return whether files can be made in a folder that exists. A bucket tells when it is written to."""
    return paths.in_bucket(folder) or os.access(folder, os.W_OK | os.X_OK)


def read(path: Place, limit: int) -> tuple[bytes, int]:
    """Return the first `limit` bytes of a file, and how many it has.

    Raises:
      OSError: it cannot be read, or is a pipe, a device or a directory; none of these is waited for.
    """
    if paths.in_bucket(path):
        return buckets.read(path, limit)
    # Not blocking: opening a pipe that nobody writes to would wait for ever.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), 'rb') as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, 'it is no regular file')
        return file.read(limit), about.st_size


def opened(path: Place) -> BinaryIO:
    """Open a file to be read from its beginning. Raises OSError."""
    return io.BytesIO(buckets.read(path, -1)[0]) if paths.in_bucket(path) else open(path, 'rb')


class Growing(Protocol):
    """A file that is written at its end. All of it raises OSError."""

    def write(self, data: bytes, /) -> Any:
        """Append; on a disk the system has it then, in a bucket this process."""
        ...

    def flush(self) -> None:
        """Return when it is where it outlives the machine."""
        ...

    def close(self) -> None:
        """Hand all of it to the disk or the bucket."""
        ...


def growing(path: Place) -> Growing:
    """Open a file that exists for appending to it. Raises OSError."""
    return buckets.Growing(path) if paths.in_bucket(path) else _Appended(path)


def exists(path: Place) -> bool:
    """Return whether there is a file or a folder of this name that can be seen from here."""
    return bool(buckets.kind(path)) if paths.in_bucket(path) else os.path.exists(path)


def is_file(path: Place) -> bool:
    """Return whether there is a file of this name that can be seen from here."""
    return buckets.kind(path) == 'file' if paths.in_bucket(path) else os.path.isfile(path)


def is_folder(path: Place) -> bool:
    """Return whether there is a folder of this name that can be seen from here."""
    return buckets.kind(path) == 'folder' if paths.in_bucket(path) else os.path.isdir(path)


def names(folder: Place) -> list[str]:
    """Return the names of what is in a folder; none where it does not exist."""
    if paths.in_bucket(folder):
        return buckets.names(folder)
    return os.listdir(folder) if os.path.isdir(folder) else []


def tree(folder: Place) -> set[str]:
    """Return the names of all files and folders below a folder, and its own; none where it is gone."""
    if paths.in_bucket(folder):
        return buckets.tree(folder)
    walk = os.walk(folder)  # passes over what is gone
    return {os.path.join(where, name) for where, _, found in walk for name in ('', *found)}


def move(folder: Place, to: Place) -> None:
    """Give a folder another name, in the same place. Raises OSError."""
    buckets.move(folder, to) if paths.in_bucket(folder) else os.rename(folder, to)


class _Appended:
    def __init__(self, path: Place):
        self._file = open(path, 'ab')

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()

    def flush(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _stream_behind(path: pathlib.Path) -> Any:
    """Standard output or error where `path` is a name of its file, as /dev/stdout is."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, absent, or in memory
            if path.is_symlink() and os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                return stream
    return None


def _open_through(path: str | os.PathLike) -> io.BufferedWriter:
    """Open a pipe or a device. What was written to a standard stream before comes before."""
    stream = _stream_behind(pathlib.Path(path))
    if stream is None:
        return open(path, 'wb')
    stream.flush()
    return open(os.dup(stream.fileno()), 'wb')


def _take_permissions(file: int, old: pathlib.Path) -> None:
    try:
        about = old.stat()
    except FileNotFoundError:
        return
    with contextlib.suppress(OSError):  # another user's file
        os.fchown(file, about.st_uid, about.st_gid)
    with contextlib.suppress(OSError):  # a file system without permissions
        os.fchmod(file, stat.S_IMODE(about.st_mode))
