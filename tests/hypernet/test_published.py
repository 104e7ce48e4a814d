import dataclasses
import importlib.util
import json

import jax
import numpy as np
import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.hypernet import load_published
from ghn_jax.hypernet.published import convert_state, load_state, published_state
from tests.hypernet.helpers import SMALL, random_params


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
    [{}, {'ve': False, 'layernorm': False, 'weight_norm': False}, {'hypernet': 'mlp'}],
    ids=['GHN-2', 'GHN-1', 'MLP'],
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
        load_state(tmp_path / name)


def test_pickled_objects_are_not_read(tmp_path):
    np.savez(tmp_path / 'state.npz', a=np.array([{}], object))
    with pytest.raises(UserError, match='no .npz file of arrays'):
        load_state(tmp_path / 'state.npz')


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


@pytest.mark.skipif(importlib.util.find_spec('torch') is not None, reason='torch is installed')
def test_a_pytorch_file_without_torch_says_what_to_do(tmp_path):
    (tmp_path / 'state.pt').write_bytes(b'')
    with pytest.raises(UserError, match='needs torch, which is not installed'):
        load_state(tmp_path / 'state.pt')


def test_a_pytorch_file_holds_the_same(tmp_path, state):
    torch = pytest.importorskip('torch', reason='torch is not installed: .pt files are not tested')
    torch.save(
        {name: torch.from_numpy(np.array(value)) for name, value in state.items()}, tmp_path / 'state.pt'
    )
    jax.tree.map(np.testing.assert_array_equal, load_state(tmp_path / 'state.pt'), state)
