import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.base.whole_numbers import round_up
from ghn_jax.hypernet.decoder import decode, init_decoder, predict_tensors
from ghn_jax.hypernet.tiles import (
    DENSE_CHUNK,
    DEPTH_CHUNK,
    Tiles,
    count_items,
    decoder_table,
    fan_in_scale,
    tile_parameters,
)
from ghn_jax.networks.graph import build_graph
from tests.cnn.comparison import QUICK
from tests.hypernet.helpers import SMALL, small_graphs, small_spec

pytestmark = pytest.mark.usefixtures('quick_reference')

CAPACITY = {'max_dense': 320, 'max_depth': 256, 'max_shape': SMALL.max_shape}
N = 80


@pytest.fixture(scope='module')
def graphs():
    return small_graphs()


@pytest.fixture(scope='module')
def params():
    with jax.enable_x64(True):
        init = lambda key: init_decoder(key, SMALL.hid, SMALL.max_shape, SMALL.num_classes, jnp.float64)
        return jax.jit(init, compiler_options=QUICK)(jax.random.key(0))


@pytest.fixture(scope='module')
def run():
    """Tiles, and the gradients of sum(weight * tiles) for parameters and embeddings; compiled once."""

    def weighted(params, x, table, weight):
        tiles = decode(params, x, table)
        return sum(jax.tree.leaves(jax.tree.map(lambda w, t: jnp.sum(w * t), weight, tiles))), tiles

    return jax.jit(jax.value_and_grad(weighted, (0, 1), has_aux=True), compiler_options=QUICK)


def embeddings():
    return jnp.asarray(np.random.default_rng(0).normal(size=(N, SMALL.hid)))


def like_tiles(table):
    C, P, Q, classes = 8, len(table.dense_node), len(table.depth_node), SMALL.num_classes
    return Tiles(*(np.zeros(s) for s in ((P, C, C), (Q, C), (N, 2, C), (C, classes), (classes,))))


def tile_ids(table, items, graph):
    """For every element of every tensor, its place in the concatenation of all flat tiles."""
    shapes, start, numbered = like_tiles(table), 0, []
    for tile in shapes:
        numbered.append(np.arange(start, start + tile.size).reshape(tile.shape))
        start += tile.size
    return tile_parameters(Tiles(*numbered), items, graph), shapes


# ---- initial values


def fan_ins(hid, C):
    """By decoder and array, in the order in which a decoder draws its arrays; written down, not computed."""
    return {
        'conv': {
            'fc_kernel': hid, 'fc_bias': hid, 'hidden_kernel': 4 * hid, 'hidden_bias': 4 * hid,
            'out_kernel': 8 * hid, 'out_bias': 8 * hid, 'class_kernel': C, 'class_bias': C,
        },
        'norm': {'kernel_0': hid, 'bias_0': hid, 'kernel_1': 2 * hid, 'bias_1': 2 * hid},
        'class_bias': {'kernel': C, 'bias': C},
    }  # fmt: skip


@pytest.fixture(scope='module')
def drawn():
    """The decoders of 512 keys, each array [512, ...]: enough numbers to come close to every bound."""
    init = jax.jit(lambda key: init_decoder(key, 3, (5, 5, 2, 2), 7), compiler_options=QUICK)
    return jax.tree.map(lambda *x: np.stack(x), *map(init, jax.random.split(jax.random.key(0), 512)))


def test_initial_values_are_uniform_within_the_root_of_one_over_fan_in(drawn):
    expected = fan_ins(3, 5)
    assert {name: set(arrays) for name, arrays in drawn.items()} == {n: set(f) for n, f in expected.items()}
    for name, arrays in drawn.items():
        for array, values in arrays.items():
            bound = expected[name][array] ** -0.5
            assert 0.99 * bound < values.max() <= bound, (name, array)
            assert -bound <= values.min() < -0.99 * bound, (name, array)
            assert values.std() == pytest.approx(bound / 3**0.5, rel=0.05), (name, array)
            assert values.mean() == pytest.approx(0, abs=0.05 * bound), (name, array)


