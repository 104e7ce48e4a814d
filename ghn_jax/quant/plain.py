"""The obvious version of every scheme: one tensor at a time, with autodiff. The oracle of the fast one.

`cnn.reference` runs networks with it, and `predict` rounds the weights that it writes. It shares the
definitions (`scheme`, the constants of `ranges`) with the fast version and no code.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax

from ghn_jax.quant.policy import FLOAT_BITS, TERNARY
from ghn_jax.quant.ranges import LEAN, ONE_SIDED, TWO_SIDED
from ghn_jax.quant.scheme import Scheme

_FAR = 1e6  # standard deviations: no limit


@functools.partial(jax.jit, static_argnums=(1, 2))
def quantize_weight(w: Array, bits: int, scheme: Scheme) -> Array:
    """A weight, output channels first, as a network runs with it."""
    if bits == FLOAT_BITS:
        return w
    groups = w.reshape(len(w) if scheme.granularity == 'channel' else 1, -1)
    return jax.vmap(lambda w: _weight(w, bits, scheme))(groups).reshape(w.shape)


@functools.partial(jax.jit, static_argnums=(1, 2))
def weight_grids(w: Array, bits: int, scheme: Scheme) -> tuple[Array, Array]:
    """(scales, zero points), [1] or of each output channel, of a weight with fewer than 32 bits.

    A value is (level - zero point) * scale, with levels from 0; with levels -1, 0, 1 below 2 bits.
    """
    groups = w.reshape(len(w) if scheme.granularity == 'channel' else 1, -1)
    if bits in (TERNARY, 1):
        scale = jax.vmap(lambda w: _signs(w, bits)[1])(groups)
        return scale, jnp.zeros_like(scale)
    lo, hi = jax.vmap(lambda w: weight_range(w, bits, scheme))(groups)
    s = _levels(lo, hi, bits, scheme)[1]
    return s, jnp.where(s > 0, jnp.round(-lo / jnp.where(s > 0, s, 1)), 0)


@functools.partial(jax.jit, static_argnums=(1, 2))
def quantize_activation(
    x: Array, bits: int, scheme: Scheme, given: tuple[Array, Array] | None = None
) -> Array:
    """An activation on the grid of its range, or of the one given."""
    if bits == FLOAT_BITS:
        return x
    fixed = lax.stop_gradient(x)
    lo, hi = _activation_range(fixed, bits, scheme) if given is None else given
    if bits == 1:
        signs = jnp.sign(fixed) * jnp.maximum(-lo, hi) / 2
        return _straight_through(x, signs, lo < 0, _uniform(x, lo, hi, 1, hi, always=True))
    return _uniform(x, lo, hi, 2**bits - 1, (hi - lo) / (2**bits - 1))


def _activation_range(x: Array, bits: int, scheme: Scheme) -> tuple[Array, Array]:
    lo, hi = jnp.minimum(0, jnp.min(x)), jnp.maximum(0, jnp.max(x))
    if scheme.activation_range == 'minmax':
        return scheme.activation_clip * lo, scheme.activation_clip * hi
    two_sided, one_sided = (t[bits - 1] if bits <= len(t) else _FAR for t in (TWO_SIDED, ONE_SIDED))
    sigmas = scheme.activation_sigmas or jnp.where(lo < 0, two_sided, one_sided)
    far = sigmas * _sigma(x)
    return jnp.maximum(lo, -LEAN * far), jnp.minimum(hi, far)


def weight_range(w: Array, bits: int, scheme: Scheme) -> tuple[Array, Array]:
    """(lo, hi) of a tensor, or of a channel."""
    lo, hi = jnp.minimum(0, jnp.min(w)), jnp.maximum(0, jnp.max(w))
    if scheme.symmetric:
        hi = jnp.maximum(-lo, hi)
        lo = -hi
    if scheme.weight_range == 'sigma':
        table, b = (ONE_SIDED, bits - 1) if scheme.symmetric else (TWO_SIDED, bits)
        sigmas = scheme.weight_sigmas or (table[b - 1] if b <= len(table) else _FAR)
        far = sigmas * _sigma(w)
        return jnp.maximum(lo, -far if scheme.symmetric else -LEAN * far), jnp.minimum(hi, far)
    fraction = 1
    if scheme.weight_range == 'percentile':
        fraction = _percentile_fraction(w, lo, hi, scheme.percentile)
    elif scheme.weight_range == 'mse':
        fraction = _mse_fraction(w, lo, hi, bits, scheme)
    return fraction * lo, fraction * hi


@jax.jit
def _percentile_fraction(w: Array, lo: Array, hi: Array, percentile: float) -> Array:
    k = jnp.arange(1, 257, dtype=w.dtype) / 256
    outside = lax.map(lambda k: jnp.sum((w < k * lo) | (w > k * hi), dtype=w.dtype), k)
    fits = outside <= (1 - percentile / 100) * jnp.sum(w != 0, dtype=w.dtype)
    return jnp.min(jnp.where(fits, k, 1))


@functools.partial(jax.jit, static_argnums=(3, 4))
def _mse_fraction(w: Array, lo: Array, hi: Array, bits: int, scheme: Scheme) -> Array:
    k = jnp.arange(16, 2, -1, dtype=w.dtype) / 16
    rounded = lambda k: _uniform(w, k * lo, k * hi, *_levels(k * lo, k * hi, bits, scheme))
    errors = lax.map(lambda k: jnp.sum((rounded(k) - w) ** 2), k)
    return k[jnp.argmin(errors)]  # of equal ones the first


def _weight(w: Array, bits: int, scheme: Scheme) -> Array:
    fixed = lax.stop_gradient(w)
    if bits in (TERNARY, 1):
        signs, scale = _signs(fixed, bits)
        return w + (signs * scale - fixed)
    lo, hi = weight_range(fixed, bits, scheme)
    return _uniform(w, lo, hi, *_levels(lo, hi, bits, scheme))


def _signs(w: Array, bits: int) -> tuple[Array, Array]:
    """(-1, 0 or 1 for each weight, their scale)."""
    size = jnp.abs(w)
    cut = 0.7 * jnp.sum(size) / jnp.maximum(jnp.sum(size > 0), 1) if bits == TERNARY else 0.0
    beyond = size > cut
    scale = jnp.sum(jnp.where(beyond, size, 0)) / jnp.maximum(jnp.sum(beyond), 1)
    return jnp.where(beyond, jnp.sign(w), 0), scale


def _levels(lo: Array, hi: Array, bits: int, scheme: Scheme) -> tuple[int, Array]:
    top = 2**bits - (2 if scheme.symmetric else 1)
    return top, (hi - lo) / top


def _uniform(x: Array, lo, hi, top: int, s: Array, *, always: bool = False) -> Array:
    """x on the levels -z s, .., (top - z) s. Gradient 1 inside, 0 outside; `always`: 1 there, too."""
    fixed = lax.stop_gradient(x)
    s = jnp.where(s < jnp.finfo(x.dtype).tiny, 1, s)  # no range worth dividing: everything becomes 0
    z = jnp.round(-lo / s)
    q = jnp.round(fixed / s) + z
    passed = jnp.where((q >= 0) & (q <= top) | always, x, fixed)
    rounded = (jnp.clip(q, 0, top) - z) * s
    return rounded + (passed - fixed)  # the difference is 0 exactly; only its gradient matters


def _straight_through(x: Array, signs: Array, where: Array, otherwise: Array) -> Array:
    fixed = lax.stop_gradient(x)
    return jnp.where(where, signs, lax.stop_gradient(otherwise)) + (x - fixed)


def _sigma(x: Array) -> Array:
    return jnp.sqrt(jnp.sum(x**2) / jnp.maximum(jnp.sum(x != 0), 1))
