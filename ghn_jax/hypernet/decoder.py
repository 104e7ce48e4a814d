"""From node embeddings to the weights of a network (GHN-2, arXiv 2110.13100; the published conv decoder).

`decode` makes just the tiles a network needs, listed in its table, in one program for all networks;
`predict_tensors` makes each tensor by itself, at all positions of the largest kernel first, straight from the
definition: its oracle.
`out_kernel` gives tiles as [in, out]; PyTorch's (out, in) is turned once, when published parameters are read.

Axes: N nodes | P items | D hidden | C channels of a tile (64) | T positions of the largest kernel (11x11).
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax.hypernet.chunks import map_chunks
from ghn_jax.hypernet.layers import Params, init_mlp, init_uniform, mlp
from ghn_jax.hypernet.tiles import DENSE_CHUNK, DEPTH_CHUNK, DecoderTable, Tiles, fan_in_scale, kind_of
from ghn_jax.networks.graph import Graph

_LAST = (  # layers whose outputs are weights
    ('conv', 'out_kernel', 'out_bias'),
    ('conv', 'class_kernel', 'class_bias'),
    ('norm', 'kernel_1', 'bias_1'),
)


def init_decoder(
    key: jax.Array,
    hid: int,
    max_shape: tuple[int, int, int, int],
    num_classes: int,
    dtype: jnp.dtype = jnp.float32,
    *,
    small: bool = False,
) -> dict[str, Params]:
    """Draw parameters of the three decoders: 'conv' (4-D and linear weights), 'norm' (1-D) and 'class_bias'.

    max_shape: (C, C, height, width) of a tile and of the largest kernel. PyTorch's default initial values
    (`layers.init_uniform`). small: the layers before the weights begin with a fifth of that and no bias, as
    in GHN-3.
    """
    C, _, height, width = max_shape
    T, k_conv, k_norm, k_bias = height * width, *jax.random.split(key, 3)
    conv = {
        'fc_kernel': ((T, hid, 4 * hid), hid),  # a slab for each kernel position
        'fc_bias': ((T, 4 * hid), hid),
        'hidden_kernel': ((4 * hid, 8 * hid), 4 * hid),
        'hidden_bias': ((8 * hid,), 4 * hid),
        'out_kernel': ((8 * hid, C, C), 8 * hid),  # [8D, C(in), C(out)]
        'out_bias': ((C, C), 8 * hid),
        'class_kernel': ((C, num_classes), C),
        'class_bias': ((num_classes,), C),
    }
    class_bias = {'kernel': ((C, num_classes), C), 'bias': ((num_classes,), C)}
    params = {
        'conv': init_uniform(k_conv, conv, dtype),
        'norm': init_mlp(k_norm, (hid, 2 * hid, 2 * C), dtype),
        'class_bias': init_uniform(k_bias, class_bias, dtype),
    }
    for part, kernel, bias in _LAST if small else ():
        params[part] |= {kernel: params[part][kernel] / 5, bias: jnp.zeros_like(params[part][bias])}
    return params


def decode(
    params: dict[str, Params],
    x: jax.Array,
    table: DecoderTable,
    *,
    normalise: bool = True,
    centred: bool = False,
) -> Tiles:
    """Decode the tiles of one network from its embeddings x [N, D]; differentiable in params and x.

    normalise: apply the table's scales and squash norm weights and biases (off in GHN-1).
    centred: cut kernels out of the middle of the largest one (GHN-3), not out of its first corner.
    """
    wanted: Any = jax.tree.map(jnp.asarray, table)  # made by numpy, maybe not yet on the device
    conv = params['conv']
    half = conv['out_bias'].shape[0] // 2
    small_conv = _part(conv, (slice(half), slice(half)))
    # in = 0 of a tile is all that a weight with one input keeps, out = 0 all that positional encodings keep.
    depth_convs = _part(conv, (0,)), _part(conv, (slice(None), 0))

    def items(conv, item):
        features, tap, scale = item
        tile = _tile(conv, _hidden(conv, features, tap))
        return tile * scale.reshape(-1, *[1] * (tile.ndim - 1)) if normalise else tile

    def small_items(conv, item):
        return jnp.pad(items(conv, item), ((0, 0), (0, half), (0, half)))

    dense_tap, depth_tap, class_tap = wanted.dense_tap, wanted.depth_tap, 0
    if centred:
        dense_tap, depth_tap = dense_tap + wanted.dense_shift, depth_tap + wanted.depth_shift
        side = math.isqrt(conv['fc_kernel'].shape[0])
        class_tap = side // 2 * (side + 1)
    dense = x[wanted.dense_node], dense_tap, wanted.dense_scale.astype(x.dtype)
    depth = x[wanted.depth_node], depth_tap, wanted.depth_scale.astype(x.dtype)
    small = jnp.zeros_like(wanted.n_small), wanted.n_small
    large = -(-wanted.n_small // DENSE_CHUNK) * DENSE_CHUNK, wanted.n_dense
    depths = jnp.zeros_like(wanted.n_depth), wanted.n_depth
    positions = -(-wanted.n_depth // DEPTH_CHUNK) * DEPTH_CHUNK, wanted.n_position
    one_d = mlp(params['norm'], x).reshape(x.shape[0], 2, -1)  # [N, 2, C]
    class_features = x[wanted.class_node][None]
    class_tile = _tile(conv, _hidden(conv, class_features, jnp.full(1, class_tap, jnp.int32)))[0]
    class_weight = _class_weight(conv, class_tile)
    class_bias = _class_bias(params['class_bias'], one_d[wanted.bias_node, 1])
    if normalise:
        class_weight = class_weight * wanted.class_scale.astype(x.dtype)
        class_bias = _squash_bias(class_bias)
        one_d = jnp.stack([_squash_scale(one_d[:, 0]), _squash_bias(one_d[:, 1])], axis=1)
    return Tiles(
        dense=map_chunks((small_items, items), (small_conv, conv), dense, (small, large), DENSE_CHUNK),
        depth=map_chunks((items, items), depth_convs, depth, (depths, positions), DEPTH_CHUNK),
        norm=one_d,
        class_weight=class_weight,
        class_bias=class_bias,
    )


def _hidden(conv: Params, features: jax.Array, tap: jax.Array) -> jax.Array:
    """Take features [P, D], at their kernel positions [P], to the last hidden layer [P, 8D]."""
    t = jnp.einsum('pd,pdh->ph', features, conv['fc_kernel'][tap]) + conv['fc_bias'][tap]
    return jax.nn.relu(jax.nn.relu(t) @ conv['hidden_kernel'] + conv['hidden_bias'])


def _part(conv: Params, cut: Any) -> Params:
    """Return the decoder of the part tile[cut] of every tile."""
    return {**conv, 'out_kernel': conv['out_kernel'][(slice(None), *cut)], 'out_bias': conv['out_bias'][cut]}


def _tile(conv: Params, hidden: jax.Array) -> jax.Array:
    """Make tiles [P, C(in), C(out)], or the part of them that `conv` makes, from [P, 8D]."""
    kernel, bias = conv['out_kernel'], conv['out_bias']
    return (hidden @ kernel.reshape(kernel.shape[0], -1) + bias.reshape(-1)).reshape(-1, *bias.shape)


def _class_weight(conv: Params, tile: jax.Array) -> jax.Array:
    """Make the class layer's weight [C(in), num_classes] from a tile [C(in), C(out)]."""
    return jax.nn.relu(tile) @ conv['class_kernel'] + conv['class_bias']


