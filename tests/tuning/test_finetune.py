"""`finetune`: what it leaves, that it is scored and exported, and bad input."""

import dataclasses
import json

import pytest

from ghn_jax.datasets.cifar10 import Split
from ghn_jax.datasets.load import load
from ghn_jax.runs.hypernetwork import Hypernetwork
from tests.small_run import command, is_one_error_line, write_run

HOW = (
    'ghn_jax.finetune', '--dataset=synthetic', '--image_size=8', '--model=tests.tuning.nets:net',
    '--init=he,glorot', '--bits=w4a4', '--epochs=2', '--batch_size=256',
)  # fmt: skip


@pytest.fixture(scope='module')
def finetuned(tmp_path_factory, quick_reference):
    out = tmp_path_factory.mktemp('finetuned')
    code, said, error = command(*HOW, f'--out={out}', f'--json={out}/result.json')
    assert code == 0, error
    return out, said


def test_it_compares_initialisations_and_keeps_the_parameters_of_each(finetuned):
    out, said = finetuned
    result = json.loads((out / 'result.json').read_text())
    assert [row[:4] for row in result['rows']] == [['w4a4', 'he', 1, 1], ['w4a4', 'glorot', 1, 1]]
    assert 'quantized, 2' in said and len(result['runs']) == 2
    for run in result['runs']:
        assert list(run['scores']) == ['0', '1', '2'] and len(run['loss']) == 2
        assert run['loss'][1] < run['loss'][0]
        assert (out / run['file']).is_file()
    assert not list((out / 'runs').glob('*.npz'))
    about = result['about']
    assert {'seeds', 'epochs', 'device', 'command', 'dataset'} <= set(about)
    assert about['statistics'] == 'batch' and 'calibration images' not in about and about['augmented'] == 'no'


def test_what_is_done_is_not_done_again_and_other_settings_are_refused(finetuned, count_compiles):
    out, said = finetuned
    before = {path: path.stat().st_mtime_ns for path in out.rglob('*.safetensors')}
    code, again, error = command(*HOW, f'--out={out}')
    assert code == 0, error
    assert again == said and before == {path: path.stat().st_mtime_ns for path in out.rglob('*.safetensors')}
    assert is_one_error_line(command(*HOW, f'--out={out}', '--ema=0.5'), 'other settings (training differ)')
    edited = '--model=tests.tuning.nets:with_silu'  # the same class, with parameters of the same shapes
    assert is_one_error_line(command(*HOW, edited, f'--out={out}'), 'other settings (model differ)')


@pytest.mark.parametrize('split', ['train', 'test'])
def test_other_labels_in_the_folder_of_a_training_are_refused(finetuned, monkeypatch, split):
    out, _ = finetuned
    data = load('synthetic', image_size=8)
    images, labels = getattr(data, split)
    other = dataclasses.replace(data, **{split: Split(images, labels[::-1])})
    monkeypatch.setattr(Hypernetwork, 'load_data', lambda self: other)
    assert is_one_error_line(command(*HOW, f'--out={out}'), 'other settings (images differ)')


def test_a_training_in_float_rounds_nothing_and_is_that_beside_one_of_few_bits(tmp_path):
    """Alone its program has no rounding in it; beside another, bits are data."""
    results = []
    for bits in ('float', 'float,w4a4'):
        how = ('--init=he', '--optimizer=sgd', '--learning_rate=0.05', '--epochs=1', f'--bits={bits}')
        code, _, error = command(*HOW, *how, f'--out={tmp_path / bits}', f'--json={tmp_path}/result.json')
        assert code == 0, error
        results.append(json.loads((tmp_path / 'result.json').read_text()))
    alone, beside = results
    assert alone['columns'] == ['bits', 'from', 'networks', 'seeds', 'float, 0', 'float, 1']
    assert alone['about']['optimizer'] == 'sgd'
    assert alone['runs'][0]['scores'] == beside['runs'][0]['scores']
    assert alone['runs'][0]['loss'] == pytest.approx(beside['runs'][0]['loss'], abs=1e-5)


@pytest.mark.slow
def test_evaluate_finds_the_scores_of_the_table_and_export_writes_the_parameters(tmp_path):
    workdir, out = write_run(tmp_path / 'run'), tmp_path / 'out'
    model = f'--workdir={workdir}', '--model=tests.tuning.nets:net'
    how = '--init=he', '--epochs=2', '--batch_size=256', '--bn=calibrated', f'--json={tmp_path}/a.json'
    code, said, error = command('ghn_jax.finetune', *model, *how, f'--out={out}')
    assert code == 0, error
    assert 'calibrated quantized, 2' in said
    (run,) = json.loads((tmp_path / 'a.json').read_text())['runs']
    params = f'--params={out / run["file"]}'
    for kind, flags in (
        ('batch', ()),
        ('calibrated', ('--bn=corrected', '--ranges=calibrated', '--calibration_batches=4')),
    ):
        how = '--bits=w32a32,w4a4', params, *flags, f'--json={tmp_path}/b.json'
        code, said, error = command('ghn_jax.evaluate', *model, *how)
        assert code == 0, error
        result = json.loads((tmp_path / 'b.json').read_text())
        assert result['protocol']['parameters'] == str(out / run['file'])
        found = {bits: score['top1'] for bits, score in result['networks'][0]['scores'].items()}
        assert found == pytest.approx(run['scores']['2'][kind]), kind
    how = params, '--bits=w4a4', f'--out={tmp_path}/a.stablehlo'
    code, said, error = command('ghn_jax.export', *model, *how)
    assert code == 0, error
    other = '--model=tests.tuning.nets:net_of_four_classes'
    assert is_one_error_line(command('ghn_jax.export', model[0], other, *how), 'parameters of this model')


