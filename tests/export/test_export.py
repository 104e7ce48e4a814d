"""A file of float numbers, too, has its batch norms folded, and judges each image by itself."""

import dataclasses
import json
import re
import sys
import types

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import ghn_jax
from ghn_jax.export import run_onnx
from ghn_jax.export.export import ExportSpec, export_model, write_export
from ghn_jax.export.quantizing import to_quantized_onnx
from ghn_jax.export.runtime import OPTIONS
from ghn_jax.models.folding import BATCH_NORMS, calibrate
from ghn_jax.models.tracing import trace
from ghn_jax.quant.policy import Policy
from ghn_jax.quant.scheme import QAT
from tests.export.test_onnx import kinds, run
from tests.export.test_stablehlo import Net, drawn, images
from tests.small_run import command

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')


class Data:
    """As many training images as there are images."""

    name, mean, std = 'noise', np.zeros(3), np.ones(3)
    train = types.SimpleNamespace(labels=np.zeros(12))

    def normalized(self, split, count):
        return images()[:count]


HYPERNETWORK: ghn_jax.Hypernetwork = types.SimpleNamespace(  # type: ignore[assignment]
    used=lambda policy: policy, scheme=QAT, step=0, load_data=Data, run=types.SimpleNamespace(params={})
)
FLOAT = ExportSpec(format='onnx', calibration_images=12)


def test_batch_norms_are_gone_from_a_file_in_float():
    model, x = trace(Net(), (1, 16, 16, 3)), images()
    params = drawn(model)
    file = export_model(HYPERNETWORK, model, FLOAT, params=params)
    found, expected = run(file, x), np.asarray(calibrate(model, params, [x]).apply(x))
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
    assert (kinds(file)['Conv'], kinds(file)['Sub'], kinds(file)['Sqrt']) == (2, 0, 0)


@pytest.mark.parametrize('format', ['onnx', 'stablehlo'])
def test_a_file_has_the_statistics_of_the_rounded_network_where_that_is_asked_for(format):
    model, x, policy = trace(Net(), (1, 16, 16, 3)), images(), ghn_jax.parse_bits('w2a8')
    params, logits = drawn(model), {}
    for how in BATCH_NORMS:
        spec = ExportSpec(policy, format, calibration_images=12, batch_norm=how)
        file = export_model(HYPERNETWORK, model, spec, params=params)
        logits[how] = (
            run_onnx(file, x) if format == 'onnx' else jax.export.deserialize(bytearray(file)).call(x)
        )
    network = calibrate(model, params, [x], policy)
    expected = np.asarray(network.apply(x, network.quantizer(policy, QAT)))
    off = {how: np.abs(found - expected).max() / np.abs(expected).max() for how, found in logits.items()}
    assert off['corrected'] < 0.03 and off['calibrated'] > 0.1, off


def test_grids_of_weights_are_those_that_are_asked_for_in_place_of_the_run_s():
    model, x, policy = trace(Net(), (1, 16, 16, 3)), images(), ghn_jax.parse_bits('w4a8')
    params, scheme = drawn(model), {'granularity': 'channel', 'weight_range': 'mse'}
    file = export_model(HYPERNETWORK, model, ExportSpec(policy, 'onnx', 12, scheme=scheme), params=params)
    chosen = dataclasses.replace(QAT, **scheme)
    network = calibrate(model, params, [x], policy, scheme=chosen)
    assert file == to_quantized_onnx(network, network.quantizer(policy, chosen), metadata_of(file))
    assert scheme.items() <= metadata_of(file).items()
    assert file != export_model(HYPERNETWORK, model, ExportSpec(policy, 'onnx', 12), params=params)


OF_FEW_BITS = {
    'w4a8': (ghn_jax.parse_bits('w4a8'), 'calibrated', True),
    'corrected': (ghn_jax.parse_bits('w4a8'), 'corrected', False),
    'w8a8': (ghn_jax.parse_bits('w8a8'), 'calibrated', False),
    'one layer': (Policy(8, 8, rules=(('Conv_0.*', 4, 8),)), 'calibrated', True),
}


@pytest.mark.parametrize('policy, how, said', OF_FEW_BITS.values(), ids=OF_FEW_BITS)
def test_of_few_bits_it_is_said_what_loses_less(policy, how, said, tmp_path):
    model, spec = trace(Net(), (1, 16, 16, 3)), ExportSpec(policy, 'onnx', 12, batch_norm=how)
    lines = write_export(HYPERNETWORK, model, tmp_path / 'net.onnx', spec, params=drawn(model))
    assert ('--bn=corrected loses less' in lines) == said


