"""One trainer for each run directory: the second is refused at once, by the name of the first.

The lock is the system's (`flock`): it ends with the process that holds it, however that ends, so none is ever
stale. Network file systems pass it on to the other machines where they support it; some (gcsfuse) do not.
"""

import contextlib
import datetime
import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator

from ghn_jax.base import files, paths
from ghn_jax.base.errors import UserError

_NAME = 'lock'


@contextlib.contextmanager
def holding(workdir: str | os.PathLike) -> Iterator[None]:
    """Holds the lock of a run directory, which is made if absent.

    Raises:
      UserError: another process holds it; or the directory cannot be written.
    """
    workdir = paths.local(workdir, 'workdir')
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = open(workdir / _NAME, 'a+b', buffering=0)
    except OSError as e:
        raise UserError(f'{workdir} cannot be written ({e.strerror or e}): give another --workdir') from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f'{workdir} is in use by {_holder(file)}: stop it, or give another --workdir'
            ) from None
        except OSError as e:  # a file system without locks
            print(
                f'{workdir} cannot be locked ({e.strerror}): start no second training there', file=sys.stderr
            )
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
        holder = json.dumps({'pid': os.getpid(), 'host': socket.gethostname(), 'since': now}) + '\n'
        with files.writing(workdir / _NAME):
            file.truncate(0)
            file.write(holder.encode())
        yield


def _holder(file) -> str:
    file.seek(0)
    try:
        first = json.loads(file.read())
        return f'process {first["pid"]} on {first["host"]}, since {first["since"]}'
    except (ValueError, KeyError, TypeError):  # just begun
        return 'another process'