def test_no_two_of_the_initial_values_are_one_draw(drawn):
    """Not those of two keys, of two decoders, or of two arrays of one."""
    expected = fan_ins(3, 5)
    unit = [
        arrays[array].reshape(512, -1) * expected[name][array] ** 0.5
        for name, arrays in drawn.items()
        for array in expected[name]
    ]
    unit = np.round(np.concatenate(unit, 1), 5)
    correlations = np.corrcoef(unit.T) - np.eye(unit.shape[1])
    assert np.abs(correlations).max() < 0.5  # over keys: 512 pairs of independent numbers stay below 0.25
    assert len(np.unique(unit[:, 0])) > 500


# ---- tiles


@pytest.mark.parametrize('i', range(3))
def test_tiles_cut_to_shape_equal_the_tensor_by_tensor_version(graphs, params, run, i):
    with jax.enable_x64(True):
        x, (table, items) = embeddings(), decoder_table(graphs[i], **CAPACITY)
        (_, tiles), _ = run(params, x, table, like_tiles(table))
        ours, oracle = tile_parameters(tiles, items, graphs[i]), predict_tensors(params, x, graphs[i])
    assert list(ours) == list(oracle) == [p.name for p in graphs[i].parameters]
    for p in graphs[i].parameters:
        assert ours[p.name].shape == oracle[p.name].shape == p.shape
        np.testing.assert_allclose(ours[p.name], oracle[p.name], rtol=1e-9, atol=1e-12, err_msg=p.name)


@pytest.mark.parametrize('order', [1, -1], ids=['rising', 'falling'])
def test_channels_at_other_places_equal_the_tensor_by_tensor_version(graphs, params, run, order):
    """With gaps, past the end of a tile, and not in order, as where channels are shuffled."""
    moved = lambda n: tuple(3 * c // 2 for c in range(n))[::order]  # 0, 1, 3, 4, 6, ...
    inputs = lambda p: p.shape[1] if len(p.shape) > 1 and p.shape[1] > 1 else p.shape[0]
    parameters = tuple(
        p if graphs[0].nodes[p.node].primitive == 'pos_enc' or len(p.shape) == 1 and p.row else
        p._replace(places=moved(inputs(p)))
        for p in graphs[0].parameters
    )  # fmt: skip
    graph = dataclasses.replace(graphs[0], parameters=parameters)
    with jax.enable_x64(True):
        x, (table, items) = embeddings(), decoder_table(graph, **CAPACITY)
        (_, tiles), _ = run(params, x, table, like_tiles(table))
        ours, oracle = tile_parameters(tiles, items, graph), predict_tensors(params, x, graph)
    assert {p.shape[1] > 1 for p in parameters if len(p.shape) == 4 and p.places} == {True, False}
    for p in parameters:
        assert ours[p.name].shape == oracle[p.name].shape == p.shape
        np.testing.assert_allclose(ours[p.name], oracle[p.name], rtol=1e-9, atol=1e-12, err_msg=p.name)


def test_gradients_equal_those_of_the_tensor_by_tensor_version(params, run):
    graph = build_graph(small_spec('sep_conv_3x3', 'conv_7x1_1x7', n_cells=1, C=12, preproc=False))
    with jax.enable_x64(True):
        x, (table, items) = embeddings(), decoder_table(graph, **CAPACITY)
        rng = np.random.default_rng(1)
        weights = {p.name: rng.normal(size=p.shape) for p in graph.parameters}
        ids, shapes = tile_ids(table, items, graph)
        flat = np.zeros(sum(tile.size for tile in shapes))
        for (
            name,
            weight,
        ) in weights.items():  # a tile's gradient is the sum over all the places it was copied to
            np.add.at(flat, ids[name].ravel(), weight.ravel())
        cuts = np.split(flat, np.cumsum([tile.size for tile in shapes])[:-1])
        on_tiles = Tiles(*(cut.reshape(tile.shape) for cut, tile in zip(cuts, shapes)))

        def loss(params, x):
            tensors = predict_tensors(params, x, graph)
            return sum(jnp.sum(weights[name] * tensor) for name, tensor in tensors.items())

        _, ours = run(params, x, table, on_tiles)
        oracle = jax.jit(jax.grad(loss, (0, 1)), compiler_options=QUICK)(params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10), ours, oracle)


