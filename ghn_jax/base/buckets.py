"""Google Cloud Storage, as gs://bucket/name: objects are whole or not there, folders are beginnings of names.

`etils.epath` makes paths of the addresses, with gcsfs behind it, as Orbax does; Orbax itself asks for the
bucket with google-cloud-storage, and writes arrays with TensorStore. All of them find the credentials by
themselves (Application Default Credentials), and an emulator by `STORAGE_EMULATOR_HOST`, TensorStore by
`TENSORSTORE_GCS_HTTP_URL`. They come with the extra `gcs` and are imported where a path is in a bucket.
"""

import contextlib
import errno
import functools
import importlib.util
import io
import os
import re
import time
import traceback
from collections.abc import Iterator
from typing import Any

from ghn_jax.base.errors import FieldError

URL_PREFIX = 'gs://'
_FOLDERS = r'(?:[^/\x00-\x1f*?\[\]#\\]+/)*'  # without what gcsfs takes for a pattern or a generation
_NAME = re.compile(rf'gs://[a-z0-9][a-z0-9._-]{{1,220}}[a-z0-9]/{_FOLDERS}[^/\x00-\x1f*?\[\]#\\]+/?')
_LIBRARIES = ('gcsfs', 'fsspec', 'aiohttp', 'google.api_core', 'google.auth', 'google.cloud')
_USABLE: set[str] = set()  # buckets that have been asked for
_SECONDS = 30  # that a growing object is behind at most
_LONGEST = 300  # characters of a reason


def check(address: str, what: str) -> None:
    """Raise FieldError unless the address names something in a bucket; nothing is asked of the storage.

    what: the name of the argument or flag, for messages (`workdir`).
    """
    if not _NAME.fullmatch(address) or {'.', '..'} & set(address.split('/')):
        shown = address if address.isprintable() and len(address) <= 200 else ascii(address[:60])
        raise FieldError(
            what, f'={shown}: expected a name in a bucket, as in gs://bucket/run, without any of * ? [ ] # \\'
        )


def path(address: str, what: str) -> Any:
    """Return the `epath.Path` of an address, whose bucket is there and can be used.

    Raises:
      FieldError: as `check`; the libraries are not installed; there is no such bucket, or no access to it.
    """
    check(address, what)
    if not _installed():
        raise FieldError(what, f"={address}: cloud storage needs the extra gcs: pip install 'ghn-jax[gcs]'")
    if problem := _problem(address.removeprefix(URL_PREFIX).split('/')[0]):
        raise FieldError(what, f'={address} cannot be used: {problem}')
    return _epath()(address)


class StorageError(OSError):
    """What the storage or the way to it has failed with; `strerror` says it."""


@contextlib.contextmanager
def system_errors() -> Iterator[None]:
    """Turn what the libraries raise inside into an OSError that says why, as the system's do."""
    try:
        yield
    except FileNotFoundError as e:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from e
    except Exception as e:  # gcsfs raises OSErrors, ValueErrors, and errors of four other libraries
        raise StorageError(errno.EIO, reason(e)) from e


def is_failure(error: Exception) -> bool:
    """Return whether the storage or the way to it raised this, and not the program."""
    if isinstance(error, StorageError) or type(error).__module__.startswith(_LIBRARIES):
        return True
    if isinstance(error, (TypeError, AttributeError, NameError, AssertionError)):
        return False
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    folders = [f'/{name.replace(".", "/")}/' for name in _LIBRARIES]
    return any(folder in file for file in files for folder in folders)


def reason(error: Exception) -> str:
    """Return what an error of the libraries says, short enough for a line."""
    text = error.strerror if isinstance(error, StorageError) else getattr(error, 'message', '') or error
    text = ' '.join(str(text).split())
    return (text or type(error).__name__)[:_LONGEST]


def failed(error: Exception) -> str:
    """Return a line about a failure that nothing else has told of."""
    return f'cloud storage: {reason(error)}: see whether it can be reached, and start again'


def write(path: Any, data: bytes) -> None:
    """Make the object, or put this one in the place of the one that is there. Raises OSError."""
    with system_errors():
        path.write_bytes(data)


