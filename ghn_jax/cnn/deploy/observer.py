"""What a network's layers see: statistics of everything that is normalised or quantized, for one batch.

After `executor.forward` every value lies in its slot, so this is a second walk over the instruction table
that only reads, with a quantizer that takes notes. Tensors are numbered as their layers' weights are
(`Layout.tensors`): parts of a concatenation share a number, and with it one range and one histogram.

Axes: R instructions | T tensors | B bins | C channels, of the widest tape | N images.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ghn_jax.cnn import head, ops
from ghn_jax.cnn.capacity import Segment
from ghn_jax.cnn.instructions import Kind, Norm
from ghn_jax.cnn.packing import TapeShape
from ghn_jax.cnn.program import Layout, Program
from ghn_jax.cnn.quantizer import Quantization, Quantizer, Sizes
from ghn_jax.cnn.slots import read_weights, switch
from ghn_jax.cnn.tables import OP, SRC, WEIGHTS, ArrayOrNumpy, Bits, Ranges, Tables
from ghn_jax.cnn.tape_layout import TapeLayout, layout_of, ungrouped
from ghn_jax.cnn.weights import get_page, pages
from ghn_jax.quant.activations import quantize_activation
from ghn_jax.quant.policy import FLOAT_BITS
from ghn_jax.quant.ranges import min_max, power
from ghn_jax.quant.scheme import Scheme

BINS = 1024  # of a histogram
_SAMPLES = 1 << 15  # values of an activation and batch that a histogram counts, at most: scatters are slow


class Index(NamedTuple):
    """Which tensor an instruction quantizes: rows int32 [R, 2], head int32 [2]; T - 1 for none."""

    rows: ArrayOrNumpy
    head: ArrayOrNumpy


class Activations(NamedTuple):
    """Of one batch, each [T]: range, sum of squares, sum of squares of the rounding error.

    count: of values other than 0.
    histogram: [T, B], of values other than 0, over bins that divide `bounds` [T, 2] evenly; what lies beyond
    counts in the outermost.
    """

    lo: ArrayOrNumpy
    hi: ArrayOrNumpy
    signal: ArrayOrNumpy
    noise: ArrayOrNumpy
    count: ArrayOrNumpy
    histogram: ArrayOrNumpy


class Moments(NamedTuple):
    """What enters each normalisation: mean and (biased) variance of every channel, [R, C]."""

    mean: ArrayOrNumpy
    variance: ArrayOrNumpy


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
    """Stands in for a `Quantizer` and remembers what it was asked to quantize, and what it made of it."""

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
    """The fields of `Activations` for one tensor."""
    x, rounded = ops.wide(x), ops.wide(rounded)
    flat = x.ravel()
    step = -(-flat.size // _SAMPLES)
    while math.gcd(step, x.shape[-1]) > 1:  # it visits every channel
        step += 1
    sample = flat[::step]
    width = (bounds[1] - bounds[0]) / BINS
    bins = jnp.floor((sample - bounds[0]) / jnp.where(width > 0, width, 1))
    bins = jnp.clip(bins, 0, BINS - 1).astype(jnp.int32)
    histogram = jnp.zeros(BINS, x.dtype).at[bins].add((sample != 0).astype(x.dtype))
    error = rounded - x
    squares, count = power(x)
    return (*min_max(x), squares, jnp.sum(error * error), count, histogram)


def _zeros(n: int | None, dtype) -> tuple[Array, ...]:
    shape = () if n is None else (n,)
    return (*(jnp.zeros(shape, dtype) for _ in range(5)), jnp.zeros((*shape, BINS), dtype))


def _note(total: tuple[Array, ...], which: Array, notes: tuple[Array, ...]) -> tuple[Array, ...]:
    """Adds the notes on tensors `which` [K] to `total`."""
    lo, hi, *sums = total
    added = (t.at[which].add(n) for t, n in zip(sums, notes[2:], strict=True))
    return (lo.at[which].min(notes[0]), hi.at[which].max(notes[1]), *added)


def _sizes(tape: Array, scheme: Scheme, least: int) -> Sizes:
    """As the executor has them while it runs, for at least so many slots; taken anew, for the range of a
    group of slots is that of all of them.
    """
    widen = lambda x: jnp.pad(x, (0, max(0, least - x.size)))
    largest = widen(jnp.max(ops.wide(tape), (1, 2, 3, 4)))
    if scheme.activation_range != 'sigma':
        return Sizes(largest, None, None)
    return Sizes(largest, *map(widen, lax.map(lambda x: power(ops.relu(ops.wide(x))), tape)))


def observe(
    program: Program,
    weights: Array,
    tables: Tables,
    bits: Bits,
    images: Array,
    values: dict[TapeShape, Array],
    index: Index,
    bounds: Array,
    *,
    scheme: Scheme,
    ranges: Ranges | None,
) -> tuple[Activations, Moments]:
    """Read the tapes that `executor.forward` (mode 'qat', the other arguments the same) left in `values`.

    bounds: [T, 2], of the histograms.
    """
    layouts = {c: layout_of(c, images.shape[0]) for c in (*values, program.image_shape)}
    image_tape = layouts[program.image_shape].as_stored(
        images[None].astype(next(iter(values.values())).dtype)
    )
    values = ungrouped(values)
    tapes = {**values, program.image_shape: image_tape}
    sizes = {c: _sizes(tape, scheme, program.capacity.parts) for c, tape in tapes.items()}
    rows, of_head = (None, None) if ranges is None else ranges
    quantization = Quantization(scheme, bits.activations, program.capacity.parts, ranges=rows)
    has_norm, dtype = tables.has_norm.astype(weights.dtype), weights.dtype
    channels = max(c for _, c in program.tape_shapes)
    total = _zeros(program.capacity.tensors, dtype)
    moments = jnp.zeros((program.capacity.rows, 2, channels), dtype)
    for k, segment in enumerate(program.segments):
        kinds = sorted({op.observed for op in segment.ops}, key=str)
        branches = [_observer_of(kind, segment, layouts, scheme, has_norm, channels) for kind in kinds]
        which = np.array([kinds.index(op.observed) for op in segment.ops])

        def body(r, carry, src=segment.src, branches=branches, which=which):
            total, moments = carry
            row = tables.rows[r]
            q = quantization.quantizer(r, row, sizes[src])
            operand = layouts[src].operand(tapes[src], row[SRC])
            operands = operand, row, weights, q.scale, q.bits, q.ranges, bounds[index.rows[r]]
            notes, of_row = switch(jnp.asarray(which)[row[OP]], branches, *operands)
            return _note(total, index.rows[r], notes), moments.at[r].set(of_row)

        total, moments = lax.fori_loop(tables.bounds[k], tables.bounds[k + 1], body, (total, moments))

    features = head.features(program, tables.head, values, images.shape[0])
    _, residuals = head.logits(
        program, weights, tables.head, bits.head, features, scheme=scheme, key=None, ranges=of_head
    )
    notes = []
    for k, x in enumerate((features, head.activate(residuals))):
        ends = None if of_head is None else of_head[k]
        rounded = quantize_activation(x, bits.head[k], scheme, ends=ends)
        notes.append(describe(x, rounded, bounds[index.head[k]]))
    total = _note(total, index.head, jax.tree.map(lambda *n: jnp.stack(n), *notes))
    return Activations(*total), Moments(moments[:, 0], moments[:, 1])


def _observer_of(
    kind: Kind,
    segment: Segment,
    layouts: dict[TapeShape, TapeLayout],
    scheme: Scheme,
    has_norm: Array,
    channels: int,
) -> Callable:
    """Make the function that describes what one kind of instruction reads.

    It gives the notes on the two tensors that the kind may quantize, stacked, and moments [2, channels].
    """
    src, dst = layouts[segment.src], layouts[segment.dst]

    def observed(operand, row, flat, scale, bits, ranges, its_bounds):
        x = src.as_images(src.read(operand, row[SRC]))
        quantizer = _Notes(Quantizer(scheme, scale, bits, None, None, ranges))
        notes, moments = [_zeros(None, flat.dtype)] * 2, jnp.zeros((2, channels), flat.dtype)
        if isinstance(kind, Norm):
            mean = jnp.mean(ops.wide(x), (0, 1, 2))
            variance = jnp.mean(jnp.square(ops.wide(x) - mean), (0, 1, 2))
            moments = jnp.pad(jnp.stack([mean, variance]), ((0, 0), (0, channels - x.shape[-1])))
        else:
            w = read_weights(kind, segment, flat, row[WEIGHTS])
            kind.apply(x, w, quantizer, has_norm, dst.value_shape)
        for k, pair in quantizer.seen.items():
            notes[k] = describe(*pair, its_bounds[k])
        return jax.tree.map(lambda *n: jnp.stack(n), *notes), moments

    return observed


def weight_noise(flat: Array, quantized: Array, tables: Tables, n_tensors: int) -> tuple[Array, Array]:
    """Sum the squares of every weight tensor and of its rounding error, [T] each."""

    def page(p, sums):
        tensor, w, q = get_page(tables.block_tensor, p), get_page(flat, p), get_page(quantized, p)
        squares = jnp.sum(w * w, 1), jnp.sum(jnp.square(q - w), 1)
        return tuple(s.at[tensor].add(x) for s, x in zip(sums, squares, strict=True))

    zeros = jnp.zeros(n_tensors, flat.dtype)
    return lax.fori_loop(0, pages(tables), page, (zeros, zeros))