@pytest.mark.slow
def test_with_fixed_statistics_a_quantized_network_is_trained_and_kept_which_evaluate_scores_alike(tmp_path):
    workdir, out = write_run(tmp_path / 'run'), tmp_path / 'out'
    model = f'--workdir={workdir}', '--model=tests.tuning.nets:net'
    how = '--init=he', '--epochs=2', '--batch_size=256', '--bn=fixed', f'--json={tmp_path}/a.json'
    code, said, error = command('ghn_jax.finetune', *model, *how, f'--out={out}')
    assert code == 0, error
    (run,) = json.loads((tmp_path / 'a.json').read_text())['runs']
    assert all(set(scores) == {'calibrated'} for scores in run['scores'].values())
    assert run['loss'][1] < run['loss'][0]
    how = f'--quantized={out / run["file"]}', f'--json={tmp_path}/b.json'
    code, said, error = command('ghn_jax.evaluate', model[0], *how)
    assert code == 0, error
    result = json.loads((tmp_path / 'b.json').read_text())
    found = {bits: score['top1'] for bits, score in result['networks'][0]['scores'].items()}
    assert 'its own.' in said and 'None' not in said
    assert is_one_error_line(
        command('ghn_jax.evaluate', model[0], how[0], '--params=a'), '--quantized and --params'
    )
    assert found == {'w4a4': pytest.approx(run['scores']['2']['calibrated']['w4a4'])}


@pytest.mark.slow
def test_searched_weights_are_kept_as_a_quantized_network_which_evaluate_scores_and_export_writes(tmp_path):
    workdir, out = write_run(tmp_path / 'run'), tmp_path / 'out'
    model = f'--workdir={workdir}', '--model=tests.tuning.nets:net'
    how = '--method=slb', '--init=he', '--bits=w1a8,w2a4', '--epochs=3', '--batch_size=256', '--bn=calibrated'
    code, said, error = command('ghn_jax.finetune', *model, *how, f'--out={out}', f'--json={tmp_path}/a.json')
    assert code == 0, error
    runs = json.loads((tmp_path / 'a.json').read_text())['runs']
    assert [run['bits'] for run in runs] == ['w1a8', 'w2a4']
    for run in runs:
        scores = run['scores']['3']
        assert set(scores) == {'batch', 'soft', 'calibrated'}
        quantized = f'--quantized={out / run["file"]}'
        code, said, error = command('ghn_jax.evaluate', model[0], quantized, f'--json={tmp_path}/b.json')
        assert code == 0, error
        result = json.loads((tmp_path / 'b.json').read_text())
        found = {bits: score['top1'] for bits, score in result['networks'][0]['scores'].items()}
        assert list(found.values()) == [pytest.approx(scores['calibrated'][run['bits']])]
    code, said, error = command('ghn_jax.export', model[0], quantized, f'--out={tmp_path}/a.onnx')
    assert code == 0, error
    folder = f'--out={out}', '--method=straight_through'
    assert is_one_error_line(command('ghn_jax.finetune', *model, *how[1:-1], *folder), 'other settings')


@pytest.mark.parametrize(
    'changes, words',
    [
        (['--epochs=0'], '--epochs=0'),
        (['--bits=w4'], "'w4'"),
        (['--init=predicted'], '--init=predicted: there is no hypernetwork: give workdir=RUN or zoo:NAME'),
        (['--init=hee'], '--init=hee: expected predicted, he'),
        (['--model=tests.tuning.nets:net_of_four_classes'], "'Net' has 4 classes, synthetic has 10"),
        (['--workdir=zoo:digits-bits'], '--workdir and --dataset are both given'),
        (['--arch=net.json'], '--arch and --model are both given'),
        (['--seeds='], '--seeds is empty: expected integers'),
        (['--seeds=-1'], "--seeds='-1': expected integers from 0"),
        (['--learning_rate=-1'], '--learning_rate=-1'),
        (['--batch_size=2000'], '--batch_size=2000: there are 1024 training images'),
        (['--out='], '--out is missing'),
        (
            ['--dataset=digits', '--bn=calibrated', '--eval_batch_size=300'],
            '--eval_batch_size=300: 4 batches calibrate, and digits has 1197 training images: give at most 2',
        ),
        (['--eval_batch_size=2000'], '--eval_batch_size=2000 is more than the'),
        (
            ['--model=tests.tuning.nets:normed_head', '--batch_size=1'],
            '--batch_size=1: a batch norm of',
        ),
        (
            ['--model=tests.tuning.nets:normed_head', '--eval_batch_size=1'],
            '--eval_batch_size=1: a batch',
        ),
        (['--method=slb', '--bits=w8a8'], '--bits=w8a8: slb searches weights of at most 4 bits'),
        (['--method=slb', '--bn=fixed'], '--bn=fixed: slb estimates statistics'),
        (['--method=slb', '--slb_end=0.1'], '--slb_end=0.1: expected no less than start=0.2'),
        (['--slb_rate=0.1'], '--slb_rate is of --method=slb'),
    ],
)
def test_bad_input_gets_one_line(tmp_path, changes, words):
    assert is_one_error_line(command(*HOW, f'--out={tmp_path}/out', *changes), words)
    assert not (tmp_path / 'out').exists()
