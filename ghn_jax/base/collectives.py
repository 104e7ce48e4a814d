"""Mesh axes inside a compiled step: reductions over them, which do nothing where there is none.

A function that takes `axis` runs on one device where it is None. Else it runs on each device of a mesh (under
`jax.shard_map`), with that device's share of the data, and all devices of the axis call it together.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.flatten_util import ravel_pytree


class Axes(NamedTuple):
    """The mesh axes that a step is spread over. images: None where a network's images lie on one device."""

    networks: str
    images: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The axes that there are."""
        return tuple(name for name in self if name is not None)


def size(axis: str | None) -> int:
    """Return the number of devices along the axis."""
    return 1 if axis is None else lax.axis_size(axis)


def mean(x: Array, axis: str | None) -> Array:
    """Return the mean of every device's x, of one shape."""
    return x if axis is None else lax.pmean(x, axis)


def total(tree: Any, axes: str | tuple[str, ...] | None) -> Any:
    """Return the sum of every device's arrays, in one all-reduce of one vector."""
    if axes is None:
        return tree
    # XLA keeps an all-reduce for each array on some backends: dozens of latencies in place of one.
    flat, unravel = ravel_pytree(tree)
    return unravel(lax.psum(flat, axes))


def largest(x: Array, axis: str | None) -> Array:
    """Return the maximum over every device's x, of one shape. It has no gradient."""
    return x if axis is None else lax.pmax(x, axis)


def everywhere(ok: Array, axis: str | None) -> Array:
    """Return whether `ok` (bool) holds on every device."""
    return ok if axis is None else lax.pmin(ok.astype(jnp.int32), axis) > 0


def counted_once(x: Array, axis: str | None) -> Array:
    """Return x, the same on every device, made ready for a sum over the devices: zeros on all but one."""
    return x if axis is None else jnp.where(lax.axis_index(axis) == 0, x, 0)


def own_rows(x: Array, axis: str | None) -> Array:
    """Return this device's share of the rows of x, which every device has whole."""
    if axis is None:
        return x
    n = x.shape[0] // size(axis)
    return lax.dynamic_slice_in_dim(x, lax.axis_index(axis) * n, n)


def all_rows(x: Array, axis: str | None) -> Array:
    """Return this device's rows in their places among those of all, made ready for a sum over the devices."""
    if axis is None:
        return x
    rows = jnp.zeros((x.shape[0] * size(axis), *x.shape[1:]), x.dtype)
    return lax.dynamic_update_slice_in_dim(rows, x, lax.axis_index(axis) * x.shape[0], 0)


def own_key(key: Array | None, axis: str | None) -> Array | None:
    """Return a random key that differs from device to device; the key itself where there is one device."""
    return key if axis is None or key is None else jax.random.fold_in(key, lax.axis_index(axis))