def test_images_that_fill_no_batch_are_left_out_and_that_is_said(tmp_path):
    class More(Data):
        train = types.SimpleNamespace(labels=np.zeros(70))

        def normalized(self, split, count):
            return np.resize(images(), (count, 16, 16, 3))

    hypernetwork: ghn_jax.Hypernetwork = types.SimpleNamespace(  # type: ignore[assignment]
        **vars(HYPERNETWORK) | {'load_data': More}
    )
    model = trace(Net(), (1, 16, 16, 3))
    for count, left_out in ((12, False), (64, False), (70, True)):
        spec = ExportSpec(format='onnx', calibration_images=count)
        lines = write_export(hypernetwork, model, tmp_path / 'net.onnx', spec, params=drawn(model))
        assert ('statistics are those of 64 calibration images' in lines) == left_out


def metadata_of(file):
    found = {entry.key: entry.value for entry in onnx.load_model_from_string(file).metadata_props}
    return {name: value for name, value in found.items() if name != OPTIONS}


def test_a_convolution_on_an_image_smaller_than_its_kernel_is_one_in_a_file():
    """Here it is computed as a product (`models.small_images`)."""
    head = [nn.Conv(4, (3, 3)), lambda x: x.mean((1, 2)), nn.Dense(10)]
    model, x = trace(nn.Sequential([nn.Conv(4, (3, 3), (8, 8)), *head]), (1, 16, 16, 3)), images()
    params = drawn(model)
    file = export_model(HYPERNETWORK, model, FLOAT, params=params)
    assert kinds(file)['Conv'] == 2
    expected = np.asarray(model.apply(params, x))
    np.testing.assert_allclose(run(file, x), expected, atol=2e-5 * np.abs(expected).max())


def centred(p, x):
    """Of a dependence on the batch that is no batch norm."""
    x = x.mean((1, 2))
    return (x - x.mean(0)) @ p['w']


def test_what_cannot_be_folded_is_fixed_on_the_calibration_images_and_that_is_said(tmp_path):
    params = {'w': jnp.ones((3, 4))}
    model, x = trace(centred, (1, 16, 16, 3), params=params), images()
    said = write_export(HYPERNETWORK, model, tmp_path / 'net.onnx', FLOAT, params=params)
    assert 'fixed as in one batch of the calibration images, for ' in said and 'sums over the images' in said
    file = (tmp_path / 'net.onnx').read_bytes()
    expected = np.asarray(jax.jit(model.apply)(params, x))
    np.testing.assert_allclose(run(file, x), expected, atol=1e-5)
    np.testing.assert_allclose(run(file, x[:2]), expected[:2], atol=1e-5)
    of_integers = ExportSpec(ghn_jax.parse_bits('w8a8'), 'onnx', 12)
    with pytest.raises(ghn_jax.UserError, match='sums over the images and is no part of a batch norm'):
        export_model(HYPERNETWORK, model, of_integers, params=params)


MODULE = """
from flax import linen as nn

class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = True):
        norm = lambda: nn.BatchNorm(use_running_average=not train)
        x = nn.relu(norm()(nn.Conv(16, (3, 3), (2, 2), use_bias=False)(x)))
        x = norm()(nn.max_pool(x + nn.relu(norm()(nn.Conv(16, (3, 3))(x))), (2, 2), (2, 2)))
        return nn.Dense(10)(nn.relu(nn.Conv(32, (3, 3))(x)).mean((1, 2)))

def net():
    return Net()
"""


@pytest.mark.slow
def test_a_network_quantized_after_training_is_the_same_in_both_files(tmp_path, monkeypatch):
    """4 bits inside of 8, one norm that is folded and one that is not; 300 test images of the digits."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'nets_to_quantize', raising=False)
    (tmp_path / 'nets_to_quantize.py').write_text(MODULE)

    def run(module, *flags):
        code, out, error = command(f'ghn_jax.{module}', '--workdir=zoo:digits-bits', *flags)
        assert code == 0, error
        return out

    folder, onnx_file, program = (tmp_path / name for name in ('q', 'net.onnx', 'net.stablehlo'))
    how = '--model=nets_to_quantize:net', '--method=mse', '--bits=w4a4', '--images=128'
    run('quantize', *how, f'--out={folder}')
    run('evaluate', f'--quantized={folder}', '--batch_size=60', f'--json={tmp_path / "scores.json"}')
    said = run('export', f'--quantized={folder}', '--compare=300', f'--out={onnx_file}')
    run('export', f'--quantized={folder}', f'--out={program}')
    theirs, ours, same, _ = map(float, re.findall(r'([\d.]+)%', said))
    (row,) = json.loads((tmp_path / 'scores.json').read_text())['rows']
    assert ours == pytest.approx(row['top1_mean'], abs=0.01)  # printed with two digits
    assert abs(theirs - ours) <= 0.4 and same >= 98  # one image of 300
    x = ghn_jax.load('zoo:digits-bits').load_data().normalized('test', 300)
    exported = jax.export.deserialize(bytearray(program.read_bytes()))
    in_program, in_file = np.asarray(exported.call(x)), run_onnx(onnx_file.read_bytes(), x)
    assert np.mean(in_program.argmax(1) == in_file.argmax(1)) >= 0.98
