"""What is computed on numbers, and not within a function that JAX traces."""

from typing import Any

import jax
from jax.core import Tracer

from ghn_jax.base.errors import UserError


def check_concrete(what: str, arrays: Any, advice: str) -> None:
    """Raise UserError where an array of a pytree has no numbers, as it is an argument that JAX traces."""
    if any(isinstance(array, Tracer) for array in jax.tree.leaves(arrays)):
        raise UserError(f'{what} are traced by JAX (jit, grad, vmap) and have no numbers yet: {advice}')
