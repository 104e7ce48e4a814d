"""Fake quantization: values rounded to 2^b levels, kept as floats, with straight-through gradients.

Uniform and asymmetric, over a range [lo, hi] that includes 0:

    s = (hi - lo) / (2^b - 1)      z = round(-lo / s)
    q = clip(round(x / s) + z, 0, 2^b - 1)      x^ = (q - z) s

Rounding is half to even. The gradient to x is 1 where round(x / s) + z lies in [0, 2^b - 1] before the clip
and 0 elsewhere, as in `torch.fake_quantize_per_tensor_affine`; lo, hi and b get none.
`lo`, `hi` and `bits` are data, not constants of the program: one compiled program serves every bit-width.

Letters: b bits | s scale, the width of a level | z zero point | q level number.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ghn_jax.errors import UserError

MODES = ('float', 'qat', 'noise')
FLOAT_BITS = 32  # this many bits or more: no quantization


def fake_quantize(
    x: jax.Array,
    lo: ArrayLike,
    hi: ArrayLike,
    bits: ArrayLike,
    *,
    mode: str = 'qat',
    key: jax.Array | None = None,
) -> jax.Array:
    """x rounded to 2^bits levels over [lo, hi]; same shape and dtype as x.

    Args:
        x: float32 or float64, any shape.
        lo, hi: the range, lo <= 0 <= hi (`ranges.min_max`); scalars or arrays that broadcast to x.
        bits: integers in 2..16, or 32 and more for "leave x as it is"; scalar or broadcasting to x.
        mode: static. 'qat' rounds, with the straight-through gradient above. 'noise' adds uniform noise in
            [-s/2, s/2) instead, with gradient 1 everywhere. 'float' returns x.
        key: random key, for 'noise' only.

    A range too narrow for its levels to be normal numbers (all zeros, subnormal) becomes 0 with gradient 1.

    Raises:
        UserError: unknown mode, or 'noise' without a key.
    """
    if mode not in MODES:
        raise UserError(f'quantization mode {mode!r} is not one of {", ".join(MODES)}')
    if mode == 'float':
        return x
    if mode == 'qat':
        return _round(x, lo, hi, bits)
    if key is None:
        raise UserError("quantization mode 'noise' needs a random key: pass key=")
    return x + jax.lax.stop_gradient(_noise(x, lo, hi, bits, key))


def grid(lo: ArrayLike, hi: ArrayLike, bits: ArrayLike, dtype) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(s, z, 2^b - 1) as `dtype`, each of the small, unbroadcast shape. s is 0 for a degenerate range."""
    lo, hi = jnp.asarray(lo, dtype), jnp.asarray(hi, dtype)
    # An integer shift: exp2 is not exact everywhere. 24 bits at most: then 2^b - 1 is exact in float32, also
    # in the unused grid of a float tensor.
    top = (jnp.left_shift(1, jnp.minimum(jnp.asarray(bits, jnp.int32), 24)) - 1).astype(dtype)
    s = (hi - lo) / top
    s = jnp.where(s >= jnp.finfo(dtype).tiny, s, 0)
    z = jnp.where(s > 0, jnp.round(-lo / _safe(s)), 0)
    return s, z, top


@jax.custom_vjp
def _round(x, lo, hi, bits):
    s, z, top = grid(lo, hi, bits, x.dtype)
    q = jnp.clip(jnp.round(x / _safe(s)) + z, 0, top)
    return jnp.where(jnp.asarray(bits) >= FLOAT_BITS, x, (q - z) * s)


def _round_forward(x, lo, hi, bits):
    return _round(x, lo, hi, bits), (x, lo, hi, bits)


def _round_backward(residuals, g):
    # The mask is recomputed from x, which the caller keeps anyway: storing it would cost another array.
    x, lo, hi, bits = residuals
    s, z, top = grid(lo, hi, bits, x.dtype)
    q = jnp.round(x / _safe(s)) + z
    passes = (jnp.asarray(bits) >= FLOAT_BITS) | ((q >= 0) & (q <= top))
    return jnp.where(passes, g, 0), None, None, None


_round.defvjp(_round_forward, _round_backward)


def _noise(x, lo, hi, bits, key):
    s, _, _ = grid(lo, hi, bits, x.dtype)
    u = jax.random.uniform(key, x.shape, x.dtype) - 0.5
    return jnp.where(jnp.asarray(bits) >= FLOAT_BITS, 0, u * s)


def _safe(s):
    return jnp.where(s > 0, s, 1)
