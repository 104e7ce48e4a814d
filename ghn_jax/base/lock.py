"""One trainer for each run directory: the second is refused, by the name of the first.

On a disk the lock is the system's (`flock`): it ends with the process that holds it, however that ends, so
none is ever stale, and the second is refused at once. Network file systems pass it on to the other machines
where they support it; some (gcsfuse) do not. In a bucket it is a `lease`.
"""

import contextlib
import datetime
import json
import os
import socket
import sys
from collections.abc import Iterator
from typing import Any

from filelock import FileLock, Timeout

from ghn_jax.base import files, lease, paths
from ghn_jax.base.errors import UserError
from ghn_jax.base.paths import Place


@contextlib.contextmanager
def holding(workdir: str | os.PathLike, name: str = 'lock', *, wait: bool = False) -> Iterator[None]:
    """Hold a lock of a directory, which is made if absent.

    Args:
      workdir: the directory.
      name: of the lock, and of the file that has it.
      wait: until no other process holds it.

    Raises:
      UserError: another process holds it; or the directory cannot be written.
    """
    workdir = paths.place(workdir, 'workdir')
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    holder = {'pid': os.getpid(), 'host': socket.gethostname(), 'since': now}
    with (_leased if paths.in_bucket(workdir) else _locked)(workdir, name, holder, wait):
        yield


@contextlib.contextmanager
def _leased(workdir: Place, name: str, holder: dict[str, Any], wait: bool) -> Iterator[None]:
    try:
        with files.writing(workdir / name):
            held = lease.Lease(workdir / name, holder)
            held.take(wait=wait)
    except lease.Taken as e:
        raise _in_use(workdir, e.holder) from None
    try:
        yield
    finally:
        held.give_up()


@contextlib.contextmanager
def _locked(workdir: Place, name: str, holder: dict[str, Any], wait: bool) -> Iterator[None]:
    path = workdir / name
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        open(path, 'ab').close()
    except OSError as e:
        raise UserError(f'{workdir} cannot be written ({e.strerror or e}): give another workdir') from None
    # What else filelock could do where there is no flock, a file that marks the lock, outlives its process.
    lock = FileLock(path, timeout=-1 if wait else 0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise _in_use(workdir, path.read_bytes() if os.access(path, os.R_OK) else b'') from None
    except OSError as e:  # a file system without locks
        print(f'{workdir} cannot be locked ({e.strerror}): start no second training there', file=sys.stderr)
    try:
        with files.writing(path):
            path.write_text(json.dumps(holder) + '\n')  # into the file that is locked, not in its place
        yield
    finally:
        lock.release()


def _in_use(workdir: Place, content: bytes) -> UserError:
    """The refusal. content: of the file that has the lock."""
    try:
        first = json.loads(content)
        holder = f'process {first["pid"]} on {first["host"]}, since {first["since"]}'
    except (ValueError, KeyError, TypeError):  # just begun
        holder = 'another process'
    return UserError(f'{workdir} is in use by {holder}: stop it, or give another workdir')
