"""A run in one small file, to go on with elsewhere: its newest state, and its records.

A pack is a safetensors file under gzip. Every array is stored as the first bytes of all its numbers, then
the second bytes, and so on: exponents are alike and compress well. The array `run` is JSON: what
the checkpoint says about itself, types of the arrays, and the text of the directory's .jsonl files.
"""

import gzip
import json
import os
import re
import zlib
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
from safetensors.numpy import load, save

from ghn_jax.base import files, paths
from ghn_jax.base.digests import leaf_name
from ghn_jax.base.errors import FieldError, one_line, shown

MAX_BYTES = 2**30
"""Of a pack when it is read, before and after decompression."""
_FORMAT = 'ghn_jax pack 1'  # counts up when an old pack can no longer be read
_RUN = 'run'
_RECORDS = re.compile(r'[a-z_]+\.jsonl')


class Pack(NamedTuple):
    """What a pack holds.

    Attributes:
      arrays: of the state, by the names that `digests.leaf_types` gives.
      meta: of `run.run_meta`.
      records: text of the .jsonl files of the run directory, by their names.
    """

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]
    records: dict[str, str]


def write_pack(path: str | os.PathLike, workdir: str | os.PathLike, state: Any, meta: dict[str, Any]) -> None:
    """Write a run into one file, which replaces the one there is when all of it is on the disk.

    Args:
      path: of the file.
      workdir: the run directory, whose .jsonl files are packed as they are.
      state: a pytree of arrays.
      meta: what its checkpoint says about itself, as JSON.

    Raises:
      UserError: the file cannot be written; what stood there stays.
    """
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(state))
    arrays = {leaf_name(path): np.asarray(leaf) for path, leaf in leaves}
    run = {
        'format': _FORMAT,
        'meta': meta,
        'types': {name: str(array.dtype) for name, array in arrays.items()},
        'records': {
            file.name: file.read_text() for file in sorted(paths.place(workdir, 'workdir').glob('*.jsonl'))
        },
    }
    planes = {name: _planes(array) for name, array in arrays.items()}
    planes[_RUN] = np.frombuffer(json.dumps(run).encode(), np.uint8)
    files.write(path, gzip.compress(save(planes), compresslevel=6, mtime=0))


def read_pack(path: str | os.PathLike) -> Pack:
    """Read what `write_pack` wrote.

    Raises:
      FieldError: of the field `unpack`: no such file, or one that is no pack, damaged, or of another version.
    """
    path = paths.place(path, 'unpack')

    def refuse(reason: object) -> FieldError:
        advice = 'give a file that a training has packed'
        return FieldError('unpack', f'={path} is no packed run ({reason}): {advice}')

    try:
        if not files.is_file(path):
            raise FieldError('unpack', f'={path}: there is no such file')
        with files.opened(path) as packed, gzip.open(packed) as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error, ValueError) as e:
        if isinstance(e, FieldError):
            raise
        raise refuse(one_line(e)) from None
    if len(data) > MAX_BYTES:
        raise refuse(f'it has more than {MAX_BYTES:,} bytes')
    try:
        planes = load(data)
        run = json.loads(planes.pop(_RUN).tobytes())
        if run['format'] != _FORMAT:
            raise refuse(f'its format is {shown(run["format"])}, this version reads {_FORMAT!r}')
        if any(not _RECORDS.fullmatch(name) for name in run['records']):
            raise ValueError('a record of another name')
        arrays = {name: _array(planes[name], run['types'][name]) for name in planes}
        return Pack(arrays, dict(run['meta']), {name: str(text) for name, text in run['records'].items()})
    except FieldError:
        raise
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError, AttributeError) as e:
        raise refuse(f'{type(e).__name__}: {shown(str(e))}') from None


def _planes(array: np.ndarray) -> np.ndarray:
    """The bytes of an array [...] as uint8 [bytes of a number, ...]."""
    each = np.ascontiguousarray(array).reshape(*array.shape, 1).view(np.uint8)
    return np.ascontiguousarray(np.moveaxis(each, -1, 0))


def _array(planes: np.ndarray, dtype: str) -> np.ndarray:
    """What `_planes` was made of."""
    each = np.ascontiguousarray(np.moveaxis(planes, 0, -1))
    return each.view(np.dtype(dtype)).reshape(planes.shape[1:])
