"""A pack gives back what was packed, bit for bit; what is no pack is refused in one line."""

import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load, save

from ghn_jax.base import paths
from ghn_jax.base.digests import leaf_name
from ghn_jax.base.errors import UserError
from ghn_jax.runs.pack import read_pack, write_pack


@pytest.fixture
def state():
    """An optimizer's state, with all kinds of types and shapes and numbers."""
    odd = np.array([np.nan, -0.0, np.inf, 1e-45, 3e38], np.float32)
    params = {'a': jnp.ones((3, 5), jnp.bfloat16), 'b': {'odd': odd, 'none': np.zeros((0, 4), np.float32)}}
    return {'params': params, 'opt_state': optax.adam(0.1).init(params), 'flags': np.array([True, False])}


@pytest.mark.parametrize('where', ['disk', 'bucket'])
def test_what_is_read_is_what_was_written_bit_for_bit(request, tmp_path, state, where):
    folder = tmp_path if where == 'disk' else paths.place(request.getfixturevalue('cloud'), 'workdir')
    (folder / 'metrics.jsonl').write_text('{"step": 1}\n{"step": 2}\n')
    (folder / 'lock').write_text('not of the run')
    write_pack(folder / 'file', folder, state, {'step': 2})
    arrays, meta, records = read_pack(folder / 'file')
    leaves = {leaf_name(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(state)}
    assert arrays.keys() == leaves.keys()
    for name, array in arrays.items():
        assert array.dtype == leaves[name].dtype and array.shape == leaves[name].shape
        assert array.tobytes() == leaves[name].tobytes(), name
    assert meta == {'step': 2} and records == {'metrics.jsonl': '{"step": 1}\n{"step": 2}\n'}


def test_floats_of_one_size_take_an_eighth_less_room(tmp_path):
    numbers = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    write_pack(tmp_path / 'file', tmp_path, {'x': numbers}, {})
    assert (tmp_path / 'file').stat().st_size < 7 / 8 * numbers.nbytes < len(gzip.compress(numbers.tobytes()))


def changed(**changes):
    """A pack whose JSON says something else."""

    def change(data: bytes) -> bytes:
        arrays = load(gzip.decompress(data))
        run = json.loads(arrays['run'].tobytes()) | changes
        return gzip.compress(save(arrays | {'run': np.frombuffer(json.dumps(run).encode(), np.uint8)}))

    return change


@pytest.mark.parametrize(
    'damage, message',
    [
        (lambda data: data[:-20], 'ended before'),
        (lambda data: data[:50], 'ended before'),
        (lambda data: b'', 'is no packed run'),
        (lambda data: b'not a pack', 'Not a gzipped file'),
        (lambda data: data[:99] + bytes([data[99] ^ 4]) + data[100:], 'is no packed run'),
        (lambda data: gzip.compress(b'{}' * 100), 'SafetensorError'),
        (lambda data: gzip.compress(save({'x': np.zeros(3)})), 'KeyError: .*run'),
        (changed(format='ghn_jax pack 0'), "format is 'ghn_jax pack 0'"),
        (changed(types={}), 'KeyError'),
        (changed(types={'x': 'float33', 'y': 'int64'}), 'float33'),
        (changed(types={'x': 'object', 'y': 'int64'}), 'is no packed run'),
        (changed(records={'../../x.jsonl': ''}), 'a record of another name'),
        (changed(meta=3), 'TypeError'),
    ],
)
def test_what_is_no_pack_is_refused_in_one_line(tmp_path, damage, message):
    file = tmp_path / 'file'
    write_pack(file, tmp_path, {'x': np.ones(99, np.float32), 'y': np.int64(3)}, {})
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=message) as error:
        read_pack(file)
    assert '\n' not in str(error.value) and str(error.value).startswith(f'unpack={file} is no packed run')


def test_a_file_that_is_none_is_said_so(tmp_path):
    for file in (tmp_path, tmp_path / 'absent'):
        with pytest.raises(UserError, match='there is no such file'):
            read_pack(file)
