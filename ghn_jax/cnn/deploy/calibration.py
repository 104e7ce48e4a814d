"""From what calibration images show to a network that no longer depends on its batch; on the host.

Two things of a batch are fixed: the statistics of its normalisations, folded into the weights, and the ranges
of its activations. Every normalisation of a network follows one convolution (of all parts, where it reads a
concatenation) and nothing else reads what is between, so all of them fold. A folded network is the same
program with other weights and `has_norm` 0: its normalisations only add their shift.

Folding changes the weights that are rounded, and rounding moves the mean and the variance of every channel.
`corrected` statistics are those of the rounded network, with weights on the grids that they were trained on.
They stay beside the convolution as a factor and a shift for each channel (`fix`): a device multiplies every
channel by a factor of its own anyway when it rescales an accumulator.

Axes: K calibration batches | R instructions | T tensors | B bins | C channels | F floats of the buffer.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ghn_jax.base.errors import UserError, shown
from ghn_jax.cnn.batch_norm import EPSILON
from ghn_jax.cnn.deploy.observer import BINS, Activations, RowMoments
from ghn_jax.cnn.instructions import Norm
from ghn_jax.cnn.lowering import Instruction
from ghn_jax.cnn.packing import BLOCK, piece_view
from ghn_jax.cnn.program import Layout
from ghn_jax.cnn.tables import WEIGHTS, Tables
from ghn_jax.quant.activations import clip_range
from ghn_jax.quant.grid import fake_quantize
from ghn_jax.quant.policy import FLOAT_BITS
from ghn_jax.quant.scheme import QAT, Scheme

RANGE_RULE = 'moving_average'
RANGE_RULES = ('min_max', 'moving_average', 'percentile', 'mse')
HISTOGRAM_RULES = ('percentile', 'mse')
MOMENTUM = 0.9  # of moving_average: the share of the ranges of the batches before
PERCENTILE = 99.9  # of an activation's non-zero values, that lie inside of its range
_CLIPS = np.linspace(1, 0.05, 39)  # shares of the range of all values that mse tries


def check_rule(rule: str) -> None:
    """Raise UserError for what is none of `RANGE_RULES`."""
    if rule not in RANGE_RULES:
        raise UserError(f'range rule {shown(rule)}: expected one of {", ".join(RANGE_RULES)}')


def pooled(moments: RowMoments) -> RowMoments:
    """Join the moments [R, C] of all batches from those of each, [K, R, C]; exact for batches of one size."""
    mean = np.mean(moments.mean, 0, dtype=np.float64)
    between = np.mean(np.square(moments.mean - mean), 0)
    return RowMoments(mean, np.mean(moments.variance, 0, dtype=np.float64) + between)


def fold(layout: Layout, flat: np.ndarray, moments: RowMoments) -> tuple[np.ndarray, Tables]:
    """Fold normalisations by `moments` [R, C] into a network: its weights [F], and tables.

    With m, v, scale and shift of a normalisation and g = scale / sqrt(v + eps): the weights of the
    convolution before it are multiplied by g for each output channel, scale becomes 1 and shift becomes
    shift - m g (arXiv 1712.05877, eq. 14). A network without normalisation stays as it is.
    """
    flat, tables = fix(layout, flat, moments)
    if not layout.tables.has_norm:
        return flat, tables
    gains = {}  # of each value that a normalisation reads
    for r, instruction in _norms(layout):
        scale, _ = _views(layout, flat, r)
        gains[instruction.src] = scale[0, 0].copy()
        scale[:] = 1
    for r, instruction in enumerate(layout.instructions):
        if instruction.dst in gains:
            views = _views(layout, flat, r)[instruction.op.normed]
            # Those of a FactorizedReduce, side by side, have half of the channels each.
            for view, gain in zip(views, np.split(gains[instruction.dst], len(views))):
                view *= gain
    return flat, tables


def fix(layout: Layout, flat: np.ndarray, moments: RowMoments) -> tuple[np.ndarray, Tables]:
    """Replace normalisations by what they are with fixed `moments` [R, C]: a factor and a shift by channel.

    Returns the weights [F] and the tables of that network.
    """
    flat = np.array(flat)
    if not layout.tables.has_norm:
        return flat, layout.tables
    for r, _ in _norms(layout):
        scale, shift = (view[0, 0] for view in _views(layout, flat, r))
        scale /= np.sqrt(moments.variance[r, : len(scale)] + EPSILON)
        shift -= moments.mean[r, : len(scale)] * scale
    return flat, layout.tables._replace(has_norm=np.float32(0))


def _norms(layout: Layout) -> list[tuple[int, Instruction]]:
    return [(r, i) for r, i in enumerate(layout.instructions) if i.op == Norm()]


def _views(layout: Layout, flat: np.ndarray, r: int) -> list[np.ndarray]:
    """View the weights of instruction r, [taps, rows, columns] each."""
    block, views = int(layout.tables.rows[r, WEIGHTS]), []
    for piece in layout.instructions[r].pieces:
        views.append(piece_view(flat, block, piece))
        block += piece.size // BLOCK
    return views


def activation_ranges(
    rule: str, seen: Activations, bits: np.ndarray, bounds: np.ndarray, scheme: Scheme = QAT
) -> tuple[np.ndarray, np.ndarray]:
    """Find (lo, hi), float32 [T] each, from what each of K batches showed: fields [K, T, ...].

    rule: 'min_max', of all values; 'moving_average', of the ranges that the batches have by the scheme, as in
    training; 'percentile', without the extreme values on either side; 'mse', the range of all values narrowed
    by the factor that makes the squared error of rounding and clipping least at bits [T]. The last two read
    histograms over bounds [T, 2].
    """
    lo, hi = seen.lo.min(0), seen.hi.max(0)
    if rule == 'moving_average':
        extremes = jnp.asarray(seen.lo), jnp.asarray(seen.hi)
        power = jnp.asarray(seen.signal), jnp.asarray(seen.count)
        lows, highs = map(np.asarray, clip_range(*extremes, power, jnp.asarray(bits), scheme))
        lo, hi = lows[0], highs[0]
        for batch in zip(lows[1:], highs[1:], strict=True):
            lo, hi = (MOMENTUM * a + (1 - MOMENTUM) * b for a, b in zip((lo, hi), batch))
    elif rule == 'percentile':
        lo, hi = _percentiles(seen.histogram.sum(0), bounds)
    elif rule == 'mse':
        lo, hi = _least_error(seen.histogram.sum(0), bounds, bits)
    return np.minimum(lo, 0).astype(np.float32), np.maximum(hi, 0).astype(np.float32)


def _percentiles(histogram: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the edges of bins beyond which lie (100 - PERCENTILE) % of the values, half of them on either side
    where there are values on both.
    """
    total = histogram.sum(1, keepdims=True)
    both = (bounds[:, :1] < 0) & (bounds[:, 1:] > 0)
    tail = total * (1 - PERCENTILE / 100) / np.where(both, 2, 1)
    below = np.cumsum(histogram, 1)
    first = np.argmax(below > tail, 1)
    last = BINS - 1 - np.argmax(np.cumsum(histogram[:, ::-1], 1) > tail, 1)
    width = (bounds[:, 1] - bounds[:, 0]) / BINS
    empty = total[:, 0] == 0
    lo, hi = bounds[:, 0] + first * width, bounds[:, 0] + (last + 1) * width
    return np.where(empty, bounds[:, 0], lo), np.where(empty, bounds[:, 1], hi)


