"""Batch normalisation outside of the executor's switches: on a CPU it is done on the tape.

A third of all instructions normalise, and all of their time goes into moving values. What a branch of a
switch reads and what it returns is copied once more; here values are read from the tape and written to it
part by part, and each part stays in cache. What was found of a batch is kept for the backward pass, a mean
and a deviation for each channel, which saves it two passes over the value.

Axes: S slots | N images | H size, C channels | R instructions | F floats of the weight buffer.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from ghn_jax.base import backends
from ghn_jax.cnn.batch_norm import (
    Normalizer,
    gradient_means,
    input_gradient,
    normalized,
    normalizer,
    weight_gradients,
)
from ghn_jax.cnn.branches import NetworkRun
from ghn_jax.cnn.capacity import Segment
from ghn_jax.cnn.dispatch import read_weights
from ghn_jax.cnn.instructions import Kind, Norm
from ghn_jax.cnn.packing import BLOCK, block_floats
from ghn_jax.cnn.program import Program
from ghn_jax.cnn.quantizer import ValueSizes, joined_size, no_size, size_of, with_size
from ghn_jax.cnn.tables import ACCUMULATE, DST, G_DST, G_SRC, SEEN, SRC, WEIGHTS

_PART = 32_768  # floats of a value that are read, computed and written at a time: they stay in cache


def stand_apart(op: Kind) -> bool:
    """Whether an op is done on the tape, and has no branch in its segment's switch."""
    return isinstance(op, Norm) and backends.on_cpu()


def no_normalizers(program: Program, dtype: DTypeLike) -> Array | None:
    """Return room for what each instruction normalises by, [R, 2, C], C of the widest tape.

    None where norms are branches of their switches.
    """
    if not stand_apart(Norm()):
        return None
    return jnp.zeros((program.capacity.rows, 2, max(c for _, c in program.tape_shapes)), dtype)


def normalize(
    run: NetworkRun, segment: Segment, r: Array, tape: Array, sizes: ValueSizes, kept: Array
) -> tuple[Array, ValueSizes, Array]:
    """Run instruction r, a norm: on the tape [S, N, H, H, C], its sizes, and the normalizers [R, 2, C]."""
    row, quantization, parts = run.tables.rows[r], run.quantization, _parts_of(tape)
    scale, shift = read_weights(Norm(), segment, run.weights, row[WEIGHTS])
    mean_of = lambda f: parts.total(lambda i: f(parts.read(tape, row[SRC], i))) / parts.pixels
    by = normalizer(mean_of, run.has_norm(), quantization.axis)
    kept = lax.dynamic_update_slice(kept, jnp.stack(by)[None].astype(kept.dtype), _indices(r, 0, 0))

    def part(i, carry):
        tape, size = carry
        alone = lambda tape: normalized(parts.read(tape, row[SRC], i), by, scale, shift)
        added = lambda tape: alone(tape) + parts.read(tape, row[DST], i)
        # Not fused with what follows: its maximum would read the tape, and XLA would keep a copy for that.
        y = lax.cond(row[ACCUMULATE] > 0, added, alone, tape)
        if quantization.measures:
            size = joined_size(size, size_of(y, sizes))
        return parts.write(tape, y, row[DST], i), size

    tape, size = lax.fori_loop(0, parts.count, part, (tape, no_size(sizes)))
    if quantization.measures:
        sizes = with_size(sizes, size, row[DST], quantization.axis)
    return tape, sizes, kept


def differentiate(
    run: NetworkRun, segment: Segment, r: Array, values: Array, kept: Array, gradients: Array, flat: Array
) -> tuple[Array, Array]:
    """Differentiate instruction r, a norm: write to the tape of gradients, and to those of weights [F].

    values: the tape of values. kept: the normalizers [R, 2, C], as `normalize` left them.
    """
    row, parts, c = run.tables.rows[r], _parts_of(values), values.shape[-1]
    scale, _ = read_weights(Norm(), segment, run.weights, row[WEIGHTS])
    by = Normalizer(*lax.dynamic_slice(kept, _indices(r, 0, 0), (1, 2, c))[0])
    on, axis = run.has_norm(), run.quantization.axis
    read = lambda i, gradients: (parts.read(values, row[SRC], i), parts.read(gradients, row[G_DST], i))
    of_scale, of_shift = parts.total(lambda i: weight_gradients(*read(i, gradients), by))
    means = gradient_means(of_scale, of_shift, parts.pixels, on, axis)
    padded = [jnp.pad(w, (0, block_floats(w.shape) - c)) for w in (of_scale, of_shift)]
    flat = lax.dynamic_update_slice(flat, jnp.concatenate(padded), (row[WEIGHTS] * BLOCK,))

    def part(i, gradients):
        alone = lambda gradients: input_gradient(*read(i, gradients), by, scale, means)
        added = lambda gradients: alone(gradients) + parts.read(gradients, row[G_SRC], i)
        g_x = lax.cond(row[SEEN] > 0, added, alone, gradients)
        return parts.write(gradients, g_x, row[G_SRC], i)

    return lax.fori_loop(0, parts.count, part, gradients), flat


class _Parts(NamedTuple):
    """How a value [N, H, H, C] of a tape is walked: `count` parts of so many images each."""

    shape: tuple[int, ...]
    images: int

    @property
    def count(self) -> int:
        return self.shape[0] // self.images

    @property
    def pixels(self) -> int:
        """Of all images."""
        return math.prod(self.shape[:3])

    def read(self, tape: Array, slot: Array, i: Array) -> Array:
        """Read part i of a value."""
        part = lax.dynamic_slice(tape, self._corner(slot, i), (1, self.images, *self.shape[1:]))
        return part[0]

    def write(self, tape: Array, part: Array, slot: Array, i: Array) -> Array:
        """Write part i of a value."""
        return lax.dynamic_update_slice(tape, part[None], self._corner(slot, i))

    def _corner(self, slot: Array, i: Array) -> tuple[Array, ...]:
        return _indices(slot, i * self.images, 0, 0, 0)

    def total(self, of_part: Callable[[Array], Any]) -> Any:
        """Sum what `of_part` gives of each part i, [images, H, H, C], to [C].

        Part is added to part before pixels are: XLA:CPU takes twice as long to reduce what it computes.
        """
        first = jax.eval_shape(of_part, jnp.int32(0))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)
        add = lambda i, sums: jax.tree.map(jnp.add, sums, of_part(i))
        sums = lax.fori_loop(0, self.count, add, zeros)
        return jax.tree.map(lambda x: jnp.sum(x, (0, 1, 2)), sums)


def _parts_of(tape: Array) -> _Parts:
    shape = tape.shape[1:]
    return _Parts(shape, math.gcd(shape[0], max(1, _PART // math.prod(shape[1:]))))


def _indices(*indices: Any) -> tuple[Array, ...]:
    return tuple(jnp.asarray(i, jnp.int32) for i in indices)
