"""What tells one state from another: names, types and digests of its arrays."""

import json
import os
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax.base.errors import UserError


def leaf_types(tree: Any) -> dict[str, str]:
    """Return the type of every array of the tree by its name: 'params/decoder/kernel' -> 'float32[3, 4]'."""
    out = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        shape, dtype = tuple(leaf.shape), leaf.dtype
        if jnp.issubdtype(dtype, jax.dtypes.prng_key):  # saved as its data
            data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(shape, dtype))
            shape, dtype = data.shape, data.dtype
        out[leaf_name(path)] = f'{np.dtype(dtype)}{list(shape)}'
    return out


def array_digests(state: Any) -> dict[str, int]:
    """Return a digest of every array of a state, by the names that `leaf_types` gives."""
    out = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            leaf = leaf.addressable_data(0)  # replicated: every process has all of it
        data = np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
        out[leaf_name(path)] = zlib.crc32(data.data)
    return out


def json_digest(value: Any) -> int:
    """Return a digest of a JSON value, whatever the order of its keys."""
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def check_arrays(state: Any, saved: dict[str, int] | None) -> None:
    """Raise ValueError unless the arrays have these digests. None: there are none to compare with."""
    if saved is None:
        return
    for name, digest in array_digests(state).items():
        if saved.get(name) != digest:
            raise ValueError(f'{name} is not what was written')


def check_types(saved: Any, wanted: Any, where: str | os.PathLike) -> None:
    """Raise UserError unless two trees have arrays of the same names, shapes and types.

    Orbax raises for another shape or structure, in many lines, and casts another dtype silently.
    """
    saved, wanted = leaf_types(saved), leaf_types(wanted)
    for name in sorted(saved.keys() | wanted.keys()):
        if saved.get(name) != wanted.get(name):
            raise UserError(
                f'{where}: {name} is {saved.get(name, "absent")}, expected {wanted.get(name, "none")}: the '
                'config is not the one it was trained with; give that config or another workdir'
            )


def leaf_name(path: Any) -> str:
    """Return the name of a leaf by its path in the tree: 'params/decoder/kernel'."""
    return jax.tree_util.keystr(path, simple=True, separator='/')
