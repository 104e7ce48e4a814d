"""The state of a training on disk: written whole, and read back to the bit or not at all."""

import io
import json
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax.base import files
from ghn_jax.base.digests import leaf_types
from ghn_jax.base.errors import UserError
from ghn_jax.base.paths import Place

_ABOUT = '__about__'


def write_state(path: Place, state: Any, about: dict[str, Any]) -> None:
    """Write a pytree of arrays, and what is to be said about it, as JSON.

    Raises:
      UserError: it cannot be written.
    """
    arrays: dict[str, Any] = dict(zip(leaf_types(state), jax.device_get(jax.tree.leaves(state)), strict=True))
    data = io.BytesIO()
    arrays[_ABOUT] = np.array(json.dumps(about))
    np.savez(data, **arrays)
    files.write(path, data.getvalue())


def read_state(path: Place, like: Any) -> tuple[Any, dict[str, Any]]:
    """Read what `write_state` has written.

    Args:
      path: of the file.
      like: a pytree of arrays or `jax.ShapeDtypeStruct`, of the shapes and types to be read.

    Returns:
      The pytree, on the device, and what is said about it.

    Raises:
      UserError: it cannot be read, or has other arrays.
    """
    try:
        with files.opened(path) as file, np.load(io.BytesIO(file.read()), allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
        about = json.loads(str(arrays.pop(_ABOUT)))
        for name, leaf in zip(leaf_types(like), jax.tree.leaves(like)):
            if name in arrays and arrays[name].dtype.kind == 'V':  # npz knows no bfloat16
                arrays[name] = arrays[name].view(leaf.dtype)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
        raise UserError(f'{path} cannot be read ({e}): delete it, and that training begins anew') from None
    found = {name: f'{a.dtype}{list(a.shape)}' for name, a in arrays.items()}
    if found != leaf_types(like):
        raise UserError(f'{path} is of another training: delete it, or give another folder')
    leaves = [jnp.asarray(arrays[name]) for name in leaf_types(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves), about