def test_padding_is_zero_and_other_networks_compile_nothing(graphs, params, run, count_compiles):
    with jax.enable_x64(True):
        x, tables = embeddings(), [decoder_table(graph, **CAPACITY)[0] for graph in graphs]
        weight = like_tiles(tables[0])
        run(params, x, tables[0], weight)
        with count_compiles() as compiles:
            all_tiles = [run(params, x, table, weight)[0][1] for table in tables]
    assert compiles.n == 0
    for table, tiles in zip(tables, all_tiles):
        assert (
            not np.asarray(tiles.dense)[table.n_dense :].any()
            and not np.asarray(tiles.depth)[table.n_position :].any()
        )
        assert not np.asarray(tiles.dense)[: table.n_small, 4:].any(), (
            'half a tile is not computed for small weights'
        )


@pytest.mark.parametrize('i', range(3))
def test_every_item_of_a_table_is_one_kernel_position_of_its_tensor(graphs, i):
    graph = graphs[i]
    table, items = decoder_table(graph, **CAPACITY)
    seen = {'dense': [], 'depth': []}
    for p in graph.parameters:
        kind, first = items[p.name]
        if kind in seen:
            height, width = (p.shape + (1, 1))[2:4]
            rows = range(first, first + height * width)
            seen[kind] += rows
            assert {getattr(table, f'{kind}_node')[row] for row in rows} == {p.node}
            scale = 1 if p.name == 'pos_enc.weight' else fan_in_scale(p.shape)
            assert {getattr(table, f'{kind}_scale')[row] for row in rows} == {scale}
            taps = [getattr(table, f'{kind}_tap')[row] for row in rows]
            assert taps == [11 * h + w for h in range(height) for w in range(width)]
            if kind == 'dense':
                assert (first < table.n_small) == (max(p.shape[:2]) <= 4)
    positions = range(round_up(table.n_depth, DEPTH_CHUNK), table.n_position)
    assert sorted(seen['depth']) == [*range(table.n_depth), *positions]
    large = -(-table.n_small // DENSE_CHUNK) * DENSE_CHUNK
    assert sorted(seen['dense']) == [*range(table.n_small), *range(large, table.n_dense)]
    assert (table.class_node, table.bias_node) == (len(graph.nodes) - 2, len(graph.nodes) - 1)


def test_count_items_is_the_least_capacity(graphs):
    for graph in graphs:
        needed = count_items(graph, max_shape=SMALL.max_shape)
        rooms = {'max_dense': needed['dense'], 'max_depth': needed['depth']}
        decoder_table(graph, max_shape=SMALL.max_shape, **rooms)
        for knob in rooms:
            if rooms[knob]:
                with pytest.raises(UserError, match=f'wants {rooms[knob]} tiles, {knob} is .*: raise {knob}'):
                    decoder_table(graph, max_shape=SMALL.max_shape, **{**rooms, knob: rooms[knob] - 1})


def test_a_kernel_larger_than_the_largest_is_refused(graphs):
    with pytest.raises(UserError, match=r'kernel \dx\d is larger than 3x3, the largest'):
        decoder_table(graphs[0], max_dense=320, max_depth=256, max_shape=(8, 8, 3, 3))


@pytest.mark.parametrize(
    ('shape', 'scale'),
    [((32, 16, 3, 3), (2 / 144) ** 0.5), ((32, 1, 5, 5), (1 / 25) ** 0.5), ((8, 8, 1, 7), (1 / 56) ** 0.5),
     ((8, 8, 7, 1), (2 / 56) ** 0.5), ((10, 64), (2 / 64) ** 0.5)],
)  # fmt: skip
def test_weights_are_scaled_by_fan_in_and_by_two_only_after_a_relu(shape, scale):
    assert fan_in_scale(shape) == pytest.approx(scale, rel=1e-12)


def test_without_normalisation_raw_outputs_come_out(graphs, params):
    graph = graphs[2]
    with jax.enable_x64(True):
        x, (table, items) = embeddings(), decoder_table(graph, **CAPACITY)
        raw = tile_parameters(jax.jit(partial(decode, normalise=False))(params, x, table), items, graph)
        scaled, oracle = (predict_tensors(params, x, graph, normalise=on) for on in (True, False))
        scaled, oracle = jax.tree.map(np.asarray, (scaled, oracle))
    for p in graph.parameters:
        np.testing.assert_allclose(raw[p.name], oracle[p.name], rtol=1e-9, atol=1e-12)
        expected = (
            oracle[p.name] * fan_in_scale(p.shape) if len(p.shape) > 1 else np.tanh(0.2 * oracle[p.name])
        )
        np.testing.assert_allclose(scaled[p.name], expected, rtol=1e-9, atol=1e-12)
