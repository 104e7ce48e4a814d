"""Graphs: the published ones node by node, distances by breadth-first search, batches by single graphs."""

import collections
import json

import jraph
import numpy as np
import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.networks import graph as graphs
from ghn_jax.networks.counts import count_parameters
from ghn_jax.networks.files import load_networks
from ghn_jax.networks.genotype import Genotype
from ghn_jax.networks.graph import PRIMITIVES, batch_graphs, build_graph, count_depth, to_graphs_tuple
from ghn_jax.networks.spaces import SPACES, SPLITS
from ghn_jax.networks.spec import NetworkSpec


def network(entries, concat=(2,), **changes):
    genotype = Genotype(normal=entries, normal_concat=concat, reduce=entries, reduce_concat=concat)
    fields = dict(
        C=32, n_cells=1, ks=5, stem_type=0, stem_pool=False, norm='bnorm', preproc=True, C_mult=1,
        fc_layers=1, fc_dim=64, glob_avg=True, genotype=genotype,
    )  # fmt: skip
    return NetworkSpec(**fields | changes)


@pytest.fixture(scope='module')
def sampled():
    """A few networks of every split of both spaces."""
    specs = [space.sample(split, 3, i) for space in SPACES.values() for split in SPLITS for i in range(3)]
    return [build_graph(spec) for spec in specs]


def distances_by_search(parents):
    """The slow way: breadth-first search from every node."""
    children = [[] for _ in parents]
    for v, before in enumerate(parents):
        for u in before:
            children[u].append(v)
    distance = np.zeros((len(parents), len(parents)), int)
    for start in range(len(parents)):
        seen, front = {start: 0}, collections.deque([start])
        while front:
            u = front.popleft()
            for v in children[u]:
                if v not in seen:
                    seen[v] = seen[u] + 1
                    front.append(v)
        for v, steps in seen.items():
            distance[start, v] = steps if steps <= 50 else 0
    return distance


def random_parents(rng, n, p):
    """A random DAG in topological order, as the parents of each node."""
    return [[u for u in range(v) if rng.random() < p] for v in range(n)]


# ---------------------------------------------------------------------- the published graphs


def test_golden_graphs_are_rebuilt_node_by_node(golden):
    archs = json.loads((golden / 'open' / 'archs.json').read_text())
    stored = np.load(golden / 'open' / 'graphs.npz')
    for spec, arch in zip(load_networks(golden / 'open' / 'archs.json'), archs):
        graph = build_graph(spec)
        rows = [
            [n.primitive, PRIMITIVES.index(n.primitive), n.cell, n.name, n.shape and list(n.shape)]
            for n in graph.nodes
        ]
        assert rows == arch['nodes'], arch['id']
        np.testing.assert_array_equal(graph.distance, stored[arch['id']], err_msg=arch['id'])
        # The order of tensors within attention is ours, so as a dictionary.
        assert {p.name: list(p.shape) for p in graph.parameters} == dict(arch['params']), arch['id']
        assert len(graph.parameters) == len(arch['params'])


def test_peer_graphs_have_as_many_nodes_and_edges(shared):
    archs = json.loads((shared / 'peer' / 'perf_archs.json').read_text())
    for spec, arch in zip(load_networks(shared / 'peer' / 'perf_archs.json'), archs):
        graph = build_graph(spec)
        assert (len(graph.nodes), np.count_nonzero(graph.distance)) == (arch['n_nodes'], arch['n_edges'])


# ---------------------------------------------------------------------- by hand


