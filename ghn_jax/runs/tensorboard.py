"""Scalars for TensorBoard, written at once.

tensorboardX's own writer hands events to a process queue and a thread: a flush does not wait for them, so a
killed run lacks the last seconds, and where the disk is full the thread dies and the writer hangs. Its
records and summaries are used here without the thread.
"""

# pyright: reportAttributeAccessIssue=false
# The classes of event_pb2 are made when it is imported.

import re
import socket
import time

from tensorboardX import summary
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import RecordWriter

from ghn_jax.base import files
from ghn_jax.base.paths import Place

_STAMP = re.compile(r'events\.out\.tfevents\.(\d+)\.')


class Events:
    """Writer of one event file; readers forget what older files say of steps from `start_step` + 1 on.

    All of it raises UserError where the file cannot be written.
    """

    def __init__(self, folder: Place, start_step: int = 0):
        self._folder = folder
        with files.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            # Readers go through the files by name, that is by this number: it rises where the clock goes
            # back, and where two runs start within a second.
            found = map(_STAMP.match, files.names(folder))
            stamp = max([int(time.time()), *(int(match[1]) + 1 for match in found if match)])
            name = f'events.out.tfevents.{stamp:010d}.{socket.gethostname()}'
            self._writer = RecordWriter(str(folder / name))
        self._write(event_pb2.Event(file_version='brain.Event:2'))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(event_pb2.Event(session_log=start, step=start_step + 1 if start_step else 0))

    def scalar(self, step: int, name: str, value: float) -> None:
        self._write(event_pb2.Event(summary=summary.scalar(name, value), step=step))

    def flush(self) -> None:
        """Hand everything to the system: a killed process loses nothing of it."""
        with files.writing(self._folder):
            self._writer.flush()

    def close(self) -> None:
        with files.writing(self._folder):
            self._writer.close()

    def _write(self, event: event_pb2.Event) -> None:
        event.wall_time = time.time()
        with files.writing(self._folder):
            self._writer.write(event.SerializeToString())
