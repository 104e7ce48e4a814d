"""Squeeze-and-excitation and the two halves of transformer blocks, in float32 on every backend.

Axes: N images | H, W rows and columns | C channels.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from ghn_jax.cnn import ops

LAYER_NORM_EPSILON = 1e-5
HEADS = 8  # of attention, at every width
Quantize = Callable[[Array, int], Array]  # (activation, which of an instruction's) -> fake-quantized


def excite(x: Array, w: list[Array], quantize: Quantize) -> Array:
    """Squeeze and excite (arXiv 1709.01507) with a hard swish as its gate, as in DeepNets-1M.

    x [N,H,W,C]; w: weight [C, C/2] and bias of the first linear layer, [C/2, C] and bias of the second.
    """
    y = ops.relu(quantize(jnp.mean(x, (1, 2)), 0) @ w[0] + w[1])
    y = quantize(y, 1) @ w[2] + w[3]
    gate = y * jnp.clip(y + 3, 0, 6) / 6
    return x * gate[:, None, None]


def _layer_norm(x: Array, scale: Array, shift: Array) -> Array:
    centred = x - jnp.mean(x, -1, keepdims=True)
    variance = jnp.mean(centred * centred, -1, keepdims=True)
    return centred * lax.rsqrt(variance + LAYER_NORM_EPSILON) * scale + shift


def attention(x: Array, w: list[Array], quantize: Quantize) -> Array:
    """Return x + multi-head self-attention of its layer norm, over the pixels (arXiv 2010.11929, eq. 2).

    x [N,H,W,C]; w: scale and shift of the norm, [C, 3C] to queries, keys and values (no bias), [C, C] and
    bias of the layer after the heads.
    """
    n, c = x.shape[0], x.shape[-1]
    y = quantize(_layer_norm(x, w[0], w[1]), 0).reshape(-1, c) @ w[2]
    y = y.reshape(n, -1, 3, HEADS, c // HEADS).transpose(2, 0, 3, 1, 4)  # [3, N, heads, H*W, C/heads]
    queries, keys, values = y[0], y[1], y[2]
    scores = jax.nn.softmax(queries @ keys.swapaxes(2, 3) * (c // HEADS) ** -0.5)
    mixed = (scores @ values).transpose(0, 2, 1, 3).reshape(-1, c)
    return x + (quantize(mixed, 1) @ w[3] + w[4]).reshape(x.shape)


def mlp(x: Array, w: list[Array], quantize: Quantize) -> Array:
    """Return x + a two-layer perceptron of its layer norm (arXiv 2010.11929, eq. 3).

    x [N,H,W,C]; w: scale and shift of the norm, then weight [C, C] and bias of each layer; GELU between.
    """
    y = quantize(_layer_norm(x, w[0], w[1]), 0).reshape(-1, x.shape[-1]) @ w[2] + w[3]
    y = quantize(jax.nn.gelu(y, approximate=False), 1) @ w[4] + w[5]
    return x + y.reshape(x.shape)
