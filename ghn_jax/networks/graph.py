"""The graph of a network: its forward pass as nodes that carry parameters, joined by (virtual) edges.

A node is one parameter tensor (a norm's weight stands for its bias too) or one parameter-free op: pooling,
sum, concat, attention, gate, input. `distance[u, v]` is the length of the shortest path from u to v: 1 for
edges proper, more for the virtual edges of GHN-2 (arXiv 2110.13100), 0 for none or beyond MAX_DISTANCE.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from ghn_jax.networks.forward_pass import forward_pass
from ghn_jax.networks.layers import LAYERS, PASS, ForwardPass
from ghn_jax.networks.spec import NetworkSpec

MAX_DISTANCE = 50


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
