"""Searching for low-bit weights (SLB, arXiv 2009.08695): a weight is a mixture of all values it may take.

A weight of few bits has K values v_k, and in their favour logits A_k, which are what is trained. After p
passes over the images, of P in all, it is

    w = sum_k v_k softmax(tau A)_k        tau = t0 g^(p - start P)  for  start P <= p < end P

and tau = t0 before. No gradient is passed straight through a rounding: w is smooth in A. With tau, w moves
to the value with the largest logit. That value it is from end P passes on, in training, too, and in the
network that is kept: the limit of tau = infinity.

The paper's values are spread evenly over [-1, 1], the same in all layers. Ours are the levels of the grids of
`quant.grid`, one for each output channel, fitted to the weights that training begins with; they stay where
they are then. So values are of the size of given weights, there are 2^b of them (3 for a ternary weight), 0
is one of them from 2 bits on, and the weights that are found are integers times a scale.

Axes: O output channels | K values, the most of any layer; a layer with fewer leaves out the last ones, so
that one compiled program serves all bits.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from ghn_jax.base.errors import FieldError
from ghn_jax.base.fields import check_fields, choice, number
from ghn_jax.quant.grid import Grid
from ghn_jax.quant.policy import TERNARY

MOST_BITS = 4
"""More have too many values: what is trained is K times as large as the weights."""
SHARPNESS, SPREAD = 2.0, 6.0  # of logits set by distance: how far they reach, in values and in ranges
HARDENING = 100.0  # what tau grows to, times t0, where no g is given
_DISTANCE, _RANDOM = 'distance', 'random'


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchSpec:
    """How weights are searched.

    Attributes:
      temperature: t0, of the beginning; the larger, the harder.
      growth: g, what tau is multiplied by with each pass; 0: what makes it 100 t0 at the end.
      start, end: shares of all passes between which tau grows.
      rate: learning rate of the logits, at the first step of Adam; it falls as that of the other parameters.
      logits: where these begin: 'distance', near given weights; or 'random' ones, as in the paper.

    Raises:
      FieldError: a number out of its bounds, or an end before the start.
    """

    temperature: float = number(1.0, 1e-3, 100)
    growth: float = number(0.0, 0, 100)
    start: float = number(0.2, 0, 1)
    end: float = number(0.8, 0, 1)
    rate: float = number(0.1, 0, 10)
    logits: str = choice(_DISTANCE, (_DISTANCE, _RANDOM))

    def __post_init__(self) -> None:
        check_fields(self)
        if self.end < self.start:
            raise FieldError('end', f'={self.end:g}: expected no less than start={self.start:g}')
        if 0 < self.growth < 1:
            raise FieldError(
                'growth', f'={self.growth:g}: expected 1 or more, or 0 for what makes it 100-fold'
            )


def temperature(spec: SearchSpec, passes: ArrayLike, epochs: int) -> Array:
    """Return tau after so many passes, parts of one included: float32 []; infinity: weights are hard."""
    first, last = spec.start * epochs, spec.end * epochs
    rate = math.log(HARDENING) / max(last - first, 1e-6) if not spec.growth else math.log(spec.growth)
    tau = spec.temperature * jnp.exp(rate * jnp.clip(jnp.asarray(passes) - first, 0, last - first))
    return jnp.where(jnp.asarray(passes) >= last, jnp.inf, tau).astype(jnp.float32)


def count_values(bits: ArrayLike) -> Array:
    """Return how many values a weight of so many bits may take: 2^b, 3 of a ternary one; int32, as `bits`."""
    bits = jnp.asarray(bits, jnp.int32)
    return jnp.where(bits == TERNARY, 3, jnp.left_shift(1, bits))


def values_of(grid: Grid, bits: ArrayLike, most: int) -> Array:
    """Return the levels of the grids of a layer, in ascending order: float32 [O, K].

    A symmetric grid has a level less than there are values; the last one is a step beyond it.

    Args:
      grid: each part [O].
      bits: of all of them, an integer [].
      most: K; values beyond the first `count_values(bits)` are not used.
    """
    k, bits = jnp.arange(most, dtype=grid.scale.dtype), jnp.asarray(bits)
    apart = jnp.where(bits == 1, 2, 1)  # signs are two scales apart
    first = jnp.where((bits == 1) | (bits == TERNARY), 1, grid.zero)
    return (apart * k - first[:, None]) * grid.scale[:, None]


def range_of(grid: Grid, bits: int) -> tuple[Array, Array]:
    """Return (lo, hi) [O] over which `make_grid` makes asymmetric grids with the levels of a layer."""
    if bits in (1, TERNARY):
        return -2 * grid.scale, 2 * grid.scale
    return -grid.zero * grid.scale, (2**bits - 1 - grid.zero) * grid.scale


def logits_of(w: Array, values: Array, count: ArrayLike) -> Array:
    """Return logits that make soft weights at tau = 1 close to given ones.

    A_k = -beta ((w - v_k) / d)^2, with d the distance of neighbouring values and, for K of them, beta =
    min(2, 6 / (K - 1)). A weight of 4 values or more is off by at most 4 % of their range, in its middle by
    much less. Sharper logits would keep a weight of many values from ever getting to one that is far.

    Args:
      w: [O, ...].
      values: [O, K].
      count: how many of the values are used, the first ones.

    Returns:
      [O, ..., K].
    """
    values = _beside(values, w.ndim)
    step = values[..., 1:2] - values[..., :1]
    beta = jnp.minimum(SHARPNESS, SPREAD / (jnp.asarray(count) - 1))
    return -beta * jnp.square((w[..., None] - values) / jnp.where(step > 0, step, 1))


def random_logits(key: Array, shape: tuple[int, ...], most: int) -> Array:
    """Draw logits [*shape, K] of weights [O, ...] from N(0, 2 / fan-out) (arXiv 1502.01852), as published."""
    fan_out = shape[0] * math.prod(shape[2:])
    return math.sqrt(2 / fan_out) * jax.random.normal(key, (*shape, most))


def soft_weights(logits: Array, values: Array, count: ArrayLike, tau: ArrayLike) -> Array:
    """Return w = sum_k v_k softmax(tau A)_k, differentiable in A; at tau = infinity `hard_weights`.

    Args:
      logits: A, [O, ..., K].
      values: v, [O, K].
      count: how many of the values are used, the first ones; an integer [].
      tau: [].

    Returns:
      [O, ...].
    """
    is_hard = jnp.isinf(tau)
    scaled = logits * jnp.where(is_hard, 1, tau)
    shares = jax.nn.softmax(jnp.where(_is_used(logits, count), scaled, -jnp.inf))
    soft = jnp.sum(shares * _beside(values, logits.ndim - 1), -1)
    return jnp.where(is_hard, hard_weights(logits, values, count), soft)


def hard_weights(logits: Array, values: Array, count: ArrayLike) -> Array:
    """Return of each weight the value with the largest logit, the first of several; as `soft_weights`."""
    chosen = jnp.argmax(jnp.where(_is_used(logits, count), logits, -jnp.inf), -1)
    shape = (*logits.shape[:-1], values.shape[-1])
    each = jnp.broadcast_to(_beside(values, logits.ndim - 1), shape)
    return jnp.take_along_axis(each, chosen[..., None], -1)[..., 0]


def _is_used(logits: Array, count: ArrayLike) -> Array:
    return jnp.arange(logits.shape[-1]) < count


def _beside(values: Array, ndim: int) -> Array:
    """Values [O, K] as [O, 1, ..., K], for weights of `ndim` axes."""
    return values.reshape(len(values), *[1] * (ndim - 1), values.shape[-1])
