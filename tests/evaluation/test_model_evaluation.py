"""A model of the user's own is scored as a network of the executor is."""

import dataclasses
import json
import sys

import numpy as np
import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.evaluation.evaluate import evaluate
from ghn_jax.evaluation.evaluation_spec import EvaluationSpec
from ghn_jax.evaluation.model_evaluation import evaluate_model, evaluate_quantized
from ghn_jax.evaluation.protocol import Protocol
from ghn_jax.hypernet.ghn import GHN
from ghn_jax.models.loading import load_model
from ghn_jax.models.tracing import trace
from ghn_jax.quant.policy import parse_bits
from ghn_jax.runs.calibrated_file import QuantizedNetwork
from ghn_jax.runs.run import load_run
from ghn_jax.runs.task import load_data
from ghn_jax.tuning.quantize import DEFAULT_SCHEME, Network, quantize, top1
from tests.cnn.networks import small_network
from tests.small_run import command, is_one_error_line

SPEC = small_network([('sep_conv_3x3', 0), ('conv_1x1', 1)], C=16, n_cells=1, stem_type=1, name='net')
POLICIES = tuple(map(parse_bits, ('float', 'w8a8')))


@pytest.mark.slow
def test_a_traced_network_has_the_scores_and_the_noise_that_the_executor_finds(workdir):
    run = load_run(workdir)
    asked = dict(policies=POLICIES, num_images=128, batch_size=32, calibration_batches=2)
    asked['protocol'] = Protocol(sqnr=True)
    expected, _ = evaluate(run, EvaluationSpec(networks=(SPEC,), **asked))
    size = run.config.image_size
    found, _ = evaluate_model(run, trace(SPEC, (1, size, size, 3)), EvaluationSpec(**asked))
    ours, theirs = (result['networks'][0] for result in (found, expected))
    assert ours['parameters'] == theirs['parameters'] and ours['depth'] == theirs['depth']
    assert ours['scores']['w32a32'] == theirs['scores']['w32a32']
    for top in ('top1', 'top5', 'agreement'):
        assert abs(ours['scores']['w8a8'][top] - theirs['scores']['w8a8'][top]) < 1.6  # two images of 128
    noise = [
        dict(
            zip(
                network['layers'],
                zip(*(score[f'sqnr_{what}_by_layer'] for what in ('weights', 'activations'))),
            )
        )
        for network in (ours, theirs)
        for score in [network['scores']['w8a8']]
    ]
    assert noise[0].keys() == noise[1].keys()
    for name, (weight, activation) in noise[1].items():
        assert noise[0][name][0] == pytest.approx(weight, abs=0.02), name
        if activation is not None:  # of the second half of a strided skip, which reads the first one's
            assert noise[0][name][1] == pytest.approx(activation, abs=0.3), name
    keys = set(expected['protocol']) - {'num_networks', 'space'}
    assert keys <= set(found['protocol'])
    assert np.isfinite(found['rows'][0]['top1_mean'])


@pytest.mark.slow
@pytest.mark.parametrize('how, rule', [('calibrated', 'moving_average'), ('corrected', 'mse')])
def test_calibrated_a_traced_network_has_the_predictions_of_the_executor(workdir, how, rule):
    run = load_run(workdir)
    asked = dict(policies=tuple(map(parse_bits, ('float', 'w8a8', 'w4a32'))), num_images=256, batch_size=32)
    asked |= dict(calibration_batches=3, protocol=Protocol(
        batch_norm=how, ranges='calibrated', range_rule=rule, sqnr=True,
    ))  # fmt: skip
    expected, _ = evaluate(run, EvaluationSpec(networks=(SPEC,), **asked))
    size = run.config.image_size
    found, _ = evaluate_model(run, trace(SPEC, (1, size, size, 3)), EvaluationSpec(**asked))
    ours, theirs = (result['networks'][0]['scores'] for result in (found, expected))
    for bits in theirs:
        for top in ('top1', 'top5', 'agreement'):
            assert abs(ours[bits][top] - theirs[bits][top]) < 0.5, (bits, top)  # one image of 256
    for what in ('weights', 'activations'):
        assert ours['w8a8'][f'sqnr_{what}'] == pytest.approx(theirs['w8a8'][f'sqnr_{what}'], abs=0.3)
    assert found['protocol']['batch_norm'] == how and found['protocol']['range_rule'] == rule


