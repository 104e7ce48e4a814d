"""A quantized network is scored from its file as it was written, and bad input is told in a line."""

import json

import jax
import numpy as np
import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.export.integers import to_integers
from ghn_jax.export.quantizing import marked
from ghn_jax.hypernet.policy_features import resolve
from ghn_jax.models.tracing import trace
from ghn_jax.networks.files import save_networks
from ghn_jax.quant.policy import Policy
from ghn_jax.runs.calibrated_file import FILE, QuantizedNetwork, load, save
from ghn_jax.tuning import quantize
from ghn_jax.tuning.quantize import DEFAULT_SCHEME, Network, top1
from ghn_jax.tuning.ranges import round_nearest
from ghn_jax.tuning.reconstruction import ReconstructionOptions
from tests.cnn.networks import small_network
from tests.small_run import command, is_one_error_line, write_run
from tests.tuning import models
from tests.tuning.models import Residual, calibrated, images

POLICY = Policy(2, 4, edges=(8, 8))
SOURCE = {'model': 'tests.tuning.models:residual'}
SPEC = small_network([('conv_1x1', 0), ('skip_connect', 1)], C=16, n_cells=1, stem_type=1, name='net')


@pytest.fixture(scope='module')
def quantized():
    of, x = calibrated(Residual(), 8)
    return QuantizedNetwork(
        round_nearest(of, x, resolve(POLICY, of.model.graph), 'mse'),
        POLICY,
        DEFAULT_SCHEME,
        SOURCE,
        {'method': 'mse'},
    ), x


def test_a_quantized_network_comes_back_from_its_folder_as_it_was(quantized, tmp_path, monkeypatch):
    network, x = quantized
    assert save(tmp_path / 'made' / 'here', network) == tmp_path / 'made' / 'here' / FILE
    found = load(tmp_path / 'made' / 'here')
    assert (found.policy, found.scheme, found.source, found.about) == (
        POLICY,
        DEFAULT_SCHEME,
        SOURCE,
        network.about,
    )
    expected = network.calibrated.apply(x, network.quantizer())
    np.testing.assert_array_equal(found.calibrated.apply(x, found.quantizer()), expected)
    labels = np.asarray(expected).argmax(1)
    labels[-1] += 1
    monkeypatch.setattr(quantize, '_SCORED', 6)  # of 8 images: two calls, of 6 and 2
    assert top1(found.calibrated, x, labels, POLICY) == 87.5


def test_logits_that_are_equal_or_no_numbers_predict_nothing():
    network, x = calibrated(Residual(), 8)
    labels = np.zeros(len(x), np.int32)  # which an argmax would give all of them
    for value in (0, np.nan):
        all_alike = jax.tree.map(lambda a: np.full_like(a, value), network)  # noqa: B023
        assert top1(all_alike, x, labels) == 0


@pytest.mark.slow
def test_a_file_for_another_runtime_has_the_levels_of_the_weights_as_they_were_learned(quantized):
    network, x = quantized
    calibrated, quantizer = network.calibrated, network.quantizer()
    found = to_integers(calibrated, quantizer)
    for name, w in calibrated.weights.items():
        np.testing.assert_array_equal(found.weights[name].real, w)
    # Biases are rounded, too, which shifts what little activations are from the next level.
    expected, logits = calibrated.apply(x, quantizer), marked(calibrated, found)(x)
    assert np.abs(logits - expected).max() < 0.1 * np.abs(expected).max()


def test_a_folder_without_a_quantized_network_of_this_model_is_told(quantized, tmp_path):
    network, _ = quantized
    with pytest.raises(UserError, match='does not exist: give a folder that ghn_jax.quantize has written'):
        load(tmp_path)
    (tmp_path / FILE).write_bytes(b'{}')
    with pytest.raises(UserError, match='no safetensors file .*: give a folder that ghn_jax.quantize'):
        load(tmp_path)
    other = QuantizedNetwork(
        network.calibrated, POLICY, DEFAULT_SCHEME, {'model': 'tests.models.linen_models:Vgg'}, {}
    )
    save(tmp_path, other)
    with pytest.raises(UserError):
        load(tmp_path)


