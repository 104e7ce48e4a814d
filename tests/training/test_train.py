"""Training: resuming is never having stopped; a run of another config, or a bad one, is refused in one
line."""

import dataclasses
import itertools
import json
import os

import jax
import numpy as np
import pytest

from ghn_jax.base import lock
from ghn_jax.base.errors import NotFinite, Stopped, UserError
from ghn_jax.base.jsonlines import read_jsonl
from ghn_jax.datasets.load import batch_indices
from ghn_jax.hypernet.ghn import init_params
from ghn_jax.hypernet.predict import predict_weights
from ghn_jax.networks.graph import build_graph
from ghn_jax.quant import parse_bits
from ghn_jax.quant.strategy import strategy_of
from ghn_jax.runs import run as runs
from ghn_jax.runs import task
from ghn_jax.runs.checkpoint import Checkpoints
from ghn_jax.runs.pack import read_pack
from ghn_jax.training import train as training
from ghn_jax.training.compiled import training_step
from ghn_jax.training.optimizer import make_optimizer
from ghn_jax.training.preemption import Stopping
from ghn_jax.training.replay import examine, replay
from ghn_jax.training.sampling import Preparation, draw
from ghn_jax.training.state import initial_state, restore_or_init
from ghn_jax.training.stepper import Stepper
from ghn_jax.training.train import train
from tests.small_run import command, is_one_error_line, small_config, write_run


def _config(**train):
    """Of a GHN that is told the bits, on drawn policies: all that a run may have, in one program."""
    c = small_config(draw=('w2a2', 'w2a8', 'w4a4', 'w32a4'), draw_per='either', schedule=((1, 'float'),))
    c.ghn.bits, c.space.ops = True, ('skip_connect', 'conv_1x1')
    c.train.steps, c.train.meta_batch, c.train.schedule = 6, 2, 'cosine'
    c.train.ema, c.train.label_smoothing, c.train.network_clip_norm, c.train.weight_penalty = (
        0.9,
        0.1,
        5.0,
        1e-5,
    )
    c.save_every_steps, c.log_every_steps, c.eval.every_steps = 3, 1, 0
    c.train.update(train)
    return c


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    workdir, compiled = tmp_path_factory.mktemp('whole'), training_step._cache_size()
    state = train(_config(), workdir)
    assert training_step._cache_size() == compiled + 1  # of one program, with one type of state throughout
    return state, workdir


def _losses(workdir):
    return [(r['step'], r['train/loss'], r['train/accuracy']) for r in read_jsonl(workdir / 'metrics.jsonl')]


def test_three_steps_and_three_after_a_resume_are_six_steps_bit_for_bit(whole, tmp_path):
    compiled = training_step._cache_size()
    train(_config(), tmp_path, stop_at=3)
    resumed = train(_config(), tmp_path)
    assert training_step._cache_size() == compiled  # what is restored has the types of what is initialised
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(resumed), jax.device_get(whole[0]))
    assert _losses(tmp_path) == _losses(whole[1])
    assert [step for step, *_ in _losses(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_run_is_used_with_the_average_of_its_parameters(whole):
    state, workdir = whole
    jax.tree.map(np.testing.assert_array_equal, runs.load_run(workdir).params, jax.device_get(state.ema))
    assert any(np.any(np.asarray(a) != b) for a, b in zip(*map(jax.tree.leaves, (state.ema, state.params))))


def test_training_changes_every_parameter_and_losses_are_finite(whole):
    state, workdir = whole
    start = init_params(task.make_ghn(_config()).config, jax.random.key(0))
    # Embeddings of primitives, sizes and bits that no network of the space has stay as they are.
    moved = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b))), jax.device_get(state.params), start)
    assert all(x > 0 for x in jax.tree.leaves(moved))
    assert all(np.isfinite(loss) for _, loss, _ in _losses(workdir))


def test_another_config_in_the_same_workdir_is_refused_by_the_key_that_differs(whole):
    with pytest.raises(UserError, match='train.learning_rate'):
        train(_config(learning_rate=0.5), whole[1])


