"""Activations on the levels of a grid: over the range of their batch, or over one from elsewhere.

`across` is everywhere a mesh axis whose devices each hold some of the images (`ghn_jax.base.collectives`).
"""

from jax import Array

from ghn_jax.base import collectives
from ghn_jax.quant.grid import fake_quantize
from ghn_jax.quant.ranges import min_max, power, sigma, sigma_range
from ghn_jax.quant.scheme import Scheme


def quantize_activation(
    x: Array,
    bits: Array,
    scheme: Scheme,
    *,
    ends: Array | None = None,
    key: Array | None = None,
    across: str | None = None,
) -> Array:
    """Fake-quantize x, of any shape, by its range in this batch, cut by the scheme, or by another.

    Args:
        bits: int32, scalar.
        ends: [2], the range to take in place of the batch's.
        key: for noise.
    """
    if ends is not None:
        lo, hi = ends
    else:
        size = collectives.total(power(x), across) if scheme.activation_range == 'sigma' else None
        lo, hi = clip_range(*min_max(x, across=across), size, bits, scheme)
    return fake_quantize(x, lo, hi, bits, mode=scheme.mode, key=key)


def clip_range(
    lo: Array, hi: Array, size: tuple[Array, Array] | None, bits: Array, scheme: Scheme
) -> tuple[Array, Array]:
    """Narrow the range from the least to the largest value as the scheme says.

    Args:
      lo, hi: the least and the largest value.
      size: `ranges.power` of the values, for the range 'sigma'.
      bits: of the tensor.
      scheme: how tensors are quantized.
    """
    if scheme.activation_range == 'minmax':
        clip = scheme.activation_clip
        return (lo, hi) if clip == 1 else (clip * lo, clip * hi)
    assert size is not None
    return sigma_range(lo, hi, bits, sigma(*size), sigmas=scheme.activation_sigmas)
