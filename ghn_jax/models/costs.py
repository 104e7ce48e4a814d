"""What a model costs for one image: multiplications of its layers, numbers that they read, and bits."""

import math
from collections.abc import Mapping
from typing import Any

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


def count_activations(model: Model) -> dict[str, int]:
    """Count the numbers of each activation that enters layers, for one image.

    Returns:
      by `Site.reader`; one that several layers read, whole or in cuts, counts once.
    """
    traced = model.traced(model.input_shape, jnp.dtype(jnp.float32))
    steps, counts = traced.program.steps, dict[str, int]()
    shapes: dict[Any, tuple[int, ...]] = {traced.program.inputs[-1]: model.input_shape}
    shapes |= {step.outputs[0]: step.out_shape for step in steps}
    for k, site in traced.recorder.sites.items():
        slot = steps[k].inputs[site.activation] if site.whole is None else site.whole
        if slot in shapes:
            numbers = math.prod(shapes.pop(slot)) // model.input_shape[0]
            counts[site.reader] = counts.get(site.reader, 0) + numbers
    return counts


def bit_operations(
    macs: Mapping[str, int], weight_bits: Mapping[str, int], activation_bits: Mapping[str, int]
) -> int:
    """Return the multiplication cost: the sum over layers of MACs x weight bits x activation bits (BOPs).

    Args:
      macs: by the layer's name (`count_macs`).
      weight_bits, activation_bits: of its weight and of what enters it, by the same names.
    """
    return sum(n * weight_bits[name] * activation_bits[name] for name, n in macs.items())