def test_a_run_goes_on_with_the_images_and_labels_that_it_was_begun_with_only(whole, tmp_path, monkeypatch):
    train(_config(), whole[1], pack=tmp_path / 'pack')
    data = training.load_data(_config())
    other = dataclasses.replace(data, train=data.train._replace(labels=data.train.labels[::-1]))
    monkeypatch.setattr(training, 'load_data', lambda config: other)
    before = sorted(whole[1].rglob('*'))
    for workdir, unpack in ((whole[1], None), (tmp_path / 'run', tmp_path / 'pack')):
        with pytest.raises(
            UserError, match='dataset=synthetic has other images or labels than the run in'
        ) as e:
            train(_config(), workdir, unpack=unpack)
        assert '\n' not in str(e.value)
    assert sorted(whole[1].rglob('*')) == before and not list((tmp_path / 'run').glob('*.jsonl'))
    with monkeypatch.context() as older:  # a checkpoint from before there were digests
        meta = Checkpoints(whole[1]).restore_meta() | {'dataset': {'name': 'synthetic', 'note': ''}}
        older.setattr(Checkpoints, 'restore_meta', lambda self: meta)
        assert int(train(_config(), whole[1]).step) == 6


def test_a_checkpoint_of_another_version_of_jax_is_taken_and_said(whole, monkeypatch, capsys):
    version = jax.__version__
    monkeypatch.setattr(jax, '__version__', '0.1.2')
    state = train(_config(), whole[1])
    assert f'step 6 was made with jax {version}, this is 0.1.2' in capsys.readouterr().err
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(whole[0]))


def test_a_finished_run_does_nothing_more(whole):
    before = (whole[1] / 'metrics.jsonl').read_text()
    state = train(_config(), whole[1])
    assert int(state.step) == 6
    assert (whole[1] / 'metrics.jsonl').read_text() == before


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('quant.bits', 'w0a4', 'bits'),
        ('quant.schedule', ((5, 'float'), (2, 'w8a8')), 'steps rising'),
        ('quant.draw', ('w4a4', 'w4'), 'quant.draw'),
        ('quant.draw', (4,), 'quant.draw'),
        ('quant.draw_per', 'cell', 'quant.draw_per'),
        ('quant.weight_range', 'entropy', 'quant.weight_range'),
        ('quant.mode', 'qta', 'quant.mode'),
        ('space.ops', ('conv_9x9',), 'conv_9x9'),
        ('space.name', 'nasbench', 'nasbench'),
        ('dataset', 'cifar11', 'cifar11'),
        ('train.meta_batch', 0, 'meta_batch'),
        ('image_size', 16, 'flat_head_share'),
        ('eval.bits', ('w4',), "'w4'"),
        ('init_from', 'absent', 'no checkpoint in .*absent'),
        ('save_every_steps', 0, 'save_every_steps'),
        ('max_not_finite', 1.5, 'max_not_finite'),
        ('train.optimizer', 'soap', 'expected one of adam, adamw, muon'),
        ('train.ema', 1.5, 'expected a number from 0 to 1'),
        ('devices.images', 2, 'network_clip_norm=5.0 with devices.images=2'),
    ],
)
def test_bad_values_are_refused_before_anything_is_written(tmp_path, key, value, message):
    c = _config()
    c.log_every_steps = 2
    c.save_every_steps = 4
    if key == 'image_size':
        c.space.flat_head_share = 0.1
    *path, last = key.split('.')
    target = c
    for part in path:
        target = target[part]
    target[last] = value
    with pytest.raises(UserError, match=message) as error:
        train(c, tmp_path / 'run')
    assert '\n' not in str(error.value)
    assert key == 'init_from' or not (tmp_path / 'run').exists()  # which is read when it is needed


