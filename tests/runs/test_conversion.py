"""A published GHN becomes a run that the other commands read."""

import dataclasses
import importlib.util
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ghn_jax.base.errors import UserError
from ghn_jax.hypernet.ghn import init_params
from ghn_jax.hypernet.predict import predict_weights
from ghn_jax.hypernet.published import published_state
from ghn_jax.networks.files import save_networks
from ghn_jax.runs.run import load_run
from ghn_jax.runs.task import make_space_of
from tests.hypernet.helpers import SMALL, Golden, relative, small_spec
from tests.hypernet.torch_files import torch_file
from tests.small_run import command, is_one_error_line, write_run


@pytest.fixture(scope='module')
def params():
    return init_params(SMALL, jax.random.key(0))


@pytest.fixture
def files(tmp_path, params):
    np.savez(tmp_path / 'state.npz', **published_state(SMALL, params))
    (tmp_path / 'ghn.json').write_text(json.dumps(SMALL.to_dict()))
    return tmp_path


def convert(folder, **changes):
    flags = {
        'state': folder / 'state.npz',
        'config': folder / 'ghn.json',
        'workdir': folder / 'run',
    } | changes
    return command('ghn_jax.convert', *(f'--{k}={v}' for k, v in flags.items()))


def test_a_converted_run_has_the_published_parameters(files, params):
    code, out, err = convert(files)
    assert code == 0, err
    run = load_run(files / 'run')
    jax.tree.map(np.testing.assert_array_equal, run.params, params)
    assert (run.step, run.ghn.config, run.meta['kind']) == (0, SMALL, 'converted')
    assert (run.config.dataset, run.config.image_size, run.config.ghn.hid) == ('cifar10', 32, SMALL.hid)


def test_a_checkpoint_of_torch_needs_no_config(files, params):
    pytest.importorskip('ptloader', reason='ptloader is not installed')
    fields = {key: tuple(v) if key == 'max_shape' else v for key, v in SMALL.to_dict().items()}
    state = published_state(SMALL, params)
    (files / 'state.pt').write_bytes(torch_file({'state_dict': state, 'config': fields}))
    code, out, err = command('ghn_jax.convert', f'--state={files}/state.pt', f'--workdir={files}/run')
    assert code == 0, err
    jax.tree.map(np.testing.assert_array_equal, load_run(files / 'run').params, params)


@pytest.mark.skipif(importlib.util.find_spec('ptloader') is not None, reason='ptloader is installed')
def test_a_file_of_torch_without_ptloader_is_one_line(files):
    (files / 'state.pt').write_bytes(torch_file({}))
    assert is_one_error_line(convert(files, state=files / 'state.pt'), 'need ptloader')


def test_a_ghn3_is_converted_and_predicts(files):
    """A tiny one, whose own words are its shapes."""
    config = dataclasses.replace(SMALL, hypernet='graphormer', layers=2, heads=2, num_classes=12)
    params = init_params(config, jax.random.key(0))
    save_file(published_state(config, params), files / 'ghn3.safetensors')
    flags = f'--state={files}/ghn3.safetensors', f'--workdir={files}/run'
    code, out, err = command('ghn_jax.convert', *flags)
    assert code == 0 and "hypernet='graphormer'" in out, err
    run = load_run(files / 'run')
    assert (run.ghn.config, run.config.ghn.hypernet, run.config.ghn.layers) == (config, 'graphormer', 2)
    jax.tree.map(np.testing.assert_array_equal, run.params, params)
    assert make_space_of(run.config).sample('test', 0, 0).num_classes == 12
    spec = small_spec('conv_3x3', 'skip_connect', n_cells=1, num_classes=12, name='net')
    save_networks(files / 'nets.json', [spec])
    flags = f'--workdir={files}/run', f'--arch={files}/nets.json', f'--out={files}/net.safetensors'
    code, _, err = command('ghn_jax.predict', *flags)
    assert code == 0, err
    written = load_file(files / 'net.safetensors')
    expected = predict_weights(run.ghn, params, spec)
    assert written.keys() == expected.keys()
    for name, w in expected.items():
        np.testing.assert_array_equal(written[name], w)
    save_networks(files / 'ten.json', [small_spec('conv_3x3', 'skip_connect', name='ten')])
    flags = f'--workdir={files}/run', f'--arch={files}/ten.json', f'--out={files}/ten.safetensors'
    assert is_one_error_line(command('ghn_jax.predict', *flags), '10 classes', 'predicts 12')


