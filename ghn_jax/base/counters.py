"""Clocks and counters: seconds, compilations, memory, and how fast the machine is just now."""

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
_compilations, _hits, _original = [0], [0], [0.0]


@functools.cache  # a second listener would count everything twice
def start_counting() -> None:
    """Counts compilations, and programs found in the persistent cache, from here on."""

    def count(event: str, seconds: float, **kwargs: Any) -> None:
        _compilations[0] += event == _COMPILE_EVENT
        _original[0] += seconds if event in _SAVED_EVENTS else 0

    def count_hit(event: str, **kwargs: Any) -> None:
        _hits[0] += event == _HIT_EVENT

    jax.monitoring.register_event_duration_secs_listener(count)
    jax.monitoring.register_event_listener(count_hit)


def compilations() -> int:
    """Programs compiled, or read from the persistent cache, since `start_counting`."""
    return _compilations[0]


def cache_hits() -> int:
    """Programs read from the persistent cache since `start_counting`."""
    return _hits[0]


def original_compile_seconds() -> float:
    """Seconds that those had taken to compile, altogether."""
    return _original[0]


def row(seconds: Sequence[float], compilations_after_warmup: int, **more: Any) -> dict[str, Any]:
    """Statistics of the seconds each network took, with the peak memory of this process so far (GiB)."""
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
    """Median seconds of a float32 2048 x 2048 numpy product: how fast this machine is just now."""
    a = np.ones((2048, 2048), np.float32)
    times = []
    for _ in range(12):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def machine(probes: Sequence[float]) -> dict[str, Any]:
    """What the figures were taken on. probes: of before and after."""
    return {
        'device': jax.devices()[0].device_kind,
        'platform': jax.default_backend(),
        'cpus': os.cpu_count(),
        'python': platform.python_version(),
        'jax': jax.__version__,
        'probe_matmul2048_f32_s': list(probes),
    }
