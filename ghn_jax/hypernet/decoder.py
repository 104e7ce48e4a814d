"""From node embeddings to the weights of a network (GHN-2, arXiv 2110.13100; the published conv decoder).

A weight of any shape is cut from, or tiled cyclically with, decoded tiles of 64x64 channels, one for each kernel
position. `decode` makes just the tiles a network needs, listed in a table, in one program for all networks;
`predict_parameters` makes each tensor by itself, whole windows first, straight from the definition, and is its oracle.

Tiles are [in, out], as a product x @ w wants them, and so is `out_kernel`: PyTorch's (out, in) is turned once, when
published parameters are read.

Axes: N nodes | P dense items | Q depthwise items | D hidden | C channels of a tile (64) | T taps of the window (11x11).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax.errors import UserError
from ghn_jax.hypernet.chunks import map_chunks
from ghn_jax.hypernet.layers import Params, init_mlp, init_uniform, mlp
from ghn_jax.networks.graph import NetworkGraph, Parameter

DENSE_CHUNK = 64  # items at a time: larger chunks waste more on the last one, smaller ones add gradients more often
DEPTH_CHUNK = 128
Items = dict[str, tuple[str, int]]


class DecoderTable(NamedTuple):
    """What one network wants decoded.

    An item is one kernel position of one weight, in row-major order, those of one weight side by side. dense: weights
    with several inputs, and linear weights as one position. Rows [0, n_small) are items of weights with at most C / 2
    inputs and outputs, for which a quarter of a tile is enough; from the next multiple of DENSE_CHUNK to n_dense are
    the others. depth: rows [0, n_depth), weights with one input (depthwise). Rows between and after are padding.
    node int32: which embedding; tap int32: position in the window, row * 11 + column; scale: the normalisation by
    fan-in, float64 on the host (32-bit JAX makes it float32).
    class_node, bias_node: int32 [], weight and bias of the last linear layer; class_scale: [].
    """

    dense_node: np.ndarray  # [P]
    dense_tap: np.ndarray  # [P]
    dense_scale: np.ndarray  # [P]
    n_small: np.ndarray  # []
    n_dense: np.ndarray  # []
    depth_node: np.ndarray  # [Q]
    depth_tap: np.ndarray  # [Q]
    depth_scale: np.ndarray  # [Q]
    n_depth: np.ndarray  # []
    class_node: np.ndarray  # []
    class_scale: np.ndarray  # []
    bias_node: np.ndarray  # []


class Tiles(NamedTuple):
    """The decoded weights of one network, scaled; tile and slice them to shape (`tile_parameters` does on the host)."""

    dense: jax.Array  # [P, C(in), C(out)], zero in padding and outside the quarter of small items
    depth: jax.Array  # [Q, C(out)], zero in padding
    norm: jax.Array  # [N, 2, C]: weight of a norm; bias of a norm or, on its own node, of a linear layer
    class_weight: jax.Array  # [C(in), num_classes]
    class_bias: jax.Array  # [num_classes]


def init_decoder(
    key: jax.Array, hid: int, max_shape: tuple[int, int, int, int], num_classes: int, dtype: jnp.dtype = jnp.float32
) -> dict[str, Params]:
    """Parameters of the three decoders: 'conv' (4-D and linear weights), 'norm' (1-D) and 'class_bias'.

    max_shape: (C, C, height, width) of the window. PyTorch's default initial values (`layers.init_uniform`).
    """
    C, _, height, width = max_shape
    T, k = height * width, jax.random.split(key, 11)
    conv = {
        'fc_kernel': init_uniform(k[0], (T, hid, 4 * hid), hid, dtype),  # a slab for each position of the window
        'fc_bias': init_uniform(k[1], (T, 4 * hid), hid, dtype),
        'hidden_kernel': init_uniform(k[2], (4 * hid, 8 * hid), 4 * hid, dtype),
        'hidden_bias': init_uniform(k[3], (8 * hid,), 4 * hid, dtype),
        'out_kernel': init_uniform(k[4], (8 * hid, C, C), 8 * hid, dtype),  # [8D, C(in), C(out)]
        'out_bias': init_uniform(k[5], (C, C), 8 * hid, dtype),
        'class_kernel': init_uniform(k[6], (C, num_classes), C, dtype),
        'class_bias': init_uniform(k[7], (num_classes,), C, dtype),
    }
    class_bias = {
        'kernel': init_uniform(k[9], (C, num_classes), C, dtype),
        'bias': init_uniform(k[10], (num_classes,), C, dtype),
    }
    return {'conv': conv, 'norm': init_mlp(k[8], (hid, 2 * hid, 2 * C), dtype), 'class_bias': class_bias}


def decode(params: dict[str, Params], x: jax.Array, table: DecoderTable, *, normalise: bool = True) -> Tiles:
    """The tiles of one network from its embeddings x [N, D]; differentiable in params and x.

    normalise: apply the table's scales and squash norm weights and biases (off in GHN-1).
    """
    conv = params['conv']
    half = conv['out_bias'].shape[0] // 2
    small_conv = _part(conv, (slice(half), slice(half)))
    depth_conv = _part(conv, (0,))  # in = 0 of a tile is all that a weight with one input keeps

    def items(conv, item):
        features, tap, scale = item
        tile = _tile(conv, _hidden(conv, features, tap))
        return tile * scale.reshape(-1, *[1] * (tile.ndim - 1)) if normalise else tile

    def small_items(conv, item):
        return jnp.pad(items(conv, item), ((0, 0), (0, half), (0, half)))

    dense = x[table.dense_node], table.dense_tap, table.dense_scale.astype(x.dtype)
    depth = x[table.depth_node], table.depth_tap, table.depth_scale.astype(x.dtype)
    small = jnp.zeros_like(table.n_small), table.n_small
    large = -(-table.n_small // DENSE_CHUNK) * DENSE_CHUNK, table.n_dense
    depths = jnp.zeros_like(table.n_depth), table.n_depth
    one_d = mlp(params['norm'], x).reshape(x.shape[0], 2, -1)  # [N, 2, C]
    class_features = x[table.class_node][None]
    class_weight = _class_weight(conv, _tile(conv, _hidden(conv, class_features, jnp.zeros(1, jnp.int32)))[0])
    class_bias = _class_bias(params['class_bias'], one_d[table.bias_node, 1])
    if normalise:
        class_weight = class_weight * table.class_scale.astype(x.dtype)
        class_bias = _squash_bias(class_bias)
        one_d = jnp.stack([_squash_scale(one_d[:, 0]), _squash_bias(one_d[:, 1])], axis=1)
    return Tiles(
        dense=map_chunks((small_items, items), (small_conv, conv), dense, (small, large), DENSE_CHUNK),
        depth=map_chunks((items,), (depth_conv,), depth, (depths,), DEPTH_CHUNK),
        norm=one_d,
        class_weight=class_weight,
        class_bias=class_bias,
    )


def _hidden(conv: Params, features: jax.Array, tap: jax.Array) -> jax.Array:
    """Features [P, D] at their window positions [P] to the last hidden layer [P, 8D]."""
    t = jnp.einsum('pd,pdh->ph', features, conv['fc_kernel'][tap]) + conv['fc_bias'][tap]
    return jax.nn.relu(jax.nn.relu(t) @ conv['hidden_kernel'] + conv['hidden_bias'])


def _part(conv: Params, cut: Any) -> Params:
    """The decoder of the part tile[cut] of every tile."""
    return {**conv, 'out_kernel': conv['out_kernel'][(slice(None), *cut)], 'out_bias': conv['out_bias'][cut]}


def _tile(conv: Params, hidden: jax.Array) -> jax.Array:
    """[P, 8D] -> [P, C(in), C(out)], or the part of it that `conv` makes."""
    kernel, bias = conv['out_kernel'], conv['out_bias']
    return (hidden @ kernel.reshape(kernel.shape[0], -1) + bias.reshape(-1)).reshape(-1, *bias.shape)


def _class_weight(conv: Params, tile: jax.Array) -> jax.Array:
    """[C(in), C(out)] -> [C(in), num_classes]."""
    return jax.nn.relu(tile) @ conv['class_kernel'] + conv['class_bias']


def _class_bias(params: Params, row: jax.Array) -> jax.Array:
    """[C] -> [num_classes]."""
    return jax.nn.relu(row) @ params['kernel'] + params['bias']


def _squash_scale(p: jax.Array) -> jax.Array:
    return 2 * jax.nn.sigmoid(0.5 * p)


def _squash_bias(p: jax.Array) -> jax.Array:
    return jnp.tanh(0.2 * p)


# ---- the table, made on the host


def decoder_table(
    graph: NetworkGraph,
    *,
    max_dense: int,
    max_depth: int,
    pos_enc: bool = False,
    max_shape: tuple[int, int, int, int] = (64, 64, 11, 11),
) -> tuple[DecoderTable, Items]:
    """The table of a network, padded to capacity, and where each tensor's items begin.

    items[name] = (kind, first): 'dense' and 'depth': first item of the table; 'norm': row of Tiles.norm seen as
    [2N, C], that is 2 * node + row; 'class': 0 weight, 1 bias. max_dense, max_depth: capacities, rounded up to whole
    chunks (see `count_items`). pos_enc: list positional encodings too, as dense items of which output 0 is wanted;
    otherwise they are left out. max_shape: that of the hypernetwork.

    Raises UserError if the network wants more items than there is room for, or a kernel larger than the window.
    """
    C, _, _, window = max_shape
    small, large, depth, items = _Column(), _Column(), _Column(), {}
    for p in graph.parameters:
        kind = _kind(p, graph)
        if kind == 'class':
            items[p.name] = kind, p.node - (len(graph.nodes) - 2)
        elif kind == 'norm':
            items[p.name] = kind, 2 * p.node + p.row
        elif kind == 'depth':
            depth.add(p, fan_in_scale(p.shape), window)
        elif kind == 'dense':
            (small if max(p.shape[:2]) <= C // 2 else large).add(p, fan_in_scale(p.shape), window)
        elif pos_enc:
            large.add(p, 1.0, window)
    start = round_up(len(small.rows), DENSE_CHUNK)
    items |= {name: ('dense', first) for name, first in small.first.items()}
    items |= {name: ('dense', start + first) for name, first in large.first.items()}
    items |= {name: ('depth', first) for name, first in depth.first.items()}
    dense_rows = small.rows + [(0, 0, 0.0)] * (start - len(small.rows)) + large.rows if large.rows else small.rows
    label, class_node = f'network {graph.spec.name!r}', len(graph.nodes) - 2
    table = DecoderTable(
        *_pad(dense_rows, 'max_dense', max_dense, DENSE_CHUNK, label),
        n_small=np.int32(len(small.rows)),
        n_dense=np.int32(len(dense_rows)),
        **dict(zip(('depth_node', 'depth_tap', 'depth_scale'), _pad(depth.rows, 'max_depth', max_depth, DEPTH_CHUNK, label), strict=True)),
        n_depth=np.int32(len(depth.rows)),
        class_node=np.int32(class_node),
        class_scale=np.float64(fan_in_scale(graph.nodes[class_node].shape)),
        bias_node=np.int32(class_node + 1),
    )
    return table, items


def fan_in_scale(shape: tuple[int, ...]) -> float:
    """sqrt(beta / fan_in) of a weight (out, in, ...): beta 2, or 1 where no relu precedes.

    That is so before depthwise weights (one input) and in 1xk convolutions, published as shape[2] < shape[3].
    """
    beta = 1 if len(shape) == 4 and (shape[1] == 1 or shape[2] < shape[3]) else 2
    return (beta / np.prod(shape[1:])) ** 0.5


def _kind(p: Parameter, graph: NetworkGraph) -> str:
    if p.node >= len(graph.nodes) - 2:
        return 'class'
    if graph.nodes[p.node].primitive == 'pos_enc':
        return 'pos_enc'
    if len(p.shape) == 1:
        return 'norm'
    return 'depth' if len(p.shape) == 4 and p.shape[1] == 1 else 'dense'


class _Column:
    """Items listed one after the other: rows of (node, tap, scale), and the first row of each parameter."""

    def __init__(self):
        self.rows, self.first = [], {}

    def add(self, p: Parameter, scale: float, window: int) -> None:
        height, width = (p.shape + (1, 1))[2:4]
        if max(height, width) > window:
            raise UserError(f'parameter {p.name}: kernel {height}x{width} is larger than the window of {window}x{window}')
        self.first[p.name] = len(self.rows)
        self.rows.extend((p.node, i * window + j, scale) for i in range(height) for j in range(width))


def _pad(
    rows: list[tuple[int, int, float]], knob: str, capacity: int, chunk: int, label: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if len(rows) > capacity:
        raise UserError(f'{label} wants {len(rows)} tiles, {knob} is {capacity}: raise {knob}')
    node, tap, scale = (np.zeros(round_up(max(capacity, 1), chunk), dtype) for dtype in (np.int32, np.int32, np.float64))
    for column, values in zip((node, tap, scale), zip(*rows, strict=True), strict=False):
        column[: len(rows)] = values
    return node, tap, scale


def round_up(n: int, multiple: int) -> int:
    """The next multiple, n itself if it is one."""
    return -(-n // multiple) * multiple


def count_items(graph: NetworkGraph, *, max_shape: tuple[int, int, int, int] = (64, 64, 11, 11)) -> dict[str, int]:
    """The least capacities a network fits in, {'dense': max_dense, 'depth': max_depth}, positional encodings left out."""
    table, _ = decoder_table(graph, max_dense=10**6, max_depth=10**6, max_shape=max_shape)
    return {'dense': int(table.n_dense), 'depth': int(table.n_depth)}


def tile_parameters(tiles: Tiles, items: Items, graph: NetworkGraph) -> dict[str, np.ndarray]:
    """Every tensor in its PyTorch shape and layout from decoded tiles, by index arithmetic on the host.

    Tensors without an entry in items (positional encodings, unless the table lists them) are left out.
    """
    dense, depth, norm, class_weight, class_bias = map(np.asarray, tiles)
    C, out = depth.shape[1], {}
    for p in graph.parameters:
        if p.name not in items:
            continue
        kind, first = items[p.name]
        taps, channels = int(np.prod(p.shape[2:])), [np.arange(n) % C for n in p.shape[:2]]
        if kind == 'norm':
            tensor = norm.reshape(-1, C)[first, channels[0]]
        elif kind == 'class':
            tensor = class_bias if first else class_weight[channels[1]].T
        elif kind == 'depth':
            tensor = depth[first : first + taps, channels[0]].T
        else:
            tensor = dense[first : first + taps, channels[1][None, :], channels[0][:, None]].transpose(1, 2, 0)
        out[p.name] = np.ascontiguousarray(tensor.reshape(p.shape))
    return out


# ---- the oracle


def predict_tensors(
    params: dict[str, Params], x: jax.Array, graph: NetworkGraph, *, normalise: bool = True
) -> dict[str, jax.Array]:
    """Every tensor of a network from its embeddings x [N, D], one by one as the published code does it.

    Slow, obvious and differentiable; shares no index arithmetic with `decode`. Names and layouts are PyTorch's.
    """
    predict = partial(_predict_tensor, params, normalise)
    return {p.name: predict(x[p.node], p, _kind(p, graph)) for p in graph.parameters}


def _predict_tensor(params: dict[str, Params], normalise: bool, x: jax.Array, p: Parameter, kind: str) -> jax.Array:
    conv, one_d, shape = params['conv'], params['norm'], p.shape
    if len(shape) == 1:
        w = mlp(one_d, x).reshape(2, -1)[p.row]
        if kind == 'class':
            w = _class_bias(params['class_bias'], w)
        w = _tile_axis(w, 0, shape[0])
        squash = _squash_bias if p.row else _squash_scale
        return squash(w) if normalise else w
    height, width = (shape + (1, 1))[2:4]
    side = int(conv['fc_kernel'].shape[0] ** 0.5)
    t = jnp.einsum('d,tdh->th', x, conv['fc_kernel']) + conv['fc_bias']  # the whole window
    t = jax.nn.relu(t).reshape(side, side, -1)[:height, :width]  # [h, w, 4D]
    t = jax.nn.relu(t @ conv['hidden_kernel'] + conv['hidden_bias'])  # [h, w, 8D]
    w = jnp.einsum('hwd,dio->oihw', t, conv['out_kernel']) + conv['out_bias'].T[:, :, None, None]
    if kind == 'class':
        w = jnp.einsum('oihw,oc->cihw', jax.nn.relu(w), conv['class_kernel']) + conv['class_bias'][:, None, None, None]
    w = _tile_axis(_tile_axis(w, 0, shape[0]), 1, shape[1]).reshape(shape)
    return w * fan_in_scale(shape) if normalise and kind != 'pos_enc' else w


def _tile_axis(w: jax.Array, axis: int, length: int) -> jax.Array:
    """Repeats and cuts an axis to `length`."""
    repeats = [1] * w.ndim
    repeats[axis] = -(-length // w.shape[axis])
    return jax.lax.slice_in_dim(jnp.tile(w, repeats), 0, length, axis=axis)
