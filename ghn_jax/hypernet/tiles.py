"""What the decoder is asked for, and what comes out: tables of tiles, made and read on the host.

A weight of any shape is cut from, or tiled cyclically with, decoded tiles of 64x64 channels, one for each
kernel position. Tiles are [in, out], as a product x @ w wants them.

Axes: N nodes | P dense items | Q depthwise items | C channels of a tile (64).
"""

import math
from typing import Any, NamedTuple

import numpy as np

from ghn_jax.base.errors import UserError
from ghn_jax.base.whole_numbers import round_up
from ghn_jax.networks.graph import Graph, Parameter

# Items at a time: larger chunks waste more on the last one, smaller ones add up gradients more often.
DENSE_CHUNK = 64
DEPTH_CHUNK = 128
Items = dict[str, tuple[str, int]]


class DecoderTable(NamedTuple):
    """What one network wants decoded: items, each one kernel position of one weight.

    The items of a weight lie side by side, its positions in row-major order. There are two lists:

    dense: weights with several inputs, and linear weights as one position. Rows [0, n_small) are of weights
      with at most C / 2 inputs and outputs, for which a quarter of a tile is enough; from the next multiple
      of DENSE_CHUNK to n_dense are the others.
    depth: rows [0, n_depth) are of weights with one input (depthwise); from the next multiple of DEPTH_CHUNK
      to n_position are positional encodings.

    Rows between and after are padding.

    Attributes:
      *_node: int32, which embedding.
      *_tap: int32, the position in the largest kernel, row * 11 + column, of a kernel in its first corner.
      *_shift: int32, what to add to it for a kernel in its middle.
      *_scale: that of fan-in, float64 on the host (32-bit JAX makes it float32).
      class_node, bias_node: int32, weight and bias of the last linear layer.
    """

    # Arrays of numpy on the host, of JAX on the device.
    dense_node: Any  # [P]
    dense_tap: Any  # [P]
    dense_shift: Any  # [P]
    dense_scale: Any  # [P]
    n_small: Any  # []
    n_dense: Any  # []
    depth_node: Any  # [Q]
    depth_tap: Any  # [Q]
    depth_shift: Any  # [Q]
    depth_scale: Any  # [Q]
    n_depth: Any  # []
    n_position: Any  # []
    class_node: Any  # []
    class_scale: Any  # []
    bias_node: Any  # []


class Tiles(NamedTuple):
    """The decoded weights of one network, scaled; `tile_parameters` cuts and repeats them to shape."""

    dense: Any  # [P, C(in), C(out)], zero in padding and outside the quarter of small items
    depth: Any  # [Q, C(out)], zero in padding; positional encodings: [Q, C(in)]
    norm: Any  # [N, 2, C]: weight of a norm; bias of a norm or, on its own node, of a linear layer
    class_weight: Any  # [C(in), num_classes]
    class_bias: Any  # [num_classes]


