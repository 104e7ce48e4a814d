"""What is made once and kept for later runs: compiled programs and decoded images, outside any run."""

import os
import pathlib


def folder() -> pathlib.Path | None:
    """$GHN_JAX_CACHE, or ~/.cache/ghn_jax; None where the variable is empty: nothing is kept."""
    name = os.environ.get('GHN_JAX_CACHE', str(pathlib.Path.home() / '.cache' / 'ghn_jax'))
    return pathlib.Path(name) if name else None
