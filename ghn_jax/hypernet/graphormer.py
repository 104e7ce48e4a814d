"""The graph transformer of GHN-3 (arXiv 2303.04143): every node of a graph attends to every other.

Before the first layer each node is told where it stands, as in Graphormer (arXiv 2106.05234):

    x_v = x_v + E_in[in-degree of v] + E_out[out-degree of v] + E_input[distance from the input to v]

A layer is a transformer's, normalised before (arXiv 2002.04745), with H heads and a bias between nodes:

    x = x + W_o [softmax(q_h k_h^T / sqrt(D / H) + b_h) v_h]_h     q, k, v from LayerNorm(x)
    x = x + W_2 gelu(W_1 LayerNorm(x))                             4 D hidden units

The bias of nodes u and v is that of all layers, b(u, v) = W_b relu(W_a [E[d(u, v)], E[d(v, u)]]), a number
for each head. d is the length of the path from one to the other, and paths lead one way only: there are no
more than 2 * MAX_DISTANCE + 1 pairs of lengths, so the linear maps see each of these once, not all nodes.

Axes: B graphs | N nodes, padded | D hidden | H heads | L layers | K pairs of lengths.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax.hypernet.embedding import init_tables, take_rows
from ghn_jax.hypernet.layers import Params, init_mlp, init_uniform, layer_norm
from ghn_jax.networks.graph import MAX_DISTANCE

MAX_DEGREE, MAX_INPUT_DISTANCE = 100, 1000  # larger ones count as these
LENGTHS = 257  # rows of E: a path of n edges has row n + 2, none has row 2
_NO_PATH = 2
_MASKED = -(2.0**15)  # the logit of a node that is padding; its exponential is 0
_BLOCK = 16  # rows of nodes whose gradients are summed at a time


def init_graphormer(
    key: jax.Array, hid: int, layers: int, heads: int, dtype: jnp.dtype = jnp.float32
) -> dict[str, Any]:
    """Draw the parameters: PyTorch's defaults for linear layers, tables with a variance of 1 / hid.

    The leaves of 'layers' have a leading axis L.
    """
    k_tables, k_bias, k_layers = jax.random.split(key, 3)
    tables = {
        'in_degree': (MAX_DEGREE + 1, hid),
        'out_degree': (MAX_DEGREE + 1, hid),
        'input_distance': (MAX_INPUT_DISTANCE + 1, hid),
        'length': (LENGTHS, hid),
    }
    linear = {
        'qkv_kernel': ((layers, hid, 3 * hid), hid),
        'out_kernel': ((layers, hid, hid), hid),
        'out_bias': ((layers, hid), hid),
        'kernel_0': ((layers, hid, 4 * hid), hid),
        'bias_0': ((layers, 4 * hid), hid),
        'kernel_1': ((layers, 4 * hid, hid), 4 * hid),
        'bias_1': ((layers, hid), 4 * hid),
    }
    norm = lambda: {'scale': jnp.ones((layers, hid), dtype), 'bias': jnp.zeros((layers, hid), dtype)}
    return {
        **init_tables(k_tables, tables, narrow=True, dtype=dtype),
        'bias': init_mlp(k_bias, (2 * hid, hid, heads), dtype),
        'layers': {**init_uniform(k_layers, linear, dtype), 'norm_0': norm(), 'norm_1': norm()},
    }


def graphormer(params: dict[str, Any], x: jax.Array, distance: jax.Array, n_node: jax.Array) -> jax.Array:
    """Turn node features [B, N, D] into node states [B, N, D]; what padding has means nothing.

    Args:
      params: of `init_graphormer`.
      x: node features; differentiable, as params.
      distance: uint8 [B, N, N], path length from the first node to the second, 0 for none; at most
        MAX_DISTANCE. Node 0 is the input.
      n_node: int32 [B], how many nodes of each graph are no padding.
    """
    degrees = (distance == 1).sum(1), (distance == 1).sum(2)
    x = x + take_rows(params['in_degree'], jnp.minimum(degrees[0], MAX_DEGREE))
    x = x + take_rows(params['out_degree'], jnp.minimum(degrees[1], MAX_DEGREE))
    x = x + take_rows(params['input_distance'], distance[:, 0].astype(jnp.int32))
    lengths = distance.astype(jnp.int32)
    bias = _lookup(_bias_of_lengths(params), lengths - lengths.transpose(0, 2, 1) + MAX_DISTANCE)
    real = jnp.arange(x.shape[1]) < n_node[:, None]  # [B, N]

    @jax.checkpoint  # going back, a layer's [B, H, N, N] are computed again: kept, they would fill the memory
    def layer(x: jax.Array, p: Any) -> tuple[jax.Array, None]:
        x = x + _attend(p, layer_norm(p['norm_0'], x), bias, real)
        hidden = jax.nn.gelu(layer_norm(p['norm_1'], x) @ p['kernel_0'] + p['bias_0'], approximate=False)
        return x + hidden @ p['kernel_1'] + p['bias_1'], None

    return jax.lax.scan(layer, x, params['layers'])[0]


def _attend(p: Params, x: jax.Array, bias: jax.Array, real: jax.Array) -> jax.Array:
    """Attend with H heads: x [B, N, D], bias [B, H, N, N] to [B, N, D]. No node looks at padding."""
    B, N, D = x.shape
    H = bias.shape[1]
    q, k, v = (part.reshape(B, N, H, D // H) for part in jnp.split(x @ p['qkv_kernel'], 3, axis=-1))
    logits = jnp.einsum('bihd,bjhd->bhij', q, k) * (D // H) ** -0.5 + bias
    weights = jax.nn.softmax(jnp.where(real[:, None, None, :], logits, _MASKED), axis=-1)
    return jnp.einsum('bhij,bjhd->bihd', weights, v).reshape(B, N, D) @ p['out_kernel'] + p['out_bias']


def _bias_of_lengths(params: dict[str, Any]) -> jax.Array:
    """Return the biases of all pairs of lengths: [K, H].

    Row k is of the pair (n, none) with n = k - MAX_DISTANCE > 0, (none, -n) with n < 0, of no path at n = 0.
    """
    n = np.arange(-MAX_DISTANCE, MAX_DISTANCE + 1)
    there, back = (take_rows(params['length'], jnp.asarray(_NO_PATH + np.maximum(m, 0))) for m in (n, -n))
    p = params['bias']
    hidden = jax.nn.relu(jnp.concatenate([there, back], axis=-1) @ p['kernel_0'] + p['bias_0'])
    return hidden @ p['kernel_1'] + p['bias_1']


@jax.custom_vjp
def _lookup(table: jax.Array, index: jax.Array) -> jax.Array:
    """Look up the rows [K, H] of every pair of nodes, int32 [B, N, N]: [B, H, N, N]."""
    return table[index].transpose(0, 3, 1, 2)


def _lookup_fwd(table, index):
    return _lookup(table, index), (index, table.shape[0])


def _lookup_bwd(residuals, g):
    # Products with one-hot matrices, block by block: millions of pairs share K rows, and a scatter would add
    # one after another.
    index, K = residuals
    B, H, N, _ = g.shape
    rows = math.gcd(N, _BLOCK)
    index = index.reshape(-1, rows * N)
    g = g.reshape(B, H, N // rows, rows * N).transpose(0, 2, 1, 3).reshape(-1, H, rows * N)
    sums = jax.lax.map(lambda block: block[1] @ jax.nn.one_hot(block[0], K, dtype=g.dtype), (index, g))
    return sums.sum(0).T, None


_lookup.defvjp(_lookup_fwd, _lookup_bwd)
