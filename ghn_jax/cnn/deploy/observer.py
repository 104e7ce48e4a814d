"""What a network's layers see: statistics of everything that is normalised or quantized, for one batch.

After the executor's forward pass every value lies in its slot. So this is a second walk over the table of
instructions; it only reads, with a quantizer that records what passes through it. Which statistics are
computed is data (`Wanted`), so one program serves every choice. Tensors are numbered as their layers' weights
are (`Layout.tensors`): parts of a concatenation share a number, and with it one range and one histogram.

Axes: R instructions | T tensors | B bins | C channels, of the widest tape | N images.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

from ghn_jax.cnn import executor, head, ops
from ghn_jax.cnn.branches import NetworkRun
from ghn_jax.cnn.capacity import Segment
from ghn_jax.cnn.dispatch import read_weights, switch
from ghn_jax.cnn.executor import Tapes
from ghn_jax.cnn.head import HeadQuantization
from ghn_jax.cnn.instructions import Kind, Norm, Nothing
from ghn_jax.cnn.packing import TapeShape
from ghn_jax.cnn.program import Layout, Program
from ghn_jax.cnn.quantizer import Quantizer
from ghn_jax.cnn.tables import OP, SRC, WEIGHTS, ArrayOrNumpy, Bits, Ranges, RunnableNetwork
from ghn_jax.cnn.tape_layout import grouped_like, ungrouped
from ghn_jax.cnn.weight_quantization import get_page, pages
from ghn_jax.quant.policy import FLOAT_BITS
from ghn_jax.quant.ranges import min_max, power
from ghn_jax.quant.scheme import Scheme

BINS = 1024  # of a histogram
_SAMPLES = 1 << 15  # values of an activation and batch that a histogram counts, at most: scatters are slow


class Index(NamedTuple):
    """Which tensor an instruction quantizes: rows int32 [R, 2], head int32 [2]; T - 1 for none."""

    rows: ArrayOrNumpy
    head: ArrayOrNumpy


class Wanted(NamedTuple):
    """Which statistics are computed: bool [] each, and the bounds of histograms. All others are 0.

    Attributes:
      moments: of what is normalised.
      activations: ranges and sums of squares of what is quantized; without them, neither of the next two.
      noise: the sums of squares of the rounding error.
      bounds: float [T, 2], of histograms; a tensor whose two bounds are equal has none.
    """

    moments: ArrayOrNumpy
    activations: ArrayOrNumpy
    noise: ArrayOrNumpy
    bounds: ArrayOrNumpy


class Activations(NamedTuple):
    """What enters the layers of a network in one batch, [T] each.

    Attributes:
      lo, hi: the range.
      signal: the sum of squares.
      noise: the sum of squares of the rounding error.
      count: of values other than 0.
      histogram: [T, B], of values other than 0, over bins that divide the bounds evenly; what lies beyond
        counts in the outermost.
    """

    lo: ArrayOrNumpy
    hi: ArrayOrNumpy
    signal: ArrayOrNumpy
    noise: ArrayOrNumpy
    count: ArrayOrNumpy
    histogram: ArrayOrNumpy


class RowMoments(NamedTuple):
    """What enters each normalisation: mean and (biased) variance of every channel, [R, C]."""

    mean: ArrayOrNumpy
    variance: ArrayOrNumpy


def make_wanted(
    program: Program,
    *,
    moments: bool = False,
    activations: bool = False,
    noise: bool = False,
    bounds: np.ndarray | None = None,
) -> Wanted:
    """Choose the statistics for networks of a program; without bounds [T, 2], there are no histograms."""
    if bounds is None:
        bounds = np.zeros((program.capacity.tensors, 2), np.float32)
    return Wanted(np.asarray(moments), np.asarray(activations), np.asarray(noise), bounds)


def make_index(program: Program, layout: Layout) -> Index:
    """Number the tensors that the instructions of a network quantize."""
    rows = np.full((program.capacity.rows, 2), program.capacity.tensors - 1, np.int32)
    for r, instruction in enumerate(layout.instructions):
        for k, name in enumerate(instruction.quantized):
            rows[r, k] = layout.tensors[name]
    heads = np.full(2, program.capacity.tensors - 1, np.int32)
    for k, name in enumerate(layout.head_weights):
        heads[k] = layout.tensors[name]
    return Index(rows, heads)


def make_ranges(index: Index, lo: np.ndarray, hi: np.ndarray) -> Ranges:
    """Spread ranges lo, hi [T] of tensors over the instructions, as the executor reads them."""
    each = np.stack([lo, hi], -1)
    return Ranges(each[index.rows], each[index.head])


def tensor_bits(index: Index, bits: Bits) -> np.ndarray:
    """Return the bits of the activation with each number, int32 [T]; 32 where there is none."""
    out = np.full(len(bits.weights), FLOAT_BITS, np.int32)
    out[index.rows], out[index.head] = bits.activations, bits.head
    return out


def any_rounded(bits: Bits) -> bool:
    """Return whether a policy rounds anything."""
    return any(bool(np.any(np.asarray(b) < FLOAT_BITS)) for b in bits)


class _Notes:
    """Stands in for a `Quantizer`, and keeps each tensor that it quantizes, before and after."""

    def __init__(self, quantizer: Quantizer):
        self.quantizer = quantizer
        self.seen: dict[int, tuple[Array, Array]] = {}
        self.axis = None  # of a mesh: batches are observed whole

    def quantize_relu(self, x: Array) -> Array:
        self.seen[0] = x, self.quantizer.quantize_relu(x)
        return self.seen[0][1]

    def quantize(self, x: Array, which: int) -> Array:
        self.seen[which] = x, self.quantizer.quantize(x, which)
        return self.seen[which][1]


def describe(x: Array, rounded: Array, bounds: Array) -> tuple[Array, ...]:
    """Return the fields of `Activations` for one tensor."""
    return _fields(_size(x), _noise(x, rounded), _histogram(x, bounds))


def _fields(size: tuple[Array, ...], noise: Array, histogram: Array) -> tuple[Array, ...]:
    lo, hi, signal, count = size
    return lo, hi, signal, noise, count, histogram


def _size(x: Array) -> tuple[Array, ...]:
    """Range, sum of squares, and how many values are not 0."""
    return *min_max(ops.wide(x)), *power(ops.wide(x))


def _noise(x: Array, rounded: Array) -> Array:
    return jnp.sum(jnp.square(ops.wide(rounded) - ops.wide(x)))


def _histogram(x: Array, bounds: Array) -> Array:
    x = ops.wide(x)
    flat = x.ravel()
    step = -(-flat.size // _SAMPLES)
    while math.gcd(step, x.shape[-1]) > 1:  # it visits every channel
        step += 1
    sample = flat[::step]
    width = (bounds[1] - bounds[0]) / BINS
    bins = jnp.floor((sample - bounds[0]) / jnp.where(width > 0, width, 1))
    bins = jnp.clip(bins, 0, BINS - 1).astype(jnp.int32)
    return jnp.zeros(BINS, x.dtype).at[bins].add((sample != 0).astype(x.dtype))


def _notes_on(
    seen: Callable[[], list[tuple[Array, Array]]], wanted: Wanted, bounds: Array, dtype: DTypeLike
) -> tuple[Array, ...]:
    """Return the fields of `Activations` for two tensors, [2, ...] each; noise and histograms where wanted.

    Args:
      seen: returns (tensor, rounded) of one tensor or two. It is called inside each branch that reads them: a
        tensor that is passed to a conditional is computed, and copied, whether its branch reads it or not.
      wanted: its bounds are not read.
      bounds: [2, 2], of the histograms.
      dtype: of the notes.
    """
    empty = jnp.zeros(1, dtype)
    stacked = lambda notes: jax.tree.map(lambda *n: jnp.stack(n), *notes)

    def noted(note: Callable[[int, Array, Array], Any]) -> Any:
        return stacked([note(k, *pair) for k, pair in enumerate([*seen(), (empty, empty)][:2])])

    def where(condition: Array, note: Callable[[int, Array, Array], Any]) -> Any:
        nothing = jax.tree.map(lambda n: jnp.zeros(n.shape, n.dtype), jax.eval_shape(lambda: noted(note)))
        return lax.cond(condition, lambda: noted(note), lambda: nothing)

    size = noted(lambda _, x, rounded: _size(x))
    noise = where(wanted.noise, lambda _, x, rounded: _noise(x, rounded))
    histogram = where(jnp.any(bounds[:, 0] < bounds[:, 1]), lambda k, x, _: _histogram(x, bounds[k]))
    return _fields(size, noise, histogram)


def _zeros(n: int, dtype: DTypeLike) -> tuple[Array, ...]:
    return (*(jnp.zeros(n, dtype) for _ in range(5)), jnp.zeros((n, BINS), dtype))


def _note(total: tuple[Array, ...], which: Array, notes: tuple[Array, ...]) -> tuple[Array, ...]:
    """Add the notes on tensors `which` [K] to `total`."""
    lo, hi, *sums = total
    added = (t.at[which].add(n) for t, n in zip(sums, notes[2:], strict=True))
    return (lo.at[which].min(notes[0]), hi.at[which].max(notes[1]), *added)


def observe(
    program: Program,
    network: RunnableNetwork,
    images: Array,
    tapes: Tapes,
    index: Index,
    wanted: Wanted,
    *,
    scheme: Scheme,
) -> tuple[Activations, RowMoments, Tapes]:
    """Run one network as `executor.forward` does, and compute statistics.

    Args:
      program, network, images, tapes, scheme: as for `executor.forward`, in mode 'qat'.
      index: of the network's tensors.
      wanted: which statistics.

    Returns:
      The statistics; the tapes, with the network's values.
    """
    run, of_head = executor.start(program, network, images, scheme=scheme)
    weights, tables = network.weights, network.tables
    values, sizes, _ = executor.run_forward(run, ungrouped(tapes.values))
    read = {**values, program.image_shape: run.image_tape(values)}
    channels = max(c for _, c in program.tape_shapes)
    total = _zeros(program.capacity.tensors, weights.dtype)
    moments = jnp.zeros((program.capacity.rows, 2, channels), weights.dtype)
    for k, segment in enumerate(program.segments):
        src, layout = segment.src, run.layout(segment.src)
        kinds = sorted({Nothing(), *(op.observed for op in segment.ops)}, key=str)
        branches = [_observer_of(kind, run, segment, wanted, channels) for kind in kinds]
        which = _branches_of(segment, kinds, wanted)

        def body(r, carry, src=src, layout=layout, branches=branches, which=which):
            total, moments = carry
            row, q = run.at(r, sizes[src])
            given = layout.operand(read[src], row[SRC]), row, weights, q.scale, q.bits, q.ranges
            notes, of_row = switch(which[row[OP]], branches, *given, wanted.bounds[index.rows[r]])
            return _note(total, index.rows[r], notes), moments.at[r].set(of_row)

        total, moments = lax.fori_loop(tables.bounds[k], tables.bounds[k + 1], body, (total, moments))
    total = _note(total, index.head, _notes_on_head(run, of_head, values, wanted, index))
    tapes = tapes._replace(values=grouped_like(values, tapes.values))
    return Activations(*total), RowMoments(moments[:, 0], moments[:, 1]), tapes


def _notes_on_head(
    run: NetworkRun,
    quantization: HeadQuantization,
    values: dict[TapeShape, Array],
    wanted: Wanted,
    index: Index,
) -> tuple[Array, ...]:
    """Return the fields of `Activations` for what the linear layers read, [2, ...] each."""
    program, dtype, table = run.program, run.weights.dtype, run.tables.head
    features = head.features(program, table, values, run.images.shape[0])
    _, residuals = head.logits(program, run.weights, table, features, quantization)
    inputs = features, head.activate(residuals)
    seen = lambda: [(x, quantization.quantize(x, k)) for k, x in enumerate(inputs)]
    notes = lambda: _notes_on(seen, wanted, wanted.bounds[index.head], dtype)
    return lax.cond(wanted.activations, notes, lambda: _zeros(2, dtype))


def _branches_of(segment: Segment, kinds: Sequence[Kind], wanted: Wanted) -> Array:
    """Return the branch of each op: that of its observed kind, or that of `Nothing` where none is wanted."""
    is_wanted = jnp.stack([wanted.moments if kind == Norm() else wanted.activations for kind in kinds])
    which = np.array([kinds.index(op.observed) for op in segment.ops])
    return jnp.where(is_wanted[which], which, kinds.index(Nothing()))


def _observer_of(kind: Kind, run: NetworkRun, segment: Segment, wanted: Wanted, channels: int) -> Callable:
    """Make the function that describes what one kind of instruction reads.

    It gives the notes on the two tensors that the kind may quantize, stacked, and moments [2, channels].
    """
    src, dst = run.layout(segment.src), run.layout(segment.dst)
    scheme, has_norm = run.quantization.scheme, run.has_norm()

    def observed(operand, row, flat, scale, bits, ranges, bounds):
        read = lambda: src.as_images(src.read(operand, row[SRC]))

        def seen():
            quantizer = _Notes(Quantizer(scheme, scale, bits, None, None, ranges))
            w = read_weights(kind, segment, flat, row[WEIGHTS])
            kind.apply(read(), w, quantizer, has_norm, dst.value_shape)
            return [quantizer.seen[k] for k in sorted(quantizer.seen)]

        notes, moments = _zeros(2, flat.dtype), jnp.zeros((2, channels), flat.dtype)
        if kind == Norm():
            x = ops.wide(read())
            mean = jnp.mean(x, (0, 1, 2))
            variance = jnp.mean(jnp.square(x - mean), (0, 1, 2))
            moments = jnp.pad(jnp.stack([mean, variance]), ((0, 0), (0, channels - x.shape[-1])))
        elif kind.quantizes:
            notes = _notes_on(seen, wanted, bounds, flat.dtype)
        return notes, moments

    return observed


def weight_noise(network: RunnableNetwork, quantized: Array) -> tuple[Array, Array]:
    """Sum the squares of every weight tensor and of its rounding error, [T] each.

    quantized: [F], the network's weights when they are rounded.
    """
    flat, tables = network.weights, network.tables

    def page(p, sums):
        tensor, w, q = get_page(tables.block_tensor, p), get_page(flat, p), get_page(quantized, p)
        squares = jnp.sum(w * w, 1), jnp.sum(jnp.square(q - w), 1)
        return tuple(s.at[tensor].add(x) for s, x in zip(sums, squares, strict=True))

    zeros = jnp.zeros(len(network.bits.weights), flat.dtype)
    return lax.fori_loop(0, pages(tables), page, (zeros, zeros))
