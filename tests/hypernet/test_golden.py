"""Parity with the published PyTorch GHN-2 (../shared/golden): embeddings, predicted tensors and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghn_jax.cnn.reference import apply_reference
from ghn_jax.hypernet.ghn import GHN, predict_parameters
from ghn_jax.hypernet.published import load_published, published_state
from ghn_jax.hypernet.tiles import Tiles, decoder_table, tile_parameters
from tests.cnn.comparison import QUICK
from tests.hypernet.helpers import Golden, batch, relative, to_float64

pytestmark = pytest.mark.usefixtures('quick_reference')

NAMES = ['convnets-06', 'convnets-09', 'convnets-16', 'convnets-24', 'convnets-29', 'deepnets-01',
         'deepnets-18', 'deepnets-20', 'deep-conv-01']  # fmt: skip
FULL_GRADIENTS = [
    'embed.weight',
    'gnn.gru.weight_ih',
    'shape_enc.embed_channel.weight',
    'decoder.conv.2.weight',
]
MAX_NODES, CAPACITY = 384, {'max_dense': 768, 'max_depth': 768}


@pytest.fixture(scope='module')
def data(golden):
    return Golden(golden)


@pytest.fixture(scope='module')
def published(golden):
    return load_published(golden / 'open/state_dict.npz', golden / 'ghn_config.json')


@pytest.fixture(scope='module')
def run(published):
    """The whole hypernetwork on one graph, compiled once for each precision.

    (gradients with respect to the parameters of sum(weight * tiles), (embeddings by stage, tiles)).
    """
    ghn = GHN(published[0])

    def weighted(params, batch, table, weight):
        stages = ghn.apply({'params': params}, batch, method='embed_stages')
        tiles = ghn.apply({'params': params}, stages['x'][0], table, method='decode')
        return sum(jnp.sum(w * t) for w, t in zip(weight, tiles)), (stages, tiles)

    return jax.jit(jax.grad(weighted, has_aux=True), compiler_options=QUICK)


class Case:
    """One golden network on its way through the hypernetwork. Everything in it is numpy."""

    def __init__(self, data, name):
        self.ref, self.arrays, self.graph = data.refs[name], data.arrays(name), data.graph(name)
        self.table, self.items = decoder_table(self.graph, **CAPACITY)
        P, Q, C = len(self.table.dense_node), len(self.table.depth_node), 64
        self.shapes = ((P, C, C), (Q, C), (MAX_NODES, 2, C), (C, 10), (10,))
        sizes = [int(np.prod(shape)) for shape in self.shapes]
        self.cuts = np.cumsum(sizes)[:-1]
        numbered = self._split(np.arange(sum(sizes)))
        self.ids = tile_parameters(
            numbered, self.items, self.graph
        )  # where each element of a tensor comes from

    def _split(self, flat):
        return Tiles(*(part.reshape(shape) for part, shape in zip(np.split(flat, self.cuts), self.shapes)))

    def on_tiles(self, gradients):
        """Gradients with respect to tensors, by name, carried over to the tiles they are copied from."""
        flat = np.zeros(self.cuts[-1] + 10)
        for name, gradient in gradients.items():
            np.add.at(flat, self.ids[name].ravel(), np.asarray(gradient, np.float64).ravel())
        return self._split(flat)

    def projection(self):
        """Gradient of the golden proj_loss with respect to every tensor: see the README beside the data."""
        P = len(self.ref['param_names'])
        waves = {
            name: np.cos(0.37 * np.arange(ids.size) + 0.11) / ids.size**0.5 for name, ids in self.ids.items()
        }
        return {name: wave / P for name, wave in waves.items()}

    def run(self, run, published, weight):
        gradients, (stages, tiles) = run(published[1], batch([self.graph], MAX_NODES), self.table, weight)
        n = len(self.graph.nodes)
        stages = {stage: np.asarray(x)[0, :n] for stage, x in stages.items()}
        gradients = published_state(published[0], jax.tree.map(np.asarray, gradients))
        return stages, tile_parameters(tiles, self.items, self.graph), gradients


def check_gradients(case, gradients, prefix, norms, tolerance, norm_tolerance):
    for name, norm in case.ref[norms].items():
        assert np.linalg.norm(gradients[name]) == pytest.approx(norm, rel=norm_tolerance), name
    for name in FULL_GRADIENTS:
        stored = case.arrays[f'{prefix}/{name}']
        assert relative(gradients[name][: len(stored)], stored) < tolerance, name


@pytest.mark.parametrize('name', NAMES)
def test_float32_agrees_with_pytorch_in_embeddings_tensors_and_gradients(data, published, run, name):
    case = Case(data, name)
    weight = Tiles(*(np.float32(part) for part in case.on_tiles(case.projection())))
    stages, tensors, gradients = case.run(run, published, weight)
    for stage, x in stages.items():
        assert relative(x, case.arrays[stage]) < 2e-6, stage
    assert set(tensors) == set(case.ref['param_names'])
    full = 0
    for row, tensor_name in enumerate(case.ref['param_names']):
        tensor = tensors[tensor_name]
        flat, stats = tensor.astype(np.float64).ravel(), case.arrays['param_stats'][row]
        ours = [flat.size, flat.mean(), flat.std(), np.linalg.norm(flat), np.abs(flat).max()]
        ours += [flat @ np.cos(0.37 * np.arange(flat.size) + 0.11)]
        np.testing.assert_allclose(ours, stats, rtol=1e-5, atol=1e-5 * stats[3], err_msg=tensor_name)
        if case.ref['param_mode'] == 'full':
            full += 1
            assert relative(tensor, case.arrays[f'param/{tensor_name}']) < 2e-6, tensor_name
        else:
            at = (np.arange(64) * flat.size) // 64
            strided = relative(flat[at], case.arrays['param_strided64'][row])
            first = np.pad(flat[:64], (0, max(0, 64 - flat.size)))
            assert max(strided, relative(first, case.arrays['param_first64'][row])) < 2e-6, tensor_name
    assert full in (0, len(case.ref['param_names']))
    check_gradients(case, gradients, 'projgrad', 'projgrad_norms_float64', 2e-5, 2e-5)


@pytest.mark.parametrize('name', NAMES)
def test_float64_agrees_with_pytorch_in_every_gradient_norm_and_the_projected_loss(
    data, published, run, name
):
    case = Case(data, name)
    with jax.enable_x64(True):
        exact = published[0], to_float64(published[1])
        stages, tensors, gradients = case.run(run, exact, case.on_tiles(case.projection()))
    projected = sum(case.projection()[name].ravel() @ tensors[name].ravel() for name in tensors)
    assert projected == pytest.approx(case.ref['proj_loss_float64'], rel=1e-9)
    for stage, x in stages.items():
        assert relative(x, case.arrays[stage]) < 1e-6, stage  # these were stored in 32 bits
    check_gradients(case, gradients, 'projgrad', 'projgrad_norms_float64', 2e-5, 1e-9)


@pytest.mark.parametrize(
    'name', [name if name == 'convnets-06' else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)  # fmt: skip
def test_float64_gradients_of_the_networks_loss_agree_with_pytorch(data, published, run, name):
    case = Case(data, name)
    inputs = np.load(data.folder / 'open/inputs.npz')
    labels = jnp.asarray(inputs['labels'])

    @jax.value_and_grad
    def loss(tensors):
        logits = apply_reference(case.graph.spec, tensors, images)
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels])

    with jax.enable_x64(True):
        exact, images = (
            (published[0], to_float64(published[1])),
            jnp.asarray(inputs['images'].transpose(0, 2, 3, 1)),
        )
        _, tensors, _ = case.run(run, exact, case.on_tiles({}))
        value, on_tensors = jax.jit(loss, compiler_options=QUICK)(
            {name: jnp.asarray(tensor) for name, tensor in tensors.items()}
        )
        _, _, gradients = case.run(run, exact, case.on_tiles(on_tensors))
    assert float(value) == pytest.approx(case.ref['loss_float64'], rel=1e-10)
    check_gradients(case, gradients, 'grad64', 'grad_norms_float64', 1e-9, 1e-9)


@pytest.mark.parametrize('name', ['convnets-06', pytest.param('deepnets-01', marks=pytest.mark.slow)])
def test_the_tensor_by_tensor_version_agrees_with_pytorch(data, published, name):
    config, params = published
    graph, arrays = data.graph(name), data.arrays(name)
    tensors = predict_parameters(GHN(config), jax.tree.map(jnp.asarray, params), graph)
    assert list(tensors) == data.refs[name]['param_names']
    for tensor_name, tensor in tensors.items():
        assert relative(tensor, arrays[f'param/{tensor_name}']) < 2e-6, tensor_name


def test_networks_share_one_compiled_program(data, published, run, count_compiles):
    cases = [Case(data, name) for name in NAMES[:3]]
    weight = Tiles(*(np.zeros(shape, np.float32) for shape in cases[0].shapes))
    batches = [batch([case.graph], MAX_NODES) for case in cases]
    run(published[1], batches[0], cases[0].table, weight)
    with count_compiles() as compiles:
        for case, graphs in zip(cases, batches):
            run(published[1], graphs, case.table, weight)
    assert compiles.n == 0


def test_graphs_side_by_side_equal_graphs_alone(data, published):
    ghn, graphs = (
        GHN(published[0]),
        [data.graph(name) for name in ('convnets-06', 'convnets-09', 'deepnets-01')],
    )
    embed = jax.jit(
        lambda params, batch: ghn.apply({'params': params}, batch, method='embed'), compiler_options=QUICK
    )
    together = embed(published[1], batch(graphs, 96))
    for x, name in zip(together, ('convnets-06', 'convnets-09', 'deepnets-01')):
        stored = data.arrays(name)['x']
        assert relative(x[: len(stored)], stored) < 2e-6
        assert not np.asarray(x)[len(stored) :].any()
