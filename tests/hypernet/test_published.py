import argparse
import dataclasses
import importlib.util
import json

import jax
import joblib
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from ghn_jax.base.errors import UserError
from ghn_jax.hypernet.published import convert_state, load_published, published_state
from ghn_jax.hypernet.statefile import load_checkpoint
from ghn_jax.runs.weight_files import read_safetensors
from tests.hypernet.helpers import SMALL, random_params
from tests.hypernet.torch_files import dumped_file, torch_file

GHN3 = {'hypernet': 'graphormer', 'layers': 2, 'heads': 4}


@pytest.fixture(scope='module')
def state():
    return published_state(SMALL, random_params(SMALL))


@pytest.fixture
def files(tmp_path, state):
    np.savez(tmp_path / 'state.npz', **state)
    fields = {**SMALL.to_dict(), 'torch': '2.0', 'seed': 1}
    (tmp_path / 'config.json').write_text(json.dumps(fields))
    return tmp_path / 'state.npz', tmp_path / 'config.json'


@pytest.mark.parametrize(
    'changes',
    [{}, {'ve': False, 'layernorm': False, 'weight_norm': False}, {'hypernet': 'mlp'}, GHN3],
    ids=['GHN-2', 'GHN-1', 'MLP', 'GHN-3'],
)  # fmt: skip
def test_parameters_survive_the_way_there_and_back(changes):
    config = dataclasses.replace(SMALL, **changes)
    params = random_params(config)
    back = convert_state(config, published_state(config, params))
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_files_are_read_with_their_config(files, state):
    config, params = load_published(*files)
    assert config == SMALL
    jax.tree.map(np.testing.assert_array_equal, params, convert_state(SMALL, state))


def test_the_published_file_has_the_expected_entries_and_nothing_is_lost(golden):
    config, params = load_published(golden / 'open/state_dict.npz', golden / 'ghn_config.json')
    published = np.load(golden / 'open/state_dict.npz')
    back = published_state(config, params)
    assert set(back) == set(published.files)
    for name in published.files:
        np.testing.assert_array_equal(back[name], published[name])


def broken(state, name, value):
    state = {**state, name: value}
    return {key: entry for key, entry in state.items() if entry is not None}


@pytest.mark.parametrize(
    ('name', 'value', 'message'),
    [
        ('gnn.gru.weight_ih', None, r'misses 1 entries \(gnn.gru.weight_ih\)'),
        ('head.weight', np.zeros(3, np.float32), r'unexpected 1 entries \(head.weight\)'),
        ('ln.bias', np.zeros(9, np.float32), r'ln.bias has shape \(9,\), expected \(8,\)'),
        ('ln.bias', np.full(8, np.nan, np.float32), 'ln.bias is not all finite floats'),
        ('ln.bias', np.zeros(8, np.int32), 'ln.bias is not all finite floats'),
    ],
)
def test_a_foreign_state_dict_is_one_clear_error(state, name, value, message):
    with pytest.raises(UserError, match=message) as error:
        convert_state(SMALL, broken(state, name, value))
    assert '\n' not in str(error.value)


