"""The compiled steps against the slow way: predict tensor by tensor, run the reference, differentiate."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ghn_jax.assembly.network_batch import prepare
from ghn_jax.assembly.workspace import Workspace, make_workspace
from ghn_jax.base.errors import UserError
from ghn_jax.cnn import executor
from ghn_jax.cnn.building import build_program
from ghn_jax.cnn.covering import Family, program_for
from ghn_jax.cnn.packing import BLOCK
from ghn_jax.cnn.reference import apply_reference
from ghn_jax.cnn.tables import RunnableNetwork
from ghn_jax.evaluation.device import predict_buffer, score
from ghn_jax.evaluation.selection import ImageBatches
from ghn_jax.hypernet.ghn import GHN, GHNConfig, init_params, predict_parameters
from ghn_jax.hypernet.published import load_published, published_state
from ghn_jax.hypernet.tiles import decoder_table
from ghn_jax.networks.graph import build_graph
from ghn_jax.networks.spaces import make_space
from ghn_jax.quant import Policy, Scheme
from ghn_jax.training.sampling import draw
from ghn_jax.training.step import BAD_LOSS, FINE, TrainState, meta_gradients, train_step
from tests.cnn.comparison import QUICK, relative_error
from tests.cnn.networks import random_images, random_parameters, small_network
from tests.hypernet.helpers import Golden

CONFIG = GHNConfig(hid=8)
GHN_ = GHN(CONFIG)
NODES, SIZE, BATCH = 96, 8, 4
SPECS = [
    small_network(
        [('sep_conv_3x3', 0), ('skip_connect', 1)], C=16, fc_layers=2, fc_dim=24, n_cells=2, name='a',
    ),
    small_network([('conv_3x3', 0), ('avg_pool_3x3', 1)], C=16, C_mult=2, stem_type=1, n_cells=2, name='b'),
    small_network([('conv_1x1', 0), ('max_pool_3x3', 1)], C=16, norm=None, n_cells=2, name='c'),
]  # fmt: skip

POLICIES = Policy(), Policy(4, 32), Policy()


@pytest.fixture(scope='module')
def program():
    return build_program(SPECS, image_size=SIZE, max_params=1e6)


@pytest.fixture(scope='module')
def params():
    return init_params(CONFIG, jax.random.key(0))


def in_float64(program, networks, specs=SPECS):
    """The decoder's scales in float64, which `prepare` makes float32."""
    room = {'max_dense': program.capacity.dense_tiles, 'max_depth': program.capacity.depth_tiles}
    tables = [decoder_table(build_graph(spec), **room)[0] for spec in specs]
    return networks._replace(decoder=jax.tree.map(lambda *x: np.stack(x), *tables))


def float64_workspace(program, batch=BATCH, train=True):
    floats = program.capacity.blocks * BLOCK
    buffers = executor.make_tapes(program, batch, jnp.float64, train=train)
    return Workspace(buffers, jnp.zeros(floats), jnp.zeros(floats))


def data(dtype='float64', n=BATCH):
    labels = np.random.default_rng(1).integers(0, 10, n)
    return random_images(n, 1, size=SIZE, dtype=dtype), labels


@functools.cache
def slow_gradient(policy, spec):
    """(loss, gradient) of one network: the definition, in float64."""
    images, labels = data()

    def loss(params):
        tensors = predict_parameters(GHN_, params, build_graph(spec))
        logits = apply_reference(spec, tensors, images, policy=policy)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    run = jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)
    return jax.device_get(run(double(init_params(CONFIG, jax.random.key(0)))))


def slow_gradients(policies, specs=SPECS):
    """(gradients, losses) of the networks."""
    results = [slow_gradient(policy, spec) for policy, spec in zip(policies, specs, strict=True)]
    return [g for _, g in results], [float(loss) for loss, _ in results]


def double(tree):
    return jax.tree.map(lambda x: jnp.asarray(np.float64(x)), tree)  # by numpy: JAX would compile each shape


def gradient_errors(gradients, expected):
    """By name, relative to the larger of the tensor's norm and a millionth of the largest."""
    floor = 1e-6 * max(float(np.linalg.norm(g)) for g in jax.tree.leaves(expected))
    paired = jax.tree.map(lambda g, e: relative_error(g, e, floor), gradients, expected)
    return {jax.tree_util.keystr(path): e for path, e in jax.tree_util.tree_leaves_with_path(paired)}