def test_a_model_whose_code_has_changed_since_is_told_unless_jax_has_too(quantized, tmp_path, monkeypatch):
    network, _ = quantized
    save(tmp_path, network)
    monkeypatch.setattr(models.nn, 'relu', jax.nn.silu)  # the layers are the same
    with pytest.raises(UserError, match="model 'Residual' computes something else than when it was quant"):
        load(tmp_path)
    monkeypatch.setattr(jax, '__version__', '99')  # whose operations may have other names
    load(tmp_path)


def test_methods_are_refused_by_name_and_without_images():
    model = trace(Residual(), (1, 8, 8, 3))
    of, x = calibrated(Residual(), 8)
    with pytest.raises(UserError, match='no calibration images'):
        Network.of(model, of.params, images(0))
    with pytest.raises(UserError, match="'gptq' is not one of minmax, mse, pd_quant"):
        quantize.quantize(Network(of, of.params, x[None]), POLICY, 'gptq')
    with pytest.raises(UserError, match='iterations=0: expected an integer from 1 to 1,000,000'):
        ReconstructionOptions(iterations=0)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp('run'))


@pytest.fixture(scope='module')
def arch(tmp_path_factory):
    path = tmp_path_factory.mktemp('arch') / 'net.json'
    save_networks(path, [SPEC])
    return path


@pytest.mark.slow
@pytest.mark.parametrize('method', ['minmax', 'mse', 'pd_quant'])
def test_the_command_writes_a_network_that_evaluate_scores_the_same(workdir, arch, tmp_path, method):
    asked = [f'--workdir={workdir}', f'--arch={arch}', f'--method={method}', '--bits=w4a4', '--images=64']
    asked += [f'--out={tmp_path / "q"}', f'--json={tmp_path / "q.json"}']
    asked += ['--iterations=20'] if method == 'pd_quant' else []
    code, out, err = command('ghn_jax.quantize', *asked)
    assert code == 0, err
    result = json.loads((tmp_path / 'q.json').read_text())
    assert method in out and result['bits'] == 'w4a4 edges=w8a8'
    asked = [f'--workdir={workdir}', f'--quantized={tmp_path / "q"}', f'--json={tmp_path / "e.json"}']
    code, out, err = command('ghn_jax.evaluate', *asked, '--batch_size=32')
    assert code == 0, err
    (row,) = json.loads((tmp_path / 'e.json').read_text())['rows']
    assert row['bits'] == 'w4a4 edges=w8a8' and row['top1_mean'] == pytest.approx(result['top1'], abs=0.5)


@pytest.mark.slow
def test_bad_input_is_one_line(workdir, arch, tmp_path):
    good = {'workdir': workdir, 'arch': arch, 'out': tmp_path / 'q', 'bits': 'w4a4', 'method': 'mse'}
    for changes, said in (
        ({'method': 'gptq'}, 'minmax, mse, pd_quant'),
        ({'bits': 'w1a4', 'method': 'pd_quant'}, '2 to 16 bits'),
        ({'images': 10**6}, 'training images'),
        ({'images': 20, 'method': 'pd_quant'}, 'at least one batch of 32'),
        ({'model': 'tests.tuning.models:residual'}, 'give one of them'),
        ({'out': ''}, '--out is missing'),
        ({'params': arch}, 'no safetensors file'),
        (
            {'arch': '', 'model': 'tests.tuning.nets:net_of_four_classes'},
            "'Net' has 4 classes, synthetic has 10",
        ),
    ):
        asked = [f'--{flag}={value}' for flag, value in (good | changes).items()]
        assert is_one_error_line(command('ghn_jax.quantize', *asked), said), changes
    asked = [f'--workdir={workdir}', f'--quantized={tmp_path}']
    assert is_one_error_line(command('ghn_jax.evaluate', *asked), 'does not exist: give a folder that')
    said = '--quantized and --bits are both given'
    assert is_one_error_line(command('ghn_jax.evaluate', *asked, '--bits=w4a4'), said)
