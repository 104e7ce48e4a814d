"""The graph of a network: its forward pass as nodes that carry parameters, joined by (virtual) edges.

A node is one parameter tensor (a norm's weight stands for its bias too) or one parameter-free op: pooling,
sum, concat, attention, gate, input. `distance[u, v]` is the length of the shortest path from u to v: 1 for
edges proper, more for the virtual edges of GHN-2 (arXiv 2110.13100), 0 for none or beyond MAX_DISTANCE.

Axes: B graphs | N nodes, padded | W waves | V nodes of a wave | E edges.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jraph
import numpy as np

from ghn_jax.base.errors import UserError
from ghn_jax.networks.forward_pass import forward_pass
from ghn_jax.networks.layers import LAYERS, PASS, PRIMITIVES, ForwardPass
from ghn_jax.networks.spec import NetworkSpec

MAX_DISTANCE = 50

_INDEX = {primitive: i for i, primitive in enumerate(PRIMITIVES)}


class Node(NamedTuple):
    """A node of a graph: a parameter or an operation.

    Attributes:
      primitive: one of PRIMITIVES.
      name: of the parameter, or the primitive for nodes without.
      shape: convolutions (out, in / groups, height, width), linear (out, in), 1-D (channels,), positional
        encoding (1, channels, 11, 11), pools (1, 1, 3, 3), None for the other nodes without parameter.
      cell: which cell; for nodes without parameter that of the parameter before.
    """

    primitive: str
    name: str
    shape: tuple[int, ...] | None
    cell: int


class Parameter(NamedTuple):
    """A tensor to predict, from `node`.

    Attributes:
      row: which of the two 1-D outputs of a node; 0 weight, 1 bias.
      places: where in a tile each input channel lies, of a tensor without such each channel; None: in order.
        Only models have others (`models.channel_places`).
    """

    name: str
    shape: tuple[int, ...]
    node: int
    row: int
    places: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Graph:
    """A network as a hypernetwork sees it, be it made from a spec or traced from a model.

    Attributes:
      nodes: [N] in topological order.
      distance: uint8 [N, N], strictly upper triangular.
      parameters: every tensor that influences the logits, in the order of the forward pass.
      name: of the network, for messages.
      class_weight, class_bias: nodes of the layer that makes the logits, counted from the end where negative;
        class_bias is None where it has no bias.
      weight_bits, activation_bits: int32 [N], what a policy says of each node (`hypernet.policy_features`), 0
        for nothing; None without a policy.
    """

    nodes: tuple[Node, ...]
    distance: np.ndarray
    parameters: tuple[Parameter, ...]
    name: str = ''
    class_weight: int = -2
    class_bias: int | None = -1
    weight_bits: np.ndarray | None = None
    activation_bits: np.ndarray | None = None

    @property
    def class_nodes(self) -> tuple[int, ...]:
        """The nodes of the weight and, if there is one, of the bias of the layer that makes the logits."""
        nodes = (self.class_weight, self.class_bias)
        return tuple(node % len(self.nodes) for node in nodes if node is not None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkGraph(Graph):
    """The graph of a spec: the classifier's weight and bias are the last nodes."""

    spec: NetworkSpec


def build_graph(spec: NetworkSpec) -> NetworkGraph:
    """Build the graph of a network, as a hypernetwork reads it.

    The order of nodes is the published one: depth-first numbers, then Kahn's topological sort with a stack.
    It takes 1 to 3 ms for a network of 160 nodes, up to 10 ms for the deepest.
    """
    nodes, distance, parameters = reduce_to_nodes(*forward_pass(spec))
    return NetworkGraph(nodes=nodes, distance=distance, parameters=parameters, name=spec.name, spec=spec)


def reduce_to_nodes(
    operations: ForwardPass, logits: int
) -> tuple[tuple[Node, ...], np.ndarray, tuple[Parameter, ...]]:
    """Return nodes, distances and parameters, as of a `Graph`, of the operations that `logits` depends on."""
    order = _topological_order(operations, logits)
    kept, parents = _reduced(operations, order)
    return _nodes(operations, kept), _distances(parents), _parameters(operations, kept)