# ---- gradients


def compiled(program, mode):
    """`meta_gradients` without dropout."""
    run = functools.partial(meta_gradients, program, GHN_, scheme=Scheme(mode), dropout=0.0)
    return jax.jit(run, compiler_options=QUICK)


@pytest.fixture(scope='module')
def quantized(program):
    return compiled(program, 'qat')


# The mode without quantization is also that in which gradients of published networks are compared, below.
@pytest.mark.parametrize('mode', ['qat', pytest.param('float', marks=pytest.mark.slow)])
def test_gradients_of_the_hypernetwork_equal_autodiff_through_prediction_and_reference(
    program, params, quantized, mode
):
    policies = POLICIES if mode == 'qat' else (Policy(),) * len(SPECS)
    with jax.enable_x64(True):
        networks, _ = prepare(program, SPECS, policies, max_nodes=NODES)
        run = quantized if mode == 'qat' else compiled(program, mode)
        gradients, metrics, _ = run(
            double(params),
            in_float64(program, networks),
            *data(),
            workspace=float64_workspace(program),
            key=jax.random.key(0),
        )
        each, losses = slow_gradients(policies)
        expected = jax.tree.map(lambda *g: sum(g) / len(g), *each)
        np.testing.assert_allclose(metrics['loss'], losses, rtol=1e-9)
        assert np.all(metrics['finite'])
        off = {name: e for name, e in gradient_errors(gradients, expected).items() if not e < 1e-9}
        assert not off


def test_a_network_that_is_not_finite_contributes_nothing(program, params, quantized):
    with jax.enable_x64(True):
        networks, _ = prepare(program, SPECS, POLICIES, max_nodes=NODES)
        networks = in_float64(program, networks)
        networks.decoder.dense_scale[1] = np.nan
        gradients, metrics, workspace = quantized(
            double(params), networks, *data(), workspace=float64_workspace(program), key=jax.random.key(0)
        )
        each, _ = slow_gradients(POLICIES)
        expected = jax.tree.map(lambda a, _, c: (a + c) / 3, *each)
        assert list(metrics['finite']) == [True, False, True]
        assert max(gradient_errors(gradients, expected).values()) < 1e-9
        # Nor does what it left in the workspace matter to the networks after it.
        networks, _ = prepare(program, SPECS, POLICIES, max_nodes=NODES)
        again, _, _ = quantized(
            double(params), in_float64(program, networks), *data(), workspace=workspace, key=jax.random.key(0)
        )
        expected = jax.tree.map(lambda *g: sum(g) / 3, *each)
        assert max(gradient_errors(again, expected).values()) < 1e-9


@pytest.mark.parametrize(
    'name',
    [
        'deepnets-01',
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ('convnets-06', 'convnets-09', 'convnets-16', 'convnets-29', 'deepnets-18')
        ),
    ],
)
def test_gradients_of_published_networks_equal_the_golden_ones(golden, name):
    data = Golden(golden)
    config, params = load_published(golden / 'open/state_dict.npz', golden / 'ghn_config.json')
    spec, ref, arrays = data.graph(name).spec, data.refs[name], data.arrays(name)
    inputs = np.load(golden / 'open/inputs.npz')
    images, labels = np.float64(inputs['images'].transpose(0, 2, 3, 1)), inputs['labels']
    program = build_program([spec], image_size=32, max_params=1e7)
    run = functools.partial(meta_gradients, program, GHN(config), scheme=Scheme('float'), dropout=0.0)
    with jax.enable_x64(True):
        networks, _ = prepare(program, [spec], Policy(), max_nodes=384)
        gradients, metrics, _ = jax.jit(run, compiler_options=QUICK)(
            double(params), in_float64(program, networks, [spec]), images, labels,
            workspace=float64_workspace(program, len(images)), key=jax.random.key(0),
        )  # fmt: skip
        gradients = published_state(config, jax.tree.map(np.asarray, gradients))
    np.testing.assert_allclose(metrics['loss'], ref['loss_float64'], rtol=1e-10)
    for key, norm in ref['grad_norms_float64'].items():
        np.testing.assert_allclose(np.linalg.norm(gradients[key]), norm, rtol=1e-9, err_msg=key)
    stored = {key.removeprefix('grad64/'): arrays[key] for key in arrays if key.startswith('grad64/')}
    assert len(stored) == 4
    for key, expected in stored.items():
        assert relative_error(gradients[key][: len(expected)], expected) < 1e-9, key


