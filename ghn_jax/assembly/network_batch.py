"""Networks made ready for the device: what a step needs of each, as arrays of one shape.

Axes: M networks of a meta-batch, all of one family (width C, with or without attention).
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from ghn_jax.assembly.weight_buffer import Sources, make_sources
from ghn_jax.base.errors import UserError
from ghn_jax.base.whole_numbers import round_up
from ghn_jax.cnn.packing import TILE
from ghn_jax.cnn.program import Layout, Program
from ghn_jax.cnn.tables import Bits, Tables
from ghn_jax.hypernet.policy_features import resolve, with_bits
from ghn_jax.hypernet.tiles import DENSE_CHUNK, DEPTH_CHUNK, DecoderTable, Tiles, decoder_table
from ghn_jax.networks.graph import NetworkGraph, build_graph
from ghn_jax.networks.graph_batch import GraphBatch, batch_graphs, to_graphs_tuple
from ghn_jax.networks.spec import NetworkSpec
from ghn_jax.quant.policy import NamedWidths, Policy


class Networks(NamedTuple):
    """A meta-batch, arrays with a leading axis M: the graphs for `GHN.embed`, the rest for each network by
    itself.
    """

    graphs: GraphBatch
    decoder: DecoderTable
    sources: Sources
    tables: Tables
    bits: Bits


@dataclasses.dataclass(frozen=True)
class PlacedNetwork:
    """A network in a program: what is made of it once, whatever the policies it runs with.

    Attributes:
      graph: its graph, which the hypernetwork reads.
      layout: where its values and parameters lie, lowered for the executor.
    """

    graph: NetworkGraph
    layout: Layout


def place(program: Program, graph: NetworkGraph) -> PlacedNetwork:
    """Lower a network and place it in a program.

    Raises:
      UserError: a network outside the program's space.
    """
    try:
        return PlacedNetwork(graph, program.layout(graph.spec))
    except UserError:
        raise
    except ValueError as e:
        raise UserError(str(e)) from None


def make_networks(
    program: Program, placed: Sequence[PlacedNetwork], widths: Sequence[NamedWidths], *, max_nodes: int
) -> Networks:
    """Make placed networks into a meta-batch for `program`, arrays of numpy.

    Args:
      program: what they are placed in.
      placed: the networks, M of them.
      widths: of each network the bits of its weights by name (`Policy.resolve`). The graphs carry them too,
        for a hypernetwork that reads them.
      max_nodes: that graphs are padded to.

    Raises:
      UserError: a graph with more than max_nodes nodes.
    """
    capacity, shapes = program.capacity, tile_shapes(program, max_nodes)
    rows = []
    for network, bits in zip(placed, widths, strict=True):
        table, items = decoder_table(
            network.graph, max_dense=capacity.dense_tiles, max_depth=capacity.depth_tiles
        )
        table = jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == np.float64 else x, table)
        sources = make_sources(network.layout, items, shapes, capacity)
        rows.append((table, sources, network.layout.tables, program.bit_table(network.layout, bits)))
    stacked = jax.tree.map(lambda *xs: np.stack(xs), *rows)
    tuples = [to_graphs_tuple(with_bits(n.graph, bits)) for n, bits in zip(placed, widths, strict=True)]
    return Networks(batch_graphs(tuples, max_nodes=max_nodes), *stacked)


def prepare(
    program: Program, specs: Sequence[NetworkSpec], policy: Policy | Sequence[Policy], *, max_nodes: int
) -> tuple[Networks, list[Layout]]:
    """Make networks into a meta-batch for `program`: each is lowered, and its graph built, once.

    Args:
      program: what runs them.
      specs: the networks, M of them.
      policy: one for all networks, or one for each.
      max_nodes: that graphs are padded to.

    Returns:
      the meta-batch, arrays of numpy; where the parameters of each network lie in its weight buffer.

    Raises:
      UserError: a graph with more than max_nodes nodes, a network outside the program's space, a policy
        that is not for it.
    """
    policies = [policy] * len(specs) if isinstance(policy, Policy) else policy
    placed = [place(program, build_graph(spec)) for spec in specs]
    widths = [resolve(own, network.graph) for own, network in zip(policies, placed, strict=True)]
    return make_networks(program, placed, widths, max_nodes=max_nodes), [n.layout for n in placed]


@functools.cache
def tile_shapes(program: Program, max_nodes: int) -> Tiles:
    """Return the shapes of what `GHN.decode` gives for one network of this program."""
    capacity, of_shape = program.capacity, lambda *shape: np.broadcast_to(np.float32(0), shape)
    # As many tiles as `decoder_table` makes columns.
    dense, depth = round_up(capacity.dense_tiles, DENSE_CHUNK), round_up(capacity.depth_tiles, DEPTH_CHUNK)
    return Tiles(
        dense=of_shape(dense, TILE, TILE),
        depth=of_shape(depth, TILE),
        norm=of_shape(max_nodes, 2, TILE),
        class_weight=of_shape(TILE, program.num_classes),
        class_bias=of_shape(program.num_classes),
    )
