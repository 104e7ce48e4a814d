"""Convolutions on images that are smaller than their kernel, as matrix products.

XLA has fast convolutions for CPUs, and plain loops for what these do not cover, such as a kernel of 3 x 3
pixels on an image of 2 x 2: the last layers of many networks that are run on small images. With 512 channels
the loops take 50 times as long as the product of the pixels under the kernel, written out, with the weight.
In the gradient to the image the result takes the place of the image.

The numbers are the same but for the order in which products are added up.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from ghn_jax.models.program import Step


def compute(step: Step, operands: Sequence[Any]) -> Any:
    """Do a step as `Step.compute` does, a convolution on a small image as a product."""
    if not is_small(step):
        return step.compute(operands)
    x, w = operands
    return _product(x, w, step.eqn.params)


def is_small(step: Step) -> bool:
    """Return whether a step is a convolution, without groups, whose kernel is larger than image or result."""
    params = step.eqn.params
    if step.primitive != 'conv_general_dilated':
        return False
    if params['feature_group_count'] > 1 or params['batch_group_count'] > 1:
        return False
    x, w = step.shapes
    lhs, rhs, out = params['dimension_numbers']
    spans = [(w[axis] - 1) * d + 1 for axis, d in zip(rhs[2:], params['rhs_dilation'])]
    sizes = [min(x[axis], step.out_shape[to]) for axis, to in zip(lhs[2:], out[2:])]
    plain = set(params['lhs_dilation']) <= {1} and all(min(pair) >= 0 for pair in params['padding'])
    return plain and any(span > size for span, size in zip(spans, sizes))


def _product(x: Array, w: Array, params: Mapping[str, Any]) -> Array:
    """x, w: in the layouts of the convolution.   params: of `lax.conv_general_dilated_p`."""
    lhs, rhs, out = params['dimension_numbers']
    x, w = jnp.transpose(x, lhs), jnp.transpose(w, rhs)  # [N, C, ...], [O, C, ...]
    x = jnp.pad(x, ((0, 0), (0, 0), *params['padding']))
    kernel, steps = w.shape[2:], params['window_strides']
    dilation = params['rhs_dilation']
    sizes = [(n - (k - 1) * d - 1) // s + 1 for n, k, d, s in zip(x.shape[2:], kernel, dilation, steps)]

    def under(position: tuple[int, ...]) -> Array:
        """Return the pixels that one position of the kernel meets, [N, C, ...]."""
        first = [p * d for p, d in zip(position, dilation)]
        cuts = (slice(f, f + (n - 1) * s + 1, s) for f, n, s in zip(first, sizes, steps))
        return x[:, :, *cuts]

    pixels = jnp.stack(list(map(under, itertools.product(*map(range, kernel)))), 2)
    y = lax.dot_general(
        pixels,
        w.reshape(*w.shape[:2], -1),
        (((1, 2), (1, 2)), ((), ())),
        precision=params['precision'],
        preferred_element_type=params['preferred_element_type'],
    )  # [N, ..., O]
    order = [0] * y.ndim
    for place, axis in zip(out, (0, y.ndim - 1, *range(1, y.ndim - 1))):
        order[place] = axis
    return jnp.transpose(y, order)
