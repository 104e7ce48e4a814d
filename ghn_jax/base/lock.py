"""One trainer for each run directory: the second is refused at once, by the name of the first.

The lock is the system's (`flock`): it ends with the process that holds it, however that ends, so none is ever
stale. Network file systems pass it on to the other machines where they support it; some (gcsfuse) do not.
"""

import contextlib
import datetime
import json
import os
import pathlib
import socket
import sys
from collections.abc import Iterator

from filelock import FileLock, Timeout

from ghn_jax.base import files, paths
from ghn_jax.base.errors import UserError

_NAME = 'lock'


@contextlib.contextmanager
def holding(workdir: str | os.PathLike) -> Iterator[None]:
    """Hold the lock of a run directory, which is made if absent.

    Raises:
      UserError: another process holds it; or the directory cannot be written.
    """
    workdir = paths.local(workdir, 'workdir')
    path = workdir / _NAME
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        open(path, 'ab').close()
    except OSError as e:
        raise UserError(f'{workdir} cannot be written ({e.strerror or e}): give another workdir') from None
    # What else filelock could do where there is no flock, a file that marks the lock, outlives its process.
    lock = FileLock(path, timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f'{workdir} is in use by {_holder(path)}: stop it, or give another workdir') from None
    except OSError as e:  # a file system without locks
        print(f'{workdir} cannot be locked ({e.strerror}): start no second training there', file=sys.stderr)
    try:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
        holder = json.dumps({'pid': os.getpid(), 'host': socket.gethostname(), 'since': now}) + '\n'
        with files.writing(path):
            path.write_text(holder)  # into the file that is locked, not in its place
        yield
    finally:
        lock.release()


def _holder(path: pathlib.Path) -> str:
    try:
        first = json.loads(path.read_bytes())
        return f'process {first["pid"]} on {first["host"]}, since {first["since"]}'
    except (OSError, ValueError, KeyError, TypeError):  # just begun
        return 'another process'
