"""A study: strategies side by side on the same networks, resumed where it stopped, bad ones refused first."""

import functools
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ghn_jax import config as configs
from ghn_jax import config_file
from ghn_jax.base import paths
from ghn_jax.base.errors import UserError
from ghn_jax.evaluation import results, sensitivity
from ghn_jax.evaluation.evaluation_spec import EvaluationSpec
from ghn_jax.hypernet.ghn import GHNConfig
from ghn_jax.quant import Policy, parse_bits
from ghn_jax.reporting import docs_tables
from ghn_jax.runs import run as runs
from ghn_jax.runs.checkpoint import Checkpoints
from ghn_jax.runs.config_changes import FREE_KEYS, differing_keys
from ghn_jax.studies import study, study_tables
from ghn_jax.studies.study_runs import make_runs, parse_seeds, read_strategies
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


def run(workdir, *, strategies=STRATEGIES, changes=None, **options):
    c = config()
    c.update_from_flattened_dict(changes or {})
    scoring = dict(
        splits=('test',), policies=(parse_bits('w4a4'),), num_networks=2, num_images=8, batch_size=4
    )
    scoring |= {name: options.pop(name) for name in scoring.keys() & options.keys()}
    options = dict(groups=Policy(2, 2), layers=1) | options
    spec = study.StudySpec(**options, evaluation=EvaluationSpec(**scoring))
    return study.study(c, strategies, workdir, spec)


def save_run(config, folder, step=None):
    """A run directory as training leaves it, without its parameters."""
    step = config.train.steps if step is None else step
    with Checkpoints(folder) as checkpoints:
        meta = runs.run_meta(config, GHNConfig(hid=config.ghn.hid), step, kind='train')
        checkpoints.save(step, {'params': {'w': np.full(1, config.seed)}}, meta)


def make_evaluation(run, spec, *, images=8, dataset=None):
    """An evaluation of five networks, as a function of the directory's name."""
    workdir = spec.workdir
    top1 = np.random.default_rng(list(workdir.encode()[-9:])).normal(50, 9, 5).tolist()
    bits = [str(policy) for policy in spec.policies]
    networks = [
        {
            'split': 'test',
            'name': str(i),
            'digest': str(i),
            'scores': {b: {'top1': x, 'top5': x} for b in bits},
        }
        for i, x in enumerate(top1)
    ]
    same = ('dataset', 'note', 'batch_size', 'image_size', 'batch_norm', 'ranges', 'range_rule')
    protocol = {**dict.fromkeys((*same, 'calibration_images')), 'images': images, 'bits': bits}
    protocol |= {'training': '', 'workdir': workdir, 'step': run.step}
    rows = results.make_rows(networks, bits)
    return {'rows': rows, 'networks': networks, 'protocol': protocol}, None


@pytest.fixture
def quick(monkeypatch):
    """Nothing is trained or scored: {name: config} of what would have been trained."""
    trained = {}

    def train(config, folder):
        trained[folder.name] = config
        save_run(config, folder)

    monkeypatch.setattr(study, 'train', train)
    monkeypatch.setattr(study, 'evaluate', make_evaluation)
    monkeypatch.setattr(study, '_score_parts', lambda *_, **__: {'groups': {'nothing': [1.0]}, 'layers': {}})
    monkeypatch.setattr(study, 'load_data', lambda _: None)
    return trained


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
    text = study_tables.text(tables)
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


def names_of(tables):
    return [f'{row["strategy"]}.{row["seed"]}' for row in tables['rows']]


def test_a_study_may_begin_with_any_strategy(tmp_path, quick):
    tables = run(tmp_path / 'new', only=['drawn'])
    assert list(tables['strategies']) == ['drawn'] == list(quick)
    assert json.loads((tmp_path / 'new/study.json').read_text()) == json.loads(json.dumps(tables))


def test_the_networks_until_a_strategy_is_as_good_as_the_baseline_in_the_end():
    validations = {
        ('float', 0): {10: 1.0, 20: 4.0, 30: 5.0}, ('float', 1): {10: 2.0, 20: 3.0, 30: 6.0},
        ('fast', 0): {10: 3.0, 20: 7.0, 30: 7.0}, ('fast', 1): {10: 7.0, 20: 4.0, 30: 9.0},
        ('late', 0): {10: 0.0, 20: 0.0, 30: 5.4}, ('late', 1): {10: 0.0, 20: 0.0, 30: 5.5},
    }  # fmt: skip
    curves = [
        {'strategy': strategy, 'seed': seed, 'networks': networks, 'top1': top1}
        for (strategy, seed), curve in validations.items()
        for networks, top1 in curve.items()
    ]
    reached = study_tables._reached(curves, 'float')
    assert reached == {'top1': 5.5, 'networks': {'float': 30, 'fast': 20, 'late': None}}
    assert study_tables._reached(curves, 'absent') == study_tables._reached([], 'float') == {}


