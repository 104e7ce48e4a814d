"""A lock in a bucket: an object that its holder renews, since no bucket holds a lock for a process.

It is written on condition that the object is still the generation that was looked at (`if_generation_match`),
so of several processes that write it at once one does. Given up, it is empty. A holder that is gone renews it
no more: who has seen it unchanged for `TTL` seconds, by its own clock, takes it. The clocks of two machines
are never compared. A process of this machine that has ended is seen to have, and not waited for.

A holder that is suspended for longer than `TTL` may write until it notices that its lock was taken, which is
at its next renewal: then it ends, without saving.
"""

import contextlib
import json
import os
import pathlib
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from typing import Any, NoReturn

from ghn_jax.base import buckets
from ghn_jax.base.paths import Place

TTL = 60.0
RENEWAL = 10.0
_LOOK = 2.0  # seconds between two looks at a lock that somebody has
_TIMEOUT = 20.0  # of a renewal


class Taken(Exception):
    """Another process holds the lock; `holder` is what it said of itself."""

    def __init__(self, holder: bytes):
        super().__init__()
        self.holder = holder


class Lease:
    """The lock, once `take` has returned and until it is given up."""

    def __init__(self, path: Place, holder: Mapping[str, Any]):
        """Prepare to take it; nothing is written.

        Args:
          path: of the object.
          holder: what others are told of this process.

        Raises:
          OSError: the storage cannot be used.
        """
        with buckets.system_errors():
            self._path, self._blob = path, buckets.blob(path)
        # The renewals of two processes must never look alike.
        own = {'machine': _machine(), 'lease': uuid.uuid4().hex}
        self._content = (json.dumps({**holder, **own}) + '\n').encode()
        self._generation = 0
        self._given_up = threading.Event()
        self._renewal = threading.Thread(target=self._renew, name='lease', daemon=True)

    def take(self, *, wait: bool = False) -> None:
        """Take the lock, after as long as it takes to tell whether a holder that is named there lives.

        wait: until it is free, however long another process holds it.

        Raises:
          Taken: another process holds it. OSError: the object cannot be written.
        """
        seen, since, said = None, 0.0, False
        while True:
            generation, content = self._look()
            if generation != seen:
                if seen is not None and content and not wait:
                    raise Taken(content)  # it was renewed, or somebody was faster
                seen, since = generation, time.monotonic()
            if not content or _has_ended(content) or time.monotonic() - since >= TTL:
                if self._write(self._content, generation):
                    self._renewal.start()
                    return
                continue
            if not said:
                said = True
                _say(f'{self._path} names a holder: looking for up to {TTL:.0f} s whether it lives')
            time.sleep(min(_LOOK, TTL / 10))

    def give_up(self) -> None:
        """Let others take it. Where they cannot be told, they have to wait for `TTL`."""
        self._given_up.set()
        self._renewal.join()
        with contextlib.suppress(OSError):
            self._write(b'', self._generation, timeout=_TIMEOUT)

    def _renew(self) -> None:
        while not self._given_up.wait(RENEWAL):
            try:
                if self._write(self._content, self._generation, timeout=_TIMEOUT):
                    continue
                generation, content = self._look()
            except OSError:  # the way to the bucket is cut: the next round tries again
                continue
            if content != self._content:  # or a renewal arrived whose answer did not
                _leave(self._path)
            self._generation = generation

    def _look(self) -> tuple[int, bytes]:
        """The object's generation and content; 0 and b'' where there is none."""
        from google.api_core.exceptions import NotFound  # pyright: ignore[reportMissingImports]

        with buckets.system_errors():
            while found := self._blob.bucket.get_blob(self._blob.name):
                with contextlib.suppress(NotFound):  # it is another generation by now
                    return found.generation, found.download_as_bytes()
            return 0, b''

    def _write(self, content: bytes, generation: int, **options: Any) -> bool:
        """Write it in place of this generation; False where that is there no more."""
        from google.api_core.exceptions import PreconditionFailed  # pyright: ignore[reportMissingImports]

        with buckets.system_errors():
            try:
                self._blob.upload_from_string(content, if_generation_match=generation, **options)
            except PreconditionFailed:
                return False
            self._generation = self._blob.generation
            return True


def _machine() -> str:
    """What two processes have in common that can see each other by number; '' where that is unknown."""
    try:
        boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
        return f'{boot} {os.readlink("/proc/self/ns/pid")}'
    except OSError:
        return ''


def _has_ended(content: bytes) -> bool:
    """Whether the holder was a process of this machine that is no more."""
    try:
        holder = json.loads(content)
        if not holder['machine'] or holder['machine'] != _machine():
            return False
        os.kill(int(holder['pid']), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return False


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _leave(path: Place) -> NoReturn:
    _say(f'error: {path} was taken by another process while this one did not run: start again to go on')
    os._exit(2)