def test_a_run_told_the_bits_predicts_other_weights_for_other_bits(whole):
    run = runs.load_run(whole[1])
    spec = task.make_space_of(run.config).sample('test', 0, 0)
    assert run.ghn.config.bits and np.asarray(run.params['bits']['weights']).any()
    told = [
        predict_weights(run.ghn, run.params, spec, parse_bits(bits)) for bits in ('float', 'w4a4', 'w2a2')
    ]
    for name, weights in predict_weights(run.ghn, run.params, spec).items():
        np.testing.assert_array_equal(weights, told[0][name])  # not told is float
        assert not np.array_equal(weights, told[1][name]) and not np.array_equal(told[1][name], told[2][name])


def test_a_run_may_begin_with_the_parameters_of_another(whole, tmp_path):
    c = _config()
    c.init_from = str(write_run(tmp_path / 'plain', seed=5))
    ghn, optimizer = task.make_ghn(c), make_optimizer(c)
    with Checkpoints(tmp_path / 'run') as checkpoints:
        params = restore_or_init(checkpoints, c, ghn, optimizer)[0].params
    tables = params.pop('bits')
    jax.tree.map(np.testing.assert_array_equal, params, runs.load_run(c.init_from).params)
    assert not any(np.asarray(table).any() for table in jax.tree.leaves(tables))
    # Not where the run has begun: that is where it goes on from.
    c.init_from = ''
    with Checkpoints(whole[1]) as checkpoints:
        state, _ = restore_or_init(checkpoints, c, ghn, optimizer)
    jax.tree.map(np.testing.assert_array_equal, state.params, whole[0].params)
    for changes, init_from, message in (
        ({'hid': 16}, tmp_path / 'plain', 'hid=8, this run has hid=16'),
        ({'bits': False}, whole[1], 'bits=True, this run has bits=False'),
    ):
        c.init_from = str(init_from)
        c.ghn.update({'bits': True, 'hid': 8} | changes)
        ghn = task.make_ghn(c)
        with Checkpoints(tmp_path / 'other') as checkpoints, pytest.raises(UserError, match=message):
            restore_or_init(checkpoints, c, ghn, optimizer)


def test_metrics_are_json_lines_with_train_and_time_values(whole):
    records = [json.loads(line) for line in (whole[1] / 'metrics.jsonl').read_text().splitlines()]
    assert {'train/loss', 'train/accuracy', 'train/gradient_norm', 'train/not_finite'} <= set(records[-1])


# ---- stopping and going on


class AfterSteps(Stopping):
    """As if a signal came in the n-th step from the start."""

    def __init__(self, n):
        super().__init__()
        self.left = n

    def agreed(self):
        self.left -= 1
        return self.left == 0


def _stopped_after(config, workdir, n):
    with pytest.raises(Stopped, match='is saved: start again'):
        train(config, workdir, stopping=AfterSteps(n))


def _same(workdir, other, state, expected):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(expected))
    assert (workdir / 'metrics.jsonl').read_bytes() == (other / 'metrics.jsonl').read_bytes()


def test_no_stop_changes_a_mean_or_a_state_wherever_it_falls(tmp_path):
    config = _config()
    config.log_every_steps, config.save_every_steps = 4, 5
    expected = train(config, tmp_path / 'whole')
    assert [step for step, *_ in _losses(tmp_path / 'whole')] == [4, 6]
    for n in (1, 2, 1):
        _stopped_after(config, tmp_path / 'stopped', n)
    config.save_in_background = False  # both ways of saving
    state = train(config, tmp_path / 'stopped')
    _same(tmp_path / 'stopped', tmp_path / 'whole', state, expected)


