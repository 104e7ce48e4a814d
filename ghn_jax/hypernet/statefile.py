"""State dicts of PyTorch in files from somebody else: named arrays, and nothing else in them is believed.

.npz and .safetensors are read without pickle, .pt by `ptloader`, which needs no torch and runs no code. .npz
and .pt are zip archives, and what these say of themselves (entries, sizes, shapes) is compared with the
limits and with each other before anything of that size is made.
"""

import io
import math
import os
import stat
import warnings
import zipfile
from collections.abc import Mapping
from typing import IO, Any

import ml_dtypes
import numpy as np
from safetensors import safe_open

from ghn_jax.base.errors import UserError, one_line, shown
from ghn_jax.hypernet.pickled import load_dumped, load_pickled

MAX_BYTES = 4 * 2**30  # of the file, and of its arrays together; the largest GHN-3 has 2.5 GiB
MAX_ENTRIES = 10_000  # of an archive; the largest GHN-3 has 260
_OLD_TORCH = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # what torch.save began with before version 1.6
_SWELLS = 256 * 2**20  # bytes that an archive may unpack to beyond four times its own


def load_checkpoint(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], Mapping[str, Any] | None]:
    """Read a state dict from a .pt, .npz or .safetensors file.

    Returns:
      (arrays by name, the config that a .pt file has beside them; None without).

    Raises:
      UserError: no such file, a damaged one, or one of something else.
    """
    suffix = os.path.splitext(path)[1]
    if suffix not in ('.npz', '.pt', '.pth', '.safetensors'):
        raise UserError(f'state {path} ends in {suffix!r}: expected .pt, .npz or .safetensors')
    data = _read(path)
    if suffix == '.npz':
        return _load_npz(path, data), None
    if suffix == '.safetensors':
        return _load_safetensors(path), None
    return _load_pt(path, data)


def _read(path: str | os.PathLike) -> bytes:
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):  # a null byte in the path
        regular = False
    if not regular:
        raise UserError(f'state {path} is no file: give the file of a published GHN')
    try:
        with open(path, 'rb') as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as e:
        raise UserError(f'state {path} cannot be read ({e.strerror}): give another file') from None
    if len(data) > MAX_BYTES:
        raise UserError(f'state {path} has more than {MAX_BYTES:,} bytes: give the file of a GHN')
    return data


def _entries(data: bytes) -> list[zipfile.ZipInfo]:
    """List what an archive says it holds; raises ValueError where that is too much, BadZipFile for damage."""
    if (count := data.count(b'PK\x01\x02')) > MAX_ENTRIES:  # each entry of the directory has one
        raise ValueError(f'{count:,} entries, more than {MAX_ENTRIES:,}')
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
    most = min(MAX_BYTES, _SWELLS + 4 * len(data))
    if (size := sum(entry.file_size for entry in entries)) > most:
        raise ValueError(f'{size:,} bytes unpacked, more than {most:,}')
    return entries


def _load_npz(path: str | os.PathLike, data: bytes) -> dict[str, np.ndarray]:
    state = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive, warnings.catch_warnings():
            warnings.simplefilter('ignore')  # about headers as Python 2 wrote them
            for entry in _entries(data):
                name = entry.filename.removesuffix('.npy')
                if name in state:
                    raise ValueError(f'two arrays {shown(name)}')
                with archive.open(entry) as file:
                    _check_header(file, entry.file_size, name)
                with archive.open(entry) as file:
                    state[name] = np.lib.format.read_array(file, allow_pickle=False)
    except Exception as e:  # zip, zlib, header and pickle errors have no common base
        raise UserError(f'state {path} is no .npz file of arrays ({_reason(e)}): give another file') from e
    return state


def _check_header(file: IO[bytes], size: int, name: str) -> None:
    """Raise ValueError unless an entry of `size` bytes holds just the array that its header announces."""
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)
    if version not in read:
        raise ValueError(f'array {shown(name)} is of version {version}')
    shape, _, dtype = read[version](file)
    if dtype.hasobject:
        raise ValueError(f'array {shown(name)} holds objects')
    if math.prod(shape) * dtype.itemsize != size - file.tell():
        raise ValueError(f'array {shown(name)} has not the size that its header says')


def _load_safetensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, 'np') as file:
            return _widened({name: file.get_tensor(name) for name in file.keys()})
    except Exception as e:  # what it raises for damage is no one class
        raise UserError(f'state {path} is no .safetensors file ({_reason(e)}): give another file') from e


def _load_pt(path: str | os.PathLike, data: bytes) -> tuple[dict[str, np.ndarray], Mapping[str, Any] | None]:
    try:
        if data.startswith(b'PK'):
            value = load_pickled(data, _entries(data))
        elif data.startswith(b'\x80') and not data.startswith(_OLD_TORCH):
            value = load_dumped(data)
        else:
            raise UserError(
                f'state {path} is neither a zip archive, as torch.save writes since version 1.6, nor of '
                'joblib: load it and save it with a newer torch, or give a .npz or .safetensors'
            )
        if not isinstance(value, dict):
            raise ValueError(f'it holds a {type(value).__name__}')
        state, config = value.get('state_dict', value), value.get('config')
        if not isinstance(state, dict) or not all(
            isinstance(name, str) and isinstance(w, np.ndarray) for name, w in state.items()
        ):
            raise ValueError('no dict of named tensors')
        if (size := sum(w.nbytes for w in state.values())) > _SWELLS + 4 * len(data):
            raise ValueError(f'tensors of {size:,} bytes')
        return _widened(state), config if isinstance(config, dict) else None
    except UserError:
        raise
    except Exception as e:  # zip, zlib, pickle and numpy errors have no common base
        raise UserError(f'state {path} does not load ({_reason(e)}): give a state dict saved by torch') from e


def _widened(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: w.astype(np.float32) if w.dtype == ml_dtypes.bfloat16 else w for name, w in state.items()}


def _reason(error: Exception) -> str:
    return f'{type(error).__name__}: {one_line(error)}'