def test_published_weights_come_out_of_convert_and_predict(golden, tmp_path):
    folder, names = golden / 'open', ['convnets-09', 'deepnets-01']
    code, _, err = convert(tmp_path, state=folder / 'state_dict.npz', config=golden / 'ghn_config.json')
    assert code == 0, err
    archs = {arch['id']: arch for arch in json.loads((folder / 'archs.json').read_text())}
    (tmp_path / 'nets.json').write_text(json.dumps([archs[name] for name in names]))
    flags = f'--workdir={tmp_path / "run"}', f'--arch={tmp_path / "nets.json"}', f'--out={tmp_path}'
    code, _, err = command('ghn_jax.predict', *flags)
    assert code == 0, err
    for name in names:
        written, published = load_file(tmp_path / f'{name}.safetensors'), Golden(golden).arrays(name)
        expected = {
            key.removeprefix('param/'): published[key] for key in published.files if key.startswith('param/')
        }
        assert written.keys() == expected.keys()
        for key in expected:
            assert relative(written[key], expected[key]) < 1e-5, key


def test_a_run_is_not_overwritten(files):
    workdir = write_run(files / 'run', step=7)
    assert is_one_error_line(convert(files), 'holds a run already')
    assert load_run(workdir).step == 7


def test_bad_input_is_one_line_and_leaves_nothing(files, params):
    np.savez(files / 'other.npz', weight=np.zeros(3))
    (files / 'odd.json').write_text(json.dumps(SMALL.to_dict() | {'depth': 3}))
    before = sorted(files.iterdir())
    assert is_one_error_line(convert(files, state=files / 'other.npz'), 'state dict misses')
    assert is_one_error_line(convert(files, state=files / 'absent.npz'), 'absent.npz')
    assert is_one_error_line(convert(files, config=files / 'odd.json'), 'unknown fields depth')
    assert is_one_error_line(convert(files, config=files / 'absent.json'), 'absent.json')
    assert is_one_error_line(convert(files, workdir=files / 'ghn.json'), 'is a file')
    assert is_one_error_line(convert(files, workdir=''), '--workdir is missing')
    assert is_one_error_line(command('ghn_jax.convert'), '--state is missing')
    (files / 'cut.pt').write_bytes(torch_file({'a': np.ones(3)})[:-20])
    (files / 'text.safetensors').write_text('weights')
    if importlib.util.find_spec('ptloader') is not None:
        assert is_one_error_line(convert(files, state=files / 'cut.pt'), 'cut.pt does not load')
    assert is_one_error_line(convert(files, state=files / 'text.safetensors'), 'is no .safetensors file')
    flags = f'--state={files}/state.npz', f'--workdir={files}/run'
    assert is_one_error_line(command('ghn_jax.convert', *flags), '--config is missing: the checkpoint has no')
    (files / 'odd.json').write_text(json.dumps(SMALL.to_dict() | {'num_classes': 100}))
    message = 'class_layer_predictor.1.weight has shape (10, 8, 1, 1), expected (100, 8, 1, 1)'
    assert is_one_error_line(convert(files, config=files / 'odd.json'), message)
    for name in ('cut.pt', 'text.safetensors'):
        (files / name).unlink()
    assert sorted(files.iterdir()) == before


def test_weights_beyond_float32_are_refused(files, params):
    state = published_state(SMALL, params)
    state['ln.bias'] = np.full_like(state['ln.bias'], 1e300, np.float64)
    np.savez(files / 'state.npz', **state)
    with np.errstate(over='ignore'):
        assert is_one_error_line(convert(files), 'float32')
    with pytest.raises(UserError, match='no checkpoint'):
        load_run(files)
