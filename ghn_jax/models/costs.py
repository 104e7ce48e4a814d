"""What a model costs for one image: multiplications of its layers, and what they are worth in bits."""

import math
from collections.abc import Mapping

import jax.numpy as jnp

from ghn_jax.models.model import Model


def count_macs(model: Model) -> dict[str, int]:
    """Count the multiplications and additions (MACs) of each convolution and linear layer, for one image.

    A layer with a weight (out, in / groups, height, width) or (out, in) has a product of in / groups x height
    x width, or of in, numbers for every number that it makes; those with the zeros of padding count.

    Returns:
      by the layer's name.
    """
    traced = model.traced(model.input_shape, jnp.dtype(jnp.float32))
    return {
        site.layer.name: math.prod(traced.program.steps[k].out_shape)
        // model.input_shape[0]
        * math.prod(site.layer.shape[1:])
        for k, site in traced.recorder.sites.items()
    }


def bit_operations(
    macs: Mapping[str, int], weight_bits: Mapping[str, int], activation_bits: Mapping[str, int]
) -> int:
    """Return the multiplication cost: the sum over layers of MACs x weight bits x activation bits (BOPs).

    Args:
      macs: by the layer's name (`count_macs`).
      weight_bits, activation_bits: of its weight and of what enters it, by the same names.
    """
    return sum(n * weight_bits[name] * activation_bits[name] for name, n in macs.items())
