"""Networks of the digits in onnxruntime, beside the calibrated evaluation and our integer arithmetic."""

import functools

import jax
import numpy as np
import pytest

import ghn_jax
from ghn_jax.cnn.building import build_program
from ghn_jax.cnn.deploy import calibration, integer, observer
from ghn_jax.cnn.deploy.observer import RowMoments
from ghn_jax.cnn.instructions import Norm
from ghn_jax.cnn.reference import observe_reference
from ghn_jax.cnn.tables import RunnableNetwork
from ghn_jax.export import run_onnx, to_quantized_onnx
from ghn_jax.export.integers import to_integers
from ghn_jax.export.quantizing import marked
from ghn_jax.export.runtime_comparison import compare
from ghn_jax.models.folding import calibrate
from ghn_jax.models.tracing import trace
from ghn_jax.quant.policy import Policy
from tests.small_run import command

pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytestmark = pytest.mark.slow
BITS = {'w8a8': 0.99, 'w4a8': 0.99, 'w2a2': 0.98}


@pytest.fixture(scope='module')
def hypernetwork():
    return ghn_jax.load('zoo:digits-bits')


def written(hypernetwork, spec, policy, batches):
    """A network calibrated on batches of images, by our evaluation and as a file."""
    model = trace(spec, (1, 16, 16, 3))
    params, scheme = hypernetwork.predict(model, policy), hypernetwork.scheme
    calibrated = calibrate(model, params, batches, policy, scheme=scheme)
    quantizer = calibrated.quantizer(policy, scheme)
    file = to_quantized_onnx(calibrated, quantizer)
    return params, calibrated, quantizer, file


@pytest.mark.parametrize('bits', BITS)
@pytest.mark.parametrize('number', [0, 1])
def test_on_1000_images_onnxruntime_is_as_good_as_the_calibrated_evaluation(hypernetwork, bits, number):
    spec, data = hypernetwork.space.sample('test', 0, number), hypernetwork.load_data()
    policy = hypernetwork.used(ghn_jax.parse_bits(bits))
    batches = np.split(data.normalized('train', 256), 4)
    _, calibrated, quantizer, file = written(hypernetwork, spec, policy, batches)
    apply = functools.partial(jax.jit(lambda arrays, x: arrays.apply(x, quantizer)), calibrated)
    found = compare(file, apply, data, 1000)
    assert found.images == {'test': 300, 'val': 300, 'train': 400}
    assert abs(found.top1[0] - found.top1[1]) <= 0.003 and found.agreement >= BITS[bits], found


@pytest.mark.parametrize('number, most', [(0, 1.1), (1, 2.1)])
def test_integer_arithmetic_and_onnxruntime_agree_to_levels_of_the_logits(hypernetwork, number, most):
    """W8/A8, 256 test images; a level is a 255th of the range of the logits.

    Our arithmetic is the evaluation, whose biases are no integers. Those of the file are, which is all that
    onnxruntime is off by: 1.02 and 2.03 levels at most.
    """
    spec, data, policy = hypernetwork.space.sample('test', 0, number), hypernetwork.load_data(), Policy(8, 8)
    images = data.normalized('train', 256)
    params, calibrated, quantizer, file = written(hypernetwork, spec, policy, [images])
    x = data.normalized('test', 256)
    theirs, evaluated = run_onnx(file, x), np.asarray(calibrated.apply(x, quantizer))
    ours = integer_logits(spec, params, calibrated, policy, images, data, hypernetwork.scheme)
    level = (max(theirs.max(), 0) - min(theirs.min(), 0)) / 255
    levels = np.abs(theirs - ours) / level
    print(f'off by {levels.max():.2f} levels at most, {np.mean(levels > 1):.2%} by more than one')
    assert levels.max() <= most and np.mean(levels > 1) < 0.03
    assert np.mean(theirs.argmax(1) == ours.argmax(1)) >= 0.99
    off = np.abs(ours - evaluated) / level  # of an image with a value on the border of two levels: up to one
    assert off.max() <= 1 and np.mean(off > 0.5) < 0.01
    here = np.asarray(marked(calibrated, to_integers(calibrated, quantizer))(x))
    assert np.abs(theirs - here).max() <= 0.5 * level


def integer_logits(spec, params, calibrated, policy, images, data, scheme):
    """Logits by our integer arithmetic, with the statistics and ranges that a calibrated model has."""
    program = build_program([spec], image_size=16, max_params=1e6)
    layout, capacity = program.layout(spec), program.capacity
    named = {name: np.asarray(value) for name, value in params.items()}
    statistics, _ = observe_reference(spec, named, images)
    width = max(len(value) for value in named.values() if value.ndim == 1)
    moments = RowMoments(np.zeros((capacity.rows, width)), np.ones((capacity.rows, width)))
    for r, instruction in enumerate(layout.instructions):
        if instruction.op == Norm() and spec.norm:
            norm = instruction.pieces[0].name
            assert norm is not None
            for field, values in zip(moments, statistics[norm.removesuffix('.weight')]):
                field[r, : len(values)] = values
    lo, hi = np.zeros((2, capacity.tensors), np.float32)
    for name, pair in calibrated.ranges.items():
        lo[layout.tensors[name]], hi[layout.tensors[name]] = pair
    flat, _ = calibration.fold(layout, program.pack(layout, named), moments)
    ranges = observer.make_ranges(observer.make_index(program, layout), lo, hi)
    network = RunnableNetwork(flat, layout.tables, program.bits(layout, policy), ranges)
    found = integer.logits(
        program, spec, layout, network, data.test.images[:256], data.mean, data.std, scheme=scheme
    )
    return found.real


MODULE = """
from flax import linen as nn

class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = True):
        for width in (16, 32):
            x = nn.Conv(width, (3, 3), strides=(2, 2), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(10)(x.mean((1, 2)))

def net():
    return Net()
"""


def test_the_command_writes_a_model_and_compares_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'nets_of_integers.py').write_text(MODULE)
    out = tmp_path / 'net.onnx'
    how = '--bits=w2a2', '--range_rule=mse', '--compare=500', f'--out={out}'
    code, said, error = command(
        'ghn_jax.export', '--workdir=zoo:digits-bits', '--model=nets_of_integers:net', *how
    )
    assert code == 0, error
    assert 'onnxruntime needs session.disable_quant_qdq=1\n' in said
    assert 'onnxruntime on 500 images (300 test, 200 val): top-1 ' in said
    x = ghn_jax.load('zoo:digits-bits').load_data().normalized('test', 3)
    assert run_onnx(out.read_bytes(), x).shape == (3, 10)
