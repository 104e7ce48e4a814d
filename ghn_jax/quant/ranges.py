"""Ranges of tensors: the interval [lo, hi] that a quantizer spreads its levels over.

A range always includes 0, so that zero padding and absent values are exact at every bit-width.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ghn_jax import axes


def min_max(
    x: jax.Array, axis: int | Sequence[int] | None = None, *, across: str | None = None
) -> tuple[jax.Array, jax.Array]:
    """(min(0, min x), max(0, max x)) over `axis` (default: the whole tensor), in the dtype of x.

    No gradient flows through a range. An empty tensor has the range (0, 0). across: a mesh axis whose devices
    each hold a part of the tensor (`ghn_jax.axes`).
    """
    x = jax.lax.stop_gradient(x)
    lo, hi = jnp.min(x, axis=axis, initial=0.0), jnp.max(x, axis=axis, initial=0.0)
    if across is None:
        return lo, hi
    minus_lo, hi = axes.largest(jnp.stack([-lo, hi]), across)
    return -minus_lo, hi