# ---- training


W4A4 = Policy(4, 4)
BITS = W4A4, Policy(8, 8), Policy(2, 2), Policy()
TINY = make_space(
    'convnets250k', ops=('skip_connect', 'conv_1x1', 'sep_conv_3x3'), channels=(16,), cells=(2, 4),
    max_steps=1, max_steps_deep=1, ks=(3,), stem_types=(0,), C_mults=(1,), fc_dims=(64,), flat_head_share=0.0,
)  # fmt: skip


@pytest.fixture(scope='module')
def trainer():
    """(program, jitted step, function that makes the first state)."""
    program, optimizer = program_for(TINY, 'train', Family(16), SIZE), optax.adam(1e-3)
    step = functools.partial(train_step, program, GHN_, optimizer, scheme=Scheme('qat'))

    def start():
        params = init_params(CONFIG, jax.random.key(0))
        return TrainState(jnp.int32(0), params, optimizer.init(params)), make_workspace(program, BATCH)

    return program, jax.jit(step, donate_argnames=('state', 'workspace'), compiler_options=QUICK), start


def batch(program, index, policy=W4A4):
    """Two networks, new ones for each index, images and labels, and a key."""
    networks, _ = prepare(program, draw(TINY, 0, index, 2), policy, max_nodes=NODES)
    images, labels = data('float32')
    return networks, images, labels.astype('int32')


def test_nothing_is_compiled_for_200_unseen_networks(trainer, count_compiles):
    program, step, start = trainer
    state, workspace = start()
    keys = list(jax.random.split(jax.random.key(0), 28))
    for i in range(3):
        state, metrics, workspace = step(state, *batch(program, i), workspace=workspace, key=keys[i])
    types = lambda arrays: jax.tree.map(lambda x: (x.shape, x.dtype), arrays)
    expected, specs = types(batch(program, 0)), set()
    for i in range(3, 103):
        specs |= {dataclass_key(spec) for spec in draw(TINY, 0, i, 2)}
        assert types(batch(program, i, BITS[i % 4])) == expected  # all that jit tells programs by
    assert len(specs) > 150
    losses, finite = [], 0
    with count_compiles() as compiles:
        for i in range(3, 28):
            networks, images, labels = batch(program, i, BITS[i % 4])
            state, metrics, workspace = step(
                state, networks, images, labels, workspace=workspace, key=keys[i]
            )
            losses.append(float(metrics['loss']))
            finite += not np.asarray(metrics['faults']).any()
    assert compiles.n == 0
    assert np.all(np.isfinite(losses)) and finite >= 24
    assert int(state.step) == 28


def dataclass_key(spec):
    return spec.to_json().partition('"name"')[0]


def test_a_step_with_a_network_that_is_not_finite_is_adams_on_the_gradient_of_the_other(trainer):
    program, step, start = trainer
    spec = next(spec for i in range(9) for spec in draw(TINY, 0, i, 2) if spec.fc_layers == 1)  # no dropout
    networks, _ = prepare(program, [spec, spec], W4A4, max_nodes=NODES)
    images, _ = data('float32')

    def run(label, scale=1.0):
        state, workspace = start()
        networks.decoder.class_scale[1] *= scale
        labels = np.full(len(images), label, 'int32')
        new, metrics, _ = step(state, networks, images, labels, workspace=workspace, key=jax.random.key(1))
        return jax.tree.map(np.asarray, (new, metrics))

    both = [run(label) for label in range(10)]
    assert sum(metrics['accuracy'] for _, metrics in both) == pytest.approx(1)  # an image has one class
    state, metrics = both[0]
    one, of_one = run(0, np.nan)
    assert list(of_one['faults']) == [FINE, BAD_LOSS] and of_one['skipped'] == 0
    for name in ('loss', 'accuracy'):  # the mean of two equal ones is that of one
        assert of_one[name] == pytest.approx(float(metrics[name]), rel=1e-5), name
    gradient = lambda state: jax.tree.map(lambda m: 10 * np.float64(m), state.opt_state[0].mu)  # b1 is 0.9
    for g, half in zip(jax.tree.leaves(gradient(state)), jax.tree.leaves(gradient(one))):
        np.testing.assert_allclose(half, g / 2, rtol=1e-3, atol=1e-6 * np.abs(g).max())
    norm = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(gradient(one))))
    assert of_one['gradient_norm'] == pytest.approx(norm, rel=1e-5)
    for new, old, g in zip(*map(jax.tree.leaves, (one.params, start()[0].params, gradient(one)))):
        np.testing.assert_allclose(new, old - 1e-3 * g / (np.abs(g) + 1e-8), rtol=1e-5, atol=1e-7)