def read(path: Any, limit: int) -> tuple[bytes, int]:
    """Return the first `limit` bytes of an object, and its size. Raises OSError."""
    with system_errors(), path.open('rb') as file:
        return file.read(limit), file.size


def kind(path: Any) -> str:
    """Return 'file', 'folder', or '' where there is neither. Raises StorageError.

    `is_dir` and `is_file` of gcsfs answer no where the storage cannot be reached: a run would begin anew.
    """
    with contextlib.suppress(FileNotFoundError), system_errors():
        return 'folder' if path.stat().is_directory else 'file'
    return ''


def names(folder: Any) -> list[str]:
    """Return the names of what is in a folder, as it is now. Raises StorageError."""
    with contextlib.suppress(FileNotFoundError), system_errors():
        return [path.name for path in folder.iterdir()]
    return []


def tree(folder: Any) -> set[str]:
    """Return the names of all objects and folders in a folder; none where it is gone."""
    walk = folder.walk()
    return {os.path.join(where, name) for where, _, names in walk for name in ('', *names)}


def move(folder: Any, to: Any) -> None:
    """Copy all objects of a folder, then delete it: an end in between leaves both. Raises OSError."""
    with system_errors():
        start = os.fspath(folder).removeprefix(URL_PREFIX)
        for where, _, names in list(folder.walk()):
            within = os.path.relpath(os.fspath(where).removeprefix(URL_PREFIX), start)
            for name in names:
                (folder / within / name).copy(to / within / name, overwrite=True)
        folder.rmtree()


class Growing:
    """An object that grows: nothing can be appended to one, so it is written whole at each `flush`.

    It is written between two of them as well, every so many seconds, for those who look on. What was written
    since is lost where the process ends. `flush` raises OSError.
    """

    def __init__(self, path: Any):
        with system_errors():
            self._path, self._buffer = path, io.BytesIO()
            self._buffer.write(path.read_bytes())
        self._written, self._at = self._buffer.tell(), time.monotonic()

    def write(self, data: bytes) -> None:
        self._buffer.write(data)
        if time.monotonic() - self._at > _SECONDS:
            with contextlib.suppress(OSError):  # the next `flush` tells
                self.flush()

    def flush(self) -> None:
        """Return when the object has all of it."""
        self._at = time.monotonic()
        if (size := self._buffer.tell()) > self._written:
            write(self._path, self._buffer.getvalue())
            self._written = size

    def close(self) -> None:
        self.flush()


def blob(path: Any) -> Any:
    """Return a google-cloud-storage `Blob` of an object, with a client of its own."""
    bucket, _, name = os.fspath(path).removeprefix(URL_PREFIX).partition('/')
    return _client().bucket(bucket).blob(name)


@functools.cache
def _installed() -> bool:
    try:
        return all(map(importlib.util.find_spec, ('etils.epath', 'gcsfs', 'google.cloud.storage')))
    except ModuleNotFoundError:  # google.cloud itself
        return False


@functools.cache
def _epath() -> Any:
    os.environ.setdefault('EPATH_USE_TF', '0')  # else TensorFlow would be used wherever it is installed
    import fsspec.config
    from etils import epath

    # A listing that is kept does not show what another process or TensorStore has written since.
    fsspec.config.conf.setdefault('gs', {})['use_listings_cache'] = False
    return epath.Path


def _client() -> Any:
    from google.cloud import storage  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

    return storage.Client()


def _problem(bucket: str) -> str:
    """Why the bucket cannot be used, and what to do; '' where it can. Orbax asks for it in the same way."""
    if bucket in _USABLE:
        return ''
    try:
        from google.cloud.storage.retry import DEFAULT_RETRY  # pyright: ignore[reportMissingImports]

        _client().get_bucket(bucket, timeout=20, retry=DEFAULT_RETRY.with_timeout(20))
    except Exception as e:
        code = getattr(e, 'code', None)
        if code == 404:
            return f'there is no bucket {bucket}: make it first, or give another'
        if code in (401, 403) or type(e).__module__.startswith('google.auth'):
            return (
                f'{reason(e)}: log in with `gcloud auth application-default login`, or give the account of '
                'this machine the right to objects and to storage.buckets.get'
            )
        return f'{reason(e)}: see whether the storage can be reached, and try again'
    _USABLE.add(bucket)
    return ''
