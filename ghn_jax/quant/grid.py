"""Fake quantization: values rounded to the levels of a grid, kept as floats, with straight-through gradients.

A uniform grid over a range [lo, hi] that includes 0, asymmetric or symmetric (-lo = hi):

    n = 2^b - 1 (symmetric: 2^b - 2)      s = (hi - lo) / n      z = round(-lo / s)
    q = clip(round(x / s) + z, 0, n)      x^ = (q - z) s

Rounding is half to even. The gradient to x is 1 where round(x / s) + z lies in [0, n] before the clip
and 0 elsewhere, as in `torch.fake_quantize_per_tensor_affine`; the grid and b get none.

Grids of signs have less than 2 bits: x^ = s sign(x) where |x| > cut, else 0, with gradient 1 everywhere. One
bit (b = 1): for values on both sides of 0, cut = 0, and 0 itself stays 0, which padding needs; for values
on one side s is the farthest and cut = s / 2, which is rounding to {0, hi} or {lo, 0}. Ternary
(b = TERNARY): cut > 0.

-x gets the mirror image of what x gets, bit for bit, on grids of signs, on symmetric grids, and where a range
is on one side of 0. The levels of other grids are even in number and one of them is 0, so one side has one
more: there the zero point of the mirror image is n - z, unless -lo / s is halfway between two integers.

Finite values stay finite, up to the largest float: no level lies beyond it, and s is at most 1 / tiny, the
inverse of the smallest normal number.

Grids and bits are data, not constants of the program: one compiled program serves every bit-width.

Letters: b bits | n levels above the lowest | s scale, the width of a level | z zero point | q level number.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from ghn_jax.base.errors import UserError
from ghn_jax.quant.policy import FLOAT_BITS
from ghn_jax.quant.scheme import MODES


def largest_level(dtype: DTypeLike) -> float:
    """Return the largest magnitude of a level: near the largest float, with some room for rounding."""
    return float(jnp.finfo(dtype).max) * (1 - 2**-20)


class Grid(NamedTuple):
    """s, z, n and cut, arrays that broadcast to x; s is 0 for a range too narrow for levels."""

    scale: Array
    zero: Array
    top: Array
    cut: Array


def fake_quantize(
    x: Array,
    lo: ArrayLike,
    hi: ArrayLike,
    bits: ArrayLike,
    *,
    mode: str = 'qat',
    key: Array | None = None,
    symmetric: bool = False,
) -> Array:
    """Put x on the levels of a grid over [lo, hi]; the result has the shape and dtype of x.

    Args:
        x: float32 or float64, any shape.
        lo, hi: the range, lo <= 0 <= hi (`ranges.min_max`); scalars or arrays that broadcast to x.
        bits: integers in 1..16, or 32 and more for "leave x as it is"; scalar or broadcasting to x.
        mode, key: see `quantize`.
        symmetric: whether the zero point is 0, one level fewer; static. Then -lo = hi.

    A range too narrow for its levels to be normal numbers (all zeros, subnormal) becomes 0 with gradient 1.

    Raises:
        UserError: unknown mode, or 'noise' without a key.
    """
    grid = make_grid(lo, hi, bits, x.dtype, symmetric=symmetric)
    return quantize(x, grid, bits, mode=mode, key=key)


def make_grid(
    lo: ArrayLike, hi: ArrayLike, bits: ArrayLike, dtype: DTypeLike, *, symmetric: bool = False
) -> Grid:
    """Make the grid over [lo, hi], as `dtype`, each part of the small, unbroadcast shape."""
    lo, hi, bits = jnp.asarray(lo, dtype), jnp.asarray(hi, dtype), jnp.asarray(bits, jnp.int32)
    # An integer shift: exp2 is not exact everywhere. 24 bits at most: then n is exact in float32, also
    # in the unused grid of a float tensor.
    lowest = 2 if symmetric else 1
    top = (jnp.left_shift(1, jnp.clip(bits, lowest, 24)) - lowest).astype(dtype)
    two_sided, farthest = (lo < 0) & (hi > 0), jnp.maximum(-lo, hi)
    # The sign of values on both sides, at half of the farthest: the smallest largest error.
    of_signs = jnp.where(two_sided, farthest / 2, farthest)
    s = jnp.where(bits < 2, of_signs, (hi / 2 - lo / 2) / (top / 2))  # halves: hi - lo may be infinite
    s = jnp.where(s >= jnp.finfo(dtype).tiny, s, 0)
    z = jnp.where((s > 0) & (bits >= 2), jnp.round(-lo / _safe(s)), 0)
    # The last level may be beyond the range, but not infinite. 1 / tiny: compilers multiply by 1 / s, which
    # they take for 0 where it is subnormal.
    most = jnp.minimum(largest_level(dtype) / jnp.maximum(z, top - z), 1 / float(jnp.finfo(dtype).tiny))
    s = jnp.where(bits < 2, jnp.minimum(s, largest_level(dtype)), jnp.minimum(s, most))
    return Grid(s, z, top, jnp.where((bits < 2) & ~two_sided, farthest / 2, 0))


def quantize(
    x: Array,
    grid: Grid,
    bits: ArrayLike,
    *,
    mode: str = 'qat',
    key: Array | None = None,
) -> Array:
    """Put x on the levels of `grid`.

    mode: static. 'qat' rounds, with the gradient above. 'noise' adds uniform noise in [-s/2, s/2) instead,
    with gradient 1 everywhere (two signs are 2 s apart). 'float' returns x. key: random, for 'noise'.

    Raises:
        UserError: unknown mode, or 'noise' without a key.
    """
    if mode not in MODES:
        raise UserError(f'quantization mode {mode!r} is not one of {", ".join(MODES)}')
    if mode == 'float':
        return x
    if mode == 'qat':
        return _round(x, grid, bits)
    if key is None:
        raise UserError("quantization mode 'noise' needs a random key: pass key=")
    return x + jax.lax.stop_gradient(_noise(x, grid, bits, key))


@jax.custom_vjp
def _round(x, grid, bits):
    bits, (s, z, top, cut) = jnp.asarray(bits), grid
    q = jnp.clip(jnp.round(x / _safe(s)) + z, 0, top)
    signs = jnp.where(jnp.abs(x) <= cut, 0, jnp.sign(x) * s)  # what is no number stays none
    return jnp.where(bits >= FLOAT_BITS, x, jnp.where(bits < 2, signs, (q - z) * s))


def _round_forward(x, grid, bits):
    return _round(x, grid, bits), (x, grid, bits)


def _round_backward(residuals, g):
    # The mask is recomputed from x, which the caller keeps anyway: storing it would cost another array.
    x, (s, z, top, _), bits = residuals
    bits = jnp.asarray(bits)
    q = jnp.round(x / _safe(s)) + z
    passes, uniform = (q >= 0) & (q <= top), (bits >= 2) & (bits < FLOAT_BITS)
    return jnp.where(uniform, jnp.where(passes, g, 0), g), None, None


_round.defvjp(_round_forward, _round_backward)


def _noise(x, grid, bits, key):
    bits = jnp.asarray(bits)
    steps = jnp.where((bits == 1) & (grid.cut == 0), 2, 1)  # times u: twice the scale may be infinite
    u = jax.random.uniform(key, x.shape, x.dtype) - 0.5
    largest = largest_level(x.dtype)
    noise = jnp.clip(u * steps * grid.scale, -largest - x, largest - x)
    return jnp.where(bits >= FLOAT_BITS, 0, noise)


def _safe(s):
    return jnp.where(s > 0, s, 1)
