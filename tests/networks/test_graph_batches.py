"""Batches of graphs: each graph is as it is alone, and the waves of its nodes are in order."""

import jraph
import numpy as np
import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.networks.graph_batch import batch_graphs, to_graphs_tuple
from ghn_jax.networks.layers import PRIMITIVES


def test_graphs_tuple_holds_every_node_and_every_distance(sampled):
    for graph in sampled[:6]:
        joined, N = to_graphs_tuple(graph), len(graph.nodes)
        assert isinstance(joined, jraph.GraphsTuple)
        assert joined.n_node.tolist() == [N] and joined.n_edge.tolist() == [len(joined.senders)]
        assert {a.dtype for a in (joined.senders, joined.receivers, *joined.nodes.values())} == {
            np.dtype(np.int32)
        }
        dense = np.zeros((N, N), np.uint8)
        dense[joined.senders, joined.receivers] = joined.edges['distance']
        np.testing.assert_array_equal(dense, graph.distance)
        for node, primitive, shape in zip(graph.nodes, joined.nodes['primitive'], joined.nodes['shape']):
            assert PRIMITIVES[primitive] == node.primitive
            assert tuple(shape) == ((0,) * 4 if node.shape is None else (*node.shape, 1, 1, 1)[:4])


def small(sampled):
    return [graph for graph in sampled if len(graph.nodes) <= 300][:5]


def test_batching_and_padding_change_no_graph(sampled):
    chosen = small(sampled)
    tuples = [to_graphs_tuple(graph) for graph in chosen]
    batch = batch_graphs(tuples, max_nodes=300)
    for b, (graph, single) in enumerate(zip(chosen, tuples)):
        N = len(graph.nodes)
        assert batch.n_node[b] == N
        np.testing.assert_array_equal(batch.distance[b, :N, :N], graph.distance)
        np.testing.assert_array_equal(batch.primitive[b, :N], single.nodes['primitive'])
        np.testing.assert_array_equal(batch.shape[b, :N], single.nodes['shape'])
        for padding in (
            batch.distance[b, N:],
            batch.distance[b, :, N:],
            batch.primitive[b, N:],
            batch.shape[b, N:],
        ):
            assert not padding.any()
        alone = batch_graphs([single], max_nodes=N)
        used = int(alone.n_waves)
        nodes = np.where(alone.waves[:used, 0] == N, 300, alone.waves[:used, 0])
        np.testing.assert_array_equal(batch.waves[:used, b], nodes)
        assert (batch.waves[used:, b] == 300).all()


def test_a_joined_graphs_tuple_batches_like_its_graphs(sampled):
    tuples = [to_graphs_tuple(graph) for graph in small(sampled)]
    together = batch_graphs([jraph.batch_np(tuples[:3]), *tuples[3:]], max_nodes=300)
    for one, other in zip(together, batch_graphs(tuples, max_nodes=300)):
        np.testing.assert_array_equal(one, other)


def test_shapes_of_a_batch_depend_on_its_size_and_the_knobs_only(sampled):
    shapes = set()
    for graph in small(sampled):
        batch = batch_graphs([to_graphs_tuple(graph)] * 2, max_nodes=320, wave_size=3)
        shapes.add(tuple((field.shape, field.dtype.name) for field in batch))
    assert shapes == {
        (
            ((2, 320), 'int32'),
            ((2, 320, 4), 'int32'),
            ((2, 320, 320), 'uint8'),
            ((320, 2, 3), 'int32'),
            ((), 'int32'),
            ((2,), 'int32'),
            ((2, 320), 'int32'),
            ((2, 320), 'int32'),
        )
    }


@pytest.mark.parametrize('wave_size', [1, 2, 4, 50])
def test_waves_hold_every_node_once_ancestors_first(sampled, wave_size):
    chosen = small(sampled)
    batch = batch_graphs([to_graphs_tuple(g) for g in chosen], max_nodes=300, wave_size=wave_size)
    assert (batch.waves[batch.n_waves :] == 300).all()
    assert (batch.waves[batch.n_waves - 1] < 300).any()
    for b, graph in enumerate(chosen):
        when, _ = np.nonzero(batch.waves[:, b] < 300)
        nodes = batch.waves[:, b][batch.waves[:, b] < 300]
        assert sorted(nodes) == list(range(len(graph.nodes)))
        wave = np.empty(len(graph.nodes), int)
        wave[nodes] = when
        senders, receivers = np.nonzero(graph.distance)
        assert (wave[senders] < wave[receivers]).all()  # so nodes of one wave do not read each other


def test_wide_waves_are_the_levels_of_the_graph(sampled):
    graph = small(sampled)[0]
    level = [0] * len(graph.nodes)
    for v in range(len(graph.nodes)):
        for u in range(v):
            if graph.distance[u, v] == 1:
                level[v] = max(level[v], level[u] + 1)
    batch = batch_graphs([to_graphs_tuple(graph)], max_nodes=300, wave_size=300)
    for k in range(int(batch.n_waves)):
        nodes = batch.waves[k, 0][batch.waves[k, 0] < 300]
        assert sorted(nodes) == [v for v in range(len(graph.nodes)) if level[v] == k]
    assert batch.n_waves == max(level) + 1


def test_too_large_graphs_and_empty_batches_are_refused(sampled):
    single = to_graphs_tuple(sampled[0])
    n = int(single.n_node[0])
    with pytest.raises(UserError, match=f'has {n} nodes, max_nodes is {n - 1}: raise max_nodes'):
        batch_graphs([single], max_nodes=n - 1)
    with pytest.raises(UserError, match='at least one'):
        batch_graphs([], max_nodes=10)
    with pytest.raises(UserError, match='wave_size is 0'):
        batch_graphs([single], max_nodes=n, wave_size=0)


def test_nodes_out_of_order_are_refused(sampled):
    single = to_graphs_tuple(sampled[0])
    with pytest.raises(ValueError, match='topological order'):
        batch_graphs([single._replace(senders=single.receivers, receivers=single.senders)], max_nodes=600)
