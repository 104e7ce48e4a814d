"""What the branches of the executor's switches do: read, compute or differentiate one op, at static shapes.

Axes: N images | H size | F floats of the weight buffer.

On a CPU, what an instruction needs of its row is found once, before the switch, and what is read is kept
apart from what is computed of it. On a GPU every kernel is a launch, which takes longer than most of them
run: there, branches find it by themselves, in the kernels that use it.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from jax import Array, lax
from jax.typing import DTypeLike

from ghn_jax.base.backends import kernels_are_launches, on_cpu
from ghn_jax.cnn.capacity import Segment
from ghn_jax.cnn.packing import TapeShape
from ghn_jax.cnn.program import Program
from ghn_jax.cnn.quantizer import Quantization, Quantizer, ValueSizes
from ghn_jax.cnn.shared_branches import Branch
from ghn_jax.cnn.tables import G_DST, SRC, Tables
from ghn_jax.cnn.tape_layout import TapeLayout, layout_of, read_slot

_SMALL_GRADIENT = 16_384  # floats: padding to no more than these costs nothing


def _dtype(values: dict[TapeShape, Array]) -> DTypeLike:
    return next(iter(values.values())).dtype


class NetworkRun(NamedTuple):
    """What stays the same while one network runs over one batch.

    Attributes:
      program: that runs the network.
      weights: float [F].
      tables: integers that make the program run this network.
      images: float [N, H, H, 3], normalised.
      quantization: of its activations.
    """

    program: Program
    weights: Array
    tables: Tables
    images: Array
    quantization: Quantization

    def image_tape(self, values: dict[TapeShape, Array]) -> Array:
        """Return the tape of the images, of one slot, in the dtype of the values."""
        return self.layout(self.program.image_shape).as_stored(self.images[None].astype(_dtype(values)))

    def layout(self, tape_shape: TapeShape) -> TapeLayout:
        """Return the layout of a tape."""
        return layout_of(tape_shape, self.images.shape[0])

    def has_norm(self) -> Array:
        """Return 1.0 where the network has normalisations, else 0.0; []."""
        return self.tables.has_norm.astype(self.weights.dtype)

    def at(self, r: Array, sizes: ValueSizes) -> tuple[Array, Quantizer]:
        """Return row r of the table, and the quantizer of its instruction, which reads what has `sizes`."""
        row = self.tables.rows[r]
        return row, self.quantization.quantizer(r, row, sizes)

    def for_branches(self, r: Array, sizes: ValueSizes) -> tuple:
        """Return what the branches of a switch are given of instruction r; they read it by `in_branch`."""
        if kernels_are_launches():
            return r, sizes
        row, q = self.at(r, sizes)
        return row, (q.scale, q.bits, q.key, q.ranges)

    def in_branch(self, given: tuple) -> tuple[Array, Quantizer]:
        """Return what `at` returns, from what `for_branches` has given."""
        if kernels_are_launches():
            return self.at(*given)
        row, (scale, bits, key, ranges) = given
        scheme, axis = self.quantization.scheme, self.quantization.axis
        return row, Quantizer(scheme, scale, bits, key, axis, ranges)


def _read(values: tuple) -> tuple:
    """Keep what was read apart from what is computed of it, where that is no launch more."""
    return values if kernels_are_launches() else lax.optimization_barrier(values)


def padding_groups(segment: Segment, ops: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Group ops of a segment: [(floats that their weight gradients are padded to, their numbers)].

    The branches of a switch return gradients of one size. On a CPU, filling the 3 MB of the largest kernel
    for each norm of the segment took longer than the norm.
    """
    sizes = sorted((segment.ops[o].weight_floats(segment.src, segment.dst), o) for o in ops)
    groups: list[tuple[int, list[int]]] = []
    bound = 0.0
    for size, o in sizes:
        if not groups or size > bound:
            groups.append((size, []))
            bound = max(_SMALL_GRADIENT, 4 * size) if on_cpu() else math.inf
        groups[-1] = (size, [*groups[-1][1], o])
    return groups


def forward_of(run: NetworkRun, segment: Segment, branch: Branch, has_norm: Array) -> Callable:
    """Make the function that reads a slot and computes an op of it."""
    src, dst = run.layout(segment.src), run.layout(segment.dst)

    def forward(operand, given, flat):
        row, q = run.in_branch(given)
        x, w = _read((src.read(operand, row[SRC]), branch.read_weights(segment, flat, row)))
        return dst.as_stored(branch.kind.apply(src.as_images(x), w, q, has_norm, dst.value_shape))

    return forward


def backward_of(run: NetworkRun, segment: Segment, branch: Branch, padded: int, has_norm: Array) -> Callable:
    """Make the function that recomputes an op from its taped input and differentiates it.

    It gives the gradient to the weights, padded to `padded` floats, and to the input (None for images).
    """
    src, dst = run.layout(segment.src), run.layout(segment.dst)

    def backward(operand, given, flat, g):
        row, q = run.in_branch(given)
        g = read_slot(g, row[G_DST]) if kernels_are_launches() else g
        x, w, g = _read((src.read(operand, row[SRC]), branch.read_weights(segment, flat, row), g))
        # The quantizer is closed over, so ranges and bits get no gradient.
        apply = lambda w, x: branch.kind.apply(x, w, q, has_norm, dst.value_shape)
        _, pull = jax.vjp(apply, w, src.as_images(x))
        g_w, g_x = pull(dst.as_images(g))
        from_image = segment.src == run.program.image_shape
        g_flat = branch.flat_gradient(segment, g_w, row, padded, flat.dtype)
        return g_flat, None if from_image else src.as_stored(g_x)

    return backward
