"""From tiles to the weight buffer and back, against the host's index arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghn_jax.assembly.weight_buffer import assemble, assemble_transposed, make_sources
from ghn_jax.base import backends
from ghn_jax.cnn.building import build_program
from ghn_jax.cnn.packing import BLOCK
from ghn_jax.cnn.tables import PAGE_BLOCKS
from ghn_jax.cnn.weight_quantization import pages
from ghn_jax.hypernet.tiles import Tiles, decoder_table, tile_parameters
from ghn_jax.networks.graph import build_graph
from tests.cnn.comparison import QUICK
from tests.cnn.networks import small_network

NODES = 160
ENTRIES = [('sep_conv_5x5', 0), ('conv_3x3', 1), ('conv_7x1_1x7', 2), ('skip_connect', 0)]
PLAIN = [('conv_1x1', 0), ('max_pool_3x3', 1)]
BOTH = {'normal_concat': (2, 3), 'reduce_concat': (3, 2)}
# Channels below, above and across tiles of 64; odd kernels; all heads; constants in place of norms.
SPECS = [
    small_network(ENTRIES, C=16, fc_layers=2, fc_dim=24, stem_type=1, **BOTH, name='narrow'),
    small_network(ENTRIES, C=16, C_mult=2, fc_layers=2, fc_dim=296, **BOTH, name='two panels'),
    small_network(ENTRIES[:2], C=80, C_mult=2, name='wider than a tile'),
    small_network(
        [('conv_1x1', 0), ('dil_conv_3x3', 1), ('avg_pool_3x3', 2), ('none', 0)],
        C=48, norm=None, ks=7, **BOTH, name='without BatchNorm',
    ),
    small_network([('mbconv_3x3', 0), ('none', 1)], C=32, name='wide inside'),
    small_network(PLAIN, C=16, glob_avg=False, fc_layers=2, fc_dim=40, name='flat'),
    small_network(PLAIN, C=16, glob_avg=False, stem_pool=True, name='flat, one layer'),
]  # fmt: skip


@pytest.fixture(scope='module')
def program():
    return build_program(SPECS, image_size=32, max_params=1e7)


@pytest.fixture(scope='module')
def shapes(program):
    c = program.capacity
    return Tiles(
        *map(jnp.zeros, ((c.dense_tiles, 64, 64), (c.depth_tiles, 64), (NODES, 2, 64), (64, 10), (10,)))
    )


def random_tiles(shapes, seed, dtype='float32'):
    r = np.random.default_rng(seed)
    return Tiles(*(r.normal(size=t.shape).astype(dtype) for t in shapes))


@pytest.fixture(scope='module')
def made(program, shapes):
    """(layout, sources, items, graph) of every network."""
    rows = []
    for spec in SPECS:
        graph, layout = build_graph(spec), program.layout(spec)
        _, items = decoder_table(
            graph, max_dense=program.capacity.dense_tiles, max_depth=program.capacity.depth_tiles
        )
        rows.append((layout, make_sources(layout, items, shapes, program.capacity), items, graph))
    return rows


@pytest.fixture(scope='module', params=['cpu', 'gpu'])
def backend(request):
    """On a GPU the whole buffer is one page."""
    return request.param


@pytest.fixture(scope='module')
def compiled(backend):
    """Both ways, as they are for the backend."""

    def built(f):
        jitted = jax.jit(f, compiler_options=QUICK)

        def run(*arguments):
            with backends.built_for(backend):
                return jitted(*arguments)

        return run

    forth = lambda tiles, sources, tables, out: assemble(tiles, sources, pages(tables), out)
    return built(forth), built(assemble_transposed)


@pytest.mark.parametrize('k', range(len(SPECS)), ids=[spec.name for spec in SPECS])
def test_the_weight_buffer_is_that_of_the_tensors_made_on_the_host(
    program, shapes, made, backend, compiled, k
):
    layout, sources, items, graph = made[k]
    tiles = random_tiles(shapes, k)
    expected = program.pack(layout, tile_parameters(tiles, items, graph))
    stale = np.full_like(expected, np.nan)
    flat = np.asarray(compiled[0](tiles, sources, layout.tables, stale))
    used = int(layout.tables.n_blocks) * BLOCK
    np.testing.assert_array_equal(flat[:used], expected[:used])
    # Only whole pages are written; what is left of the last one are zeros, what follows is left alone.
    page = flat.size if backend == 'gpu' else PAGE_BLOCKS * BLOCK
    written = -(-used // page) * page
    assert np.all(flat[used:written] == 0) and np.all(np.isnan(flat[written:]))


@pytest.mark.parametrize('k', range(len(SPECS)), ids=[spec.name for spec in SPECS])
def test_the_way_back_is_the_transpose(program, shapes, made, compiled, k):
    """<g, A t - A 0> = <A' g, t> for random g and t."""
    with jax.enable_x64(True):
        layout, sources, _, _ = made[k]
        tiles, zeros = random_tiles(shapes, k, 'float64'), jax.tree.map(lambda t: np.zeros(t.shape), shapes)
        out = np.zeros(program.capacity.blocks * BLOCK)
        g = np.random.default_rng(k + 100).normal(size=out.shape)
        # Elements outside the network's pieces are arbitrary, not-a-number for instance.
        arbitrary = np.ones_like(out, bool)
        for block, piece in layout.pieces:
            view = arbitrary[block * BLOCK :][: piece.taps * piece.pad_rows * piece.pad_cols]
            view.reshape(piece.taps, piece.pad_rows, piece.pad_cols)[:, : piece.rows, : piece.cols] = False
        linear = np.asarray(compiled[0](tiles, sources, layout.tables, out)) - np.asarray(
            compiled[0](zeros, sources, layout.tables, out)
        )
        back = compiled[1](np.where(arbitrary, np.nan, g), sources, tiles)
        assert [t.shape for t in back] == [t.shape for t in shapes]
        lhs, rhs = (
            np.vdot(np.where(arbitrary, 0, g), linear),
            sum(np.vdot(a, b) for a, b in zip(back, tiles, strict=True)),
        )
        np.testing.assert_allclose(lhs, rhs, rtol=1e-11)
        assert abs(lhs) > 1


