"""Stopping at a signal: what is under way is finished and saved, and the next start goes on from there.

SIGTERM (a preemption notice) or SIGINT (Ctrl-C). While there is something to save, the training loop asks
`Stopping.agreed` after each step. While there is not (before the first step, while a program is compiled
or networks are validated, which may take minutes) the process ends at once. So it does at a second signal; a
checkpoint being written then never gets its name, and the one before stays the newest.

Python runs its signal handlers between two lines of the main thread, which may be minutes inside XLA. So a
thread of ours listens to what the system's handler writes into a pipe (`signal.set_wakeup_fd`).
"""

import contextlib
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ghn_jax.base.cli import EXIT_STOPPED
from ghn_jax.base.errors import Stopped

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SAME = 1.0  # seconds within which signals count as one: launchers send to a process and to its group


class Stopping:
    """Whether a signal has come. Without `listen` none ever does, and all the rest costs nothing."""

    def __init__(self):
        self.asked = False
        self._unsaved = False  # whether the loop has steps that an end at once would lose
        self._first = 0.0
        self._answer: jax.Array | None = None

    def listen(self) -> None:
        """Take the signals over.

        Call it in the main thread, and after `jax.distributed.initialize`, which takes SIGTERM too.
        """
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, lambda *_: None)
        threading.Thread(target=self._watch, args=(reading,), name='signals', daemon=True).start()

    def protect_steps(self) -> None:
        """Let a signal wait, from here on, until the step under way is finished and saved."""
        self._unsaved = True

    def agreed(self) -> bool:
        """Tell whether to stop after the step just begun; every process calls it, and gets the same.

        With several processes, the signal that one received reaches all of them a step later, by a sum on
        their devices that queues behind the step: nobody waits for it.
        """
        if jax.process_count() == 1:
            return self.asked
        answer, self._answer = self._answer, _any_process(self.asked)
        return answer is not None and bool(answer.addressable_data(0))

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Let a signal end the process at once, whatever it is doing, while everything is saved.

        Raises:
          Stopped: one has come before.
        """
        before, self._unsaved = self._unsaved, False
        if self.asked:
            raise Stopped('everything is saved')
        try:
            yield
        finally:
            self._unsaved = before

    def _watch(self, reading: int) -> None:
        while data := os.read(reading, 1):
            if data[0] in _SIGNALS:
                self._received(signal.Signals(data[0]))

    def _received(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if not self.asked:
            self._first, self.asked = now, True
            if not self._unsaved:
                _leave(f'stopped by {number.name}; nothing is lost: start again to go on', EXIT_STOPPED)
            _say(f'{number.name}: the step is finished and saved; a second signal ends at once')
        elif now - self._first > _SAME:
            _leave(f'{number.name} again: ended without saving; the last checkpoint is whole', 128 + number)


def _any_process(asked: bool) -> jax.Array:
    mesh = Mesh(np.array([_first_device(i) for i in range(jax.process_count())]), ('processes',))
    mine = np.array([asked], np.int32)
    flags = jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec('processes')), mine)
    return _largest(NamedSharding(mesh, PartitionSpec()))(flags)


def _first_device(process: int) -> jax.Device:  # pyright: ignore[reportInvalidTypeForm]
    return next(d for d in jax.devices() if d.process_index == process)


@functools.cache  # one function, compiled once
def _largest(replicated: NamedSharding) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda x: x.max(), out_shardings=replicated)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _leave(text: str, code: int) -> None:
    # The main thread may hold the lock of a stream: what it has not written by then is not worth a hang.
    with contextlib.suppress(OSError, ValueError):  # stderr may be closed, or full
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, (text + '\n').encode())
    os._exit(code)
