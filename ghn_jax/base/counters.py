"""Clocks and counters: seconds, compilations, memory, and how fast the machine is just now."""

import dataclasses
import functools
import os
import platform
import resource
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

_COMPILE_EVENT = '/jax/core/compile/backend_compile_duration'  # of programs from the persistent cache, too
_HIT_EVENT = '/jax/compilation_cache/cache_hits'
# Of a program in the cache: what compiling it took, in whole seconds, less what reading it takes; and that.
_SAVED_EVENTS = (
    '/jax/compilation_cache/compile_time_saved_sec',
    '/jax/compilation_cache/cache_retrieval_time_sec',
)


@dataclasses.dataclass
class _Counts:
    """Of this process. saved_seconds: that compiling took once, of programs read from the cache."""

    compilations: int = 0
    cache_hits: int = 0
    saved_seconds: float = 0.0


_COUNTS = _Counts()


@functools.cache  # a second listener would count everything twice
def start_counting() -> None:
    """Count compilations, and programs found in the persistent cache, from here on."""

    def count(event: str, seconds: float, **kwargs: Any) -> None:
        _COUNTS.compilations += event == _COMPILE_EVENT
        _COUNTS.saved_seconds += seconds if event in _SAVED_EVENTS else 0

    def count_hit(event: str, **kwargs: Any) -> None:
        _COUNTS.cache_hits += event == _HIT_EVENT

    jax.monitoring.register_event_duration_secs_listener(count)
    jax.monitoring.register_event_listener(count_hit)


def compilations() -> int:
    """Return the programs compiled, or read from the persistent cache, since `start_counting`."""
    return _COUNTS.compilations


def cache_hits() -> int:
    """Return the programs read from the persistent cache since `start_counting`."""
    return _COUNTS.cache_hits


def original_compile_seconds() -> float:
    """Return the seconds that those had taken to compile, altogether."""
    return _COUNTS.saved_seconds


def row(seconds: Sequence[float], compilations_after_warmup: int, **more: Any) -> dict[str, Any]:
    """Return statistics of the seconds each network took, with this process's peak memory so far (GiB)."""
    return {
        'networks': len(seconds),
        'mean_s': float(np.mean(seconds)),
        'median_s': float(np.median(seconds)),
        'p95_s': float(np.percentile(seconds, 95)),
        'compilations_after_warmup': compilations_after_warmup,
        'peak_rss_gib': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        **more,
    }


def probe() -> float:
    """Return the median seconds of a float32 2048 x 2048 numpy product: how fast this machine is just now."""
    a = np.ones((2048, 2048), np.float32)
    times = []
    for _ in range(12):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def machine(probes: Sequence[float]) -> dict[str, Any]:
    """Return what the figures were taken on. probes: of before and after."""
    return {
        'device': jax.devices()[0].device_kind,
        'platform': jax.default_backend(),
        'cpus': os.cpu_count(),
        'python': platform.python_version(),
        'jax': jax.__version__,
        'probe_matmul2048_f32_s': list(probes),
    }
