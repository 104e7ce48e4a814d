from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghn_jax.base import backends
from ghn_jax.hypernet.gnn import WAVES_A_TURN, gated_gnn, init_gnn, sweep_node_by_node
from tests.cnn.comparison import QUICK
from tests.hypernet.helpers import batch, random_distance, random_graph

pytestmark = pytest.mark.usefixtures('quick_reference')

D, B, N = 4, 3, 7
SIZES = (7, 5, 1)


@pytest.fixture(scope='module')
def graphs():
    rng = np.random.default_rng(1)
    return [random_graph(rng, n, random_distance(rng, n, 0.4)) for n in SIZES]


@pytest.fixture(scope='module')
def run():
    """states(params, h, batch) and the gradients of sum(weight * states) for params and h, compiled once per
    shape."""

    def weighted(params, h, batch, weight):
        states = gated_gnn(params, h, batch.distance, batch.waves, batch.n_waves)
        return jnp.sum(weight * states), states

    return jax.jit(jax.value_and_grad(weighted, (0, 1), has_aux=True), compiler_options=QUICK)


def parameters(virtual_edges=True):
    return init_gnn(jax.random.key(0), D, virtual_edges, jnp.float64)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def test_several_waves_to_a_turn_as_on_gpus_change_nothing(graphs, run):
    with jax.enable_x64(True):
        params, h, weight = parameters(), normal(B, N, D), normal(B, N, D, seed=1)
        one_by_one = batch(graphs, N, 1)
        assert one_by_one.n_waves == N and N % WAVES_A_TURN  # some of the last turn are none
        with backends.built_for('gpu'):
            found = run(params, h, one_by_one, weight)
        expected = run(params, h, batch(graphs, N, 2), weight)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-13), found, expected)


@pytest.mark.parametrize('virtual_edges', [True, False])
def test_level_parallel_equals_node_by_node_with_all_gradients(graphs, run, virtual_edges):
    with jax.enable_x64(True):
        params, h, weight = parameters(virtual_edges), normal(B, N, D), normal(B, N, D, seed=1)

        def node_by_node(params, h):
            rows = []
            for b, graph in enumerate(graphs):
                n, distance = SIZES[b], graph.distance
                states = sweep_node_by_node(params, h[b, :n], distance.T, False)
                states = sweep_node_by_node(params, states, distance, True)
                rows.append(jnp.concatenate([states, h[b, n:]]))  # padding keeps its state
            states = jnp.stack(rows)
            return jnp.sum(weight * states), states

        ours = run(params, h, batch(graphs, N, 2), weight)
        oracle = jax.jit(jax.value_and_grad(node_by_node, (0, 1), has_aux=True), compiler_options=QUICK)(
            params, h
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), ours, oracle)


def test_the_width_of_a_wave_changes_nothing(graphs, run):
    with jax.enable_x64(True):
        params, h, weight = parameters(), normal(B, N, D), normal(B, N, D, seed=1)
        narrow, wide = (run(params, h, batch(graphs, N, v), weight) for v in (2, 5))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-13), narrow, wide)


def test_padding_and_batching_change_nothing(graphs, run):
    with jax.enable_x64(True):
        params, h = parameters(), normal(B, N, D)
        (_, together), _ = run(params, h, batch(graphs, N, 2), h)
        for b, n in enumerate(SIZES[:2]):
            alone = gated_gnn(params, h[b : b + 1, :n], *batch(graphs[b : b + 1], n, 2)[2:5])
            np.testing.assert_allclose(together[b, :n], alone[0], rtol=1e-12)


def test_another_topological_order_permutes_the_states(run):
    rng = np.random.default_rng(3)
    distance = random_distance(rng, N)
    i = int(
        np.flatnonzero(np.diagonal(distance, 1) == 0)[0]
    )  # no path joins i and i + 1: they can change places
    order = np.arange(N)
    order[[i, i + 1]] = i + 1, i
    swapped = random_graph(rng, N, distance[order][:, order])
    with jax.enable_x64(True):
        graph, h = random_graph(rng, N, distance), normal(N, D)
        (_, states), _ = run(
            parameters(), jnp.stack([h, h[order], h]), batch([graph, swapped, graph], N, 2), normal(B, N, D)
        )
        np.testing.assert_allclose(states[1], states[0][order], rtol=1e-12)


def test_the_order_of_nodes_within_a_level_changes_nothing(graphs, run):
    rng = np.random.default_rng(4)
    with jax.enable_x64(True):
        params, h, weight = parameters(), normal(B, N, D), normal(B, N, D, seed=1)
        plain = batch(graphs, N, 2)
        waves = np.asarray(plain.waves)
        shuffled = plain._replace(waves=jnp.asarray(rng.permuted(waves, axis=2)))
        assert (waves != shuffled.waves).any()
        a, b = (run(params, h, x, weight) for x in (plain, shuffled))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-13), a, b)


def test_other_graphs_compile_nothing(graphs, run, count_compiles):
    rng = np.random.default_rng(5)
    with jax.enable_x64(True):
        params, h = parameters(), normal(B, N, D)
        batches = [
            batch([random_graph(rng, int(n)) for n in rng.integers(1, N + 1, B)], N, 2) for _ in range(4)
        ]
        run(params, h, batches[0], h)
        with count_compiles() as compiles:
            for other in batches[1:]:
                run(params, h, other, h)
    assert compiles.n == 0
