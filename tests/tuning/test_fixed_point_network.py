"""A network in fixed point is written, taken up where it was stopped, scored, and exported as it is."""

import json

import jax
import numpy as np
import pytest

from ghn_jax.export.integers import to_integers
from ghn_jax.export.quantizing import to_quantized_onnx
from ghn_jax.export.runtime import run_onnx
from ghn_jax.runs.calibrated_file import load
from ghn_jax.tuning.fixed_point_network import STATE, fixed_point_into, in_words
from ghn_jax.tuning.integer_run import integer_logits
from tests.small_run import command, is_one_error_line
from tests.tuning.models import Plain, calibrated, images
from tests.tuning.test_integer_run import Branches
from tests.tuning.test_quantize import arch, workdir  # noqa: F401

SOURCE = {'model': 'tests.tuning.models:plain'}


def labelled(network, x):
    return x, np.argmax(network.apply(x), 1)


def halves(network, x):
    """Images that choose formats, and images that check them."""
    (x, y), half = labelled(network, x), len(x) // 2
    return (x[:half], y[:half]), (x[half:], y[half:])


def test_a_search_that_is_stopped_goes_on_and_its_network_comes_back_to_the_bit(tmp_path):
    network, x = calibrated(Plain(), 64)
    scored, test = halves(network, x), labelled(network, images(16, seed=1))
    result = fixed_point_into(tmp_path / 'whole', network, scored, test, SOURCE, 60)
    assert max(result['lost_in_choice'], result['lost_in_check']) <= 60 and result['saved']['memory'] > 0
    assert 'less memory' in in_words(result) and '\n' not in in_words(result)

    def stop(layers: int) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / 'stopped'
    with pytest.raises(KeyboardInterrupt):
        fixed_point_into(folder, network, scored, test, SOURCE, 60, stop)
    assert (folder / STATE).is_file()
    again = fixed_point_into(folder, network, scored, test, SOURCE, 60)
    assert again['parts_from_before'] == 1 and not (folder / STATE).is_file()
    assert again['formats'] == result['formats']

    found = load(folder)
    assert str(found.policy) == 'fixed_point'
    assert json.loads(found.about['formats']) == result['formats']
    quantizer = found.quantizer()
    logits = jax.jit(lambda x: found.calibrated.apply(x, quantizer))(x)
    np.testing.assert_array_equal(integer_logits(found.calibrated, found.policy, x).real, logits)


@pytest.mark.slow
def test_a_file_for_another_runtime_has_powers_of_two_and_gives_the_same_logits(tmp_path):
    network, x = calibrated(Branches(), 64)
    source = {'model': 'tests.tuning.test_integer_run:Branches'}
    fixed_point_into(tmp_path, network, halves(network, x), labelled(network, x), source, 60)
    found = load(tmp_path)
    integers = to_integers(found.calibrated, found.quantizer())
    for name, w in integers.weights.items():
        np.testing.assert_array_equal(w.real, found.calibrated.weights[name])
        assert np.all(np.frexp(w.scale)[0] == 0.5)
    for name, bias in integers.biases.items():
        np.testing.assert_array_equal(bias.real, found.calibrated.biases[name])
    expected = integer_logits(found.calibrated, found.policy, x)
    file = to_quantized_onnx(found.calibrated, found.quantizer())
    np.testing.assert_array_equal(run_onnx(file, np.asarray(x)), expected.real)


@pytest.mark.slow
def test_the_command_writes_a_network_that_evaluate_scores_the_same(workdir, arch, tmp_path):  # noqa: F811
    asked = [f'--workdir={workdir}', f'--arch={arch}', '--method=fixed_point', '--budget=100', '--images=64']
    code, out, err = command(
        'ghn_jax.quantize', *asked, f'--out={tmp_path / "q"}', f'--json={tmp_path / "q.json"}'
    )
    assert code == 0, err
    result = json.loads((tmp_path / 'q.json').read_text())
    assert 'less memory' in out and result['bits'] == 'fixed_point' and result['budget'] == 100
    asked = [f'--workdir={workdir}', f'--quantized={tmp_path / "q"}', f'--json={tmp_path / "e.json"}']
    code, out, err = command('ghn_jax.evaluate', *asked, '--batch_size=32')
    assert code == 0, err
    (row,) = json.loads((tmp_path / 'e.json').read_text())['rows']
    assert row['bits'] == 'fixed_point' and row['top1_mean'] <= result['top1']  # ties count against the label


@pytest.mark.slow
def test_bad_input_is_one_line(workdir, arch, tmp_path):  # noqa: F811
    good = {'workdir': workdir, 'arch': arch, 'out': tmp_path / 'q', 'method': 'fixed_point', 'images': 64}
    for changes, said in (
        ({'budget': -1}, '--budget=-1'),
        ({'budget': 'nan'}, 'budget'),
        ({'budget': 'much'}, 'budget'),
        ({'images': 1}, 'half of them choose formats and half check them: give 2 or more'),
        ({'bits': 'w4a4'}, '--bits is not for --method=fixed_point: leave it out'),
        ({'iterations': 5}, '--iterations is not for --method=fixed_point'),
        ({'budget': 1, 'method': 'mse'}, '--budget is not for --method=mse'),
        ({'budget': 1, 'method': 'pd_quant'}, '--budget is not for --method=pd_quant'),
        ({'drop': 'false', 'method': 'minmax'}, '--drop is not for --method=minmax'),
        ({'params': arch}, 'no safetensors file'),
    ):
        asked = [f'--{flag}={value}' for flag, value in (good | changes).items()]
        assert is_one_error_line(command('ghn_jax.quantize', *asked), said), changes
