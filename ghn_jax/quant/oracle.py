"""The obvious version of every scheme: one tensor at a time, with autodiff. The oracle of the fast one.

`cnn.reference` runs networks with it. It shares the definitions (`scheme`, the constants of `ranges`) with
the fast version and no code.
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
    """Round a weight, output channels first, as a network runs with it."""
    if bits == FLOAT_BITS:
        return w
    groups = w.reshape(len(w) if scheme.granularity == 'channel' else 1, -1)
    return jax.vmap(lambda w: _weight(w, bits, scheme))(groups).reshape(w.shape)


@functools.partial(jax.jit, static_argnums=(1, 2))
def quantize_activation(
    x: Array, bits: int, scheme: Scheme, ends: tuple[Array, Array] | None = None
) -> Array:
    """Round an activation on the grid of its range, or of (lo, hi) = ends."""
    if bits == FLOAT_BITS:
        return x
    fixed = lax.stop_gradient(x)
    lo, hi = _activation_range(fixed, bits, scheme) if ends is None else ends
    if bits == 1:
        farthest = jnp.maximum(-lo, hi)
        y = jnp.where(jnp.abs(fixed) > farthest / 2, jnp.sign(fixed) * farthest, 0)
        y = jnp.where(_two_sided(lo, hi), jnp.sign(fixed) * farthest / 2, y)
        return y + (x - fixed)
    return _uniform(x, lo, hi, 2**bits - 1)


def _activation_range(x: Array, bits: int, scheme: Scheme) -> tuple[Array, Array]:
    lo, hi = jnp.minimum(0, jnp.min(x)), jnp.maximum(0, jnp.max(x))
    if scheme.activation_range == 'minmax':
        return scheme.activation_clip * lo, scheme.activation_clip * hi
    return _sigma_range(x, lo, hi, bits, scheme.activation_sigmas)


def weight_range(w: Array, bits: int, scheme: Scheme) -> tuple[Array, Array]:
    """Return the range (lo, hi) of a tensor, or of a channel."""
    lo, hi = jnp.minimum(0, jnp.min(w)), jnp.maximum(0, jnp.max(w))
    if scheme.symmetric:
        hi = jnp.maximum(-lo, hi)
        lo = -hi
    if scheme.weight_range == 'sigma':
        if not scheme.symmetric:
            return _sigma_range(w, lo, hi, bits, scheme.weight_sigmas)
        far = (scheme.weight_sigmas or _sigmas(ONE_SIDED, bits - 1)) * _sigma(w)
        return jnp.maximum(lo, -far), jnp.minimum(hi, far)
    fraction = 1
    if scheme.weight_range == 'percentile':
        fraction = _percentile_fraction(w, lo, hi, scheme.percentile)
    elif scheme.weight_range == 'mse':
        fraction = _mse_fraction(w, lo, hi, bits, scheme)
    return fraction * lo, fraction * hi


@jax.jit
def _percentile_fraction(w: Array, lo: Array, hi: Array, percentile: float) -> Array:
    k = jnp.arange(1, 257, dtype=w.dtype) / 256
    outside = jax.vmap(lambda k: jnp.sum((w < k * lo) | (w > k * hi), dtype=w.dtype))(k)
    fits = outside <= (1 - percentile / 100) * jnp.sum(w != 0, dtype=w.dtype)
    return jnp.min(jnp.where(fits, k, 1))


@functools.partial(jax.jit, static_argnums=(3, 4))
def _mse_fraction(w: Array, lo: Array, hi: Array, bits: int, scheme: Scheme) -> Array:
    k = jnp.arange(16, 2, -1, dtype=w.dtype) / 16
    rounded = lambda k: _uniform(w, k * lo, k * hi, _top(bits, scheme))
    errors = jax.vmap(lambda k: jnp.sum(((rounded(k) - w) / _unit(w)) ** 2))(k)
    return k[jnp.argmin(errors)]  # of equal ones the first


def _weight(w: Array, bits: int, scheme: Scheme) -> Array:
    fixed = lax.stop_gradient(w)
    if bits in (TERNARY, 1):
        signs, scale = _signs(fixed, bits)
        return signs * scale + (w - fixed)
    lo, hi = weight_range(fixed, bits, scheme)
    return _uniform(w, lo, hi, _top(bits, scheme))


def _signs(w: Array, bits: int) -> tuple[Array, Array]:
    """(-1, 0 or 1 for each weight, their scale)."""
    size = jnp.abs(w) / _unit(w)
    cut = 0.7 * jnp.sum(size) / jnp.maximum(jnp.sum(size > 0), 1) if bits == TERNARY else 0.0
    beyond = size > cut
    scale = jnp.sum(jnp.where(beyond, size, 0)) / jnp.maximum(jnp.sum(beyond), 1)
    return jnp.where(beyond, jnp.sign(w), 0), jnp.minimum(scale * _unit(w), _largest(w.dtype))


def _top(bits: int, scheme: Scheme) -> int:
    return 2**bits - (2 if scheme.symmetric else 1)


def _uniform(x: Array, lo: Array, hi: Array, top: int) -> Array:
    """x on the levels -z s, .., (top - z) s. Gradient 1 inside, 0 outside."""
    fixed, tiny = lax.stop_gradient(x), float(jnp.finfo(x.dtype).tiny)
    s = (hi / 2 - lo / 2) / (top / 2)  # without halves the largest floats would give infinity
    s = jnp.where(s < tiny, 1, s)  # no range worth dividing: everything becomes 0
    z = jnp.round(-lo / s)
    s = jnp.minimum(s, jnp.minimum(_largest(x.dtype) / jnp.maximum(z, top - z), 1 / tiny))
    q = jnp.round(fixed / s) + z
    passed = jnp.where((q >= 0) & (q <= top), x, fixed)
    rounded = (jnp.clip(q, 0, top) - z) * s
    return rounded + (passed - fixed)  # the difference is 0 exactly; only its gradient matters


def _sigma_range(x: Array, lo: Array, hi: Array, bits: int, sigmas: float) -> tuple[Array, Array]:
    two_sided = _two_sided(lo, hi)
    best = jnp.where(two_sided, _sigmas(TWO_SIDED, bits), _sigmas(ONE_SIDED, bits))
    far = (sigmas or best) * _sigma(x)
    return jnp.maximum(lo, jnp.where(two_sided, -LEAN * far, -far)), jnp.minimum(hi, far)


def _two_sided(lo: Array, hi: Array) -> Array:
    return (lo < 0) & (hi > 0)


def _sigmas(table: tuple[float, ...], bits: int) -> float:
    return table[bits - 1] if bits <= len(table) else _FAR


def _sigma(x: Array) -> Array:
    size = jnp.sum((x / _unit(x)) ** 2) / jnp.maximum(jnp.sum(x != 0), 1)
    return jnp.sqrt(size) * _unit(x)


def _largest(dtype) -> float:
    """Of a level: near the largest float."""
    return float(jnp.finfo(dtype).max) * (1 - 2**-20)


def _unit(x: Array) -> Array:
    """A quarter of the largest magnitude; 1 of zeros. What is divided by it can be squared and summed."""
    unit = jnp.max(jnp.abs(x)) / 4
    return jnp.where(unit > 0, unit, 1)