def test_every_tile_that_a_network_lists_reaches_the_buffer_and_no_other(program, shapes, made, compiled):
    for layout, sources, items, graph in made:
        back = compiled[1](np.ones(program.capacity.blocks * BLOCK, 'float32'), sources, shapes)
        reached = np.any(np.asarray(back.dense) != 0, (1, 2)), np.any(np.asarray(back.depth) != 0, 1)
        for got, expected in zip(reached, decoder_items(items, graph), strict=True):
            assert set(np.flatnonzero(got)) == expected
        assert np.all(np.asarray(back.class_bias) == 1)
        assert layout.tables.n_blocks > 0


def decoder_items(items, graph):
    """Indices of dense and of depthwise tiles that a network lists."""
    listed = {'dense': set(), 'depth': set()}
    for p in graph.parameters:
        kind, first = items[p.name]
        if kind in listed:
            listed[kind] |= set(range(first, first + int(np.prod(p.shape[2:]))))
    return listed['dense'], listed['depth']


@pytest.mark.parametrize('classes', [64, 65, 200, 1000])
def test_the_way_back_reaches_the_weights_of_all_classes(classes):
    """The last layer repeats its tile of 64 rows for 80 features, whatever the classes."""
    spec = small_network(PLAIN, C=80, n_cells=1, num_classes=classes)
    program = build_program([spec], image_size=8, max_params=1e6)
    c, layout = program.capacity, program.layout(spec)
    shapes = (c.dense_tiles, 64, 64), (c.depth_tiles, 64), (NODES, 2, 64), (64, classes), (classes,)
    tiles = Tiles(*map(jnp.zeros, shapes))
    _, items = decoder_table(build_graph(spec), max_dense=c.dense_tiles, max_depth=c.depth_tiles)
    sources = jax.tree.map(jnp.asarray, make_sources(layout, items, tiles, c))
    back = assemble_transposed(jnp.ones(c.blocks * BLOCK), sources, tiles)
    times = np.bincount(np.arange(80) % 64)
    np.testing.assert_array_equal(back.class_weight, np.broadcast_to(times[:, None], (64, classes)))
    np.testing.assert_array_equal(back.class_bias, np.ones(classes))
