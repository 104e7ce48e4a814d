"""Graphs: the published ones node by node, and distances by breadth-first search."""

import collections
import json

import numpy as np
import pytest

from ghn_jax.networks import graph as graphs
from ghn_jax.networks.counts import count_parameters
from ghn_jax.networks.files import load_networks
from ghn_jax.networks.genotype import Genotype
from ghn_jax.networks.graph import build_graph, count_depth
from ghn_jax.networks.layers import PRIMITIVES
from ghn_jax.networks.spec import NetworkSpec


def network(entries, concat=(2,), **changes):
    genotype = Genotype(normal=entries, normal_concat=concat, reduce=entries, reduce_concat=concat)
    fields = dict(
        C=32, n_cells=1, ks=5, stem_type=0, stem_pool=False, norm='bnorm', preproc=True, C_mult=1,
        fc_layers=1, fc_dim=64, glob_avg=True, genotype=genotype,
    )  # fmt: skip
    return NetworkSpec(**fields | changes)


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
