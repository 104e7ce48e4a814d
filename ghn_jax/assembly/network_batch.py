"""Networks made ready for the device: what a step needs of each, as arrays of one shape.

Axes: M networks of a meta-batch, all of one family (width C, with or without attention).
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from ghn_jax.assembly.weight_buffer import Sources, make_sources
from ghn_jax.base.errors import UserError
from ghn_jax.cnn.program import Layout, Program
from ghn_jax.cnn.tables import Bits, Tables
from ghn_jax.hypernet.policy_features import with_policy
from ghn_jax.hypernet.tiles import DENSE_CHUNK, DEPTH_CHUNK, DecoderTable, Tiles, decoder_table, round_up
from ghn_jax.networks.graph import GraphBatch, batch_graphs, build_graph, to_graphs_tuple
from ghn_jax.networks.spec import NetworkSpec
from ghn_jax.quant.policy import Policy


class Networks(NamedTuple):
    """A meta-batch, arrays with a leading axis M: the graphs for `GHN.embed`, the rest for each network by
    itself.
    """

    graphs: GraphBatch
    decoder: DecoderTable
    sources: Sources
    tables: Tables
    bits: Bits


def prepare(
    program: Program, specs: Sequence[NetworkSpec], policy: Policy | Sequence[Policy], *, max_nodes: int
) -> tuple[Networks, list[Layout]]:
    """The networks as data for `program` (numpy), and where the parameters of each lie.

    policy: one for all networks, or one for each. The graphs carry it too, for a hypernetwork that reads it.

    Raises:
      UserError: a graph with more than max_nodes nodes, a network outside the program's space, a policy
        that is not for it.
    """
    policies = [policy] * len(specs) if isinstance(policy, Policy) else policy
    graphs = [with_policy(build_graph(spec), own) for spec, own in zip(specs, policies, strict=True)]
    tuples = [to_graphs_tuple(graph) for graph in graphs]
    rows, layouts = [], []
    for spec, graph, own in zip(specs, graphs, policies, strict=True):
        layout = _layout(program, spec)
        capacity = program.capacity
        table, items = decoder_table(graph, max_dense=capacity.dense_tiles, max_depth=capacity.depth_tiles)
        sources = make_sources(layout, items, tile_shapes(program, max_nodes), capacity)
        table = jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == np.float64 else x, table)
        rows.append((table, sources, layout.tables, program.bits(layout, own)))
        layouts.append(layout)
    stacked = jax.tree.map(lambda *xs: np.stack(xs), *rows)
    return Networks(batch_graphs(tuples, max_nodes=max_nodes), *stacked), layouts


def _layout(program: Program, spec: NetworkSpec) -> Layout:
    try:
        return program.layout(spec)
    except UserError:
        raise
    except ValueError as e:
        raise UserError(str(e)) from None


@functools.cache
def tile_shapes(program: Program, max_nodes: int) -> Tiles:
    """Shapes of what `GHN.decode` returns for one network of this program."""
    c, f = program.capacity, lambda *shape: np.broadcast_to(np.float32(0), shape)
    return Tiles(
        dense=f(round_up(c.dense_tiles, DENSE_CHUNK), 64, 64),  # as long as `decoder_table` makes its columns
        depth=f(round_up(c.depth_tiles, DEPTH_CHUNK), 64),
        norm=f(max_nodes, 2, 64),
        class_weight=f(64, program.num_classes),
        class_bias=f(program.num_classes),
    )
