"""Graphs as a hypernetwork reads them: as jraph's, and a meta-batch of them in arrays of fixed shapes.

Axes: B graphs | N nodes, padded | W waves | V nodes of a wave | E edges.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jraph
import numpy as np

from ghn_jax.base.errors import UserError
from ghn_jax.networks.graph import Graph
from ghn_jax.networks.layers import PRIMITIVES

_INDEX = {primitive: i for i, primitive in enumerate(PRIMITIVES)}


def to_graphs_tuple(graph: Graph) -> jraph.GraphsTuple:
    """Convert to a graph of jraph's: an edge for every pair that a path of at most MAX_DISTANCE joins.

    nodes: primitive int32 [N], shape int32 [N, 4] (missing dimensions 1; all 0 for nodes without shape),
    weight_bits and activation_bits int32 [N] (0 for none).
    edges: distance uint8 [E].   senders, receivers: int32 [E].
    """
    padded = [(0, 0, 0, 0) if node.shape is None else (*node.shape, 1, 1, 1)[:4] for node in graph.nodes]
    bits = {'weight_bits': graph.weight_bits, 'activation_bits': graph.activation_bits}
    unsaid = np.zeros(len(graph.nodes), np.int32)
    senders, receivers = np.nonzero(graph.distance)
    made: Any = jraph.GraphsTuple  # whose types are those of JAX's arrays
    return made(
        nodes={
            **{name: unsaid if of is None else of for name, of in bits.items()},
            'primitive': np.array([_INDEX[node.primitive] for node in graph.nodes], np.int32),
            'shape': np.array(padded, np.int32),
        },
        edges={'distance': graph.distance[senders, receivers]},
        senders=senders.astype(np.int32),
        receivers=receivers.astype(np.int32),
        globals=None,
        n_node=np.array([len(graph.nodes)], np.int32),
        n_edge=np.array([len(senders)], np.int32),
    )


class GraphBatch(NamedTuple):
    """A meta-batch of graphs as the hypernetwork reads it. The real nodes of a graph are a prefix of its row.

    Attributes:
      primitive: int32 [B, N], 0 in padding.
      shape: int32 [B, N, 4], 0 in padding and for nodes without shape.
      distance: uint8 [B, N, N]; distance[b, u, v] is the length of the path u -> v, 0 for none and in
        padding.
      waves: int32 [W, B, V]; waves[k, b] are nodes of graph b that can be updated together once waves 0..k-1
        are done (going back: once the later ones are done); N fills up.
      n_waves: int32 [], how many of the W are in use.
      n_node: int32 [B].
      weight_bits, activation_bits: int32 [B, N], 0 in padding and where nothing is said.
    """

    # Arrays of numpy on the host, of JAX on the device.
    primitive: Any
    shape: Any
    distance: Any
    waves: Any
    n_waves: Any
    n_node: Any
    weight_bits: Any
    activation_bits: Any


def batch_graphs(graphs: Sequence[jraph.GraphsTuple], *, max_nodes: int, wave_size: int = 4) -> GraphBatch:
    """Join graphs (nodes in topological order) into a batch whose shapes depend on B and the knobs only.

    max_nodes: N, and W, for there are never more waves than nodes.   wave_size: V.

    Raises UserError if there is no graph or one has more than max_nodes nodes.
    """
    if not graphs:
        raise UserError('no graphs to batch: give at least one')
    if wave_size < 1:
        raise UserError(f'wave_size is {wave_size}: expected 1 or more nodes')
    joined: Any = jraph.batch_np(graphs)
    B, N = len(joined.n_node), max_nodes
    for i, n in enumerate(joined.n_node):
        if n > max_nodes:
            raise UserError(f'graph {i} has {n} nodes, max_nodes is {max_nodes}: raise max_nodes')
    # Room for the one graph of padding nodes that jraph wants. Edges become dense, so they need no padding.
    padded: Any = jraph.pad_with_graphs(joined, n_node=B * N + 1, n_edge=len(joined.senders), n_graph=B + 1)
    n_node = np.asarray(padded.n_node)[:B]
    first = np.cumsum(n_node) - n_node  # first node of each graph
    owner = np.repeat(np.arange(B), n_node)  # graph of each node
    place = np.arange(len(owner)) - first[owner]  # node within its graph

    def in_rows(feature: np.ndarray) -> np.ndarray:  # of all nodes -> of each graph, [B, N, ...]
        rows = np.zeros((B, N, *feature.shape[1:]), np.int32)
        rows[owner, place] = feature[: len(owner)]
        return rows

    distance = np.zeros((B, N, N), np.uint8)
    senders, receivers = np.asarray(padded.senders), np.asarray(padded.receivers)
    distance[owner[senders], place[senders], place[receivers]] = padded.edges['distance']

    waves = np.full((N, B, wave_size), N, np.int32)
    used = [_fill_waves(waves[:, b], distance[b, :n, :n]) for b, n in enumerate(n_node)]
    return GraphBatch(
        **{name: in_rows(feature) for name, feature in padded.nodes.items()},
        distance=distance,
        waves=waves,
        n_waves=np.array(max(used), np.int32),
        n_node=n_node.astype(np.int32),
    )


def levels(distance: np.ndarray) -> np.ndarray:
    """Count, for each node, the edges on the longest path that leads to it.

    distance: [N, N], 1 for edges; nodes in topological order. Returns int [N].
    """
    level = [0] * len(distance)
    receivers, senders = np.nonzero(
        distance.T == 1
    )  # receivers ascend, so senders are done before they are read
    for receiver, sender in zip(receivers.tolist(), senders.tolist(), strict=True):
        if sender >= receiver:
            raise ValueError(f'edge {sender} -> {receiver} goes back: nodes must be in topological order')
        level[receiver] = max(level[receiver], level[sender] + 1)
    return np.array(level)


def _fill_waves(waves: np.ndarray, distance: np.ndarray) -> int:
    """Write one graph's waves [W, V], its levels one after the other in chunks of V; returns how many."""
    V = waves.shape[1]
    level = levels(distance)
    nodes = np.argsort(level, kind='stable')
    level = level[nodes]
    size = np.bincount(level)
    rank = np.arange(len(nodes)) - (np.cumsum(size) - size)[level]  # position within its level
    chunks = -(-size // V)
    waves[(np.cumsum(chunks) - chunks)[level] + rank // V, rank % V] = nodes
    return int(chunks.sum())