def _least_error(
    histogram: np.ndarray, bounds: np.ndarray, bits: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    lo, hi = bounds[:, 0].copy(), bounds[:, 1].copy()
    for t in np.flatnonzero((bits < FLOAT_BITS) & (hi > lo) & (histogram.sum(1) > 0)):
        clip = _CLIPS[np.argmin(_errors(histogram[t], lo[t], hi[t], bits[t]))]
        lo[t], hi[t] = clip * lo[t], clip * hi[t]
    return lo, hi


@jax.jit
def _errors(histogram: Array, lo: Array, hi: Array, bits: Array) -> Array:
    """Compute the squared error of rounding what a histogram [B] over [lo, hi] counts, for every clip."""
    x = lo + (hi - lo) * (jnp.arange(BINS, dtype=histogram.dtype) + 0.5) / BINS
    clips = jnp.asarray(_CLIPS, x.dtype)[:, None]
    rounded = fake_quantize(jnp.broadcast_to(x, (clips.size, BINS)), clips * lo, clips * hi, bits)
    return jnp.sum(jnp.square(rounded - x) * histogram, 1)


def decibels(signal: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Return 10 log10(signal / noise); not a number where either is 0."""
    known = (signal > 0) & (noise > 0)
    ratio = np.divide(signal, noise, out=np.full(np.shape(signal), np.nan), where=known)
    return 10 * np.log10(ratio)