def test_a_run_that_goes_on_elsewhere_from_its_pack_is_the_one_that_never_stopped(tmp_path, monkeypatch):
    config = _config()
    config.log_every_steps, config.save_every_steps = 4, 5
    expected = train(config, tmp_path / 'whole', pack=tmp_path / 'whole.pack')
    with pytest.raises(Stopped):
        train(config, tmp_path / 'a', pack=tmp_path / 'pack', stopping=AfterSteps(1))
    with monkeypatch.context() as broken:  # the machine fails while the run is unpacked
        broken.setattr(Checkpoints, 'save', lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(config, tmp_path / 'b', unpack=tmp_path / 'pack')
    with pytest.raises(Stopped):
        train(
            config, tmp_path / 'b', unpack=tmp_path / 'pack', pack=tmp_path / 'pack', stopping=AfterSteps(4)
        )
    state = train(config, tmp_path / 'c', unpack=tmp_path / 'pack', pack=tmp_path / 'pack')
    _same(tmp_path / 'c', tmp_path / 'whole', state, expected)
    machine = [row['step'] for row in read_jsonl(tmp_path / 'c/machine.jsonl')]
    assert machine == [4, 6]  # of a and b, then of c
    last, whole = read_pack(tmp_path / 'pack'), read_pack(tmp_path / 'whole.pack')
    assert last.meta == whole.meta and last.records['metrics.jsonl'] == whole.records['metrics.jsonl']
    for name, array in whole.arrays.items():
        np.testing.assert_array_equal(last.arrays[name], array)


def test_a_pack_that_cannot_be_gone_on_with_here_is_refused_in_one_line(whole, tmp_path):
    train(_config(), whole[1], pack=tmp_path / 'pack')  # of a finished run
    assert read_pack(tmp_path / 'pack').meta['step'] == 6
    for config, workdir, message in (
        (_config(), whole[1], 'unpack=.*holds a run already, of step 6'),
        (
            _config(learning_rate=0.5),
            tmp_path / 'run',
            'train.learning_rate is another one in the run that .*pack',
        ),
    ):
        with pytest.raises(UserError, match=message) as error:
            train(config, workdir, unpack=tmp_path / 'pack')
        assert '\n' not in str(error.value)
    assert not list((tmp_path / 'run').glob('*.jsonl'))
    common = '--config=configs/test.py', f'--workdir={tmp_path / "run"}'
    absent = command('ghn_jax.train', *common, f'--unpack={tmp_path / "absent"}')
    assert is_one_error_line(absent, '--unpack=', 'no such file')
    nowhere = command('ghn_jax.train', *common, f'--pack={tmp_path / "absent/pack"}')
    assert is_one_error_line(nowhere, '--pack=', 'does not exist')


@pytest.fixture
def fake_validation(monkeypatch):
    """Validation without a program of its own: 3, 1, 2 after steps 2, 4, 6; it may be told to fail."""
    fails = []

    def make(config, ghn, space, dataset):
        def validate(params):
            if fails:
                raise fails.pop()
            # Steps are told by the newest checkpoint, which is made before each validation.
            return {runs.validation_metric(config): {2: 3.0, 4: 1.0, 6: 2.0}[step_of()]}

        return validate

    step_of = lambda: Checkpoints(fails_in['workdir']).latest_step()
    fails_in = {}
    monkeypatch.setattr(training, 'make_validation', make)
    return fails, fails_in


def test_a_validation_that_was_stopped_is_made_when_the_run_goes_on(tmp_path, fake_validation):
    fails, where = fake_validation
    config = _config()
    config.eval.every_steps, config.save_every_steps = 2, 100
    where['workdir'] = tmp_path / 'whole'
    expected = train(config, tmp_path / 'whole')
    where['workdir'] = tmp_path / 'stopped'
    fails.append(Stopped('in the validation'))
    with pytest.raises(Stopped):
        train(config, tmp_path / 'stopped')
    _stopped_after(config, tmp_path / 'stopped', 2)  # at step 4, whose validation is due
    state = train(config, tmp_path / 'stopped')
    _same(tmp_path / 'stopped', tmp_path / 'whole', state, expected)
    values = [r['val/top1_w4a4'] for r in read_jsonl(tmp_path / 'stopped/metrics.jsonl') if len(r) == 2]
    assert values == [3, 1, 2]


def test_the_last_pack_has_the_last_validation(tmp_path, fake_validation):
    config = _config()
    config.eval.every_steps, fake_validation[1]['workdir'] = 2, tmp_path / 'run'
    train(config, tmp_path / 'run', pack=tmp_path / 'pack')
    metrics = read_pack(tmp_path / 'pack').records['metrics.jsonl']
    assert metrics == (tmp_path / 'run/metrics.jsonl').read_text() and '"val/top1_w4a4": 2.0' in metrics


def test_the_checkpoint_that_validated_best_stays_and_can_be_taken(tmp_path, fake_validation):
    fake_validation[1]['workdir'] = tmp_path
    config = _config()
    config.eval.every_steps, config.save_every_steps, config.keep_checkpoints = 2, 1, 1
    train(config, tmp_path)
    assert Checkpoints(tmp_path).steps() == [2, 6]
    assert runs.load_run(tmp_path, 'best').step == 2 and runs.load_run(tmp_path).step == 6
    assert runs.load_run(tmp_path, '2').step == 2
    for step, message in (('3', r'no checkpoint of step 3: choose from \[2, 6\]'), ('bset', 'latest, best')):
        with pytest.raises(UserError, match=message):
            runs.load_run(tmp_path, step)


def test_a_second_training_in_a_workdir_is_refused_by_the_name_of_the_first(tmp_path):
    with lock.holding(tmp_path):
        with pytest.raises(UserError, match=f'in use by process {os.getpid()} on .*, since 20'):
            train(_config(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ['lock']
    with lock.holding(tmp_path):  # let go
        pass


def test_an_error_in_the_preparation_of_a_step_ends_the_run_there(tmp_path, monkeypatch):
    prepare = Preparation.step

    def failing(self, step):
        if step == 2:
            raise UserError('no such network')
        return prepare(self, step)

    monkeypatch.setattr(Preparation, 'step', failing)
    with pytest.raises(UserError, match='no such network'):
        train(_config(), tmp_path)
    assert [step for step, *_ in _losses(tmp_path)] == [1, 2]


# ---- numbers


@pytest.fixture
def poison(monkeypatch):
    """poison({step: networks}): these predict weights that are not numbers."""

    def poison(where):
        prepare = Preparation.step

        def poisoned(self, step):
            program, networks = prepare(self, step)
            for i in where.get(step, ()):
                networks.decoder.class_scale[i] = np.nan
            return program, networks

        monkeypatch.setattr(Preparation, 'step', poisoned)

    return poison


def test_a_network_that_is_not_finite_is_left_out_written_down_and_shown_again(tmp_path, poison):
    poison({1: [1], 3: [0]})
    state = train(_config(), tmp_path / 'whole')
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(state.params)))
    rows = read_jsonl(tmp_path / 'whole/metrics.jsonl')
    assert [r['train/not_finite'] for r in rows] == [0, 1, 0, 1, 0, 0]
    assert all(np.isfinite(r['train/loss']) and r['train/skipped'] == 0 for r in rows)
    bad = read_jsonl(tmp_path / 'whole/bad_networks.jsonl')
    assert [(r['step'], r['network'], r['what']) for r in bad] == [(2, 1, 'loss'), (4, 0, 'loss')]
    strategy, space = strategy_of(_config()), task.make_space_of(_config())
    for r in bad:
        spec = draw(space, 0, r['step'] - 1, 2)[r['network']]
        assert r['bits'] == str(strategy.policy_of(r['step'] - 1, r['network'], build_graph(spec)))
    # Stopped between the two, nothing is written twice.
    _stopped_after(_config(), tmp_path / 'stopped', 2)
    train(_config(), tmp_path / 'stopped')
    name = 'bad_networks.jsonl'
    assert (tmp_path / 'stopped' / name).read_bytes() == (tmp_path / 'whole' / name).read_bytes()
    compiled = training_step._cache_size()
    said = '\n'.join(itertools.islice(replay(tmp_path / 'whole', 2, exact=True), 5))  # the rest: below
    assert training_step._cache_size() == compiled  # by the program of training
    assert 'parameters: of step 3' in said
    assert 'the step again: network 0 loss not finite, network 1 finite' in said
    assert is_one_error_line(
        command('ghn_jax.replay', f'--workdir={tmp_path / "whole"}', '--line=3'), 'has 2 lines'
    )


def test_the_first_layer_that_is_not_finite_is_named():
    spec = draw(task.make_space_of(_config()), 0, 0, 1)[0]
    rng = np.random.default_rng(0)
    ghn = task.make_ghn(_config())
    params = init_params(ghn.config, jax.random.key(0))
    weights = dict(predict_weights(ghn, params, spec))
    x, y = rng.normal(size=(4, 8, 8, 3)).astype(np.float32), np.arange(4)
    policy = parse_bits('float')  # rounded, a tensor without a range is zeros
    assert any(line.startswith('gradient: finite') for line in examine(spec, weights, x, y, policy))
    last = 'classifier.3.weight' if spec.fc_layers == 2 else 'classifier.0.weight'  # no relu hides it
    weights[last] = np.full_like(weights[last], np.inf)
    said = list(examine(spec, weights, x, y, policy))
    assert f'predicted weights: {last} and 0 more are not finite' in said
    assert f'forward: not finite from the layer of {last} on' in said


def test_a_step_without_a_finite_network_changes_neither_parameters_nor_optimizer(tmp_path, poison):
    poison({0: [0, 1]})
    config = _config()
    config.max_not_finite = 1.0
    state = train(config, tmp_path, stop_at=1)
    ghn = task.make_ghn(config)
    start = initial_state(config, ghn, make_optimizer(config))
    assert int(state.step) == 1
    jax.tree.map(np.testing.assert_array_equal, state.params, start.params)
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, start.opt_state)
    jax.tree.map(np.testing.assert_array_equal, state.ema, start.ema)
    (row,) = read_jsonl(tmp_path / 'metrics.jsonl')
    assert row['train/skipped'] == 1 and row['train/loss'] is None
    train(config, tmp_path)  # and the run goes on