def test_training_on_one_batch_brings_the_loss_down_and_repeats_exactly(trainer):
    program, step, start = trainer
    runs = []
    for _ in range(2):
        state, workspace = start()
        losses = []
        for i in range(12):
            state, metrics, workspace = step(
                state, *batch(program, 0), workspace=workspace, key=jax.random.key(i)
            )
            losses.append(float(metrics['loss']))
        runs.append((losses, state))
    jax.tree.map(np.testing.assert_array_equal, *runs)
    losses = runs[0][0]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


def test_a_network_that_does_not_fit_is_a_user_error(program):
    other = small_network([('conv_7x7', 0), ('none', 1)], C=16, n_cells=2, name='other')
    with pytest.raises(UserError, match="network 'other' needs instruction"):
        prepare(program, [other], Policy(), max_nodes=NODES)
    with pytest.raises(UserError, match='max_nodes'):
        prepare(program, SPECS, Policy(), max_nodes=8)


# ---- evaluation


def test_predicted_weights_are_those_of_the_slow_way_in_their_places(program, params):
    run = jax.jit(functools.partial(predict_buffer, GHN_), compiler_options=QUICK)
    slow = lambda params, spec: predict_parameters(GHN_, params, build_graph(spec))
    slow = jax.jit(slow, static_argnums=1, compiler_options=QUICK)
    for spec in SPECS:
        networks, (layout,) = prepare(program, [spec], Policy(), max_nodes=NODES)
        flat = np.asarray(run(params, networks, jnp.full(program.capacity.blocks * BLOCK, jnp.nan)))
        expected = slow(params, spec)
        shapes = {name: w.shape for name, w in expected.items()}
        for name, w in program.unpack(layout, flat, shapes).items():
            np.testing.assert_allclose(w, expected[name], rtol=2e-5, atol=1e-6, err_msg=name)


def test_scores_count_the_labels_among_the_first_and_the_first_five(program):
    with jax.enable_x64(True):
        run = jax.jit(functools.partial(score, program), compiler_options=QUICK)
        r = np.random.default_rng(0)
        images = r.integers(0, 256, (6, BATCH, SIZE, SIZE, 3)).astype('uint8')
        labels = r.integers(0, 10, (6, BATCH))
        mean, std = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.25, 0.3])
        workspace = float64_workspace(program, train=False)
        for spec, policy in zip(SPECS, (Policy(4, 32), Policy(), Policy(4, 32))):
            weights, layout = random_parameters(spec, 0, 'float64'), program.layout(spec)
            reference = jax.jit(
                lambda w, x, spec=spec, policy=policy: apply_reference(
                    spec, w, (x / 255 - mean) / std, policy=policy
                ),
                compiler_options=QUICK,
            )
            logits = np.stack([reference(weights, x) for x in images])
            rank = np.sum(logits > np.take_along_axis(logits, labels[..., None], -1), -1)
            flat = program.pack(layout, weights, np.float64)
            network = RunnableNetwork(flat, layout.tables, program.bits(layout, policy))
            batches = ImageBatches(images, labels, mean, std)
            top1, top5, _, workspace = run(network, batches, workspace)
            assert (int(top1), int(top5)) == (np.sum(rank < 1), np.sum(rank < 5))
            top1, top5, _, workspace = run(network._replace(weights=0 * flat), batches, workspace)
            assert (int(top1), int(top5)) == (0, 0)  # equal logits predict nothing
            top1, top5, _, workspace = run(network, batches._replace(labels=0 * labels - 1), workspace)
            assert (int(top1), int(top5)) == (0, 0)  # images that are not counted
