"""A profile of steps: the trace as a file to look at, and the operations that took longest."""

import collections
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax

from ghn_jax.base import files
from ghn_jax.bringup.settings import LARGEST

_LONGEST = 15  # operations that are listed


def profile(run: Callable[[], Any], trace: pathlib.Path) -> dict[str, Any]:
    """Run something under JAX's profiler.

    Args:
      run: what is profiled.
      trace: the file that the trace is written to, gzipped, for https://ui.perfetto.dev; it is left out where
        it is larger than `LARGEST`.

    Returns:
      {'trace': its name or why there is none, 'longest': [(operation, calls, milliseconds), ...] of the
      device, or of the threads of a CPU}.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # lines of Python would fill the trace
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            run()
        written = sorted(pathlib.Path(folder).rglob('*'))
        spaces = [path for path in written if path.name.endswith('.xplane.pb')]
        traces = [path for path in written if path.name.endswith('.trace.json.gz')]
        data = traces[0].read_bytes() if traces else b''
        note = trace.name if 0 < len(data) <= LARGEST else f'left out: it has {len(data):,} bytes'
        if note == trace.name:
            files.write(trace, data)
        return {'trace': note, 'longest': longest(str(spaces[0])) if spaces else []}


def longest(path: str) -> list[tuple[str, int, float]]:
    """List the operations of a profile (.xplane.pb) that took longest: (name, calls, milliseconds)."""
    calls: collections.Counter[str] = collections.Counter()
    took: collections.Counter[str] = collections.Counter()
    planes = list(jax.profiler.ProfileData.from_file(path).planes)
    devices = [plane for plane in planes if plane.name.startswith('/device:') and any(plane.lines)]
    for plane in devices or planes:
        for line in plane.lines:
            if devices and line.name in ('Steps', 'XLA Modules', 'Framework Ops', 'Framework Name Scope'):
                continue  # they hold the operations, and would be counted beside them
            for event in line.events:
                calls[event.name] += 1
                took[event.name] += event.duration_ns / 1e6
    return [(name[:80], calls[name], round(ms, 3)) for name, ms in took.most_common(_LONGEST)]
