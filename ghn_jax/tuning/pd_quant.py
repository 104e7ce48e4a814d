"""PD-Quant: post-training quantization, block by block, guided by the prediction (arXiv 2212.07048).

From ranges with the least L2.4 error on, the rounding of each weight and the step of each activation are
learned on a few hundred calibration images, for one block after another (`reconstruction`): a block is to
make of its input, whose distribution is corrected (`correction`), what it makes in float, and the network's
prediction is to stay what it is.

Axes: K batches | B images of each.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ghn_jax.base.errors import FieldError
from ghn_jax.models.folding import Calibrated
from ghn_jax.quant.grid import make_grid
from ghn_jax.quant.policy import NamedWidths
from ghn_jax.tuning import adaround
from ghn_jax.tuning.blocks import Block, Values, blocks_of
from ghn_jax.tuning.correction import NormStatistics, corrected
from ghn_jax.tuning.ranges import FixedRanges, check_bits, layer_bits, round_nearest
from ghn_jax.tuning.reconstruction import Grids, Images, Learned, ReconstructionOptions, Terms, learn, start
from ghn_jax.tuning.repeating import steps_at_once

CHUNK = 100  # steps of a block between two reports of progress


def pd_quant(
    calibrated: Calibrated,
    images: Array,
    settings: Sequence[tuple[NamedWidths, ReconstructionOptions]],
    statistics: Sequence[NormStatistics],
    done: Callable[[int], object] = lambda parts: None,
    begun: tuple[int, Sequence[Calibrated]] = (0, ()),
    keep: Callable[[int, Sequence[Calibrated]], object] = lambda blocks, networks: None,
) -> list[Calibrated]:
    """Quantize a network in several ways at once, which share programs and the float network's part.

    Args:
      calibrated: folded, not rounded.
      images: [N, ...], calibration images as the model takes them; those beyond whole batches are left out.
      settings: bits by the weight's name (`Policy.resolve`), and options; the batch size and what concerns
        the correction are those of the first.
      statistics: of the model's batch norms (`correction.norm_statistics`).
      done: called with 1 after every `CHUNK` steps, or the rest of them, of a block and a setting.
      keep: called after each block with the number of blocks done, and the network of each setting so far.
      begun: the last arguments of `keep`, to go on from; the result is the same.

    Returns:
      A network for each setting, with rounded weights, and ranges of weights and activations.

    Raises:
      UserError: bits below 2, fewer images than a batch.
    """
    first = settings[0][1]
    for widths, _ in settings:
        check_bits(widths, 'pd_quant', least=2)
    batches = _batches(images, first.batch_size)
    blocks_before, networks = begun
    ways = [
        _Way.begin(calibrated, batches, setting, network)
        for setting, network in itertools.zip_longest(settings, networks)
    ]
    entering: Values = (batches,)
    logits = jnp.stack([_apply(calibrated, x) for x in batches])
    blocks = blocks_of(calibrated, first.batch_size)
    for k, block in enumerate(blocks):
        if k < blocks_before:
            ways, entering = [way.run(block, k) for way in ways], _leave(calibrated, entering, {}, k=k)
            done(sum(map(count_chunks, settings)))
            continue
        seen = {name for before in blocks[:k] for name in before.readers}
        entered = {False: entering}
        if any(way.options.correction for way in ways):
            entered[True] = _correct(calibrated, statistics, entering, block, k, first)
        left = {corrects: _leave(calibrated, x, {}, k=k) for corrects, x in entered.items()}
        for i, way in enumerate(ways):
            corrects = way.options.correction
            made = tuple(left[corrects][place] for place in block.made)
            of_images = Images(way.quantized, entered[corrects], made, logits)
            ways[i] = way.learn(calibrated, block, k, seen, jax.tree.map(_joined, of_images), done)
        entering = left[False]
        keep(k + 1, [way.network for way in ways])
    return [way.network for way in ways]


def count_chunks(setting: tuple[Any, ReconstructionOptions]) -> int:
    """Return how many parts `pd_quant` reports for a block of a setting."""
    return -(-setting[1].iterations // CHUNK)


@dataclasses.dataclass(frozen=True)
class _Way:
    """A network on its way to be quantized.

    Attributes:
      network: with rounded weights; those of the blocks so far, and their ranges, are learned.
      quantized: what enters the next block in it, [K, B, ...].
    """

    network: Calibrated
    weight_bits: dict[str, int]
    activation_bits: dict[str, int]
    options: ReconstructionOptions
    quantized: Values

    @classmethod
    def begin(
        cls,
        calibrated: Calibrated,
        batches: Array,
        setting: tuple[NamedWidths, ReconstructionOptions],
        network: Calibrated | None,
    ) -> '_Way':
        widths, options = setting
        if network is None:
            network = round_nearest(calibrated, _joined(batches), widths, 'mse')
        return cls(network, *layer_bits(calibrated.model, widths), options, (batches,))

    def learn(
        self,
        calibrated: Calibrated,
        block: Block,
        k: int,
        seen: set[str],
        images: Images,
        done: Callable[[int], object],
    ) -> '_Way':
        """Learn block k. seen: readers of blocks before, whose ranges stay."""
        grids, options = self._grids(block, seen), self.options
        state = start(calibrated, grids)
        numbers, most = Terms.of(options), steps_at_once(CHUNK)
        for first in range(0, options.iterations, CHUNK):
            if grids.weights or grids.activations:
                last = min(first + CHUNK, options.iterations)
                for i in range(first, last, most):
                    state = learn(
                        calibrated, grids, images, numbers, state, i,
                        steps=min(most, last - i), k=k, batch_size=options.batch_size,
                    )  # fmt: skip
                jax.block_until_ready(state)
            done(1)
        network = self._with(calibrated, grids, state[0])
        return dataclasses.replace(self, network=network).run(block, k)

    def run(self, block: Block, k: int) -> '_Way':
        """Run block k as it is."""
        ranges = {
            name: (*self.network.ranges[name], self.activation_bits[name])
            for name in block.readers
            if name in self.network.ranges
        }
        return dataclasses.replace(self, quantized=_leave(self.network, self.quantized, ranges, k=k))

    def _grids(self, block: Block, seen: set[str]) -> Grids:
        weights, activations, known = {}, {}, {}
        for name in block.layers:
            if name in self.weight_bits:
                lo, hi = self.network.weight_ranges[name]
                weights[name] = make_grid(lo, hi, self.weight_bits[name], jnp.float32)
        for name in block.readers:
            if name in self.activation_bits:
                (lo, hi), bits = self.network.ranges[name], self.activation_bits[name]
                if name in seen or lo == hi:
                    known[name] = lo, hi, bits
                else:
                    activations[name] = make_grid(lo, hi, bits, jnp.float32)
        return Grids(weights, activations, known)

    def _with(self, calibrated: Calibrated, grids: Grids, learned: Learned) -> Calibrated:
        """Return the network with the learned weights and ranges of a block."""
        weights, ranges = dict(self.network.weights), dict(self.network.ranges)
        for name, v in learned.rounding.items():
            w = jnp.asarray(calibrated.weights[name])
            weights[name] = np.asarray(adaround.hard(w, v, grids.weights[name]))
        for name, log_step in learned.steps.items():
            grid, step = grids.activations[name], jnp.exp(log_step)
            ranges[name] = np.float32(-grid.zero * step), np.float32((grid.top - grid.zero) * step)
        return dataclasses.replace(self.network, weights=weights, ranges=ranges)


def _batches(images: Array, batch_size: int) -> Array:
    count = len(images) // batch_size
    if not count:
        raise FieldError(
            'images', f'={len(images)}: expected at least one batch of {batch_size} calibration images'
        )
    images = jnp.asarray(images[: count * batch_size])
    return images.reshape(count, batch_size, *images.shape[1:])


def _joined(x: Array) -> Array:
    return x.reshape(-1, *x.shape[2:])


def _correct(
    calibrated: Calibrated,
    statistics: Sequence[NormStatistics],
    entering: Values,
    block: Block,
    k: int,
    options: ReconstructionOptions,
) -> Values:
    """Correct what enters block k."""
    if not block.norms:
        return entering
    steps, pull = options.correction_steps, options.pull
    return _by_batch(lambda x: corrected(calibrated, statistics, x, k=k, steps=steps, pull=pull), entering)


def _leave(calibrated: Calibrated, entering: Values, ranges: dict[str, Any], *, k: int) -> Values:
    """Compute what leaves block k.

    ranges: (lo, hi, bits) of activations that are rounded, by reader.
    """
    return _by_batch(lambda x: _run(calibrated, x, ranges, k=k), entering)


def _by_batch(function: Callable[[Values], Values], entering: Values) -> Values:
    batches = [function(tuple(x[i] for x in entering)) for i in range(len(entering[0]))]
    return tuple(map(jnp.stack, zip(*batches)))


@functools.partial(jax.jit, static_argnames='k')
def _run(calibrated: Calibrated, entering: Values, ranges: dict[str, Any], *, k: int) -> Values:
    return blocks_of(calibrated, len(entering[0]))[k].run(entering, FixedRanges(ranges))


_apply = jax.jit(Calibrated.apply)
