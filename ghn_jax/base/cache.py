"""What is made once and kept for later runs: compiled programs and decoded images, outside any run."""

import functools
import os
import pathlib
import sys

from ghn_jax.base import paths


def folder() -> pathlib.Path | None:
    """Return $GHN_JAX_CACHE, or ~/.cache/ghn_jax; None where the variable is empty: nothing is kept.

    Neither is it where the variable is unset and the user has no home directory, as in some containers; one
    line says so, once.

    Raises:
      UserError: the variable holds no local path.
    """
    if (name := os.environ.get('GHN_JAX_CACHE')) is not None:
        return paths.local(name, 'GHN_JAX_CACHE') if name else None
    try:
        return pathlib.Path.home() / '.cache' / 'ghn_jax'
    except RuntimeError:
        _say_homeless()
        return None


@functools.cache  # once for a process
def _say_homeless() -> None:
    print(
        'no home directory: compiled programs and decoded images are not kept; '
        'GHN_JAX_CACHE=DIR says where to',
        file=sys.stderr,
    )
