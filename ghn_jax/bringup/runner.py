"""Runs parts one after another, each in a process of its own with a time limit: none stops the next.

A part writes all that it has found into a file, as often as it likes. If it fails or is ended, what it wrote
last counts.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, BinaryIO

GRACE = 5.0  # seconds from being asked to end to being ended
_POLL = 0.1  # seconds between two looks at a process
_TAIL = 2000  # bytes of what a part has said that are searched for its error

DONE, FAILED, LATE, SKIPPED = 'done', 'failed', 'out of time', 'no time left'

Record = dict[str, Any]
"""Of a part: 'part', 'status', 'seconds', 'limit_s', 'error' (None unless it failed), 'result'."""


class Ended(Exception):
    """The parts were told to end before they were done; none of their processes is left."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One process.

    Attributes:
      name: its name.
      weight: its share of the time, beside those of the others.
      command: returns the words of its command, given a time limit in seconds and the path of its result.
      environment: variables that are set for it.
    """

    name: str
    weight: float
    command: Callable[[float, pathlib.Path], Sequence[str]]
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


def run_parts(
    parts: Iterable[Part],
    *,
    seconds: float,
    folder: pathlib.Path,
    log: pathlib.Path,
    record: Callable[[Sequence[Record]], None],
    least: float = 0.0,
    ended: Callable[[], bool] = lambda: False,
) -> list[Record]:
    """Run the parts. What one leaves of its time, the later ones share.

    Args:
      parts: in their order.
      seconds: for all of them.
      folder: that their results are written to, as NAME.json.
      log: a file that all they say is added to.
      record: called with the records so far whenever a part has begun, written a result, or ended.
      least: seconds that each part may have while there are any left.
      ended: whether to end now; asked several times a second.

    Returns:
      a record of each part.

    Raises:
      Ended: as `ended` said.
    """
    end = time.monotonic() + seconds
    parts, records = list(parts), []
    folder.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    for i, part in enumerate(parts):
        share = part.weight / sum(p.weight for p in parts[i:])
        left = max(0.0, end - time.monotonic())
        limit = min(left, max(share * left, least))
        records.append(_run(part, limit, folder, log, lambda now: record([*records, now]), ended))
        record(records)
    return records


def _run(
    part: Part,
    limit: float,
    folder: pathlib.Path,
    log: pathlib.Path,
    changed: Callable[[Record], None],
    ended: Callable[[], bool],
) -> Record:
    path = folder / f'{part.name}.json'
    path.unlink(missing_ok=True)
    about: Record = {'part': part.name, 'status': SKIPPED, 'seconds': 0.0, 'limit_s': round(limit, 1)}
    if limit < 1:
        return about | {'error': None, 'result': None}
    start = time.monotonic()
    changed(about | {'status': 'running', 'error': None, 'result': None})
    with open(log, 'ab') as file:
        file.write(f'== {part.name}\n'.encode())
        file.flush()
        begins = file.tell()
        try:
            status, code = _wait(part, limit, path, file, lambda: changed(_now(about, start, path)), ended)
        except OSError as e:  # the command is not there
            return about | {'status': FAILED, 'error': str(e), 'result': None}
    error = _error(log, begins, code) if status == FAILED else None  # what was ended has not said why
    return about | {
        'status': status, 'seconds': round(time.monotonic() - start, 2), 'error': error,
        'result': _result(path),
    }  # fmt: skip


def _now(about: Record, start: float, path: pathlib.Path) -> Record:
    seconds = round(time.monotonic() - start, 2)
    return about | {'status': 'running', 'seconds': seconds, 'error': None, 'result': _result(path)}


def _wait(
    part: Part,
    limit: float,
    path: pathlib.Path,
    log: BinaryIO,
    changed: Callable[[], None],
    ended: Callable[[], bool],
) -> tuple[str, int]:
    """Run the process to its end or its limit; return how it ended, and its exit code."""
    end = time.monotonic() + limit
    process = subprocess.Popen(
        list(part.command(limit, path)), env={**os.environ, **part.environment}, stdin=subprocess.DEVNULL,
        stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    seen = None
    try:
        while process.poll() is None and time.monotonic() < end:
            time.sleep(_POLL)
            if ended():
                raise Ended
            if (found := _changed_at(path)) != seen:
                seen = found
                changed()
        if process.poll() is not None:
            return (FAILED if process.returncode else DONE), process.returncode
        _signal(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        return LATE, 0
    finally:  # with all that it has started
        _signal(process, signal.SIGKILL)
        process.wait()


def _signal(process: subprocess.Popen, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _changed_at(path: pathlib.Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _result(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return None


def _error(log: pathlib.Path, begins: int, code: int) -> str | None:
    """The last line that a part has said, and by which signal it was ended, if by one."""
    with open(log, 'rb') as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(begins, end - _TAIL))
        lines = file.read().decode(errors='replace').split('\n')
    said = next((line.strip() for line in reversed(lines) if line.strip()), '')[:500]
    if code < 0:
        return ': '.join(filter(None, (f'ended by {signal.Signals(-code).name}', said)))
    return said or (f'exit code {code}' if code else None)
