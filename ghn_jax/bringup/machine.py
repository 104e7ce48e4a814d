"""What there is: versions, devices, memory; and whether a device computes at all."""

import functools
import os
import pathlib
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
import jax.numpy as jnp
import psutil

from ghn_jax.benchmarks import timing

_LIBRARIES = ('ghn-jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'libtpu')
_PLUGINS = ('jax-cuda12-plugin', 'jax-cuda13-plugin', 'jax-rocm7-plugin')
_SIZE = 4096  # of the matrices that are multiplied


def describe() -> dict[str, Any]:
    """Say what this machine is. Memory in bytes."""
    devices = jax.devices()
    return {
        'platform': jax.default_backend(),
        'device': devices[0].device_kind,
        'devices': len(devices),
        'memory': (devices[0].memory_stats() or {}).get('bytes_limit'),  # None where JAX does not know
        'versions': {name: found for name in _LIBRARIES + _PLUGINS if (found := _version(name))},
        'backend': devices[0].client.platform_version,
        'driver': _driver(),
        'python': sys.version.split()[0],
        'system': platform.platform(),
        'cpus': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
        'host_memory': psutil.virtual_memory().total,
        'free_disk': shutil.disk_usage(pathlib.Path.cwd()).free,
        'environment': {
            k: v for k, v in os.environ.items() if k.startswith(('JAX_', 'XLA_', 'LIBTPU_')) and v
        },
        'probe_matmul2048_f32_s': timing.probe(),
    }


def products() -> dict[str, float]:
    """Multiply matrices on the first device: TFLOP/s by type, as a plain program reaches them."""
    size = _SIZE if jax.default_backend() != 'cpu' else _SIZE // 8
    found = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        a = jax.random.normal(jax.random.key(0), (size, size), dtype)
        multiply = jax.jit(lambda a: a @ a)
        seconds = timing.median(functools.partial(multiply, a), repeats=10)
        found[jnp.dtype(dtype).name] = 2 * size**3 / seconds / 1e12
    return found


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _driver() -> str | None:
    if not (command := shutil.which('nvidia-smi')):
        return None
    query = [command, '--query-gpu=name,driver_version,memory.total', '--format=csv,noheader']
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None
