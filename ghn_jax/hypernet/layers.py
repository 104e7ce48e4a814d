"""The three layers every part of the hypernetwork is made of, as pure functions on dicts of arrays.

Kernels are [in, out] (PyTorch keeps linear weights as (out, in)). Initial values are PyTorch's defaults,
which the published model uses throughout: uniform within 1/sqrt(fan_in) for kernels and biases alike.

Axes: I in | O out | D hidden.   Leading axes of inputs are free and written [...].
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

Params = dict[str, jax.Array]


def init_uniform(
    key: jax.Array, shapes: Mapping[str, tuple[tuple[int, ...], int]], dtype: jnp.dtype
) -> Params:
    """Draw arrays by name from (shape, fan_in): uniform on (-1/sqrt(fan_in), 1/sqrt(fan_in)).

    This is PyTorch's default for weights and biases of linear layers. All come from one draw: a random
    generator for each array would take XLA half a second to compile.
    """
    ends = np.cumsum([math.prod(shape) for shape, _ in shapes.values()])
    parts = jnp.split(jax.random.uniform(key, (int(ends[-1]),), dtype, -1, 1), ends[:-1])
    return {
        name: part.reshape(shape) * fan_in**-0.5
        for part, (name, (shape, fan_in)) in zip(parts, shapes.items(), strict=True)
    }


def init_mlp(key: jax.Array, sizes: tuple[int, int, int], dtype: jnp.dtype = jnp.float32) -> Params:
    """Draw two linear layers; sizes = (in, hidden, out)."""
    a, b, c = sizes
    shapes = {'kernel_0': ((a, b), a), 'bias_0': ((b,), a), 'kernel_1': ((b, c), b), 'bias_1': ((c,), b)}
    return init_uniform(key, shapes, dtype)


def mlp(params: Params, x: jax.Array) -> jax.Array:
    """Apply linear, relu, linear: [..., I] -> [..., O]."""
    hidden = jax.nn.relu(x @ params['kernel_0'] + params['bias_0'])
    return hidden @ params['kernel_1'] + params['bias_1']


def init_gru(key: jax.Array, hid: int, dtype: jnp.dtype) -> Params:
    """Draw a GRU cell of `hid` inputs and units; gates in PyTorch's order r, z, n along the last axis."""
    kernel, bias = ((hid, 3 * hid), hid), ((3 * hid,), hid)
    shapes = {'input_kernel': kernel, 'input_bias': bias, 'hidden_kernel': kernel, 'hidden_bias': bias}
    return init_uniform(key, shapes, dtype)


def gru(params: Params, x: jax.Array, h: jax.Array) -> jax.Array:
    """Take one step of a GRU cell: input x [..., D] and state h [..., D] to the new state [..., D].

    r = s(W_r x + U_r h), z = s(W_z x + U_z h), n = tanh(W_n x + r * (U_n h)), h' = (1 - z) n + z h, biases
    left out (Cho et al., arXiv 1406.1078, in PyTorch's form: r multiplies U_n h with its bias).
    """
    x_r, x_z, x_n = jnp.split(x @ params['input_kernel'] + params['input_bias'], 3, axis=-1)
    h_r, h_z, h_n = jnp.split(h @ params['hidden_kernel'] + params['hidden_bias'], 3, axis=-1)
    r, z = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
    n = jnp.tanh(x_n + r * h_n)
    return (1 - z) * n + z * h


def init_layer_norm(key: jax.Array, hid: int, dtype: jnp.dtype = jnp.float32) -> Params:
    """Make scale one, bias zero; no use is made of the key."""
    return {'scale': jnp.ones((hid,), dtype), 'bias': jnp.zeros((hid,), dtype)}


def layer_norm(params: Params, x: jax.Array) -> jax.Array:
    """Normalise over the last axis, eps 1e-5 (arXiv 1607.06450)."""
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5)
    return x * params['scale'] + params['bias']
