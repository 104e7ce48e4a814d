"""Training: resuming is never having stopped; a run of another config, or a bad one, is refused in one
line."""

import json

import jax
import numpy as np
import pytest

from ghn_jax import train as training
from ghn_jax.batches import draw
from ghn_jax.cnn.coverage import family
from ghn_jax.errors import UserError
from ghn_jax.metrics import read_jsonl
from ghn_jax.networks.spaces import make_space
from ghn_jax.predict import predict_weights
from ghn_jax.quant import Policy, parse_bits
from tests.small_run import small_config, write_run


def _config(**train):
    """Of a GHN that is told the bits, on drawn policies: all that a run may have, in one program."""
    c = small_config(uniform_share=0.4, mixed_share=0.4, start_step=1)
    c.ghn.bits = True
    c.train.steps, c.train.meta_batch, c.train.schedule = 6, 2, 'cosine'
    c.save_every_steps, c.log_every_steps, c.eval.every_steps = 3, 1, 0
    c.train.update(train)
    return c


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    workdir, compiled = tmp_path_factory.mktemp('whole'), training._step._cache_size()
    state = training.train(_config(), workdir)
    assert training._step._cache_size() == compiled + 1  # of one program, with one type of state throughout
    return state, workdir


def _losses(workdir):
    return [(r['step'], r['train/loss'], r['train/accuracy']) for r in read_jsonl(workdir / 'metrics.jsonl')]


def test_three_steps_and_three_after_a_resume_are_six_steps_bit_for_bit(whole, tmp_path):
    compiled = training._step._cache_size()
    training.train(_config(), tmp_path, stop_at=3)
    resumed = training.train(_config(), tmp_path)
    assert training._step._cache_size() == compiled  # what is restored has the types of what is initialised
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(resumed), jax.device_get(whole[0]))
    assert _losses(tmp_path) == _losses(whole[1])
    assert [step for step, *_ in _losses(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_training_changes_every_parameter_and_losses_are_finite(whole):
    state, workdir = whole
    start = training.init_params(training.runs.make_ghn(_config(), 10).config, jax.random.key(0))
    # Embeddings of primitives, sizes and bits that no network of the space has stay as they are.
    moved = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b))), jax.device_get(state.params), start)
    assert all(x > 0 for x in jax.tree.leaves(moved))
    assert all(np.isfinite(loss) for _, loss, _ in _losses(workdir))


def test_another_config_in_the_same_workdir_is_refused_by_the_key_that_differs(whole):
    with pytest.raises(UserError, match='train.learning_rate'):
        training.train(_config(learning_rate=0.5), whole[1])


def test_a_finished_run_does_nothing_more(whole):
    before = (whole[1] / 'metrics.jsonl').read_text()
    state = training.train(_config(), whole[1])
    assert int(state.step) == 6
    assert (whole[1] / 'metrics.jsonl').read_text() == before


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('quant.bits', 'w1a4', 'bits'),
        ('quant.mode', 'qta', 'quant.mode'),
        ('space.ops', ('conv_9x9',), 'conv_9x9'),
        ('space.name', 'nasbench', 'nasbench'),
        ('dataset', 'cifar11', 'cifar11'),
        ('train.meta_batch', 0, 'meta_batch'),
        ('image_size', 16, 'flat_head_share'),
        ('quant.uniform_share', 1.5, 'quant.uniform_share=1.5'),
        ('quant.uniform_share', 0.75, 'add up to'),
        ('quant.mode', 'float', 'to draw bit-widths'),
        ('quant.widths', (1, 4), 'quant.widths'),
        ('quant.widths', (4.0,), 'quant.widths'),
        ('eval.bits', ('w4',), "'w4'"),
        ('init_from', 'absent', 'no checkpoint in .*absent'),
        ('save_every_steps', 7, 'save_every_steps'),
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
        training.train(c, tmp_path / 'run')
    assert '\n' not in str(error.value)
    assert not (tmp_path / 'run').exists()


def test_networks_of_a_step_share_a_width_and_depend_on_step_and_seed_only():
    space = make_space('convnets250k')
    first = [draw(space, 0, step, 3) for step in range(12)]
    assert all(len({spec.C for spec in specs}) == 1 for specs in first)
    assert first == [draw(space, 0, step, 3) for step in range(12)]
    assert first != [draw(space, 1, step, 3) for step in range(12)]
    families = [set(map(family, draw(make_space('deepnets1m'), 0, step, 3))) for step in range(12)]
    assert all(len(f) == 1 for f in families) and len(set().union(*families)) > 1


def _policies(**changes):
    c = _config()
    c.quant.update(changes)
    space = training.runs.make_space_of(c)
    preparation = training.Preparation(c, space, parse_bits(c.quant.bits))
    return [preparation.policies(step, draw(space, c.seed, step, 4)) for step in range(20)], preparation


def test_policies_are_drawn_for_each_network_after_the_first_steps():
    policies, preparation = _policies(start_step=3)
    assert all(policy == Policy() for step in policies[:3] for policy in step)
    drawn = [policy for step in policies[3:] for policy in step]
    assert {len(policy.layers) > 0 for policy in drawn} == {True, False}
    assert len(set(drawn)) > 30 and Policy(4, 4) in drawn
    fixed, _ = _policies(uniform_share=0, mixed_share=0, start_step=0)
    assert all(policy == Policy(4, 4) for step in fixed for policy in step)
    # What the graphs say is what the networks run at.
    _, networks = preparation.step(7)
    expected = [
        p.weights('classifier.0.weight') for p in preparation.policies(7, draw(preparation.space, 0, 7, 2))
    ]
    for m in range(2):
        told, run = networks.graphs.weight_bits[m], networks.bits.weights[m]
        assert set(told) - {0, 32} == set(run) - {32}
        assert expected[m] in told


def test_a_run_told_the_bits_predicts_other_weights_for_other_bits(whole):
    run = training.runs.load_run(whole[1])
    spec = training.runs.make_space_of(run.config).sample('test', 0, 0)
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
    ghn, optimizer = training.runs.make_ghn(c, 10), training.make_optimizer(c)
    with training.Checkpoints(tmp_path / 'run') as checkpoints:
        params = training.restore_or_init(checkpoints, c, ghn, optimizer).params
    tables = params.pop('bits')
    jax.tree.map(np.testing.assert_array_equal, params, training.runs.load_run(c.init_from).params)
    assert not any(np.asarray(table).any() for table in jax.tree.leaves(tables))
    # Not where the run has begun: that is where it goes on from.
    c.init_from = ''
    with training.Checkpoints(whole[1]) as checkpoints:
        state = training.restore_or_init(checkpoints, c, ghn, optimizer)
    jax.tree.map(np.testing.assert_array_equal, state.params, whole[0].params)
    for changes, init_from, message in (
        ({'hid': 16}, tmp_path / 'plain', 'hid=8, this run has hid=16'),
        ({'bits': False}, whole[1], 'bits=True, this run has bits=False'),
    ):
        c.init_from = str(init_from)
        c.ghn.update({'bits': True, 'hid': 8} | changes)
        ghn = training.runs.make_ghn(c, 10)
        with training.Checkpoints(tmp_path / 'other') as checkpoints, pytest.raises(UserError, match=message):
            training.restore_or_init(checkpoints, c, ghn, optimizer)


def test_metrics_are_json_lines_with_train_and_time_values(whole):
    records = [json.loads(line) for line in (whole[1] / 'metrics.jsonl').read_text().splitlines()]
    assert {'train/loss', 'train/accuracy', 'train/gradient_norm', 'train/not_finite'} <= set(records[-1])
