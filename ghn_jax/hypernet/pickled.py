"""PyTorch's zip files without torch: `ptloader`, and what keeps a hostile file from taking all the time.

Such a file holds a pickle and, as entries of their own, the numbers of its tensors. `ptloader` makes tensors
arrays and knows no other class; objects that are beside them (settings of a training, say) become empty ones
here. It copies containers wherever they are referred to, so ten lists, each ten times in the next, would be
10^10: the pickle is read once before, without its numbers, and counted.
"""

import collections
import io
import pickle
import zipfile
from collections.abc import Iterable
from typing import Any

import ml_dtypes

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
        storage_registry={'BFloat16Storage': ml_dtypes.bfloat16},
        pickle_global_resolver=lambda module, name: _Unread,
    )


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
