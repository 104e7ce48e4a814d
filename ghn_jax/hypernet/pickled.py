"""PyTorch's files without torch: `ptloader`, and what keeps a hostile file from taking all the time.

Such a file holds a pickle and, as entries of their own, the numbers of its tensors. `ptloader` makes tensors
arrays and knows no other class; objects that are beside them (settings of a training, say) become empty ones
here. It copies containers wherever they are referred to, so ten lists, each ten times in the next, would be
10^10: the pickle is read once before, without its numbers, and counted.

The published GHN-3 are no such files: joblib pickled a dict of tensors, each with its numbers as torch.save
wrote them before version 1.6. `load_dumped` reads these.
"""

import collections
import io
import pickle
import zipfile
from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np

from ghn_jax.base.errors import UserError

_MAX_PICKLE = 4 * 2**20  # bytes: a few hundred for each tensor; it is read by Python, a byte a microsecond
_MAX_VALUES = 10**6  # of a pickle, counted wherever they are referred to


def load_pickled(data: bytes, entries: Iterable[zipfile.ZipInfo]) -> Any:
    """Read what a file of torch.save holds, tensors as arrays.

    data: the file.   entries: of the archive that it is.

    Raises:
      UserError: ptloader is not installed.
      Exception: what the file's damage makes the pickle, zip and array modules raise.
    """
    try:
        import ptloader  # pyright: ignore[reportMissingImports]
    except ImportError as e:
        raise UserError(
            'PyTorch files need ptloader, which is not installed: pip install "ghn-jax[published]", or give '
            'a .npz or .safetensors'
        ) from e
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for entry in entries:
            if entry.filename.endswith('.pkl'):
                if entry.file_size > _MAX_PICKLE:
                    raise ValueError(f'{entry.file_size:,} bytes of pickle, more than {_MAX_PICKLE:,}')
                _count(_Outline(io.BytesIO(archive.read(entry))).load(), {}, set())
    return ptloader.load(
        io.BytesIO(data),
        torchscript_mode='strict',
        storage_registry={'BFloat16Storage': np.dtype(ml_dtypes.bfloat16)},
        pickle_global_resolver=lambda module, name: _Unread,
    )


def load_dumped(data: bytes) -> Any:
    """Read what joblib.dump, or pickle, wrote of tensors in plain containers: tensors as arrays.

    Raises:
      Exception: what the file's damage makes the pickle and array modules raise.
    """
    return _Dumped(io.BytesIO(data)).load()


class _Unread:
    """What objects are read as that are neither tensors nor of Python's own."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass


class _Outline(pickle.Unpickler):
    """A pickle's containers and plain values; runs no code."""

    def find_class(self, module: str, name: str) -> Any:
        return collections.OrderedDict if (module, name) == ('collections', 'OrderedDict') else _Unread

    def persistent_load(self, pid: Any) -> None:
        return None


def _count(value: Any, counts: dict[int, int], within: set[int]) -> int:
    """Count the values in a container; raises ValueError for too many, or for one that holds itself."""
    if not isinstance(value, dict | list | tuple):
        return 1
    if id(value) in counts:
        return counts[id(value)]
    if id(value) in within:
        raise ValueError('a container that holds itself')
    within.add(id(value))
    inside = value.values() if isinstance(value, dict) else value
    total = 1 + sum(_count(item, counts, within) for item in inside)
    within.remove(id(value))
    if total > _MAX_VALUES:
        raise ValueError(f'more than {_MAX_VALUES:,} values')
    counts[id(value)] = total
    return total


_DTYPES = {
    'FloatStorage': np.float32,
    'DoubleStorage': np.float64,
    'HalfStorage': np.float16,
    'BFloat16Storage': ml_dtypes.bfloat16,
    'LongStorage': np.int64,
    'IntStorage': np.int32,
}
_BEFORE = 3  # pickles before that of the object: a magic number, the protocol, the machine


class _Dumped(pickle.Unpickler):
    """A pickle of tensors in plain containers; runs no code of theirs."""

    def find_class(self, module: str, name: str) -> Any:
        return _KNOWN.get((module, name), _Unread)


class _Old(pickle.Unpickler):
    """A pickle within a file of torch.save before version 1.6; what it says of a storage is kept."""

    def find_class(self, module: str, name: str) -> Any:
        return _DTYPES.get(name, _Unread) if module == 'torch' else _Unread

    def persistent_load(self, pid: Any) -> Any:
        return pid


def _storage(data: bytes) -> np.ndarray:
    """Read the numbers of one tensor: pickles one after the other, a count, the numbers."""
    file = io.BytesIO(data)
    for _ in range(_BEFORE):
        _Old(file).load()
    _, dtype, *_ = _Old(file).load()
    _Old(file).load()  # the keys of all storages: one
    count = int.from_bytes(file.read(8), 'little')
    return np.frombuffer(data, dtype, count, file.tell())


def _tensor(storage: np.ndarray, offset: int, shape: Any, strides: Any, *_: Any) -> np.ndarray:
    size = storage.dtype.itemsize
    return np.ndarray(shape, storage.dtype, storage, offset * size, tuple(step * size for step in strides))


_KNOWN = {
    ('collections', 'OrderedDict'): collections.OrderedDict,
    ('torch._utils', '_rebuild_tensor_v2'): _tensor,
    ('torch._utils', '_rebuild_parameter'): lambda tensor, *_: tensor,
    ('torch.storage', '_load_from_bytes'): _storage,
}
