"""Rounding that is learned: whether each weight goes to the level below it or to the one above (AdaRound).

A weight w on a grid with step s, zero point z and levels 0..n is, while it is learned (arXiv 2004.10568,
eq. 22 and 23),

    w^ = s (clip(floor(w / s) + h(v) + z, 0, n) - z)      h(v) = clip(1.2 sigmoid(v) - 0.1, 0, 1)

and a regularizer sum 1 - |2 h(v) - 1|^beta (eq. 24) draws h to 0 or 1. In the end h is 1 where v >= 0, and 0
elsewhere.
Grids have a part for each output channel, [out]; weights are [out, ...].
"""

import jax
import jax.numpy as jnp
from jax import Array

from ghn_jax.quant.grid import Grid

STRETCH = 0.1  # h reaches that much beyond 0 and 1 before it is cut
BETA = (20.0, 2.0)  # at the end of the warm-up, and at the end
WARM_UP = 0.2  # the share of all steps that are without the regularizer


def rectified_sigmoid(v: Array) -> Array:
    """Return h(v) = clip(1.2 sigmoid(v) - 0.1, 0, 1)."""
    return jnp.clip((1 + 2 * STRETCH) * jax.nn.sigmoid(v) - STRETCH, 0, 1)


def start(w: Array, grid: Grid) -> Array:
    """Return v for which the weights are what they are in float, as far as the grid reaches."""
    x = _in_steps(w, grid)
    h = (x - jnp.floor(x) + STRETCH) / (1 + 2 * STRETCH)
    return jnp.log(h / (1 - h))


def soft(w: Array, v: Array, grid: Grid) -> Array:
    """Return the weights w^ as they are while v is learned; differentiable in v."""
    return _on_grid(w, rectified_sigmoid(v), grid)


def hard(w: Array, v: Array, grid: Grid) -> Array:
    """Return the weights as they are in the end: on the levels of the grid."""
    return _on_grid(w, (v >= 0).astype(w.dtype), grid)


def regularizer(v: Array, beta: Array | float) -> Array:
    """Return sum 1 - |2 h(v) - 1|^beta: 0 where all h are 0 or 1, at most the number of weights."""
    return jnp.sum(1 - jnp.abs(2 * rectified_sigmoid(v) - 1) ** beta)


def beta_at(progress: Array | float) -> Array:
    """Return beta at a share of all steps: 20 up to the end of the warm-up, then in a line down to 2."""
    first, last = BETA
    done = jnp.clip((progress - WARM_UP) / (1 - WARM_UP), 0, 1)
    return first + (last - first) * done


def _on_grid(w: Array, h: Array, grid: Grid) -> Array:
    scale, zero, top, _ = (_per_channel(part, w) for part in grid)
    return scale * (jnp.clip(jnp.floor(_in_steps(w, grid)) + h + zero, 0, top) - zero)


def _in_steps(w: Array, grid: Grid) -> Array:
    scale = _per_channel(grid.scale, w)
    return w / jnp.where(scale > 0, scale, 1)


def _per_channel(part: Array, w: Array) -> Array:
    part = jnp.asarray(part)
    return part.reshape(part.shape + (1,) * (w.ndim - 1)) if part.ndim else part