def test_too_many_networks_that_are_not_finite_stop_the_run_by_the_last_good_checkpoint(tmp_path, poison):
    poison({4: [0, 1]})
    with pytest.raises(NotFinite, match='2 of the 2 networks until step 5 .* last good checkpoint is 3'):
        train(_config(), tmp_path)
    assert len(read_jsonl(tmp_path / 'bad_networks.jsonl')) == 2


# ---- determinism


def test_the_seed_changes_weights_networks_images_and_keys_and_nothing_else_does():
    def everything(seed):
        config = _config()
        config.seed = seed
        ghn, dataset = task.make_ghn(config), task.load_data(config)
        optimizer = make_optimizer(config)
        stepper = Stepper(config, ghn, optimizer, dataset)
        return {
            'weights': jax.device_get(initial_state(config, ghn, optimizer).params),
            'networks': [s.to_json() for s in draw(task.make_space_of(config), seed, 3, 8)],
            'order of images': batch_indices(seed, 3, 16, stepper.count),
            'images': np.asarray(stepper.stream.images),
            'key of augmentation, noise and dropout': jax.random.key_data(stepper.key),
        }

    first, again, other = everything(0), everything(0), everything(1)
    for name in first:
        a, b, c = (jax.tree.leaves(x[name]) for x in (first, again, other))
        assert all(np.array_equal(x, y) for x, y in zip(a, b)), name
        assert not all(np.array_equal(x, y) for x, y in zip(a, c)), name


@pytest.mark.slow
def test_hard_networks_are_skipped_where_they_are_not_finite_and_training_goes_on(tmp_path, monkeypatch):
    """Without norms, deep, two bits, a learning rate that is far too high."""
    config = _config(steps=60, learning_rate=1.0, meta_batch=4)
    config.space.cells, config.quant.bits = (8, 14), 'w2a2'
    space = dataclasses.replace(task.make_space_of(config), norms=(None,))
    monkeypatch.setattr(training, 'make_space_of', lambda config: space)
    config.program.max_nodes, config.max_not_finite, config.log_every_steps = 320, 1.0, 10
    state = train(config, tmp_path)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get((state.params, state.opt_state))))
    rows, bad = (read_jsonl(tmp_path / name) for name in ('metrics.jsonl', 'bad_networks.jsonl'))
    print([r['train/loss'] for r in rows], f'{len(bad)} of 240 networks')
    assert sum(10 * r['train/not_finite'] for r in rows) == pytest.approx(len(bad))