def decoder_table(
    graph: Graph,
    *,
    max_dense: int,
    max_depth: int,
    max_shape: tuple[int, int, int, int] = (64, 64, 11, 11),
) -> tuple[DecoderTable, Items]:
    """Make the table of a network, padded to capacity, and say where each tensor's items begin.

    Args:
      graph: of the network.
      max_dense, max_depth: capacities, rounded up to whole chunks (see `count_items`).
      max_shape: that of the hypernetwork.

    Returns:
      The table. Name of a tensor -> (kind, where it begins): of kind 'dense' or 'depth' (also positional
      encodings) the first item of the table; of 'norm' the row of Tiles.norm seen as [2N, C], that is
      2 * node + row; of 'class' 0 for the weight, 1 for the bias.

    Raises:
      UserError: more items than there is room for, or a kernel larger than the hypernetwork's largest.
    """
    C, _, _, largest = max_shape
    small, large, depth, position, items = _Items(), _Items(), _Items(), _Items(), {}
    for p in graph.parameters:
        kind = kind_of(p, graph)
        if kind == 'class':
            items[p.name] = kind, p.row
        elif kind == 'norm':
            items[p.name] = kind, 2 * p.node + p.row
        elif kind == 'depth':
            depth.add(p, fan_in_scale(p.shape), largest)
        elif kind == 'dense':
            extent = max(*p.shape[:2], *(place + 1 for place in p.places or ()))
            (small if extent <= C // 2 else large).add(p, fan_in_scale(p.shape), largest)
        else:
            position.add(p, 1.0, largest)
    dense, first_dense = _joined(small, large, DENSE_CHUNK)
    depths, first_depth = _joined(depth, position, DEPTH_CHUNK)
    items |= {name: ('dense', first) for name, first in first_dense.items()}
    items |= {name: ('depth', first) for name, first in first_depth.items()}
    label, class_node, bias_node = f'network {graph.name!r}', graph.class_nodes[0], graph.class_nodes[-1]
    table = DecoderTable(
        *_pad(dense, 'max_dense', max_dense, DENSE_CHUNK, label),
        np.array(len(small.rows), np.int32),
        np.array(len(dense), np.int32),
        *_pad(depths, 'max_depth', max_depth, DEPTH_CHUNK, label),
        np.array(len(depth.rows), np.int32),
        np.array(len(depths), np.int32),
        np.array(class_node, np.int32),
        np.array(fan_in_scale(graph.nodes[class_node].shape or ()), np.float64),
        np.array(bias_node, np.int32),
    )
    return table, items


def fan_in_scale(shape: tuple[int, ...]) -> float:
    """Return sqrt(beta / fan_in) of a weight (out, in, ...): beta 2, or 1 where no relu precedes.

    That is so before depthwise weights (one input) and in 1xk convolutions, published as shape[2] < shape[3].
    """
    beta = 1 if len(shape) == 4 and (shape[1] == 1 or shape[2] < shape[3]) else 2
    return (beta / math.prod(shape[1:])) ** 0.5


def middle(size: int, largest: int) -> int:
    """Return where a kernel of this size begins in the middle of the largest one (GHN-3)."""
    return largest // 2 - size // 2


def channel_places(p: Parameter) -> tuple[np.ndarray, np.ndarray]:
    """Return where in a tile, repeated without end, the output and the input channels of a tensor lie."""
    outputs, inputs = (np.arange(n) for n in (*p.shape, 1)[:2])
    if p.places is None:
        return outputs, inputs
    places = np.array(p.places)
    return (outputs, places) if len(inputs) > 1 else (places, inputs)


def kind_of(p: Parameter, graph: Graph) -> str:
    """Say how a tensor is decoded: 'dense', 'depth', 'norm', 'class' or 'pos_enc'."""
    if p.node in graph.class_nodes:
        return 'class'
    if graph.nodes[p.node].primitive == 'pos_enc':
        return 'pos_enc'
    if len(p.shape) == 1:
        return 'norm'
    return 'depth' if len(p.shape) == 4 and p.shape[1] == 1 else 'dense'


class _Items:
    """Items one after the other: rows of (node, tap, shift, scale), and the first row of each parameter."""

    def __init__(self):
        self.rows, self.first = [], {}

    def add(self, p: Parameter, scale: float, largest: int) -> None:
        height, width = (p.shape + (1, 1))[2:4]
        if max(height, width) > largest:
            raise UserError(
                f'parameter {p.name}: kernel {height}x{width} is larger than {largest}x{largest}, the '
                'largest that the hypernetwork predicts'
            )
        self.first[p.name] = len(self.rows)
        shift = middle(height, largest) * largest + middle(width, largest)
        self.rows.extend((p.node, i * largest + j, shift, scale) for i in range(height) for j in range(width))


def _joined(a: _Items, b: _Items, chunk: int) -> tuple[list, dict[str, int]]:
    """Join rows of a, padding, rows of b from a multiple of `chunk` on; find each parameter's first row."""
    start = round_up(len(a.rows), chunk)
    gap = [(0, 0, 0, 0.0)] * (start - len(a.rows)) if b.rows else []
    return a.rows + gap + b.rows, a.first | {name: start + first for name, first in b.first.items()}


def _pad(
    rows: list[tuple[int, int, int, float]], knob: str, capacity: int, chunk: int, label: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    if len(rows) > capacity:
        raise UserError(f'{label} wants {len(rows)} tiles, {knob} is {capacity}: raise {knob}')
    length = round_up(max(capacity, 1), chunk)
    node, tap, shift = (np.zeros(length, np.int32) for _ in range(3))
    columns = node, tap, shift, np.zeros(length)
    for column, values in zip(columns, zip(*rows, strict=True), strict=False):
        column[: len(rows)] = values
    return columns


def count_items(graph: Graph, *, max_shape: tuple[int, int, int, int] = (64, 64, 11, 11)) -> dict[str, int]:
    """Count the least max_dense and max_depth a network fits in, as 'dense' and 'depth'."""
    table, _ = decoder_table(graph, max_dense=10**6, max_depth=10**6, max_shape=max_shape)
    return {'dense': int(table.n_dense), 'depth': int(table.n_position)}


def tile_parameters(tiles: Tiles, items: Items, graph: Graph) -> dict[str, np.ndarray]:
    """Cut every tensor, in its PyTorch shape and layout, from decoded tiles: index arithmetic on the host."""
    dense, depth, norm, class_weight, class_bias = map(np.asarray, tiles)
    C, out = depth.shape[1], {}
    for p in graph.parameters:
        kind, first = items[p.name]
        taps, (outputs, inputs) = math.prod(p.shape[2:]), (places % C for places in channel_places(p))
        if kind == 'norm':
            tensor = norm.reshape(-1, C)[first, outputs]
        elif kind == 'class':
            tensor = class_bias if first else class_weight[inputs].T
        elif kind == 'depth':
            tensor = depth[first : first + taps, max(outputs, inputs, key=len)].T  # the other count is 1
        else:
            tensor = np.moveaxis(dense[first : first + taps, inputs[None, :], outputs[:, None]], 0, 2)
        out[p.name] = np.ascontiguousarray(tensor.reshape(p.shape))
    return out