@pytest.mark.slow
def test_the_command_scores_a_model(workdir, tmp_path, monkeypatch):
    (tmp_path / 'nets_to_score.py').write_text(
        'from flax import linen as nn\n'
        'def net(classes=10):\n'
        '    return nn.Sequential([nn.Conv(8, (3, 3)), lambda x: x.mean((1, 2)), nn.Dense(classes)])\n'
        'def other():\n'
        '    return net(7)\n'
        'def wider():\n'
        '    return nn.Sequential([nn.Conv(9, (3, 3)), lambda x: x.mean((1, 2)), nn.Dense(10)])\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'nets_to_score', raising=False)
    run = lambda name, *more: command(
        'ghn_jax.evaluate', f'--workdir={workdir}', f'--model=nets_to_score:{name}', '--num_images=64',
        '--batch_size=32', *more,
    )  # fmt: skip
    ways = (
        (),
        ('--bn=calibrated', '--ranges=calibrated', '--calibration_batches=2'),
        ('--initial', '--seed=3'),
    )
    for more in ways:
        code, said, error = run('net', '--bits=w32a32,w4a4', *more)
        assert code == 0 and '| model' in said and 'w4a4' in said, error
        assert ('none are predicted' in said) == ('--initial' in more)
    assert is_one_error_line(run('other'), 'has 7 classes')
    said = run('net', '--bn=calibrated', '--ranges=calibrated', '--integer=32')
    assert is_one_error_line(said, '--integer=32', 'no integer form', 'ghn_jax.export')
    # The parameters that it starts with beside predicted ones, of a run and of a file.
    file, bits = tmp_path / 'a.json', '--bits=w32a32'
    code, said, error = run('net', bits, '--initial', f'--against={workdir}', f'--json={file}')
    row, protocol = json.loads(file.read_text())['rows'][0], json.loads(file.read_text())['against']
    assert code == 0 and protocol['parameters'] == 'predicted', error
    assert row['difference_top1_mean'] == pytest.approx(row['top1_mean'] - row['against_top1_mean'])
    code, said, error = run('net', bits, f'--against={file}')
    assert code == 0 and 'difference' in said, error
    assert is_one_error_line(run('wider', bits, f'--against={file}'), 'has other networks')
    assert is_one_error_line(run('net', '--bits=w2a2', f'--against={file}'), 'has no w2a2')
    assert is_one_error_line(run('net', '--splits=test'), '--model and --splits')


def test_a_hypernetwork_of_larger_tiles_is_for_models_only(workdir):
    run = load_run(workdir)
    larger = GHN(dataclasses.replace(run.ghn.config, max_shape=(128, 128, 16, 16)))
    with pytest.raises(
        UserError, match=r'tiles of 128 x 128 channels and 16 x 16 pixels, .* a model of your own'
    ):
        evaluate(dataclasses.replace(run, ghn=larger), EvaluationSpec(networks=(SPEC,)))


def test_a_model_for_other_images_is_refused(workdir):
    with pytest.raises(UserError, match=r'is traced for images of shape \(16, 16, 3\), those of'):
        evaluate_model(load_run(workdir), trace(SPEC, (1, 16, 16, 3)))


def test_a_quantized_network_is_scored_on_all_images_whatever_the_batch(workdir):
    run, policy = load_run(workdir), parse_bits('w4a4')
    data, size = load_data(run.config), run.config.image_size
    params = {'w': np.random.default_rng(0).normal(size=(3, 10)).astype(np.float32)}
    model = trace(lambda params, x: x.mean((1, 2)) @ params['w'], (1, size, size, 3), params=params)
    of = Network.of(model, params, data.normalized('train', 32))
    made = quantize(of, policy, 'minmax')
    expected = top1(made, data.normalized('test'), data.test.labels, policy)
    for batch_size in (48, 1000):
        spec = EvaluationSpec(batch_size=batch_size)
        result = evaluate_quantized(run, QuantizedNetwork(made, policy, DEFAULT_SCHEME, {}, {}), spec)
        assert result['rows'][0]['top1_mean'] == pytest.approx(expected, abs=0.01)
        assert result['protocol']['images'] == len(data.test.labels)


def test_a_batch_norm_of_one_value_is_told_of_where_an_image_is_alone_in_its_batch(workdir, capsys):
    run = load_run(workdir)
    for name, batch_size, is_told in (('normed_head', 1, True), ('normed_head', 2, False), ('net', 1, False)):
        model = load_model(f'tests.tuning.nets:{name}', (1, run.config.image_size, run.config.image_size, 3))
        spec = EvaluationSpec(batch_size=batch_size, num_images=4, policies=POLICIES[:1])
        evaluate_model(run, model, spec, params=model.initial_params())
        assert ('has one value a channel' in capsys.readouterr().err) == is_told


@pytest.mark.parametrize('classes', [4, 100])
def test_a_model_of_other_classes_than_the_data_is_refused_with_parameters_of_its_own(workdir, classes):
    run = load_run(workdir)
    size = run.config.image_size
    params = {'w': np.ones((3, classes), np.float32)}
    model = trace(lambda params, x: x.mean((1, 2)) @ params['w'], (1, size, size, 3), params=params)
    with pytest.raises(UserError, match=f"'<lambda>' has {classes} classes, synthetic has 10: give a model"):
        evaluate_model(run, model, EvaluationSpec(), params=params)
