"""Counters of this process: programs compiled, or found in the persistent cache."""

import dataclasses
import functools
from typing import Any

import jax

_COMPILE_EVENT = '/jax/core/compile/backend_compile_duration'  # of programs from the persistent cache, too
_HIT_EVENT = '/jax/compilation_cache/cache_hits'
# Of a program in the cache: the whole seconds that compiling it took, less those that reading it takes; and
# the latter.
_SAVED_EVENTS = (
    '/jax/compilation_cache/compile_time_saved_sec',
    '/jax/compilation_cache/cache_retrieval_time_sec',
)


@dataclasses.dataclass
class _Counts:
    """Counts of this process. saved_seconds: what compiling the programs read from the cache once took."""

    compilations: int = 0
    cache_hits: int = 0
    saved_seconds: float = 0.0


_COUNTS = _Counts()


@functools.cache  # a second listener would count everything twice
def start_counting() -> None:
    """Count compilations, and programs found in the persistent cache, from here on."""

    def count(event: str, duration_secs: float, **kwargs: Any) -> None:
        _COUNTS.compilations += event == _COMPILE_EVENT
        _COUNTS.saved_seconds += duration_secs if event in _SAVED_EVENTS else 0

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