def test_validations_of_a_run_are_in_the_tables_and_on_the_page(tmp_path, quick, monkeypatch):
    save = study.train

    def train(config, folder):
        save(config, folder)
        better = 0.1 * ('drawn' in folder.name)
        rows = [{'step': step, 'val/top1_float': 0.2 * step + better} for step in (1, 2)]
        rows = [*rows, {'step': 2, 'train/loss': 1.0}]
        (folder / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))

    monkeypatch.setattr(study, 'train', train)
    monkeypatch.setattr(study, 'validation_metric', lambda config: 'val/top1_float')
    tables = run(tmp_path, seeds=(0, 5))
    meta_batch = config().train.meta_batch
    curve = [(p['networks'], p['top1']) for p in tables['curves'] if p['strategy'] == 'drawn']
    np.testing.assert_allclose(curve, [(meta_batch, 30), (2 * meta_batch, 50)] * 2)
    assert tables['reached']['networks'] == {'float': 2 * meta_batch, 'drawn': 2 * meta_batch}
    assert 'networks to 40.0 % in validation' in study_tables.text(tables)
    page = docs_tables.markdown(json.loads((tmp_path / 'study.json').read_text()))
    row = next(row for row in tables['over_seeds']['rows'] if row['strategy'] == 'drawn')
    assert f'| {row["top1_mean"]:.1f} ± {row["top1_sem"]:.1f} ({row["difference_mean"]:+.1f}) |' in page
    assert "| drawn | mode=qat, draw=['w2a2', 'w4a4'], " in page and 'baseline: float' in page


COMBINED = 'cosine_rate_3e-3', 'muon_cosine', 'winners'  # recipes of several changes


def test_the_recipe_study_of_the_package_makes_its_runs():
    strategies = read_strategies('recipe')
    base = configs.freeze(config_file.Parser().parse('published_recipe'))
    made = {run.strategy: run.config for run in make_runs(base, strategies)}
    published = made['published']
    assert next(iter(strategies)) == 'published' and published == base
    for name, c in made.items():
        differing = differing_keys(published, c, FREE_KEYS)
        assert set(differing) == set(strategies[name]), name
        # One change at a time; a schedule goes with its warm-up, networks with images.
        assert name in ('published', *COMBINED) or len({key.split('_')[-1] for key in differing}) <= 2, name
        assert (c.train.steps, c.train.meta_batch * c.train.batch_size) == (
            published.train.steps, published.train.meta_batch * published.train.batch_size
        ), name  # fmt: skip


def test_with_several_seeds_each_strategy_runs_with_each_and_means_are_over_seeds(tmp_path, quick):
    tables = run(tmp_path, seeds=(0, 5, 7))
    assert {name: c.seed for name, c in quick.items()} == {
        f'{n}.seed{k}': k for n in STRATEGIES for k in (0, 5, 7)
    }
    ours, base = (
        np.array([
            [n['scores']['w4a4']['top1'] for n in json.loads(file.read_text())['networks']]
            for file in sorted(tmp_path.glob(f'{name}.seed*/evaluation.json'))
        ])
        for name in ('drawn', 'float')
    )  # fmt: skip
    assert [row.get('difference_mean') for row in tables['rows']] == [
        None, None, None, *(pytest.approx(d) for d in (ours - base).mean(1))
    ]  # fmt: skip
    row = tables['over_seeds']['rows'][1]
    assert (row['strategy'], row['seeds']) == ('drawn', [0, 5, 7])
    for name, means in (('top1', ours.mean(1)), ('difference', (ours - base).mean(1))):
        assert row[f'{name}_mean'] == pytest.approx(means.mean())
        assert row[f'{name}_sem'] == pytest.approx(means.std(ddof=1) / 3**0.5)
    assert 'over seeds' in study_tables.text(tables)

    quick.clear()
    run(tmp_path / 'one', seeds=(0, 5, 7), only=['drawn.seed5'])
    assert {name: c.seed for name, c in quick.items()} == {'drawn.seed5': 5}
    with pytest.raises(UserError, match=r'^only=drawn.seed6: expected of float, drawn, or a run such as'):
        run(tmp_path / 'one', seeds=(0, 5, 7), only=['drawn.seed6'])
    # Of seeds of which the baseline is not there yet, nothing is said.
    tables = run(tmp_path / 'few', seeds=(0, 5, 7), only=['float.seed5', 'drawn'])
    middle = next(row for row in tables['rows'] if (row['strategy'], row['seed']) == ('drawn', 5))
    row = tables['over_seeds']['rows'][1]
    assert row['seeds'] == [0, 5, 7]
    for key in ('difference_mean', 'difference_sem'):
        assert row[key] == middle[key] != 0