def test_a_state_of_another_config_is_refused(state):
    with pytest.raises(UserError, match='misses 4 entries'):
        convert_state(SMALL, {k: v for k, v in state.items() if 'mlp_ve' not in k})
    with pytest.raises(UserError, match='has unexpected 4 entries'):
        convert_state(dataclasses.replace(SMALL, ve=False), state)


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('absent.npz', None, 'is no file'),
        ('state.npz', b'not a zip', 'no .npz file of arrays'),
        ('state.bin', b'', "ends in '.bin'"),
    ],
)
def test_a_bad_state_file_is_one_clear_error(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_checkpoint(tmp_path / name)


def test_safetensors_of_bfloat16_are_read_as_float32(tmp_path):
    save_file(
        {'a': np.arange(3).astype(ml_dtypes.bfloat16), 'b': np.arange(2)}, tmp_path / 'state.safetensors'
    )
    state, _ = load_checkpoint(tmp_path / 'state.safetensors')
    assert state['a'].dtype == np.float32 and state['a'].tolist() == [0, 1, 2]
    assert state['b'].tolist() == [0, 1]


def test_safetensors_of_a_type_that_numpy_has_not_are_one_clear_error(tmp_path):
    path = tmp_path / 'state.safetensors'
    save_file({'a': np.ones(3, ml_dtypes.float8_e4m3fn)}, path)
    for read in (load_checkpoint, lambda path: read_safetensors(path, 'give another')):
        with pytest.raises(UserError, match='is no .?safetensors file .*float8'):
            read(path)


def test_pickled_objects_are_not_read(tmp_path):
    np.savez(tmp_path / 'state.npz', a=np.array([{}], object))
    with pytest.raises(UserError, match='no .npz file of arrays'):
        load_checkpoint(tmp_path / 'state.npz')


@pytest.mark.parametrize(
    ('text', 'message'),
    [(None, 'cannot be read'), ('{', 'is no JSON'), ('[]', 'holds a list'), ('{"hid": 3}', 'hid=3: expected'),
     ('{"hidd": 3}', 'hidd')],
)  # fmt: skip
def test_a_bad_config_file_is_one_clear_error(files, text, message):
    path = files[1]
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        load_published(files[0], path)
    assert str(path) in str(error.value) and '\n' not in str(error.value)


# ---- files of torch


@pytest.fixture(scope='module')
def ptloader():
    return pytest.importorskip('ptloader', reason='ptloader is not installed: .pt files are not tested')


@pytest.fixture(scope='module')
def ghn3():
    config = dataclasses.replace(SMALL, **GHN3)
    params = random_params(config)
    return config, params, published_state(config, params)


@pytest.mark.skipif(importlib.util.find_spec('ptloader') is not None, reason='ptloader is installed')
def test_a_file_of_torch_without_ptloader_says_what_to_do(tmp_path):
    (tmp_path / 'state.pt').write_bytes(torch_file({}))
    with pytest.raises(UserError, match=r'need ptloader, which is not installed: pip install'):
        load_checkpoint(tmp_path / 'state.pt')


def test_a_file_that_torch_wrote_holds_the_same(tmp_path, state, ptloader):
    torch = pytest.importorskip('torch', reason='torch is not installed')
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
    for value in (tensors, {'state_dict': tensors, 'epoch': 3, 'args': argparse.Namespace(lr=0.1)}):
        torch.save(value, tmp_path / 'state.pt')
        jax.tree.map(np.testing.assert_array_equal, load_checkpoint(tmp_path / 'state.pt')[0], state)


def test_a_checkpoint_brings_its_config(tmp_path, state, ptloader):
    """As ppuda saves it, beside the state dict."""
    fields = {**SMALL.to_dict(), 'max_shape': SMALL.max_shape, 'debug_level': 0}
    del fields['layers'], fields['heads'], fields['bits']
    (tmp_path / 'ghn2.pt').write_bytes(torch_file({'state_dict': state, 'config': fields, 'epoch': 300}))
    config, params = load_published(tmp_path / 'ghn2.pt')
    assert config == SMALL
    jax.tree.map(np.testing.assert_array_equal, params, convert_state(SMALL, state))


@pytest.mark.parametrize('moved', ['', 'gnn.0.'], ids=['as published', 'as trained'])
def test_a_ghn3_without_a_config_is_told_by_its_shapes(tmp_path, ghn3, moved):
    config, params, state = ghn3
    tables = ('centrality_embed', 'input_dist')
    state = {(moved + name if name.startswith(tables) else name): w for name, w in state.items()}
    for prefix in ('', 'module.'):
        save_file({prefix + name: w for name, w in state.items()}, tmp_path / 'ghn3.safetensors')
        found, back = load_published(tmp_path / 'ghn3.safetensors')
        assert found == config
        jax.tree.map(np.testing.assert_array_equal, back, params)


def test_a_published_ghn3_is_a_dump_of_joblib(tmp_path, ghn3):
    config, params, state = ghn3
    (tmp_path / 'ghn3.pt').write_bytes(dumped_file(state))
    found, back = load_published(tmp_path / 'ghn3.pt')
    assert found == config
    jax.tree.map(np.testing.assert_array_equal, back, params)
    hostile = dumped_file({'a': np.ones(1, np.float32)}).replace(
        b'torch.storage\n_load_from_bytes', b'os\nmkdir'
    )
    (tmp_path / 'ghn3.pt').write_bytes(hostile)
    with pytest.raises(UserError, match="does not load .AttributeError: '_Unread'"):
        load_checkpoint(tmp_path / 'ghn3.pt')


def test_what_joblib_wrote_with_torch_is_read_without(tmp_path, ghn3):
    torch = pytest.importorskip('torch', reason='torch is not installed')
    tensors = {name: torch.tensor(w) for name, w in ghn3[2].items()}
    joblib.dump(tensors | {'half': torch.ones(3, 2).bfloat16().T}, tmp_path / 'ghn3.pt')
    back, _ = load_checkpoint(tmp_path / 'ghn3.pt')
    np.testing.assert_array_equal(back.pop('half'), np.ones((2, 3)))
    jax.tree.map(np.testing.assert_array_equal, back, ghn3[2])


def test_a_ghn3_that_was_trained_brings_a_config_with_the_words_of_ghn2(tmp_path, ghn3, ptloader):
    config, params, state = ghn3
    fields = {
        'max_shape': config.max_shape, 'num_classes': 10, 'hypernet': 'gatedgnn', 'decoder': 'conv', 'hid': 8,
        'weight_norm': True, 've': True, 'layernorm': True, 'layers': 2, 'heads': 4, 'is_ghn2': False,
    }  # fmt: skip
    (tmp_path / 'c.pt').write_bytes(torch_file({'state_dict': state, 'config': fields}))
    found, back = load_published(tmp_path / 'c.pt')
    assert found == config
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_a_ghn2_whose_decoder_is_of_linear_layers_is_the_same(state):
    """As ghn3 saves its GHN-2."""
    linear = {name: w[..., 0, 0] if w.ndim == 4 else w for name, w in state.items()}
    jax.tree.map(np.testing.assert_array_equal, convert_state(SMALL, linear), convert_state(SMALL, state))


def test_bfloat16_becomes_float32(tmp_path, ptloader):
    (tmp_path / 'state.pt').write_bytes(torch_file({'a': np.array([0x3FC0, 0xC000], np.uint16)}))
    a = load_checkpoint(tmp_path / 'state.pt')[0]['a']
    assert a.dtype == np.float32 and a.tolist() == [1.5, -2]


def laughs(levels: int) -> bytes:
    """A pickle of lists, each with the one before ten times."""
    inner = b'(' + b'h\x00' * 10
    return (
        b'\x80\x02]q\x00' + b''.join(b'](' + b'h\x00' * 10 + b'eq\x00' for _ in range(levels)) + inner + b't.'
    )


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (b'', 'is neither a zip archive'),
        (b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.', 'is neither a zip archive'),
        (b'\x80\x02]q\x00.', 'it holds a list'),
        (dumped_file({'a': np.ones(3, np.float32)})[:-9], 'does not load'),
        (b'PK and more', 'does not load .*zip'),
        (torch_file({'a': np.ones(3)})[:-30], 'does not load .*zip'),
        (torch_file([np.ones(3)]), 'it holds a list'),
        (torch_file({'a': 'word'}), 'no dict of named tensors'),
        (torch_file({1: np.ones(3)}), 'no dict of named tensors'),
        (torch_file({}, pickled=b'\x80\x02cos\nmkdir\n(X\x04\x00\x00\x00madetR.'), 'it holds a _Unread'),
        (torch_file({}, pickled=b'\x80\x02}q\x00(K\x01h\x00u.'), 'a container that holds itself'),
        (torch_file({}, pickled=laughs(30)), 'more than 1,000,000 values'),
        (torch_file({}, pickled=b'\x80\x02' + b'](' * 10**5 + b'e' * 10**5 + b'.'), 'RecursionError'),
    ],
)  # fmt: skip
def test_a_bad_file_of_torch_is_one_clear_error(tmp_path, monkeypatch, ptloader, data, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'state.pt').write_bytes(data)
    with pytest.raises(UserError, match=message) as error:
        load_checkpoint(tmp_path / 'state.pt')
    assert '\n' not in str(error.value) and not (tmp_path / 'made').exists()


def test_a_tensor_is_no_larger_than_its_numbers(tmp_path, ptloader):
    """A stride of 0 makes gigabytes of one number."""
    (tmp_path / 'state.pt').write_bytes(torch_file({'a': np.broadcast_to(np.float32(1), (2**30,))}))
    with pytest.raises(UserError, match='tensors of 4,294,967,296 bytes'):
        load_checkpoint(tmp_path / 'state.pt')


def test_a_checkpoint_without_a_config_says_so(tmp_path, state, ghn3):
    save_file(state, tmp_path / 'ghn2.safetensors')
    with pytest.raises(UserError, match='config_file is missing: the checkpoint has no config of its own'):
        load_published(tmp_path / 'ghn2.safetensors')
    part = {name: w for name, w in ghn3[2].items() if name != 'bias_class.1.weight'}
    save_file(part, tmp_path / 'part.safetensors')
    with pytest.raises(UserError, match="like that of a GHN-3, but lacks 'bias_class.1.weight'"):
        load_published(tmp_path / 'part.safetensors')
    (tmp_path / 'no.safetensors').write_bytes(b'weights')
    with pytest.raises(UserError, match='is no .safetensors file'):
        load_published(tmp_path / 'no.safetensors')
