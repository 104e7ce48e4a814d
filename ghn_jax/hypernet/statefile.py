"""State dicts of PyTorch in files from somebody else: named arrays, and nothing else in them is believed.

.npz files are read without pickle, .pt files with torch's weights_only: neither runs code. Both are zip
archives, and what these say of themselves (entries, sizes, shapes) is compared with the limits and with each
other before anything of that size is made.
"""

import io
import math
import os
import re
import stat
import warnings
import zipfile
from typing import IO

import numpy as np

from ghn_jax.base.errors import UserError, shown

MAX_BYTES = 256 * 2**20  # of the file, and of its arrays together; the published GHN-2 has 9 MiB
MAX_ENTRIES = 10_000  # of an archive; that GHN has 30
_MAX_PICKLE = 4 * 2**20  # bytes: a few hundred for each tensor; it is read by Python, a byte a microsecond


def load_state(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read names and arrays of a state dict from a .npz or .pt file. Raises UserError."""
    suffix = os.path.splitext(path)[1]
    data = _read(path)
    if suffix == '.npz':
        return _load_npz(path, data)
    if suffix in ('.pt', '.pth'):
        return _load_pt(path, data)
    raise UserError(f'state {path} ends in {suffix!r}: expected .npz or .pt')


def _read(path: str | os.PathLike) -> bytes:
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):  # a null byte in the path
        regular = False
    if not regular:
        raise UserError(f'state {path} is no file: give the .npz or .pt file of a published GHN')
    try:
        with open(path, 'rb') as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as e:
        raise UserError(f'state {path} cannot be read ({e.strerror}): give another file') from None
    if len(data) > MAX_BYTES:
        raise UserError(f'state {path} has more than {MAX_BYTES:,} bytes: give the file of a GHN-2')
    return data


def _entries(data: bytes) -> list[zipfile.ZipInfo]:
    """List what an archive says it holds; raises ValueError where that is too much, BadZipFile for damage."""
    if (count := len(re.findall(rb'PK\x01\x02', data))) > MAX_ENTRIES:  # each entry of the directory has one
        raise ValueError(f'{count:,} entries, more than {MAX_ENTRIES:,}')
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
    if (size := sum(entry.file_size for entry in entries)) > MAX_BYTES:
        raise ValueError(f'{size:,} bytes unpacked, more than {MAX_BYTES:,}')
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


def _load_pt(path: str | os.PathLike, data: bytes) -> dict[str, np.ndarray]:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as e:
        raise UserError(
            f'state {path} needs torch, which is not installed: pip install torch, or give a .npz'
        ) from e
    if not data.startswith(b'PK'):
        raise UserError(
            f'state {path} is no zip archive, as torch writes since version 1.6: load and save it with a '
            'newer torch, or give a .npz'
        )
    try:
        pickled = sum(e.file_size for e in _entries(data) if e.filename.endswith('.pkl'))
        if pickled > _MAX_PICKLE:
            raise ValueError(f'{pickled:,} bytes of pickle, more than {_MAX_PICKLE:,}')
        state = torch.load(io.BytesIO(data), map_location='cpu', weights_only=True)
        state = state.get('state_dict', state) if isinstance(state, dict) else None
        if not isinstance(state, dict) or not all(
            isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
        ):
            raise ValueError('no dict of named tensors')
        return {name: value.detach().numpy() for name, value in state.items()}
    except Exception as e:
        raise UserError(f'state {path} does not load ({_reason(e)}): give a state dict saved by torch') from e


def _reason(error: Exception) -> str:
    return f'{type(error).__name__}: {" ".join(str(error).split())[:120]}'
