"""A study: strategies side by side on the same networks, resumed where it stopped, bad ones refused first."""

import json

import numpy as np
import pytest

from ghn_jax import sensitivity, study
from ghn_jax.errors import UserError
from ghn_jax.quant import Policy, parse_bits
from ghn_jax.variants import make_variants, parse_seeds, read_strategies
from tests.small_run import command, is_one_error_line, small_config

# One scheme, so that all share two compiled functions.
STRATEGIES = {
    'float': {'mode': 'qat', 'bits': 'float'},
    'drawn': {'mode': 'qat', 'draw': ['w2a2', 'w4a4'], 'draw_per': 'layer', 'edge_bits': 'w8a8'},
}


def config():
    c = small_config()
    c.train.steps, c.eval.every_steps, c.save_every_steps, c.log_every_steps = 2, 0, 1, 1
    return c


def run(workdir, **options):
    defaults = dict(
        splits=['test'], policies=[parse_bits('w4a4')], num_networks=2, num_images=8, batch_size=4
    )
    defaults |= dict(groups=Policy(2, 2), layers=1)
    return study.study(config(), STRATEGIES, workdir, **defaults | options)


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('study')
    return run(workdir), workdir


@pytest.mark.slow
def test_every_strategy_is_scored_and_compared_with_the_first_on_the_same_networks(done):
    tables, workdir = done
    assert [row['strategy'] for row in tables['rows']] == ['float', 'drawn']
    first, second = (json.loads((workdir / name / 'evaluation.json').read_text()) for name in STRATEGIES)
    assert [n['digest'] for n in first['networks']] == [n['digest'] for n in second['networks']]
    top1 = [[n['scores']['w4a4']['top1'] for n in r['networks']] for r in (first, second)]
    difference = tables['rows'][1]['difference_mean']
    assert difference == pytest.approx(sum(b - a for a, b in zip(*top1)) / 2)
    assert 'difference_mean' not in tables['rows'][0]
    assert second['protocol']['quantization']['edge_bits'] == 'w8a8'
    assert json.loads((workdir / 'study.json').read_text()) == json.loads(json.dumps(tables))
    text = study.text(tables)
    assert '| drawn' in text and '±' in text and 'one layer of the stem' in text


@pytest.mark.slow
def test_parts_are_scored_beside_all_and_nothing(done):
    parts = {(row['strategy'], row['part']): row for row in done[0]['parts']}
    for part in (*sensitivity.group_policies(Policy(2, 2)), 'one layer of the head'):
        assert ('float', part) in parts and ('drawn', part) in parts
    assert 'difference_mean' not in parts['float', 'nothing']


@pytest.mark.slow
def test_a_study_that_is_done_trains_and_scores_nothing_again(done, monkeypatch):
    monkeypatch.setattr(study, '_score', lambda *_: pytest.fail('scored again'))
    assert run(done[1]) == done[0]
    assert run(done[1], only=['drawn']) == done[0]
    with pytest.raises(pytest.fail.Exception):
        run(done[1], num_networks=1)


def test_a_study_may_begin_with_any_strategy(tmp_path, monkeypatch):
    monkeypatch.setattr(study, 'train', lambda *_: None)
    monkeypatch.setattr(study, '_score', lambda *_: {'rows': [], 'networks': [], 'protocol': {'step': 2}})
    tables = run(tmp_path / 'new', only=['drawn'])
    assert list(tables['strategies']) == ['drawn']
    assert json.loads((tmp_path / 'new/study.json').read_text()) == json.loads(json.dumps(tables))


def test_with_several_seeds_each_strategy_runs_with_each_and_means_are_over_seeds(tmp_path, monkeypatch):
    top1 = {}

    def score(folder, *_):
        top1[folder.name] = np.random.default_rng(list(folder.name.encode())).normal(50, 9, 5).tolist()
        row = {'split': 'test', 'bits': 'w4a4', 'n': 5}
        row |= {f'top1_{key}': float(np.mean(top1[folder.name])) for key in ('mean', 'sem', 'median', 'max')}
        networks = [{'split': 'test', 'scores': {'w4a4': {'top1': x}}} for x in top1[folder.name]]
        return {'rows': [row], 'networks': networks, 'protocol': {'step': 2}, 'groups': {'nothing': [1.0]}}

    trained = {}
    monkeypatch.setattr(study, 'train', lambda c, folder: trained.update({folder.name: c.seed}))
    monkeypatch.setattr(study, '_score', score)
    tables = run(tmp_path, seeds=(0, 5, 7))
    assert trained == {f'{name}.seed{k}': k for name in STRATEGIES for k in (0, 5, 7)}
    ours, base = (np.array([top1[f'{name}.seed{k}'] for k in (0, 5, 7)]) for name in ('drawn', 'float'))
    assert [row.get('difference_mean') for row in tables['rows']] == [
        None, None, None, *(pytest.approx(d) for d in (ours - base).mean(1))
    ]  # fmt: skip
    row = tables['over_seeds']['rows'][1]
    assert (row['strategy'], row['seeds']) == ('drawn', [0, 5, 7])
    for name, means in (('top1', ours.mean(1)), ('difference', (ours - base).mean(1))):
        assert row[f'{name}_mean'] == pytest.approx(means.mean())
        assert row[f'{name}_sem'] == pytest.approx(means.std(ddof=1) / 3**0.5)
    assert 'over seeds' in study.text(tables)

    trained.clear()
    run(tmp_path / 'one', seeds=(0, 5, 7), only=['drawn.seed5'])
    assert trained == {'drawn.seed5': 5}
    with pytest.raises(UserError, match=r'--only=drawn.seed6: expected of float, drawn, or a run such as'):
        run(tmp_path / 'one', seeds=(0, 5, 7), only=['drawn.seed6'])
    # Of seeds of which the baseline is not there yet, nothing is said.
    tables = run(tmp_path / 'few', seeds=(0, 5, 7), only=['float.seed5', 'drawn'])
    middle = next(row for row in tables['rows'] if (row['strategy'], row['seed']) == ('drawn', 5))
    row = tables['over_seeds']['rows'][1]
    assert row['seeds'] == [0, 5, 7]
    for key in ('difference_mean', 'difference_sem'):
        assert row[key] == middle[key] != 0


