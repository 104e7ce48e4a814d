"""The benchmark of models of one's own: rows with every figure, and the table that a page makes of them."""

import json

import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.benchmarks.benchmark import benchmark
from ghn_jax.benchmarks.options import BenchmarkOptions
from ghn_jax.reporting import docs_tables
from tests.small_run import command

MODELS = 'tests.models.digits_models:small_resnet,tests.models.digits_models:convnext'
ROW = {
    'what': 'models', 'model': 'net', 'parameters': 1234, 'nodes': 25, 'trace_cpu_s': 0.126,
    'predict_cpu_s': 0.014, 'float_kb': 400.4, 'w8a8_kb': 101.2, 'w4a4_kb': 51.0, 'w2a2_kb': 26.0,
}  # fmt: skip
RESULT = {
    'machine': {'platform': 'cpu', 'cpus': 2, 'jax': '0.10.2'},
    'command': 'python -m ghn_jax.benchmark --what=models',
    'rows': [ROW],
}


def test_without_models_nothing_is_timed():
    with pytest.raises(UserError, match='^models is empty: give functions that return one'):
        benchmark(['models'], BenchmarkOptions())


def test_the_images_of_the_run_are_where_data_dir_says():
    options = BenchmarkOptions(models=('tests.tuning.nets:net',), data_dir='x')
    with pytest.raises(UserError, match='^data_dir=x: digits lies in no folder'):
        benchmark(['models'], options)


def test_more_images_than_the_run_has_are_refused_by_the_name_of_their_flag():
    pytest.importorskip('onnxruntime')
    options = BenchmarkOptions(
        models=('tests.models.digits_models:small_resnet',), agreement=('float',), num_images=2000, repeats=1
    )
    with pytest.raises(UserError, match='^num_images=2000: the data have 1,797 images: give no more$'):
        benchmark(['models'], options)


def test_a_page_shows_a_row_for_each_model_and_agreement_where_it_was_measured():
    lines = docs_tables.markdown(RESULT).splitlines()
    assert lines[1].startswith(
        '| model | parameters | nodes | tracing, CPU s | prediction, CPU s | kB, float |'
    )
    assert '| net | 1,234 | 25 | 0.13 | 0.01 | 400 | 101 | 51 | 26 |' in lines
    assert (
        lines[5] == 'device: 2 CPU cores; jax: 0.10.2; command: `python -m ghn_jax.benchmark --what=models`.'
    )
    compared = {'epochs': 5, 'w8a8_top1': 91.5, 'w8a8_agreement': 99.64}
    lines = docs_tables.markdown(RESULT | {'rows': [ROW | compared, ROW]}).splitlines()
    assert lines[1].endswith('| 2 bits | passes | W8/A8 | as here, W8/A8 |')
    assert lines[3].endswith('| 26 | 5 | 91.5 | 99.64 |') and lines[4].endswith('| 26 |  |  |  |')


@pytest.mark.slow
def test_a_model_is_trained_before_its_file_is_run_and_then_classifies():
    pytest.importorskip('onnxruntime')
    models = ('tests.models.digits_models:small_resnet',)
    of = dict(models=models, agreement=('float', 'w8a8'), num_images=300, repeats=1)
    (row,) = benchmark(['models'], BenchmarkOptions(**of, epochs=5))['rows']
    assert row['epochs'] == 5 and row['float_top1'] > 80 and row['float_agreement'] == 100
    assert row['w8a8_top1'] > 75 and row['w8a8_agreement'] >= 99


@pytest.mark.slow
def test_every_model_is_traced_predicted_and_packed(tmp_path):
    """The second one has layer norms, which the hypernetwork never met: they stay as initialised."""
    out = tmp_path / 'models.json'
    code, said, err = command(
        'ghn_jax.benchmark', '--what=models', f'--models={MODELS}', '--repeats=1', f'--json={out}'
    )
    assert code == 0 and 'small_resnet' in said, err
    rows = json.loads(out.read_text())['rows']
    assert [row['model'] for row in rows] == ['small_resnet', 'convnext']
    for row in rows:
        assert 0 < row['trace_s'] and 0 < row['predict_cpu_s'] and row['compilations_after_warmup'] == 0
        assert row['w2a2_kb'] < row['w4a4_kb'] < row['w8a8_kb'] < row['float_kb'] / 2
    assert docs_tables.markdown(json.loads(out.read_text())).count('\n| ') == 4
