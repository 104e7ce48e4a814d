"""The bits of a policy on the nodes of a graph, and what a hypernetwork makes of them."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.hypernet import ghn as ghns
from ghn_jax.hypernet.ghn import GHN, init_params, predict_parameters
from ghn_jax.hypernet.policy_features import (
    FLOAT_FROM,
    WIDTHS,
    check_policies,
    embed_bits,
    init_bits,
    resolve,
    weight_names,
    with_bits,
)
from ghn_jax.hypernet.tiles import decoder_table, tile_parameters
from ghn_jax.networks.graph import build_graph
from ghn_jax.networks.graph_batch import batch_graphs, to_graphs_tuple
from ghn_jax.quant import Policy
from tests.hypernet.helpers import SMALL, batch, random_params, small_graphs, small_spec

pytestmark = pytest.mark.usefixtures('quick_reference')

TOLD = dataclasses.replace(SMALL, bits=True)
MIXED = Policy(4, 8, (('stem.*', 8, 32), (r'classifier\.3.*', 2, 3), (r'cells\.1.*', 6, 16)))
BY_CELL = Policy(4, 8, (('stem.*', 8, 32), (r'cells\.1.*', 2, 6)))
W4A4 = Policy(4, 4)
NODES = 80


@pytest.fixture(scope='module')
def graphs():
    return small_graphs()


@pytest.fixture(scope='module')
def params():
    return random_params(TOLD)


@partial(jax.jit, static_argnames=('ghn', 'method'))
def apply(ghn, params, *args, method='embed'):
    return ghn.apply({'params': params}, *args, method=method)


def with_policy(graph, policy):
    return with_bits(graph, resolve(policy, graph))


def bits_by_name(graph):
    pairs = zip(graph.weight_bits.tolist(), graph.activation_bits.tolist())
    return {node.name: pair for node, pair in zip(graph.nodes, pairs)}


# ---- on the host


def test_a_layer_has_its_bits_and_the_norm_or_bias_after_it_hears_of_them(graphs):
    graph = with_policy(graphs[0], MIXED)
    bits, named = bits_by_name(graph), {p.name for p in graph.parameters}
    assert graph.weight_bits.dtype == graph.activation_bits.dtype == np.int32
    for name in weight_names(graph):
        assert bits[name] == MIXED.widths(name)
    assert bits['stem.1.weight'] == bits['stem.0.weight'] == (8, 32)
    assert bits['classifier.3.bias'] == bits['classifier.3.weight'] == (2, 3)
    assert bits['classifier.0.bias'] == (4, 8)
    for cell, expected in ((0, (4, 8)), (1, (6, 16))):
        # A separable convolution is two layers twice; its norms follow the pointwise ones.
        norms = [
            name
            for name in bits
            if name.startswith(f'cells.{cell}') and name in named - set(weight_names(graph))
        ]
        assert len(norms) > 4 and all(bits[name] == expected for name in norms)
    assert all(
        bits[name] == (0, 0) for name in ('input', 'max_pool', 'concat', 'sum', 'glob_avg') if name in bits
    )


def test_a_norm_after_several_layers_hears_of_the_fewest_bits():
    graph = build_graph(small_spec('skip_connect', 'conv_3x3', n_cells=3))
    halves = [name for name in weight_names(graph) if '_ops.0.conv_' in name]
    first, second = halves[:2]
    bits = bits_by_name(with_policy(graph, Policy(layers=((first, 8, 2), (second, 3, 6)))))
    assert (bits[first], bits[second]) == ((8, 2), (3, 6))
    assert bits[first.replace('conv_1', 'bn')] == (3, 2)


def test_norms_of_attention_hear_of_the_layers_whose_sum_they_read(graphs):
    bits = bits_by_name(with_policy(graphs[1], Policy(4, 8, (('stem0.*', 2, 3),))))
    assert (
        bits['cells.0._ops.0.ln1.weight'] == (4, 8) != bits['stem0.weight'] == (2, 3)
    )  # after preprocessing
    assert bits['pos_enc.weight'] == (0, 0)


def test_only_a_policy_of_the_network_is_taken(graphs):
    with pytest.raises(UserError, match="'nothing' matches none"):
        with_policy(graphs[0], Policy(4, 4, (('nothing', 8, 8),)))
    with pytest.raises(UserError, match="for network 'other', not for 'conv'"):
        with_policy(graphs[0], Policy(4, 4, network='other'))
    check_policies(graphs, [W4A4])
    tensor = Policy(layers=(('cells.0.preprocess0.op.1.weight', 4, 4), ('cells.1._ops.2.op.1.weight', 2, 2)))
    with pytest.raises(UserError, match="network 'vit': layer 'cells.1._ops.2.op.1.weight' is none of"):
        check_policies(graphs, [W4A4, tensor])


def test_batches_hold_the_bits_of_each_graph_and_nothing_in_padding(graphs):
    told = [with_policy(graphs[0], MIXED), graphs[1], with_policy(graphs[2], W4A4)]
    together = batch_graphs(list(map(to_graphs_tuple, told)), max_nodes=100)
    for b, graph in enumerate(told):
        n = len(graph.nodes)
        for name in ('weight_bits', 'activation_bits'):
            row, of = getattr(together, name)[b], getattr(graph, name)
            np.testing.assert_array_equal(row[:n], 0 if of is None else of)
            assert not row[n:].any()


# ---- the embedding of bits


def test_an_embedding_is_free_at_the_widths_linear_between_and_zero_for_float():
    tables = init_bits(jax.random.key(0), 8)
    rng = np.random.default_rng(0)
    tables = {name: jnp.asarray(rng.normal(size=t.shape), t.dtype) for name, t in tables.items()}
    of = lambda *widths: np.asarray(embed_bits(tables, jnp.array(widths), jnp.zeros(len(widths), int)))
    assert np.linalg.matrix_rank(of(*WIDTHS)) == len(WIDTHS)
    np.testing.assert_allclose(of(5, 7, 12), (of(4, 6, 8) + of(6, 8, FLOAT_FROM)) / 2, rtol=1e-5, atol=1e-6)
    assert not of(0, 16, 32).any()
    untrained = {name: t.at[0].set(0) for name, t in tables.items()}  # 1 bit, if training has none
    np.testing.assert_array_equal(*(embed_bits(untrained, jnp.array(b), jnp.array(0)) for b in (1, 2)))
    both = embed_bits(tables, jnp.array(3), jnp.array(6))
    activations = embed_bits(tables, jnp.array(0), jnp.array(6))
    np.testing.assert_allclose(both, of(3)[0] + activations, rtol=1e-5)
    assert not np.allclose(activations, of(6)[0])


# ---- the hypernetwork


def test_an_untrained_conditional_ghn_is_the_plain_one_exactly(graphs):
    ghns._init.clear_cache()  # another file may have compiled one of the two with all optimisations
    plain, told = (init_params(config, jax.random.key(1)) for config in (SMALL, TOLD))
    tables = told.pop('bits')
    assert not any(np.asarray(t).any() for t in tables.values())
    jax.tree.map(np.testing.assert_array_equal, told, plain)
    x = apply(GHN(SMALL), plain, batch([graphs[2]], NODES))
    for graph in (graphs[2], with_policy(graphs[2], W4A4)):
        np.testing.assert_array_equal(apply(GHN(TOLD), told | {'bits': tables}, batch([graph], NODES)), x)


def test_where_nothing_is_said_or_all_is_float_a_trained_one_is_as_without_its_tables(graphs, params):
    without = {name: p for name, p in params.items() if name != 'bits'}
    x = apply(GHN(SMALL), without, batch([graphs[2]], NODES))
    for graph in (graphs[2], with_policy(graphs[2], Policy())):
        np.testing.assert_array_equal(apply(GHN(TOLD), params, batch([graph], NODES)), x)
    told = batch([with_policy(graphs[2], W4A4)], NODES)
    assert np.abs(apply(GHN(TOLD), params, told) - x).max() > 0.1
    np.testing.assert_array_equal(apply(GHN(SMALL), without, told), x)  # the plain one does not listen


def test_gradients_reach_the_tables_from_zero(graphs):
    ghn = GHN(dataclasses.replace(TOLD, hypernet='mlp'))  # which compiles quickly
    params = random_params(ghn.config)
    inputs = batch([with_policy(graphs[2], Policy(2, 8))], NODES)
    weights = jax.random.normal(jax.random.key(2), (1, NODES, TOLD.hid))
    loss = lambda bits: jnp.sum(weights * apply(ghn, params | {'bits': bits}, inputs))
    gradient = jax.grad(loss)(init_bits(jax.random.key(0), TOLD.hid))
    rows = lambda name: np.asarray(gradient[name]).any(-1).tolist()
    assert rows('weights') == [False, True, True, True, True, True]  # all steps from 8 bits down to 2
    assert rows('activations') == [False, False, False, False, False, True]


def test_padding_and_the_other_graphs_of_a_batch_change_nothing(graphs, params, count_compiles):
    told = [with_policy(graphs[0], MIXED), with_policy(graphs[2], W4A4)]
    together = apply(GHN(TOLD), params, batch(told, NODES))
    turned = batch(told[::-1], NODES)
    other = batch([with_policy(graphs[0], Policy(3, 5)), told[1]], NODES)
    with count_compiles() as compiles:
        swapped = apply(GHN(TOLD), params, turned)
        changed = apply(GHN(TOLD), params, other)
    assert compiles.n == 0  # another policy is other data
    np.testing.assert_allclose(swapped[::-1], together, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(changed[1], together[1], rtol=1e-5, atol=1e-6)
    assert not np.allclose(changed[0], together[0], atol=1e-2)
    n = len(told[1].nodes)
    alone = apply(GHN(TOLD), params, batch([told[1]], n))
    np.testing.assert_allclose(alone[0], together[1, :n], rtol=1e-5, atol=1e-6)
    assert not np.asarray(together[1, n:]).any()


def test_relabelling_nodes_permutes_bits_and_embeddings(graphs, params):
    graph, rng = graphs[2], np.random.default_rng(0)
    order, waiting = [], list(range(len(graph.nodes)))
    while waiting:  # another topological order
        free = [v for v in waiting if not graph.distance[waiting, v].any()]
        order.append(int(rng.choice(free)))
        waiting.remove(order[-1])
    assert order != sorted(order)
    place = {v: i for i, v in enumerate(order)}
    relabelled = dataclasses.replace(
        graph,
        nodes=tuple(graph.nodes[v] for v in order),
        distance=graph.distance[order][:, order],
        parameters=tuple(p._replace(node=place[p.node]) for p in graph.parameters),
    )
    told, told_relabelled = with_policy(graph, BY_CELL), with_policy(relabelled, BY_CELL)
    np.testing.assert_array_equal(told_relabelled.weight_bits, told.weight_bits[order])
    x = apply(GHN(TOLD), params, batch([told, told_relabelled], NODES))
    np.testing.assert_allclose(x[1, : len(order)], x[0][np.array(order)], rtol=1e-4, atol=1e-5)


def test_the_fast_path_equals_predict_parameters(graphs, params):
    table, items = decoder_table(graphs[2], max_dense=320, max_depth=128, max_shape=TOLD.max_shape)
    fast = {}
    for policy in (Policy(), BY_CELL):
        graph = with_policy(graphs[2], policy)
        x = apply(GHN(TOLD), params, batch([graph, graphs[0]], NODES))[0]
        fast[policy] = tile_parameters(apply(GHN(TOLD), params, x, table, method='decode'), items, graph)
    for name, tensor in predict_parameters(GHN(TOLD), params, with_policy(graphs[2], BY_CELL)).items():
        np.testing.assert_allclose(fast[BY_CELL][name], tensor, rtol=1e-4, atol=1e-5, err_msg=name)
        # All tensors differ, biases too: they hear of it through the graph.
        assert np.abs(fast[Policy()][name] - tensor).max() > 1e-4
