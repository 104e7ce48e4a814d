"""Files as torch.save writes them, made without torch: a zip archive of a pickle and the tensors' numbers."""

import io
import struct
import zipfile
from typing import Any

import numpy as np

STORAGES = {
    'float32': 'FloatStorage',
    'float64': 'DoubleStorage',
    'int64': 'LongStorage',
    'uint16': 'BFloat16Storage',
}


def torch_file(value: Any, *, pickled: bytes | None = None) -> bytes:
    """The file of a value: dicts, lists, tuples, strings, numbers and arrays, which become tensors.

    pickled: a pickle to put in its place.   uint16 arrays are the bits of bfloat16.
    """
    storages: list[np.ndarray] = []
    pickled = pickled or b'\x80\x02' + _opcodes(value, storages) + b'.'
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', zipfile.ZIP_STORED) as archive:
        archive.writestr('state/data.pkl', pickled)
        archive.writestr('state/byteorder', 'little')
        for key, storage in enumerate(storages):
            archive.writestr(f'state/data/{key}', storage.tobytes())
        archive.writestr('state/version', '3\n')
    return out.getvalue()


def dumped_file(tensors: dict[str, np.ndarray]) -> bytes:
    """The file of a dict of float32 tensors as joblib.dump writes it."""
    entries = b''
    for name, value in tensors.items():
        value = np.ascontiguousarray(value)
        pid = b'(' + _opcodes('storage', []) + b'ctorch\nFloatStorage\n' + _opcodes('0', []) + b'tQ'
        pickles = (b'\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19', b'M\xe9\x03', b'}', pid, _opcodes(['0'], []))
        storage = b''.join(b'\x80\x02' + pickled + b'.' for pickled in pickles)
        storage += struct.pack('<Q', value.size) + value.tobytes()
        numbers = b'ctorch.storage\n_load_from_bytes\n(B' + struct.pack('<I', len(storage)) + storage + b'tR'
        strides = tuple(s // value.itemsize for s in value.strides)
        rest = b''.join(_opcodes(item, []) for item in (0, value.shape, strides, False))
        tensor = b'ctorch._utils\n_rebuild_tensor_v2\n(' + numbers + rest + b'ccollections\nOrderedDict\n)RtR'
        entries += _opcodes(name, []) + tensor
    return b'\x80\x03}(' + entries + b'u.'


def _opcodes(value: Any, storages: list[np.ndarray]) -> bytes:
    encoded = lambda items: b''.join(_opcodes(item, storages) for item in items)
    match value:
        case None:
            return b'N'
        case bool():
            return b'\x88' if value else b'\x89'
        case str():
            data = value.encode()
            return b'X' + struct.pack('<I', len(data)) + data
        case int():
            return b'J' + struct.pack('<i', value)
        case float():
            return b'G' + struct.pack('>d', value)
        case tuple():
            return b'(' + encoded(value) + b't'
        case list():
            return b'](' + encoded(value) + b'e'
        case dict():
            return b'}(' + encoded(part for item in value.items() for part in item) + b'u'
        case np.ndarray():
            if value.size > 1 and not any(value.strides):  # one number, broadcast
                numbers, strides = value[(slice(1),) * value.ndim], value.strides
            else:
                numbers = np.ascontiguousarray(value)
                strides = numbers.strides
            strides = tuple(s // value.itemsize for s in strides)
            storages.append(numbers)
            storage = b'ctorch\n' + STORAGES[value.dtype.name].encode() + b'\n'
            key = str(len(storages) - 1)
            pid = b'(' + _opcodes('storage', storages) + storage + encoded([key, 'cpu', numbers.size]) + b'tQ'
            rest = encoded([0, value.shape, strides, False]) + b'ccollections\nOrderedDict\n)R'
            return b'ctorch._utils\n_rebuild_tensor_v2\n(' + pid + rest + b'tR'
        case _:
            raise TypeError(type(value))
