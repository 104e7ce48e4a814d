"""The widths and points of a network in fixed point, found layer after layer under a budget of accuracy.

The search begins with 8 bits everywhere, each point the one with the least squared error given those before
it. Then it walks through the layers in the order of the forward pass: what enters the layer, its weight, its
bias. A tensor gets the fewest bits with which enough calibration images are still classified rightly, all
tensors before it being as chosen and those behind it at 8 bits. The point is the one with the least squared
error or one beside it, whichever has the least cross-entropy. So every network on the way is within the
budget, the last one too. (arXiv 2102.02147 chooses width and point layer after layer, given those already
chosen; when it stops is our reading.)

The budget is spent evenly: behind layer k of K, at most k / K of what 8 bits everywhere leave of it, or of a
share of that. `fixed_point_budget` keeps it on other images, too.

Axes: T tensors | K batches | B images of a batch.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from ghn_jax.base.errors import FieldError
from ghn_jax.models.folding import Calibrated
from ghn_jax.quant.policy import FLOAT_BITS
from ghn_jax.tuning.fixed_point import (
    FARTHEST,
    LEAST_BITS,
    MOST_BITS,
    NAME,
    FixedPoint,
    FormatTensor,
    activation_formats,
    best_points,
    tensors_of,
    with_rounded,
)
from ghn_jax.tuning.ranges import sample
from ghn_jax.tuning.scoring import count_correct

BUDGET = 1.0  # points of accuracy
_BATCH = 64  # images that pass through the network together
_BESIDE = (0, -1, 1)  # points that are tried: the one with the least squared error, coarser, finer


class FormatScore(NamedTuple):
    """How well formats do on some images.

    Attributes:
      correct: images that are classified rightly.
      loss: cross-entropy in nats, summed over the images.
    """

    correct: int
    loss: float


@dataclasses.dataclass(frozen=True, eq=False)
class Search:
    """A network, and the images that formats are scored on.

    Attributes:
      batches: images [B, ...] and labels int32 [B]; all have one size.
      scores: of formats that were scored before, by their bytes.
    """

    calibrated: Calibrated
    tensors: tuple[FormatTensor, ...]
    batches: Sequence[tuple[Array, Array]]
    scores: dict[bytes, FormatScore] = dataclasses.field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls, calibrated: Calibrated, images: Array | np.ndarray, labels: Array | np.ndarray | None
    ) -> 'Search':
        """Make a search on images [N, ...] and their labels, integers [N], in batches of one size.

        Raises:
          FieldError: there are no images, or not as many labels.
        """
        have, count = 0 if labels is None else len(labels), len(images)
        if labels is None or not count or have != count:
            raise FieldError(
                'labels',
                f': there are {have} for {count} images: method {NAME} needs images, and one for each',
            )
        size = count // -(-count // _BATCH)
        cuts = [slice(first, first + size) for first in range(0, count - size + 1, size)]
        batches = [(jnp.asarray(images[cut]), jnp.asarray(labels[cut], jnp.int32)) for cut in cuts]
        return cls(calibrated, tensors_of(calibrated), batches)

    @functools.cached_property
    def index(self) -> dict[tuple[str, str], int]:
        """The number of a tensor, by kind and name."""
        return {(tensor.kind, tensor.name): i for i, tensor in enumerate(self.tensors)}

    def leader(self, i: int) -> int:
        """Return the number of the first tensor that has its width for the same parameter as tensor i."""
        use = lambda tensor: (tensor.kind, tensor.parameter)
        return next(j for j, tensor in enumerate(self.tensors) if use(tensor) == use(self.tensors[i]))

    @property
    def images(self) -> int:
        """How many images there are."""
        return sum(len(y) for _, y in self.batches)

    @property
    def layers(self) -> int:
        """How many layers there are."""
        return max(tensor.layer for tensor in self.tensors) + 1

    @functools.cached_property
    def eight_bits(self) -> np.ndarray:
        """The formats of 8 bits everywhere (`uniform`)."""
        return uniform(self, MOST_BITS)

    def float_formats(self) -> np.ndarray:
        """Return the formats of a network in float, int32 [T, 2]."""
        return np.array([[FLOAT_BITS, 0]] * len(self.tensors), np.int32)

    def score(self, formats: np.ndarray) -> FormatScore:
        """Score formats [T, 2]."""
        self.meets(formats, 0)
        return self.scores[formats.tobytes()]

    def meets(self, formats: np.ndarray, least: int) -> bool:
        """Return whether `least` images are classified rightly; no more are run than it takes to say no."""
        key = formats.tobytes()
        if key not in self.scores:
            score, left = FormatScore(0, 0.0), self.images
            for x, y in self.batches:
                correct, loss, _ = self._run(formats, x, y)
                score = FormatScore(score.correct + int(correct), score.loss + float(loss))
                left -= len(y)
                if score.correct + left < least:
                    return False
            self.scores[key] = score
        return self.scores[key].correct >= least

    def values(self, formats: np.ndarray, tensor: FormatTensor) -> np.ndarray:
        """Return a tensor as it is rounded: in float, of an activation a sample at these formats."""
        if tensor.kind == 'activation':
            return np.concatenate([self._run(formats, x, y)[2][tensor.name] for x, y in self.batches])
        arrays = self.calibrated.weights if tensor.kind == 'weight' else self.calibrated.biases
        return np.asarray(arrays[tensor.name])

    def _run(self, formats: np.ndarray, x: Array, y: Array) -> Any:
        return _run(self.calibrated, jnp.asarray(formats), x, y, tensors=self.tensors)

    def least_correct(self, budget: float) -> int:
        """Return how many images are to be classified rightly under a budget, in points of accuracy."""
        return math.ceil(self.score(self.float_formats()).correct - budget * self.images / 100 - 1e-9)


def uniform(search: Search, bits: int) -> np.ndarray:
    """Give every tensor so many bits, and the point with the least squared error given those before it."""
    formats = search.float_formats()
    for i, tensor in enumerate(search.tensors):
        points = best_points(search.values(formats, tensor), [bits])
        formats = _with_format(search, formats, i, bits, points[bits])
    return formats


def network_wise(search: Search, budget: float) -> np.ndarray:
    """Give all tensors one width, the least under a budget.

    Raises:
      FieldError: 8 bits are too few.
    """
    found = search.eight_bits
    check_eight_bits(search, budget, found)
    for bits in range(MOST_BITS - 1, LEAST_BITS - 1, -1):
        formats = uniform(search, bits)
        if not search.meets(formats, search.least_correct(budget)):
            break
        found = formats
    return found


def layer_wise(
    search: Search,
    budget: float,
    share: float = 1.0,
    done: Callable[[int], object] = lambda layers: None,
    begun: tuple[int, np.ndarray] | None = None,
    keep: Callable[[int, np.ndarray], object] = lambda layers, formats: None,
) -> np.ndarray:
    """Find widths and points layer after layer, as the file says.

    Args:
      search: the network and its images.
      budget: points of accuracy that may be lost on them.
      share: of what 8 bits everywhere leave of the budget, from 0 to 1: how much of it is spent.
      done: called with 1 after each layer.
      begun: the last arguments of `keep`, to go on from; None: begin anew.
      keep: called with the number of layers done, and the formats so far.

    Returns:
      Formats, int32 [T, 2].

    Raises:
      FieldError: even 8 bits everywhere are not within the budget.
    """
    eight = search.eight_bits
    check_eight_bits(search, budget, eight)
    first, formats = begun or (0, eight)
    most, least = search.score(eight).correct, search.least_correct(budget)
    for k in range(search.layers):
        if k >= first:
            allowed = math.ceil(most + share * (least - most) * (k + 1) / search.layers)
            for i in (i for i, tensor in enumerate(search.tensors) if tensor.layer == k):
                formats = narrowed(search, formats, i, allowed)
            keep(k + 1, formats)
        done(1)
    return formats


def each_alone(search: Search, budget: float) -> np.ndarray:
    """Find width and point of each tensor with all others in float, and put them together.

    For comparison: no choice depends on those before it, so together they may lose any number of points.
    """
    least, together = search.least_correct(budget), search.float_formats()
    for i in range(len(search.tensors)):
        if search.leader(i) == i:
            points = best_points(search.values(search.float_formats(), search.tensors[i]), [MOST_BITS])
            alone = _with_format(search, search.float_formats(), i, MOST_BITS, points[MOST_BITS])
            alone = narrowed(search, alone, i, least)
            together = np.where(alone[:, :1] < FLOAT_BITS, alone, together)
    for i, (bits, point) in enumerate(together.tolist()):
        together = _with_format(search, together, i, bits, point)
    return together


def narrowed(search: Search, formats: np.ndarray, i: int, least: int) -> np.ndarray:
    """Give tensor i the fewest bits with which `least` images are classified rightly, the others as they are.

    They are found by bisection: one bit fewer is too few, with each of the points that are tried. The width
    stays where fewer are too few, and where a use of the same parameter before has set it.
    """
    points = best_points(search.values(formats, search.tensors[i]), range(LEAST_BITS, MOST_BITS + 1))
    beside = lambda bits: [_with_format(search, formats, i, bits, points[bits] + more) for more in _BESIDE]
    enough, too_few = int(formats[i, 0]), LEAST_BITS - 1
    while search.leader(i) == i and enough - too_few > 1:
        bits = (enough + too_few) // 2
        fewer = next((c for c in beside(bits) if search.meets(c, least)), None)
        if fewer is None:
            too_few = bits
        else:
            formats, enough = fewer, bits
    passing = [c for c in (formats, *beside(enough)) if search.meets(c, least)]
    return min(passing or [formats], key=lambda candidate: search.score(candidate).loss)


def check_eight_bits(search: Search, budget: float, formats: np.ndarray) -> None:
    """Raise FieldError where formats of 8 bits everywhere are not within a budget."""
    correct, count = (search.score(each).correct for each in (formats, search.float_formats()))
    if correct < search.least_correct(budget):
        lost = 100 * (count - correct) / search.images
        raise FieldError(
            'budget',
            f'={budget:g}: with {MOST_BITS} bits everywhere the network loses {lost:.2f} points on '
            f'{search.images} calibration images, and no format has more bits: give at least as much',
        )


def _with_format(search: Search, formats: np.ndarray, i: int, bits: int, point: int) -> np.ndarray:
    """Change the format of tensor i, and with it what depends on it.

    Later uses of the same parameter get its width. A bias has at most as many bits behind the point as the
    products that it is added to.
    """
    tensors, changed = search.tensors, formats.copy()
    changed[i] = bits, np.clip(point, -FARTHEST, FARTHEST)
    for j in range(i + 1, len(tensors)):
        if search.leader(j) == i and changed[j, 0] != bits:
            changed[j] = bits, best_points(search.values(changed, tensors[j]), [bits])[bits]
    for j, tensor in enumerate(tensors):
        if tensor.kind == 'bias':
            factors = [search.index['activation', tensor.reader], search.index['weight', tensor.name]]
            if (changed[[j, *factors], 0] < FLOAT_BITS).all():
                changed[j, 1] = min(changed[j, 1], changed[factors, 1].sum())
    return changed


@functools.partial(jax.jit, static_argnames='tensors')
def _run(
    calibrated: Calibrated, formats: Array, x: Array, y: Array, *, tensors: tuple[FormatTensor, ...]
) -> tuple[Array, Array, dict[str, Array]]:
    """Count the images that are classified rightly, sum the cross-entropy, and sample the activations."""
    notes = _Notes(FixedPoint(activation_formats(tensors, formats)), {})
    logits = with_rounded(calibrated, tensors, formats).apply(x, notes).astype(jnp.float32)
    loss = jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits, y))
    return count_correct(logits, y), loss, {name: jnp.concatenate(each) for name, each in notes.seen.items()}


@dataclasses.dataclass(frozen=True)
class _Notes:
    """A quantizer that samples what it rounds. seen: by `Site.reader`."""

    quantizer: FixedPoint
    seen: dict[str, list[Array]]

    def weight(self, name: str, w: Array) -> Array:
        return w

    def activation(self, name: str, x: Array, whole: Array) -> Array:
        self.seen.setdefault(name, []).append(sample(whole.reshape(1, -1))[0])
        return self.quantizer.activation(name, x, whole)
