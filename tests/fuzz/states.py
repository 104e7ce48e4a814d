"""State files at random: .npz archives that are damaged, that lie about their sizes, or that swell."""

import functools
import io
import random
import struct
import zipfile

import jax
import numpy as np

from ghn_jax.hypernet.ghn import GHNConfig, init_params
from ghn_jax.hypernet.published import published_state

TINY = GHNConfig(hid=4, max_shape=(4, 4, 11, 11))


@functools.cache
def tiny_state() -> dict[str, np.ndarray]:
    """The state dict of a hypernetwork of 8,000 parameters."""
    return published_state(TINY, init_params(TINY, jax.random.key(0)))


def npy(header: bytes, body: bytes, version: bytes = b'\x01\x00') -> bytes:
    """An array file with this header, true or not."""
    size = struct.pack('<H' if version[0] == 1 else '<I', len(header))
    return b'\x93NUMPY' + version + size + header + body


def header(shape: object, descr: object = '<f4', order: object = False) -> bytes:
    return f"{{'descr': {descr!r}, 'fortran_order': {order!r}, 'shape': {shape!r}, }}\n".encode()


@functools.cache
def bomb(mebibytes: int) -> bytes:
    """An archive of one array of zeros that unpacks to so many MiB: a thousandth of it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as archive, archive.open('a.npy', 'w') as file:
        file.write(npy(header((mebibytes * 2**18,)), b''))
        for _ in range(mebibytes):
            file.write(bytes(2**20))
    return out.getvalue()


def archive(rng: random.Random) -> bytes:
    """Mostly the tiny state dict with something wrong."""
    entries = {}
    for name, value in tiny_state().items():
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, value)
        entries[f'{name}.npy'] = buffer.getvalue()
    what, name = rng.randrange(9), rng.choice(list(entries))
    if what == 0:
        del entries[name]
    elif what == 1:
        shape = rng.choice(
            ((10**12,), (2**31, 2**31), (-1,), (-2, -3), (0, 10**30), (1,) * 70, (True,), 3, ())
        )
        entries[name] = npy(header(shape), rng.randbytes(24))
    elif what == 2:
        descr = rng.choice(('|O', '<i4', '<c16', '>f4', '<f2', '|S5', '<U9', [('a', '<f4')], '|V1000000000'))
        value = tiny_state()[name.removesuffix('.npy')]
        entries[name] = npy(header(value.shape, descr), value.tobytes())
    elif what == 3:
        entries[name] = npy(
            b'(' * rng.choice((10, 5000)) + b'\n', b'', rng.choice((b'\1\0', b'\2\0', b'\3\0'))
        )
    elif what == 4:
        fill = rng.choice((np.nan, np.inf, -np.inf, 1e38))
        value = np.full_like(tiny_state()[name.removesuffix('.npy')], fill)
        entries[name] = npy(header(value.shape), value.tobytes())
    elif what == 5:
        entries[rng.choice(('../../out.npy', '/tmp/out.npy', 'x', name + '.npy', 'a' * 5000))] = entries[name]
    elif what == 6:
        at = rng.randrange(len(entries[name]))
        entries[name] = entries[name][:at] + rng.randbytes(4) + entries[name][at + 4 :]
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as file:
        for entry, data in entries.items():
            file.writestr(entry, data)
    data = bytearray(out.getvalue())
    if what == 7:  # sizes of the directory, or of an entry, that are lies
        at = data.find(b'PK\x01\x02', rng.randrange(len(data)))
        at = data.rfind(b'PK\x01\x02') if at < 0 else at
        for field in rng.sample((20, 24, 42), rng.randrange(1, 4)):
            data[at + field : at + field + 4] = struct.pack('<I', rng.choice((0, 1, 2**31, 2**32 - 1, 10**6)))
    return bytes(data)
