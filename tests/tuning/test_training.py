"""The training of one network: the compiled step, its images, and that stopping changes nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from ghn_jax.base.errors import UserError
from ghn_jax.models.folding import Calibrated, fold
from ghn_jax.models.tracing import trace
from ghn_jax.quant.policy import Policy, parse_bits
from ghn_jax.tuning import loop
from ghn_jax.tuning.initialization import RANDOM, random_params
from ghn_jax.tuning.records import TrainingRecord
from ghn_jax.tuning.training import TrainingImages, TrainingSpec, make_trainer
from tests.tuning.killed import Killed, dying_progress
from tests.tuning.nets import Net, small_data, traced

DATA = small_data()
IMAGES = TrainingImages.of(DATA)
SPEC = TrainingSpec(epochs=3, batch_size=16, learning_rate=0.05, weight_decay=0.01, clip_norm=1.0, ema=0.6)
MODEL = traced()
PARAMS = random_params(MODEL, RANDOM['he'], 0)
# Activations stay: at 4 bits one that is a little different is rounded to the other side.
W4 = MODEL.quantizer(parse_bits('w4a32'))

pytestmark = pytest.mark.usefixtures('quick_reference')


@pytest.fixture(scope='module')
def trainer(quick_reference):
    return make_trainer(MODEL.apply, W4, SPEC, DATA)


def trained(trainer, *, steps: int, params=PARAMS, seed: int = 3):
    state = trainer.begin(params, seed)
    for step in range(steps):
        state = trainer.step(state, trainer.order(seed, step // trainer.steps_per_epoch), IMAGES)
    return state


def adamw(t, g, p, m, v, rate):
    """AdamW of one tensor (arXiv 1711.05101, algorithm 2): the next parameters and moments."""
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
    step = m / (1 - 0.9 ** (t + 1)) / (np.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8)
    return p - rate * (step + SPEC.weight_decay * p), m, v


def sgd(t, g, p, m, v, rate):
    """SGD with momentum, as PyTorch has it: weight decay is part of the gradient."""
    m = 0.9 * m + g + SPEC.weight_decay * p
    return p - rate * m, m, v


def obvious_training(trainer, loss, *, steps: int, seed: int = 3, optimizer=adamw):
    """In NumPy, on batches cut by hand."""
    params = jax.tree.map(np.float64, PARAMS)
    m = v = jax.tree.map(np.zeros_like, params)
    mean, total = params, SPEC.epochs * trainer.steps_per_epoch
    for t in range(steps):
        epoch, place = divmod(t, trainer.steps_per_epoch)
        chosen = np.asarray(trainer.order(seed, epoch))[16 * place : 16 * (place + 1)]
        x = (DATA.train.images[chosen] / 255 - DATA.mean) / DATA.std
        g = jax.grad(loss)(jax.tree.map(jnp.float32, params), jnp.float32(x), DATA.train.labels[chosen])
        g = jax.tree.map(np.float64, g)
        norm = np.sqrt(sum(np.sum(a**2) for a in jax.tree.leaves(g)))
        g = jax.tree.map(lambda a: a * min(1, SPEC.clip_norm / norm), g)  # noqa: B023
        rate = SPEC.learning_rate * (1 + np.cos(np.pi * t / total)) / 2
        next_ = jax.tree.map(lambda *tensors: optimizer(t, *tensors, rate), g, params, m, v)  # noqa: B023
        params, m, v = jax.tree.transpose(jax.tree.structure(g), None, next_)
        kept = min(SPEC.ema, (1 + t) / (10 + t))
        mean = jax.tree.map(lambda a, p: kept * a + (1 - kept) * p, mean, params)  # noqa: B023
    return params, mean


def assert_close(found, expected, tolerance: float) -> None:
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance, err_msg=jax.tree_util.keystr(path))


def cross_entropy(logits, labels):
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels])


def test_a_gradient_through_rounding_is_that_of_the_obvious_loss(trainer):
    x = (DATA.train.images[(first := np.asarray(trainer.order(3, 0))[:16])] / 255 - DATA.mean) / DATA.std
    loss = jax.jit(lambda p, x, y: cross_entropy(MODEL.apply(p, x, W4), y))
    g = jax.tree.map(np.float64, jax.grad(loss)(PARAMS, jnp.float32(x), DATA.train.labels[first]))
    norm = np.sqrt(sum(np.sum(a**2) for a in jax.tree.leaves(g)))
    state = trained(trainer, steps=1)
    assert float(state.loss) == pytest.approx(
        float(loss(PARAMS, jnp.float32(x), DATA.train.labels[first])), abs=1e-5
    )
    moments = optax.tree_utils.tree_get(state.optimizer, 'mu')  # a tenth of the clipped gradient
    assert_close(moments, jax.tree.map(lambda a: 0.1 * a * min(1, SPEC.clip_norm / norm), g), 1e-5)


def test_at_32_bits_steps_are_those_of_the_model_itself_in_float():
    loss = jax.jit(
        lambda p, x, y: cross_entropy(Net().apply({'params': p}, x, mutable=['batch_stats'])[0], y)
    )
    plain = make_trainer(MODEL.apply, None, SPEC, DATA)
    at_32 = make_trainer(MODEL.apply, MODEL.quantizer(Policy()), SPEC, DATA)
    state = trained(at_32, steps=4)
    params, mean = obvious_training(at_32, loss, steps=4)
    assert_close(state.params, params, 2e-4)
    assert_close(state.average, mean, 2e-4)
    assert int(state.step) == 4
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(trained(plain, steps=4))):
        np.testing.assert_array_equal(a, b)


def test_steps_of_sgd_are_those_of_its_formulas():
    loss = jax.jit(lambda p, x, y: cross_entropy(MODEL.apply(p, x), y))
    trainer = make_trainer(MODEL.apply, None, dataclasses.replace(SPEC, optimizer='sgd'), DATA)
    state = trained(trainer, steps=4)
    params, mean = obvious_training(trainer, loss, steps=4, optimizer=sgd)
    assert_close(state.params, params, 2e-4)
    assert_close(state.average, mean, 2e-4)


def test_a_pass_reads_each_image_once_at_most_and_each_pass_in_another_order(trainer):
    orders = [np.asarray(trainer.order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(40)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert trainer.steps_per_epoch == 2  # 8 of 40 images are left out of a pass


def test_one_program_serves_all_steps(trainer, count_compiles):
    trained(trainer, steps=1)
    orders = [trainer.order(3, 0), trainer.order(3, 1)]
    state = trainer.begin(PARAMS, 5)
    with count_compiles() as counted:
        for order in orders:
            state = trainer.step(state, order, IMAGES)
    assert counted.n == 0


@pytest.mark.parametrize('updates', [2, 4])  # within a pass and between two
def test_a_training_that_is_killed_and_taken_up_ends_in_the_same_bits(
    trainer, tmp_path, monkeypatch, updates
):
    monkeypatch.setattr(loop, 'SAVE_SECONDS', -1.0)
    monkeypatch.setattr(loop, '_SYNC', 1)

    def fit(name: str, updates: int):
        return loop.fit(
            trainer, IMAGES, trainer.begin(PARAMS, 3), TrainingRecord(tmp_path, name, {'seed': 3}),
            marks=(0, 1, 3),
            score=lambda state: float(jnp.sum(state.averaged['Dense_0']['kernel'])),
            progress=dying_progress(updates),
        )  # fmt: skip

    whole, expected = fit('whole', 100)
    with pytest.raises(Killed):
        fit('killed', updates)
    state, history = fit('killed', 100)
    assert history == expected and list(history['scores']) == ['0', '1', '3'] and len(history['loss']) == 3
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(whole)):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(UserError, match='other settings .seed differ'):
        loop.fit(
            trainer, IMAGES, trainer.begin(PARAMS, 3), TrainingRecord(tmp_path, 'killed', {'seed': 4}),
            marks=(), score=float, progress=dying_progress(100),
        )  # fmt: skip


class Half(nn.Module):
    """A network in bfloat16, parameters and all."""

    @nn.compact
    def __call__(self, x, train: bool = True):
        half = {'dtype': jnp.bfloat16, 'param_dtype': jnp.bfloat16}
        x = nn.relu(nn.Conv(6, (3, 3), (2, 2), **half)(x.astype(jnp.bfloat16)))
        return nn.Dense(10, **half)(x.mean((1, 2)))


def test_parameters_in_bfloat16_are_averaged_in_float32_scored_as_they_are_and_taken_up(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, 'SAVE_SECONDS', -1.0)
    monkeypatch.setattr(loop, '_SYNC', 1)
    model = trace(Half(), (1, 8, 8, 3))
    trainer, params = make_trainer(model.apply, None, SPEC, DATA), random_params(model, RANDOM['he'], 0)

    def fit(name: str, updates: int):
        return loop.fit(
            trainer, IMAGES, trainer.begin(params, 3), TrainingRecord(tmp_path, name, {}), marks=(0, 3),
            score=lambda state: float(jnp.sum(model.apply(state.averaged, jnp.ones((2, 8, 8, 3))))),
            progress=dying_progress(updates),
        )  # fmt: skip

    whole, expected = fit('whole', 100)
    assert {leaf.dtype for leaf in jax.tree.leaves(whole.params)} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(whole.average)} == {jnp.dtype(jnp.float32)}
    with pytest.raises(Killed):
        fit('killed', 2)
    state, history = fit('killed', 100)
    assert history == expected and list(history['scores']) == ['0', '3']
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(whole)):
        np.testing.assert_array_equal(a, b)


def test_a_state_is_read_as_written_and_damage_gets_one_line(tmp_path):
    state = {'a.b': jnp.arange(3.0), 'c': (jnp.int32(2), None)}
    record = TrainingRecord(tmp_path, 'net', {})
    assert record.read_state(state) is None
    record.write_state(state, {'loss': [1, None]})
    read, history = record.read_state(jax.eval_shape(lambda: state))
    assert history == {'loss': [1, None]} and jax.tree.structure(read) == jax.tree.structure(state)
    np.testing.assert_array_equal(read['a.b'], state['a.b'])
    with pytest.raises(UserError, match='of another training'):
        record.read_state(state | {'a.b': jnp.arange(4.0)})
    record.state.write_bytes(record.state.read_bytes()[:100])
    with pytest.raises(UserError, match='cannot be read'):
        record.read_state(state)


@pytest.mark.slow
def test_with_fixed_statistics_the_folded_weights_are_trained():
    x = jnp.float32((DATA.train.images / 255 - DATA.mean) / DATA.std)
    folded = fold(MODEL, PARAMS, [x])
    trainer = make_trainer(Calibrated.apply, W4, SPEC, DATA)
    state = trained(trainer, params=folded, steps=6)
    loss = jax.jit(lambda c: cross_entropy(c.apply(x, W4), DATA.train.labels))
    assert loss(state.params) < loss(folded) - 0.05
    assert np.any(state.params.weights['Conv_0.kernel'] != folded.weights['Conv_0.kernel'])
    alone = jax.jit(lambda c, x: c.apply(x))
    np.testing.assert_allclose(alone(state.params, x)[:1], alone(state.params, x[:1]), atol=1e-5)


@pytest.mark.parametrize(
    'field, value',
    [
        ('epochs', 0), ('batch_size', 0), ('learning_rate', -1), ('ema', 1.0), ('clip_norm', 0),
        ('optimizer', 'adam'),
    ],
)  # fmt: skip
def test_a_value_out_of_bounds_gets_one_line(field, value):
    with pytest.raises(UserError, match=f'^{field}={value!r}'):
        TrainingSpec(**{'epochs': 1, field: value})
