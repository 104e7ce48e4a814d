"""Seconds as figures: statistics of what was timed, and how fast the machine is just now."""

import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np


def row(seconds: Sequence[float], compilations_after_warmup: int, **more: Any) -> dict[str, Any]:
    """Give statistics of the seconds each network took, and the peak memory of this process so far (GiB).

    Args:
      seconds: of each network.
      compilations_after_warmup: how many there were while these were timed.
      more: figures to add.
    """
    return {
        'networks': len(seconds),
        'mean_s': float(np.mean(seconds)),
        'median_s': float(np.median(seconds)),
        'p95_s': float(np.percentile(seconds, 95)),
        'compilations_after_warmup': compilations_after_warmup,
        'peak_rss_gib': peak_rss() / 2**30,
        **more,
    }


def peak_rss() -> int:
    """Give the most memory that this process has had so far, in bytes."""
    unit = 1 if sys.platform == 'darwin' else 1024  # of what the system counts in
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def median(run: Callable[[], Any], repeats: int) -> float:
    """Give the median seconds of `run`, its arrays awaited, after a call that warms up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def probe() -> float:
    """Give the median seconds of a float32 2048 x 2048 numpy product: how fast this machine is just now."""
    a = np.ones((2048, 2048), np.float32)
    return median(lambda: np.matmul(a, a), repeats=12)


def machine(probes: Sequence[float]) -> dict[str, Any]:
    """Describe what the figures were taken on. probes: of before and after."""
    return {
        'device': jax.devices()[0].device_kind,
        'platform': jax.default_backend(),
        'cpus': os.cpu_count(),
        'python': platform.python_version(),
        'jax': jax.__version__,
        'probe_matmul2048_f32_s': list(probes),
    }