def test_a_small_network_has_the_nodes_one_can_count():
    graph = build_graph(network((('conv_3x3', 0), ('max_pool_3x3', 1)), num_classes=7))
    found = {(node.primitive, node.name, node.shape) for node in graph.nodes}
    assert found == {
        ('input', 'input', None),
        ('conv', 'stem.0.weight', (96, 3, 5, 5)),
        ('bn', 'stem.1.weight', (96,)),
        ('conv', 'cells.0.preprocess0.op.1.weight', (32, 96, 1, 1)),
        ('bn', 'cells.0.preprocess0.op.2.weight', (32,)),
        ('conv', 'cells.0.preprocess1.op.1.weight', (32, 96, 1, 1)),
        ('bn', 'cells.0.preprocess1.op.2.weight', (32,)),
        ('conv', 'cells.0._ops.0.op.1.weight', (32, 32, 3, 3)),
        ('bn', 'cells.0._ops.0.op.2.weight', (32,)),
        ('max_pool', 'max_pool', (1, 1, 3, 3)),
        ('sum', 'sum', None),
        ('glob_avg', 'glob_avg', None),
        ('conv', 'classifier.0.weight', (7, 32)),
        ('bias', 'classifier.0.bias', (7,)),
    }
    place = {node.name: i for i, node in enumerate(graph.nodes)}
    apart = lambda a, b: int(graph.distance[place[a], place[b]])
    assert apart('input', 'stem.0.weight') == 1
    assert apart('stem.1.weight', 'sum') == 4  # by way of the pooling; the convolution's way takes 5
    assert apart('input', 'classifier.0.bias') == 9
    assert apart('max_pool', 'cells.0._ops.0.op.1.weight') == 0
    assert apart('sum', 'input') == 0


def test_norm_shifts_are_predicted_from_the_norm_and_biases_from_themselves():
    graph = build_graph(network((('conv_3x3', 0), ('max_pool_3x3', 1)), fc_layers=2))
    for p in graph.parameters:
        node = graph.nodes[p.node]
        if node.primitive == 'bn':
            assert p.name.rsplit('.', 1)[0] == node.name.rsplit('.', 1)[0]
            assert p.row == p.name.endswith('bias')
        else:
            assert p.name == node.name and p.row == (node.primitive == 'bias')
        assert p.shape == node.shape
    assert {'stem.1.bias', 'classifier.3.bias'} <= {p.name for p in graph.parameters}


def test_branches_that_none_cuts_off_are_no_nodes():
    whole = build_graph(network((('conv_3x3', 0), ('conv_5x5', 1))))
    cut = build_graph(network((('conv_3x3', 0), ('none', 1))))
    lost = {n.name for n in whole.nodes} - {n.name for n in cut.nodes}
    assert lost == {
        'cells.0._ops.1.op.1.weight',
        'cells.0._ops.1.op.2.weight',
        'cells.0.preprocess1.op.1.weight',
        'cells.0.preprocess1.op.2.weight',
        'sum',
    }
    assert {p.name for p in cut.parameters} < {p.name for p in whole.parameters}


def test_without_norm_there_are_no_norm_nodes():
    entries = (('sep_conv_3x3', 0), ('conv_7x1_1x7', 1))
    graph = build_graph(network(entries, norm=None, n_cells=4, stem_type=1))
    assert 'bn' not in {node.primitive for node in graph.nodes}


def test_flattened_heads_read_every_pixel():
    entries, pixels = (('conv_3x3', 0), ('conv_1x1', 1)), {}
    for key, changes in {'plain': {}, 'pooled': {'stem_pool': True}, 'reduced': {'n_cells': 3}}.items():
        graph = build_graph(network(entries, glob_avg=False, **changes))
        pixels[key] = graph.nodes[-2].shape[1] // 32
        assert 'glob_avg' not in {node.primitive for node in graph.nodes}
    assert pixels == {'plain': 32**2, 'pooled': 16**2, 'reduced': 8**2}


@pytest.mark.parametrize(
    ('entries', 'changes', 'depth'),
    [
        # stem, preprocessing, 3x3, head; pools and norms do not count
        ((('conv_3x3', 0), ('max_pool_3x3', 1)), {}, 1 + 1 + 1 + 1),
        ((('max_pool_3x3', 0), ('skip_connect', 1)), {'stem_pool': True}, 1 + 1 + 1),
        # two of the stem's three, factorized preprocessing, two depthwise and two pointwise, two of the head
        ((('sep_conv_3x3', 0), ('conv_1x1', 1)), {'stem_type': 1, 'fc_layers': 2}, 2 + 1 + 4 + 2),
        # qkv, out and two layers
        ((('msa', 0), ('skip_connect', 1)), {}, 1 + 1 + 4 + 1),
        # the two layers of the gate are a longer way than the 1x1, and than the gated input
        ((('cse', 0), ('conv_1x1', 1)), {}, 1 + 1 + 2 + 1),
        # a state that reads another; what `none` cuts off does not count
        ((('conv_3x3', 0), ('none', 1), ('conv_7x1_1x7', 2), ('none', 0)), {'concat': (2, 3)}, 2 + 1 + 2 + 1),
        # the second cell, a reduction, reads the first by a factorized skip, and the stem by a shorter way
        ((('conv_3x3', 0), ('skip_connect', 1)), {'n_cells': 2}, (1 + 1 + 1) + (1 + 1) + 1),
    ],
)  # fmt: skip
def test_depth_is_the_convolutions_and_linear_layers_of_the_longest_way(entries, changes, depth):
    assert count_depth(build_graph(network(entries, **changes))) == depth