def count_depth(graph: Graph) -> int:
    """Count the convolutions and linear layers on the longest path from the image to the logits."""
    depth = np.zeros(len(graph.nodes), int)
    for v, node in enumerate(graph.nodes):
        parents = np.flatnonzero(graph.distance[:, v] == 1)
        depth[v] = int(node.primitive in LAYERS) + max(depth[parents], default=0)
    return int(depth.max())


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


# ------------------------------------------------------------------------- from operations to nodes


def _topological_order(operations: ForwardPass, logits: int) -> list[int]:
    """The operations that the logits depend on, from the input to the logits."""
    walk, seen, stack = [], set(), [logits]  # depth first, a node before its arguments, arguments in order
    while stack:
        op = stack.pop()
        if op not in seen:
            seen.add(op)
            walk.append(op)
            stack.extend(reversed(operations.inputs[op]))
    walk.remove(0)
    walk.append(0)  # the input has the highest number
    children = {op: [] for op in walk}
    waiting = {}
    for op in walk:  # in increasing number, so each list of children is
        parents = operations.parents[op]
        waiting[op] = len(parents)
        for parent in parents:
            children[parent].append(op)
    order, stack = [], [0]
    while stack:
        op = stack.pop()
        order.append(op)
        for child in children[op]:
            waiting[child] -= 1
            if not waiting[child]:
                stack.append(child)
    return order


def _reduced(operations: ForwardPass, order: list[int]) -> tuple[list[int], list[list[int]]]:
    """Drop what is no node, handing its parents to its children.

    Operations that are no primitive go first, then sums with a single parent, then concats with a single one.
    -> the operations that stay, in order (the positional encoding twice: its source node and its sum), and
    the places of each one's parents among them.
    """
    kind, node_of, parents_of = operations.kind, {}, {}
    for op in order:
        parents = [node_of[parent] for parent in operations.parents[op]]
        if len(parents) > 1:
            parents = list(dict.fromkeys(parents))
        if kind[op] == PASS or (kind[op] == 'sum' and len(parents) == 1):
            node_of[op] = parents[0]
        else:
            node_of[op] = op
            parents_of[op] = parents
    place, kept, places = {}, [], []  # place[op]: where op, or what stands for it, is in `kept`
    for op, parents in parents_of.items():
        parents = [place[parent] for parent in parents]
        if len(parents) > 1:
            parents = list(dict.fromkeys(parents))
        if kind[op] == 'concat' and len(parents) == 1:
            place[op] = parents[0]
            continue
        if kind[op] == 'pos_enc':
            parents.append(len(kept))
            kept.append(op)
            places.append([])
        place[op] = len(kept)
        kept.append(op)
        places.append(parents)
    return kept, places


def _nodes(operations: ForwardPass, kept: list[int]) -> tuple[Node, ...]:
    nodes, cell, last = [], 0, None
    for op in kept:
        primitive, name = operations.kind[op], operations.name[op] or operations.shift[op]
        if op == last:  # the second node of a positional encoding
            primitive, name = 'sum', None
        if name is not None:
            cell = operations.cell[op]
        shape = operations.shape[op] if primitive != 'sum' else None
        nodes.append(Node(primitive, name or primitive, shape, cell))
        last = op
    return tuple(nodes)


def _parameters(operations: ForwardPass, kept: list[int]) -> tuple[Parameter, ...]:
    parameters, place = {}, {}
    for i, op in enumerate(kept):
        place.setdefault(op, i)
    for op in sorted(place):
        for name, shape in operations.tensors(op):
            row = int(operations.kind[op] == 'bias' or name == operations.shift[op])
            parameters.setdefault(name, Parameter(name, shape, place[op], row))  # shared: from its first node
    return tuple(parameters.values())


def _distances(parents: list[list[int]]) -> np.ndarray:
    """uint8 [N, N] from the parents of each node: it is one step further than the nearest of its parents."""
    N = len(parents)
    to = np.full((N, N), 1 << 20, np.int32)  # to[v, u] is the length of u -> v, huge where there is no path
    rows = list(to)
    for v, before in enumerate(parents):
        if before:
            nearest = rows[before[0]]
            for parent in before[1:]:
                nearest = np.minimum(nearest, rows[parent])
            np.add(nearest, 1, out=rows[v])
        rows[v][v] = 0
    to[to > MAX_DISTANCE] = 0
    return np.ascontiguousarray(to.T, np.uint8)
