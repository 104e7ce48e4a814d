"""Runs any network of a program's space, forward and backward, in code that was compiled once.

Axes: N images | S slots | H size, C channels | F floats of the weight buffer | L classes | R instructions.

A tape for each shape (H, C) holds the network's values, a second one their gradients, as `tape_layout` lays
them out. For each segment a loop walks the rows of the instruction table; `lax.switch` picks the op, at exact
static shapes. Backward, the tables are walked in reverse; each op is recomputed from its taped input and
differentiated. Loss and gradients are one function: differentiating the loops from outside would store every
branch's residuals. `sizes[c]` keeps the maximum of every value on tape c (and what the scheme's ranges need
besides): relu(x) has the range [0, max], so no op needs a pass over its input to quantize it, and a
concatenation's joint range is the maximum over its parts. On a CPU norms are no branches of a switch, but
done on the tape (`tape_norms`).

Three rules keep the tapes from being copied (XLA would copy gigabytes for every instruction): results are
written outside the switch, each buffer has one read-modify-write in an iteration, and barriers stand
between reading and writing (on a GPU only where a conditional does not part them anyway: see `branches`).

Tapes may be bfloat16: what every op reads and writes then is. Sums (of norms, convolutions, pools), ranges,
rounding, the classifier, and weights and their gradients outside the ops stay float32.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.typing import DTypeLike

from ghn_jax.base import collectives
from ghn_jax.base.backends import kernels_are_launches
from ghn_jax.cnn import head, tape_norms
from ghn_jax.cnn.branches import NetworkRun, backward_of, forward_of, padding_groups
from ghn_jax.cnn.capacity import Segment
from ghn_jax.cnn.dispatch import switch, visit_one
from ghn_jax.cnn.packing import BLOCK, TapeShape
from ghn_jax.cnn.program import Program
from ghn_jax.cnn.quantizer import Quantization, ValueSizes, with_sizes
from ghn_jax.cnn.shared_branches import branches_of
from ghn_jax.cnn.tables import (
    ACCUMULATE,
    DST,
    G_DST,
    G_SRC,
    SEEN,
    SRC,
    WEIGHTS,
    RunnableNetwork,
)
from ghn_jax.cnn.tape_layout import add_to_slot, grouped_like, layout_of, read_slot, set_slot, ungrouped
from ghn_jax.quant.scheme import FLOAT, Scheme


class Tapes(NamedTuple):
    """Buffers that survive from one network to the next: filling gigabytes with zeros costs a second.

    Their contents mean nothing between calls. values, gradients: tapes by tape shape, as `tape_layout` has
    them (of gradients there are fewer slots: they are used again); weights: [F].
    """

    values: dict[TapeShape, Array]
    gradients: dict[TapeShape, Array]
    weights: Array


def make_tapes(program: Program, batch: int, dtype: DTypeLike = jnp.float32, *, train: bool = True) -> Tapes:
    """Make zero-filled buffers for batches of `batch` images; without gradients unless `train`.

    dtype: of values and their gradients, float32, bfloat16 or float64.
    """

    def zeros(slots: dict[TapeShape, int]) -> dict[TapeShape, Array]:
        shape = lambda c: layout_of(c, batch).shape(slots[c])
        return {c: jnp.zeros(shape(c), dtype) for c in slots}

    floats = program.capacity.blocks * BLOCK
    weights = jnp.zeros(floats if train else 1, jnp.promote_types(dtype, jnp.float32))
    return Tapes(zeros(program.slots), zeros(program.gradient_slots) if train else {}, weights)


def start(
    program: Program,
    network: RunnableNetwork,
    images: Array,
    *,
    scheme: Scheme,
    key: Array | None = None,
    axis: str | None = None,
) -> tuple[NetworkRun, head.HeadQuantization]:
    """Return what stays the same in one run, and how the head quantizes; for the arguments see `forward`."""
    bits = network.bits
    rows, of_head = (None, None) if network.ranges is None else network.ranges
    quantization = Quantization(scheme, bits.activations, program.capacity.parts, key, axis, rows)
    run = NetworkRun(program, network.weights, network.tables, images, quantization)
    return run, head.HeadQuantization(scheme, bits.head, key, axis, of_head)


def forward(
    program: Program,
    network: RunnableNetwork,
    images: Array,
    tapes: Tapes,
    *,
    scheme: Scheme = FLOAT,
    key: Array | None = None,
    axis: str | None = None,
) -> tuple[Array, Tapes]:
    """Run one network: logits [N, L], and the tapes with its values.

    Args:
      network: its weights already quantized (`quantize_weights`).
      images: [N, H, H, 3], normalised.
      tapes: written over.
      scheme: static; bits matter in its modes 'qat' and 'noise' only.
      key: for 'noise'.
      axis: a mesh axis whose devices run this network together, each on its part of the batch.
    """
    run, of_head = start(program, network, images, scheme=scheme, key=key, axis=axis)
    values, _, _ = run_forward(run, ungrouped(tapes.values))
    features = head.features(program, run.tables.head, values, images.shape[0])
    logits, _ = head.logits(program, run.weights, run.tables.head, features, of_head)
    return logits, tapes._replace(values=grouped_like(values, tapes.values))


def loss_and_gradients(
    program: Program,
    network: RunnableNetwork,
    images: Array,
    labels: Array,
    tapes: Tapes,
    *,
    scheme: Scheme = FLOAT,
    key: Array | None = None,
    dropout: float = 0.0,
    axis: str | None = None,
) -> tuple[Array, Array, Array, Tapes]:
    """Run one network forward and backward.

    Gradient elements outside the network's pieces are arbitrary.

    Args:
      network: as for `forward`, without ranges.
      images, tapes, scheme: see `forward`.
      labels: int32 [N], or [N, L] the probability of each class.
      key: for noise and dropout.
      dropout: rate after the hidden layer of two-layer heads.
      axis: a mesh axis whose devices run this network together, each on its part of the batch: loss and
        gradient are then this device's shares, whose sums are the batch's.

    Returns:
      Mean cross-entropy [] in nats, logits [N, L], gradient [F] of the loss to `weights`, tapes.
    """
    run, of_head = start(program, network, images, scheme=scheme, key=key, axis=axis)
    own_key = collectives.own_key(key, axis)
    run = run._replace(quantization=run.quantization._replace(key=own_key))
    values, sizes, kept = run_forward(run, ungrouped(tapes.values))

    classifier = program, network.weights, network.tables.head
    features, to_slots = head.features_vjp(program, network.tables.head, values, images.shape[0])
    logits, residuals = head.logits(*classifier, features, of_head, dropout=dropout)
    loss, g_logits = jax.value_and_grad(_cross_entropy)(logits, labels, axis)
    g_features, g_weights = head.logits_backward(*classifier, residuals, of_head, g_logits, tapes.weights)
    running = Tapes(values, to_slots(g_features, ungrouped(tapes.gradients)), g_weights)
    for segment in reversed(range(len(program.segments))):
        running = _run_backward(run, segment, sizes, kept, running)
    values, gradients = grouped_like(values, tapes.values), grouped_like(running.gradients, tapes.gradients)
    return loss, logits, running.weights, Tapes(values, gradients, running.weights)


def _cross_entropy(logits: Array, labels: Array, axis: str | None) -> Array:
    classes_are_given = labels.ndim == 1
    entropy = (
        optax.softmax_cross_entropy_with_integer_labels if classes_are_given else optax.softmax_cross_entropy
    )
    loss = jnp.mean(entropy(logits, labels))
    return loss if axis is None else loss / collectives.size(axis)


def _in_switch_and_apart(segment: Segment) -> tuple[list[int], list[int]]:
    """Number the ops of a segment that are branches of its switch, and those that stand apart."""
    apart = [o for o, op in enumerate(segment.ops) if tape_norms.stand_apart(op)]
    return [o for o in range(len(segment.ops)) if o not in apart], apart


def run_forward(
    run: NetworkRun, values: dict[TapeShape, Array]
) -> tuple[dict[TapeShape, Array], dict[TapeShape, ValueSizes], Array | None]:
    """Fill the value tapes. Returns them with the sizes of their values (given ranges, none is measured), and
    what `tape_norms` keeps of each norm. values: tapes, not grouped.
    """
    program, tables, quantization = run.program, run.tables, run.quantization
    values = dict(values)
    values[program.image_shape] = run.image_tape(values)
    sizes = {c: quantization.no_sizes(tape.shape[0], run.weights.dtype) for c, tape in values.items()}
    has_norm, kept = run.has_norm(), tape_norms.no_normalizers(program, run.weights.dtype)

    for k, segment in enumerate(program.segments):
        src, dst = segment.src, segment.dst
        in_switch, apart = _in_switch_and_apart(segment)
        found = branches_of(segment, in_switch)
        branches = [forward_of(run, segment, branch, has_norm) for branch in found]

        def run_switch(r, carry, which, src=src, dst=dst, branches=branches):
            tape, dst_sizes, kept = carry
            row = tables.rows[r]
            read, source = (dst_sizes, tape) if src == dst else (sizes[src], values[src])
            operand = run.layout(src).operand(source, row[SRC])
            y = switch(which, branches, operand, run.for_branches(r, read), run.weights)
            with jax.named_scope('sum'):
                y = _sum(tape, y, row)
            if quantization.measures:
                dst_sizes = with_sizes(dst_sizes, y, row[DST], quantization.axis)
            return set_slot(tape, y, row[DST]), dst_sizes, kept

        def normalize(r, carry, which, segment=segment):
            return tape_norms.normalize(run, segment, r, *carry)

        groups = (([branch.numbers for branch in found], run_switch), ([(o,) for o in apart], normalize))
        body = functools.partial(visit_one, groups, tables.rows)
        with jax.named_scope(f'forward_{k}'):
            values[dst], sizes[dst], kept = lax.fori_loop(
                tables.bounds[k], tables.bounds[k + 1], body, (values[dst], sizes[dst], kept)
            )
    del values[program.image_shape]
    return values, sizes, kept


def _sum(tape: Array, y: Array, row: Array) -> Array:
    """Add what lies in the slot that y goes to, if the instruction accumulates.

    Apart from what follows: fused with the maximum of y, it would read the tape again after the write, and
    XLA would keep a copy of the whole tape for that. A conditional does it; but it takes a GPU longer than
    reading a slot for nothing.
    """
    if kernels_are_launches():
        return lax.optimization_barrier(y + jnp.where(row[ACCUMULATE] > 0, read_slot(tape, row[DST]), 0))
    add = lambda tape, y: read_slot(tape, row[DST]) + y
    return lax.cond(row[ACCUMULATE] > 0, add, lambda tape, y: y, tape, y)


def _run_backward(
    run: NetworkRun, number: int, sizes: dict[TapeShape, ValueSizes], kept: Array | None, tapes: Tapes
) -> Tapes:
    """Walk a segment in reverse. Returns the tapes with its gradients, of values and of weights."""
    segment, tables = run.program.segments[number], run.tables
    src, dst = segment.src, segment.dst
    from_image = src == run.program.image_shape
    src_tape = run.image_tape(tapes.values) if from_image else tapes.values[src]
    has_norm = run.has_norm()
    start, stop = tables.bounds[number], tables.bounds[number + 1]

    def run_switch(r, carry, which, branches, padded):
        """Differentiate instruction r by branch number `which`; pad weight gradients to `padded` floats."""
        g_dst, g_src, g_flat = carry
        row = tables.rows[r]
        operand = run.layout(src).operand(src_tape, row[SRC])
        g = g_dst if kernels_are_launches() else lax.optimization_barrier(read_slot(g_dst, row[G_DST]))
        given = run.for_branches(r, sizes[src])
        g_w, g_x = lax.optimization_barrier(switch(which, branches, operand, given, run.weights, g))
        if padded:
            g_flat = lax.dynamic_update_slice(g_flat, g_w, (row[WEIGHTS] * BLOCK,))
        if src == dst:
            g_dst = add_to_slot(g_dst, g_x, row[G_SRC], row[SEEN])
        elif not from_image:
            g_src = add_to_slot(g_src, g_x, row[G_SRC], row[SEEN])
        return g_dst, g_src, g_flat

    def normalize(r, carry, which):
        assert kept is not None  # ops that stand apart have left it
        g_dst, g_src, g_flat = carry
        g_dst, g_flat = tape_norms.differentiate(run, segment, r, src_tape, kept, g_dst, g_flat)
        return g_dst, g_src, g_flat

    in_switch, apart = _in_switch_and_apart(segment)
    groups: list[tuple[list[tuple[int, ...]], Callable]] = [([(o,) for o in apart], normalize)]
    for padded, members in padding_groups(segment, in_switch):
        found = branches_of(segment, members)
        branches = [backward_of(run, segment, branch, padded, has_norm) for branch in found]
        visit = functools.partial(run_switch, branches=branches, padded=padded)
        groups.append(([branch.numbers for branch in found], visit))

    def body(t, carry):
        return visit_one(groups, tables.rows, stop - 1 - (t - start), carry)

    crosses = src != dst and not from_image
    carry = (tapes.gradients[dst], tapes.gradients[src] if crosses else None, tapes.weights)
    with jax.named_scope(f'backward_{number}'):
        g_dst, g_src, g_flat = lax.fori_loop(start, stop, body, carry)
    gradients = {**tapes.gradients, dst: g_dst} | ({src: g_src} if crosses else {})
    return tapes._replace(gradients=gradients, weights=g_flat)