# ---------------------------------------------------------------------- properties


def test_order_is_topological_and_ends_with_the_classifier(sampled):
    for graph in sampled:
        N = len(graph.nodes)
        assert graph.distance.shape == (N, N) and graph.distance.dtype == np.uint8
        assert not np.tril(graph.distance).any()
        assert [n.name for n in graph.nodes[-2:]] == [
            f'classifier.{3 * (graph.spec.fc_layers - 1)}.{kind}' for kind in ('weight', 'bias')
        ]
        sources = [n.primitive for i, n in enumerate(graph.nodes) if not graph.distance[:, i].any()]
        assert sources == (['input', 'pos_enc'] if graph.spec.is_vit else ['input'])
        sinks = [i for i in range(N) if not graph.distance[i].any()]
        assert sinks == [N - 1]
        assert all(0 <= n.cell < graph.spec.n_cells for n in graph.nodes)


def test_sums_and_concats_have_several_parents(sampled):
    for graph in sampled:
        parents = (graph.distance == 1).sum(axis=0)
        for node, count in zip(graph.nodes, parents):
            if node.primitive in ('sum', 'concat'):
                assert count >= 2
            elif node.primitive not in ('input', 'pos_enc', 'cse'):
                assert count == 1


def test_every_parameter_is_predicted_once_and_all_of_them_where_nothing_is_pruned(sampled):
    whole = 0
    for graph in sampled:
        names = [p.name for p in graph.parameters]
        assert len(set(names)) == len(names)
        size = sum(int(np.prod(p.shape)) for p in graph.parameters)
        if 'none' in graph.spec.genotype.ops:
            assert size <= count_parameters(graph.spec)
        elif graph.spec.genotype.normal_concat == tuple(range(2, graph.spec.genotype.steps + 2)):
            assert size == count_parameters(graph.spec)
            whole += 1
    assert whole > 5


def test_distances_equal_breadth_first_search(sampled):
    rng = np.random.default_rng(0)
    dags = [random_parents(rng, int(n), p) for n in (1, 2, 7, 25) for p in (0.05, 0.2, 0.7) for _ in range(5)]
    dags.append([[v - 1] if v else [] for v in range(60)])  # a chain longer than the cap
    for parents in dags:
        np.testing.assert_array_equal(graphs._distances(parents), distances_by_search(parents))
    for graph in sampled[:8]:
        parents = [np.flatnonzero(graph.distance[:, v] == 1).tolist() for v in range(len(graph.nodes))]
        np.testing.assert_array_equal(graph.distance, distances_by_search(parents))


def test_another_topological_order_permutes_distances_and_nothing_else():
    rng = np.random.default_rng(1)
    for _ in range(10):
        parents = random_parents(rng, 20, 0.15)
        order, waiting = [], {v: set(before) for v, before in enumerate(parents)}
        while waiting:  # a random node that waits for no other
            v = int(rng.choice([v for v, before in waiting.items() if not before]))
            order.append(v)
            del waiting[v]
            for before in waiting.values():
                before.discard(v)
        place = {v: i for i, v in enumerate(order)}
        relabelled = graphs._distances([[place[u] for u in parents[v]] for v in order])
        np.testing.assert_array_equal(relabelled, graphs._distances(parents)[np.ix_(order, order)])


# ---------------------------------------------------------------------- GraphsTuple and batches


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