def test_the_tables_have_the_runs_of_earlier_calls_with_other_strategies_and_seeds(tmp_path, quick):
    assert names_of(run(tmp_path, seeds=(5,), only=['drawn'])) == ['drawn.5']
    assert names_of(run(tmp_path, seeds=(0,))) == ['float.0', 'drawn.0', 'drawn.5']
    tables = run(tmp_path, seeds=(5,), only=['float'])
    assert names_of(tables) == ['float.0', 'float.5', 'drawn.0', 'drawn.5']
    assert tables == run(tmp_path, seeds=(0, 5))
    assert [row['seeds'] for row in tables['over_seeds']['rows']] == [[0, 5], [0, 5]]


def change_evaluation(folder, **changes):
    file = folder / 'evaluation.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


UNLIKE = {
    'another seed': (dict(changes={'seed': 3}), None, 'another config (seed differ)'),
    'another learning rate': (
        dict(changes={'train.learning_rate': 0.5}), None, 'another config (train.learning_rate differ)'
    ),
    'more steps': (dict(changes={'train.steps': 4}), None, 'another config (train.steps differ)'),
    'another strategy': (
        dict(strategies=STRATEGIES | {'float': {'mode': 'qat', 'bits': 'w8a8'}}), None,
        'another config (quant.bits differ)',
    ),
    'other images': (dict(num_images=4), None, 'scored in another way (num_images differ)'),
    'other bits': (
        dict(policies=[parse_bits('w2a2')]), None, 'scored in another way (bits differ)'
    ),
    'unfinished': (
        {}, lambda folder: save_run(config_of_float(), folder, step=3), 'its training is at step 3 of 2'
    ),
    'trained again': (
        {}, lambda folder: train_again(folder), 'its evaluation is not of its newest checkpoint'
    ),
    'changed': ({}, lambda folder: change_evaluation(folder, rows=[]), 'is not what was written'),
    'of another version': (
        {}, lambda folder: drop_digest(folder), 'was not written by a study of this version'
    ),
    'torn': ({}, lambda folder: (folder / 'evaluation.json').write_text('{"rows": ['), 'is no JSON'),
    'no checkpoint': (
        {}, lambda folder: (folder / 'checkpoints').rename(folder / 'old'), 'no checkpoint in'
    ),
    'of other strategies': (
        dict(strategies={'drawn': STRATEGIES['drawn']}), None,
        'no runs of these strategies without seeds of their own: float',
    ),
}  # fmt: skip


def drop_digest(folder):
    file = folder / 'evaluation.json'
    result = json.loads(file.read_text())
    del result['digest']
    file.write_text(json.dumps(result))


def config_of_float():
    return make_runs(config(), STRATEGIES)[0].config


def train_again(folder):
    (folder / 'checkpoints').rename(folder / 'old')
    with Checkpoints(folder) as checkpoints:
        meta = runs.run_meta(config_of_float(), GHNConfig(hid=8), 2, kind='train')
        checkpoints.save(2, {'params': {'w': np.full(1, 9)}}, meta)


@pytest.mark.parametrize('case', UNLIKE)
def test_a_run_that_is_not_like_the_others_is_left_out_of_the_tables_and_named(tmp_path, quick, capsys, case):
    options, change, words = UNLIKE[case]
    assert names_of(run(tmp_path, only=['float'])) == ['float.0']
    if change:
        change(tmp_path / 'float')
    capsys.readouterr()
    tables = run(tmp_path, only=['drawn'], **options)
    assert [row['strategy'] for row in tables['rows']] == ['drawn']
    assert json.loads((tmp_path / 'study.json').read_text()) == json.loads(json.dumps(tables))
    told = [line for line in capsys.readouterr().err.splitlines() if 'left out of the tables' in line]
    assert len(told) == 1 and 'float' in told[0] and words in told[0]


def test_a_run_scored_on_other_images_is_left_out_of_the_tables(tmp_path, quick, monkeypatch, capsys):
    run(tmp_path, only=['float'])
    monkeypatch.setattr(study, 'evaluate', functools.partial(make_evaluation, images=6))
    assert names_of(run(tmp_path, only=['drawn'])) == ['drawn.0']
    assert (
        'float is left out of the tables: it was made with images=8, this is images=6'
        in capsys.readouterr().err
    )


