"""Several processes that train one run, one on each machine: their start, and what they must agree on.

On one machine nothing of this is needed: one process drives all of its devices.
"""

import contextlib
import hashlib
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from ghn_jax.base import bounds, buckets
from ghn_jax.base.errors import FieldError, NotFinite, Stopped, UserError, one_line

T = TypeVar('T')
AUTO = 'auto'
TIMEOUT = 300  # seconds to wait for the others; a pod's machines start minutes apart


def start(
    coordinator: str, num_processes: int | None, process_id: int | None, *, timeout: int = TIMEOUT
) -> None:
    """Join the processes of a run; to be called before JAX knows its devices.

    Where the others are not there after `timeout` seconds, one line says so and the process ends with code 2.

    Args:
      coordinator: 'HOST:PORT' of process 0, the same for all; 'auto' where the surroundings tell (Cloud TPU,
        Slurm, Open MPI, Kubernetes), without the other two; '' where there are no other processes.
      num_processes: How many there are.
      process_id: Which of them this is, from 0.
      timeout: Seconds to wait for the others.

    Raises:
      UserError: arguments that do not fit together.
    """
    if not coordinator:
        if num_processes is not None or process_id is not None:
            raise FieldError(
                'coordinator',
                ' is missing: num_processes and process_id need HOST:PORT, the address of process 0',
            )
        return
    bounds.check(distributed_timeout=timeout)
    if coordinator == AUTO:
        if num_processes is not None or process_id is not None:
            raise FieldError('coordinator', '=auto finds out num_processes and process_id: leave them out')
        _join(coordinator, timeout)
        return
    host, _, port = coordinator.rpartition(':')
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise FieldError(
            'coordinator', f'={coordinator}: expected HOST:PORT of process 0, as in 10.0.0.2:1234, or auto'
        )
    if num_processes is None or process_id is None:
        raise FieldError('coordinator', f'={coordinator} needs num_processes=N and process_id=0..N-1')
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise FieldError(
            'process_id', f'={process_id} with num_processes={num_processes}: expected 0..{num_processes - 1}'
        )
    _join(coordinator, timeout, num_processes, process_id)


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """End the process where an error appears in one of several: JAX would wait minutes for the others, which
    wait for this one.
    """
    try:
        yield
    except Exception as e:
        if not jax.distributed.is_initialized() or isinstance(e, Stopped):
            raise
        if isinstance(e, UserError):
            print(f'error: {e}', file=sys.stderr, flush=True)
            os._exit(3 if isinstance(e, NotFinite) else 2)
        if buckets.is_failure(e):
            print(f'error: {buckets.failed(e)}', file=sys.stderr, flush=True)
            os._exit(2)
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def from_first(value: Callable[[], T]) -> T:
    """Return what `value()` gives on process 0, on all processes; it must be JSON. Only process 0 calls it.

    Raises:
      UserError: on all processes, if it does on process 0.
    """
    if jax.process_count() == 1:
        return value()
    answer = {}
    if is_first():
        try:
            answer = {'value': value()}
        except UserError as e:
            answer = {'error': str(e)}
    text = np.frombuffer(json.dumps(answer).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    text = text if is_first() else np.zeros(size, np.uint8)
    answer = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(text)).astype(np.uint8).tobytes())
    if 'error' in answer:
        raise UserError(answer['error'])
    return answer['value']


def is_first() -> bool:
    """Return whether this is the process that writes the logs."""
    return jax.process_index() == 0


def check_agreement(what: dict[str, str]) -> None:
    """Raise UserError on every process if the processes differ in a value; names the first that differs.

    what: name -> value, the same names everywhere. The names are told to the user.
    """
    if jax.process_count() == 1:
        return
    digests = [np.frombuffer(hashlib.sha256(value.encode()).digest(), np.uint8) for value in what.values()]
    everyone = multihost_utils.process_allgather(np.stack(digests))  # [processes, values, 32]
    for i, name in enumerate(what):
        if (everyone[:, i] != everyone[0, i]).any():
            raise UserError(
                f'the {jax.process_count()} processes of this run differ in {name}, here {what[name][:60]}: '
                'start all with the same command, and a workdir that all share'
            )


def barrier(name: str) -> None:
    """Wait until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _join(
    coordinator: str, timeout: int, num_processes: int | None = None, process_id: int | None = None
) -> None:
    # JAX's own timeout ends the process with a stack trace, and cannot be caught: ours comes before it.
    watch = threading.Timer(timeout, _give_up, (coordinator, timeout, process_id))
    watch.daemon = True
    watch.start()
    try:
        jax.distributed.initialize(
            None if coordinator == AUTO else coordinator, num_processes, process_id,
            initialization_timeout=timeout + 60,
            heartbeat_timeout_seconds=max(100, timeout),  # JAX's own, or as long as we wait for a start
        )  # fmt: skip
    except (RuntimeError, ValueError) as e:
        raise FieldError(
            'coordinator', f'={coordinator}: the processes cannot be joined: {one_line(e)}'
        ) from None
    finally:
        watch.cancel()


def _give_up(coordinator: str, timeout: int, process_id: int | None) -> None:
    missing = 'process 0' if process_id else 'another process'
    print(
        f'error: --coordinator={coordinator}: {missing} did not answer within {timeout} s: start all of '
        'them, check address and firewall, or give a longer --distributed_timeout',
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)
