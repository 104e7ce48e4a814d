"""Counters of this process: programs compiled, or found in the persistent cache."""

import functools
from typing import Any

import jax

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
    """Count compilations, and programs found in the persistent cache, from here on."""

    def count(event: str, seconds: float, **kwargs: Any) -> None:
        _compilations[0] += event == _COMPILE_EVENT
        _original[0] += seconds if event in _SAVED_EVENTS else 0

    def count_hit(event: str, **kwargs: Any) -> None:
        _hits[0] += event == _HIT_EVENT

    jax.monitoring.register_event_duration_secs_listener(count)
    jax.monitoring.register_event_listener(count_hit)


def compilations() -> int:
    """Count the programs compiled, or read from the persistent cache, since `start_counting`."""
    return _compilations[0]


def cache_hits() -> int:
    """Count the programs read from the persistent cache since `start_counting`."""
    return _hits[0]


def original_compile_seconds() -> float:
    """Sum the seconds that those had taken to compile."""
    return _original[0]
