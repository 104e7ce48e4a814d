"""How a process makes JAX ready: its cache of compiled programs, and its devices."""

from collections.abc import Callable

import jax
from absl import flags

from ghn_jax.base import cache, environment, executables

flags.disclaim_key_flags()  # --help shows them as the flags of the command that defines them


def start(parts_of_cpu: int = 1) -> None:
    """Make JAX ready, once for a process: its cache of programs, and its devices.

    Raises:
      UserError: JAX_PLATFORMS asks for devices that are not there.
    """
    enable_compilation_cache()
    divide_cpu(parts_of_cpu)
    environment.start_devices()


def define_executables() -> Callable[[], None]:
    """Define --executables; what is returned lets programs be loaded from there, once flags are parsed.

    Raises:
      FieldError: it holds no programs.
    """
    folder = flags.DEFINE_string(
        'executables',
        None,
        'Load compiled programs from this folder, which ghn_jax.compile --out wrote for this device.',
    )
    return lambda: executables.read_from(folder.value)


def divide_cpu(parts: int) -> None:
    """Make a CPU so many devices, each with work of its own; to be called before JAX knows its devices.

    Much of a step runs on one core, whatever its size: two devices keep two cores busy, and take twice the
    memory.
    """
    if parts > 1:  # one needs nothing said, and leaves XLA_FLAGS its word
        jax.config.update('jax_num_cpu_devices', parts)


def enable_compilation_cache() -> None:
    """Keep compiled programs on disk, in `cache.folder()`.

    A program takes a minute or more to compile on a CPU, and most runs need the same few.
    """
    if folder := cache.folder():
        executables.drop_torn(folder)
        jax.config.update('jax_compilation_cache_dir', str(folder))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 1.0)