def _class_bias(params: Params, row: jax.Array) -> jax.Array:
    """Make the class layer's bias [num_classes] from [C]."""
    return jax.nn.relu(row) @ params['kernel'] + params['bias']


def _squash_scale(p: jax.Array) -> jax.Array:
    return 2 * jax.nn.sigmoid(0.5 * p)


def _squash_bias(p: jax.Array) -> jax.Array:
    return jnp.tanh(0.2 * p)


def predict_tensors(
    params: dict[str, Params],
    x: jax.Array,
    graph: Graph,
    *,
    normalise: bool = True,
    centred: bool = False,
) -> dict[str, jax.Array]:
    """Predict every tensor of a network from its embeddings x [N, D], one by one as the published code does.

    Slow, obvious and differentiable; shares no index arithmetic with `decode`. Names and layouts are
    PyTorch's.
    """
    return {
        p.name: _predict_tensor(
            params, x[p.node], p.shape, p.row, p.places, kind_of(p, graph), normalise, centred
        )
        for p in graph.parameters
    }


@partial(jax.jit, static_argnames=('shape', 'row', 'places', 'kind', 'normalise', 'centred'))
def _predict_tensor(
    params: dict[str, Params],
    x: jax.Array,
    shape: tuple[int, ...],
    row: int,
    places: tuple[int, ...] | None,
    kind: str,
    normalise: bool,
    centred: bool,
) -> jax.Array:
    """Predict one tensor from its node's embedding [D]; tensors of one shape share a compilation."""
    conv, one_d = params['conv'], params['norm']
    if len(shape) == 1:
        w = mlp(one_d, x).reshape(2, -1)[row]
        if kind == 'class':
            w = _class_bias(params['class_bias'], w)
        w = _tile_axis(w, 0, places or range(shape[0]))
        squash = _squash_bias if row else _squash_scale
        return squash(w) if normalise else w
    height, width = (shape + (1, 1))[2:4]
    side = math.isqrt(conv['fc_kernel'].shape[0])
    top, left = (side // 2 - height // 2, side // 2 - width // 2) if centred else (0, 0)
    t = jnp.einsum('d,tdh->th', x, conv['fc_kernel']) + conv['fc_bias']  # at all positions
    t = jax.nn.relu(t).reshape(side, side, -1)[top : top + height, left : left + width]  # [h, w, 4D]
    t = jax.nn.relu(t @ conv['hidden_kernel'] + conv['hidden_bias'])  # [h, w, 8D]
    w = jnp.einsum('hwd,dio->oihw', t, conv['out_kernel']) + conv['out_bias'].T[:, :, None, None]
    if kind == 'class':
        w = jnp.einsum('oihw,oc->cihw', jax.nn.relu(w), conv['class_kernel'])
        w = w + conv['class_bias'][:, None, None, None]
    outputs, inputs = range(shape[0]), range(shape[1])
    if places is not None:
        outputs, inputs = (places, inputs) if kind == 'depth' else (outputs, places)
    w = _tile_axis(_tile_axis(w, 0, outputs), 1, inputs).reshape(shape)
    return w * fan_in_scale(shape) if normalise and kind != 'pos_enc' else w


def _tile_axis(w: jax.Array, axis: int, places: Sequence[int]) -> jax.Array:
    """Repeat an axis, and take what lies at these places, in any order."""
    repeats = [1] * w.ndim
    repeats[axis] = -(-(max(places) + 1) // w.shape[axis])
    return jnp.take(jnp.tile(w, repeats), np.array(places), axis)
