"""Batch normalisation (arXiv 1502.03167, Algorithm 1): as one function, and the steps that it is made of.

The steps serve the executor where it normalises a value part by part. Each takes all images of a batch or
some of them.

Axes: N images | H, W rows and columns | C channels.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from ghn_jax.base import collectives
from ghn_jax.cnn import ops

EPSILON = 1e-5


class Normalizer(NamedTuple):
    """What batch normalisation needs of the values that it reads: mean and 1 / deviation, [C] each.

    They are 0 and 1 where there is no normalisation.
    """

    mean: Array
    inverse: Array

    def normal(self, x: Array) -> Array:
        """Return (x - mean) / deviation, at least float32."""
        return (x - self.mean) * self.inverse


def normalizer(mean_of: Callable[[Callable], Array], on: Array, axis: str | None) -> Normalizer:
    """Find the normalizer of x [N,H,W,C], of which only means are asked.

    mean_of: f -> the mean of f(x) over images and pixels [C], f elementwise. on, axis: as for `batch_norm`.
    """
    mean = collectives.mean(mean_of(ops.wide), axis) * on
    squares = mean_of(lambda x: jnp.square(x - mean))  # two passes: one pass cancels
    variance = collectives.mean(squares, axis)
    return Normalizer(mean, jnp.where(on > 0, lax.rsqrt(variance + EPSILON), 1))


def normalized(x: Array, by: Normalizer, scale: Array, shift: Array) -> Array:
    """Normalise x [N,H,W,C], or some of its images."""
    return ((x - by.mean) * (by.inverse * scale) + shift).astype(x.dtype)


def weight_gradients(x: Array, g: Array, by: Normalizer) -> tuple[Array, Array]:
    """Return what sums to the gradients of scale and shift. x [N,H,W,C]; g: the gradient of what x became."""
    g = ops.wide(g)
    return g * by.normal(x), g


def gradient_means(
    g_scale: Array, g_shift: Array, count: int, on: Array, axis: str | None
) -> tuple[Array, Array]:
    """Divide the gradients of scale and shift by the pixels of the batch, of which `count` are here."""
    g_scale, g_shift = collectives.total((g_scale, g_shift), axis)
    per_pixel = on / (count * collectives.size(axis))
    return per_pixel * g_scale, per_pixel * g_shift


def input_gradient(x: Array, g: Array, by: Normalizer, scale: Array, means: tuple[Array, Array]) -> Array:
    """Return the gradient to x [N,H,W,C], or to some of its images. means: of `gradient_means`."""
    with_scale, with_shift = means
    gx = (scale * by.inverse) * (ops.wide(g) - (with_shift + by.normal(x) * with_scale))
    return gx.astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def batch_norm(x: Array, scale: Array, shift: Array, on: Array, axis: str | None = None) -> Array:
    """Normalise with the statistics of this batch (biased variance); x * scale + shift where `on` is 0.

    x [N,H,W,C]; scale, shift [C]; on [] is 1.0 or 0.0 at run time, so that one program serves networks
    with and without normalisation. axis: a mesh axis whose devices each hold some of the batch's images; the
    gradients of scale and shift are then those through these images. arXiv 1502.03167, Algorithm 1.
    """
    return _batch_norm_forward(x, scale, shift, on, axis)[0]


def _batch_norm_forward(x, scale, shift, on, axis):
    by = normalizer(lambda f: jnp.mean(f(x), (0, 1, 2)), on, axis)
    return normalized(x, by, scale, shift), (x, by, scale, on)


def _batch_norm_backward(axis, residuals, g):
    x, by, scale, on = residuals
    of_scale, of_shift = (jnp.sum(term, (0, 1, 2)) for term in weight_gradients(x, g, by))
    means = gradient_means(of_scale, of_shift, x.size // x.shape[-1], on, axis)
    return input_gradient(x, g, by, scale, means), of_scale, of_shift, jnp.zeros_like(on)


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)