@pytest.mark.parametrize('values', [['0', '0'], ['-1'], ['1.5'], ['a'], [''], ['2147483648'], ['7' * 5000]])
def test_bad_seeds_are_refused(values):
    with pytest.raises(UserError, match='--seeds='):
        parse_seeds(values)


def test_a_strategy_has_no_seed_of_its_own_beside_others():
    with pytest.raises(UserError, match="strategy 'a' has a seed"):
        make_variants(small_config(), {'a': {'seed': 1}}, (0, 1))


@pytest.mark.parametrize(
    ('strategies', 'words'),
    [
        ({'a': {'mode': 'qat', 'bitz': 'w4a4'}}, 'quant.bitz is no key'),
        ({'a': {'mode': 'qat', 'bits': 'w0a4'}}, "strategy 'a': --config.quant.bits"),
        ({'a': {'mode': 'qat', 'percentile': 'high'}}, "strategy 'a': quant.percentile"),
        ({'a': {'ghn.bitz': True}}, "strategy 'a': ghn.bitz is no key"),
        ({'a': {'seed.x.y': 1}}, "strategy 'a': seed.x.y is no key"),
        ({'a': {'train.steps': '7'}}, "strategy 'a': train.steps"),
        ({'a': {}, 'b': {'mode': 'qat', 'percentile': 0.3}}, "strategy 'b'"),
    ],
)
def test_a_bad_strategy_is_refused_before_any_is_trained(tmp_path, strategies, words):
    with pytest.raises(UserError, match=words):
        study.study(config(), strategies, tmp_path, splits=['test'], policies=[Policy()])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('text', ['', '[]', '{}', '{"a/b": {}}', '{"a": 4}', '{"a": {}, "a": {}}'])
def test_a_bad_file_of_strategies_is_one_line(tmp_path, text):
    (tmp_path / 's.json').write_text(text)
    flags = '--config=configs/test.py', f'--workdir={tmp_path}/w', f'--strategies={tmp_path}/s.json'
    assert is_one_error_line(command('ghn_jax.study', *flags), '--strategies')


def test_the_strategies_of_the_repository_are_possible():
    strategies = read_strategies('configs/strategies.json')
    for variant in make_variants(small_config(), strategies):
        assert variant.config.quant.mode == strategies[variant.name]['mode']


def test_a_strategy_may_change_any_key_of_the_config():
    [variant] = make_variants(small_config(), {'a': {'bits': 'w2a2', 'ghn.bits': True, 'seed': 9}})
    changed = variant.config
    assert changed.quant.bits == 'w2a2' and changed.ghn.bits and changed.seed == 9
    assert small_config().seed != 9


def test_parts_of_a_network_are_the_stem_the_cells_and_the_head():
    names = (
        'stem0.0.weight',
        'stem.0.weight',
        'stem0.weight',
        'cells.3._ops.1.op.1.weight',
        'classifier.3.weight',
    )
    policies = sensitivity.group_policies(Policy(2, 3))
    quantized = {part: [p.widths(name) == (2, 3) for name in names] for part, p in policies.items()}
    assert quantized['stem'] == [True, True, True, False, False]
    assert quantized['cells'] == [False, False, False, True, False]
    assert quantized['head'] == [False, False, False, False, True]
    assert quantized['all but the head'] == [True, True, True, True, False]
    assert policies['weights'].widths(names[0]) == (2, 32)
    assert [sensitivity.place_of(f'cells.{i}.x.weight', 6) for i in (0, 2, 5)] == [
        'first third of the cells', 'second third of the cells', 'last third of the cells',
    ]  # fmt: skip
    assert sensitivity.place_of(names[2], 6) == 'stem' and sensitivity.place_of(names[4], 6) == 'head'
