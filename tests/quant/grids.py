"""What the tests of grids share: bit-widths, tensors of all kinds, and what rounding makes of these."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax.quant import fake_quantize
from ghn_jax.quant.activations import quantize_activation

BITS = (2, 3, 4, 8, 16)
TENSORS = {
    'two-sided': lambda r: r.normal(size=500),
    'lopsided': lambda r: r.normal(size=500) * 3 + 2,
    'positive': lambda r: r.uniform(0.5, 2, size=500),
    'negative': lambda r: -r.uniform(0.5, 2, size=500),
    'rectified': lambda r: np.maximum(r.normal(size=500), 0),
    'one number': lambda r: np.array([-0.3]),
    'small': lambda r: r.normal(size=500) * 1e-20,
    'large': lambda r: r.normal(size=500) * 1e20,
}


@functools.partial(jax.jit, static_argnames='mode')
def values_and_gradient(x, lo, hi, bits, **options):
    y, pull = jax.vjp(lambda x: fake_quantize(x, lo, hi, bits, **options), x)
    return y, pull(jnp.ones_like(y))[0]


@functools.partial(jax.jit, static_argnames='scheme')
def activation(x, bits, scheme):
    return quantize_activation(x, bits, scheme)
