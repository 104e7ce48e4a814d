"""What is learned of one block in PD-Quant, and how: `pd_quant` says what for.

    loss = |block(x~) - block_float(x')|^2 + KL(softmax(f / T) || softmax(f~ / T)) / 0.1
           + w sum 1 - |2 h - 1|^beta

x' is the block's input in the float network, corrected or not; x~ takes each of its entries from x' or from
the input in the quantized network, with equal chance, and inside of the block each entry of an activation is
rounded with a chance of one half (QDrop, arXiv 2203.05740). f are the float network's logits; f~ those when
this block runs on its input in the quantized network, and all behind it in float.

Adam moves the v of `adaround` and the logarithm of each activation's step (the published code the step
itself, which a few hundred longer moves could lead beyond 0).
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from ghn_jax.base.fields import bounded, check_fields, number
from ghn_jax.models.folding import Calibrated
from ghn_jax.quant.grid import Grid, fake_quantize
from ghn_jax.tuning import adaround
from ghn_jax.tuning.blocks import Block, Values, blocks_of
from ghn_jax.tuning.correction import squared_error
from ghn_jax.tuning.repeating import repeat

ROUNDING_RATE, STEP_RATE = 3e-3, 4e-5  # of Adam, at so many steps as published:
PUBLISHED = 20_000
DIFFERENCE = 0.1  # what the prediction difference is divided by


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReconstructionOptions:
    """How a network is learned; the defaults are the published ones, of ResNets.

    Attributes:
      iterations: steps for each block.
      batch_size: images of a step.
      prediction: whether the prediction difference is in the loss.
      correction: whether the float inputs of blocks are corrected.
      drop: whether entries are rounded, and taken from the quantized network, by chance only.
      correction_steps: of Adam, for each batch of images and block.
      rounding_weight: w.   temperature: T.   pull: lambda_c of `correction`.
      seed: of batches and chances.

    Raises:
      FieldError: a number out of its bounds.
    """

    iterations: int = bounded('iterations', PUBLISHED)
    batch_size: int = bounded('batch_size', 32)
    prediction: bool = True
    correction: bool = True
    drop: bool = True
    correction_steps: int = number(500, 1, 10**6)
    rounding_weight: float = number(0.01, 1e-9, 1e6)
    temperature: float = number(4.0, 1e-6, 1e6)
    pull: float = number(0.02, 1e-9, 1e6)
    seed: int = bounded('seed', 0)

    def __post_init__(self) -> None:
        check_fields(self)


class Learned(NamedTuple):
    """What is learned of a block. rounding: v by layer.   steps: log s of activations by reader."""

    rounding: dict[str, Array]
    steps: dict[str, Array]


class Grids(NamedTuple):
    """Grids of a block, of what is rounded in it.

    Attributes:
      weights: layer's name -> the grid of its weight, each part [out].
      activations: `Site.reader` -> the grid of the activation.
      known: `Site.reader` -> (lo, hi, bits) of an activation whose range an earlier block has learned.
    """

    weights: dict[str, Grid]
    activations: dict[str, Grid]
    known: dict[str, tuple[Array, Array, Array]]


class Images(NamedTuple):
    """Calibration images where they enter and leave a block, [N, ...] each.

    Attributes:
      quantized: what enters the block in the quantized network.
      entering: what enters it in the float network, corrected or not.
      made: what the block makes of `entering` in float.
      logits: of the float network.
    """

    quantized: Values
    entering: Values
    made: Values
    logits: Array


_ADAM = optax.scale_by_adam()  # without a rate: `learn` has one for each part


def start(calibrated: Calibrated, grids: Grids) -> tuple[Learned, Any]:
    """Return what learning begins with, weights as in float and steps as found, and its memory."""
    v = {name: adaround.start(jnp.asarray(calibrated.weights[name]), g) for name, g in grids.weights.items()}
    steps = {name: jnp.log(grid.scale) for name, grid in grids.activations.items()}
    learned: Any = Learned(v, steps)
    return learned, _ADAM.init(learned)


class Terms(NamedTuple):
    """Numbers of the loss, as arrays, so that one program serves all options."""

    iterations: Any
    prediction: Any
    drop: Any
    rounding_weight: Any
    temperature: Any
    seed: Any

    @classmethod
    def of(cls, options: ReconstructionOptions) -> 'Terms':
        """Take them from options."""
        return cls(*(jnp.asarray(getattr(options, name)) for name in cls._fields))


@functools.partial(jax.jit, static_argnames=('steps', 'k', 'batch_size'))
def learn(
    calibrated: Calibrated,
    grids: Grids,
    images: Images,
    terms: Terms,
    state: tuple[Learned, Any],
    first: Array | int,
    *,
    steps: int,
    k: int,
    batch_size: int,
) -> tuple[Learned, Any]:
    """Do so many steps of block k from step `first` on, on random batches.

    Args:
      calibrated: float.
      state: what is learned so far, and the optimizer's memory.

    Returns:
      The state after these steps.
    """
    both, rest = blocks_of(calibrated, 2 * batch_size)[k], blocks_of(calibrated, batch_size)[k + 1 :]
    seed = jax.random.fold_in(jax.random.key(terms.seed), k)
    longer = jnp.sqrt(PUBLISHED / terms.iterations)

    def step(i: Array, state: tuple[Learned, Any]) -> tuple[Learned, Any]:
        learned, memory = state
        key, progress = jax.random.fold_in(seed, i), i / terms.iterations
        chosen = jax.random.permutation(key, len(images.logits))[:batch_size]
        batch = jax.tree.map(lambda x: x[chosen], images)
        grads = jax.grad(_loss)(
            learned, grids, batch, terms, progress=progress, key=key, both=both, rest=rest
        )
        updates: Any
        updates, memory = _ADAM.update(grads, memory)
        rates = longer * ROUNDING_RATE, longer * STEP_RATE * (1 + jnp.cos(math.pi * progress)) / 2
        moved = (
            {name: x - rate * u[name] for name, x in part.items()}
            for rate, part, u in zip(rates, learned, updates)
        )
        return Learned(*moved), memory

    return repeat(step, first, steps, state)


def _loss(
    learned: Learned,
    grids: Grids,
    batch: Images,
    terms: Terms,
    *,
    progress: Array,
    key: Array,
    both: Block,
    rest: tuple[Block, ...],
) -> Array:
    """The loss of a batch. both: the block, on twice the images of the batch.   rest: what is behind it."""
    n = len(batch.logits)
    keys = jax.random.split(key)
    mixed = [
        jnp.where(_by_chance(jax.random.fold_in(keys[0], i), x.shape, terms.drop), x, y)
        for i, (x, y) in enumerate(zip(batch.quantized, batch.entering))
    ]
    entering = [jnp.concatenate(pair) for pair in zip(mixed, batch.quantized)]
    leaving = both.run(entering, _Soft(learned, grids, keys[1], terms.drop))
    made = [leaving[place][:n] for place in both.made]
    loss = sum((squared_error(a, b) for a, b in zip(made, batch.made)), jnp.zeros(()))
    values = tuple(x[n:] for x in leaving)
    for block in rest:
        values = block.run(values)
    loss += terms.prediction * divergence(batch.logits, values[0], terms.temperature) / DIFFERENCE
    beta = adaround.beta_at(progress)
    regularizer = sum((adaround.regularizer(v, beta) for v in learned.rounding.values()), jnp.zeros(()))
    return loss + jnp.where(progress < adaround.WARM_UP, 0, terms.rounding_weight) * regularizer


def divergence(logits: Array, others: Array, temperature: Array | float) -> Array:
    """Return the mean over images of KL(softmax(logits / T) || softmax(others / T)); logits [N, classes]."""
    p, q = (jax.nn.log_softmax(x / temperature) for x in (logits, others))
    return jnp.mean(jnp.sum(jnp.exp(p) * (p - q), -1))


def _by_chance(key: Array, shape: tuple[int, ...], drop: Array) -> Array:
    """True with a chance of one half for each entry; everywhere without drop."""
    return toss(key, shape) | ~drop


def toss(key: Array, shape: tuple[int, ...]) -> Array:
    """Return fair coins, bool, of one random bit each: the 32 of `bernoulli` are most of a step on a CPU."""
    count = math.prod(shape)
    words = jax.random.bits(key, (-(-count // 32),), jnp.uint32)
    bits = words[:, None] >> jnp.arange(32, dtype=jnp.uint32) & 1
    return bits.astype(bool).reshape(-1)[:count].reshape(shape)


@dataclasses.dataclass(frozen=True)
class _Soft:
    """A quantizer while a block is learned."""

    learned: Learned
    grids: Grids
    key: Array
    drop: Array

    def weight(self, name: str, w: Array) -> Array:
        grid = self.grids.weights.get(name)
        return w if grid is None else adaround.soft(w, self.learned.rounding[name], grid)

    def activation(self, name: str, x: Array, whole: Array) -> Array:
        if name in self.grids.known:
            return fake_quantize(x, *self.grids.known[name])
        grid = self.grids.activations.get(name)
        if grid is None:
            return x
        rounded = round_by_step(x, self.learned.steps[name], grid)
        place = sorted(self.grids.activations).index(name)
        return jnp.where(_by_chance(jax.random.fold_in(self.key, place), x.shape, self.drop), rounded, x)


def round_by_step(x: Array, log_step: Array, grid: Grid) -> Array:
    """Round to a grid of another step, with the gradients of a learned step (arXiv 1902.08153, eq. 3)."""
    step = jnp.exp(log_step)
    y = x / step
    straight = y + lax.stop_gradient(jnp.round(y) - y)
    q = straight + grid.zero
    q = jnp.where(q < 0, 0, jnp.where(q > grid.top, grid.top, q))  # unlike clip, a gradient of 1 at both ends
    return (q - grid.zero) * step