def test_runs_are_scored_on_the_images_where_the_config_says_they_are_now(tmp_path, quick, monkeypatch):
    before = lambda config, folder: save_run(configs.replace(config, 'data_dir', 'before'), folder)
    seen = []
    monkeypatch.setattr(study, 'train', before)
    monkeypatch.setattr(study, 'load_data', lambda config: seen.append(config.data_dir))
    run(tmp_path, only=['float'])
    assert seen == ['']


def test_what_is_left_out_is_said_once(tmp_path, quick, capsys):
    run(tmp_path, strategies={'odd': {}})
    run(tmp_path)
    assert capsys.readouterr().err.count('left out') == 1


@pytest.fixture(params=['disk', 'bucket'])
def place(request, tmp_path):
    """A directory for a study."""
    if request.param == 'disk':
        return tmp_path
    return paths.place(request.getfixturevalue('cloud'), 'workdir')


def test_processes_that_share_a_study_lose_no_rows(place, quick, monkeypatch):
    make_tables, in_tables, written = study_tables.make_tables, threading.Event(), threading.Event()

    def slowly(done, *args):
        tables = make_tables(done, *args)
        if not in_tables.is_set():  # the first has read what is done; the second now finishes its run
            in_tables.set()
            written.wait(1)
        return tables

    monkeypatch.setattr(study_tables, 'make_tables', slowly)

    def second():
        in_tables.wait()
        run(place, only=['drawn'])
        written.set()

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(second)
        run(place, only=['float'])
        other.result()
    assert names_of(json.loads((place / 'study.json').read_text())) == ['float.0', 'drawn.0']


def test_tables_that_cannot_be_written_are_one_line(tmp_path, quick):
    (tmp_path / 'study.json').mkdir()
    with pytest.raises(UserError, match='study.json cannot be written'):
        run(tmp_path)


@pytest.mark.parametrize('values', [['0', '0'], ['-1'], ['1.5'], ['a'], [''], ['2147483648'], ['7' * 5000]])
def test_bad_seeds_are_refused(values):
    with pytest.raises(UserError, match='^seeds='):
        parse_seeds(values)


def test_a_strategy_has_no_seed_of_its_own_beside_others():
    with pytest.raises(UserError, match="strategy 'a' has a seed"):
        make_runs(small_config(), {'a': {'seed': 1}}, (0, 1))


@pytest.mark.parametrize(
    ('strategies', 'words'),
    [
        ({'a': {'mode': 'qat', 'bitz': 'w4a4'}}, 'quant.bitz is no key'),
        ({'a': {'mode': 'qat', 'bits': 'w0a4'}}, "strategy 'a': quant.bits"),
        ({'a': {'mode': 'qat', 'percentile': 'high'}}, "strategy 'a': quant.percentile"),
        ({'a': {'ghn.bitz': True}}, "strategy 'a': ghn.bitz is no key"),
        ({'a': {'seed.x.y': 1}}, "strategy 'a': seed.x.y is no key"),
        ({'a': {'train.steps': '7'}}, "strategy 'a': train.steps"),
        ({'a': {}, 'b': {'mode': 'qat', 'percentile': 0.3}}, "strategy 'b'"),
        (
            {'a': {'space.channels': [32]}},
            "strategy 'a': it changes space.channels: all .* on the same networks",
        ),
        ({'a': {'dataset': 'digits'}}, "strategy 'a': it changes dataset"),
        ({'a': {'image_size': 16}}, "strategy 'a': it changes image_size"),
        ({'a': {'data_dir': 'elsewhere'}}, "strategy 'a': it changes data_dir"),
    ],
)
def test_a_bad_strategy_is_refused_before_any_is_trained(tmp_path, strategies, words):
    with pytest.raises(UserError, match=words):
        study.study(config(), strategies, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('text', ['', '[]', '{}', '{"a/b": {}}', '{"a": 4}', '{"a": {}, "a": {}}'])
def test_a_bad_file_of_strategies_is_one_line(tmp_path, text):
    (tmp_path / 's.json').write_text(text)
    flags = '--config=configs/test.py', f'--workdir={tmp_path}/w', f'--strategies={tmp_path}/s.json'
    assert is_one_error_line(command('ghn_jax.study', *flags), '--strategies')


def test_the_strategies_of_the_repository_are_possible():
    strategies = read_strategies('configs/strategies.json')
    for study_run in make_runs(small_config(), strategies):
        assert study_run.config.quant.mode == strategies[study_run.name]['mode']


def test_a_strategy_may_change_any_key_of_the_config():
    [study_run] = make_runs(small_config(), {'a': {'bits': 'w2a2', 'ghn.bits': True, 'seed': 9}})
    changed = study_run.config
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
