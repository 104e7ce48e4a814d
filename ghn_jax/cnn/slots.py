"""Reading the weight buffer where the place is data, and picking an op: what a compiled loop does."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ghn_jax.cnn.capacity import Segment
from ghn_jax.cnn.instructions import Kind
from ghn_jax.cnn.packing import BLOCK, block_floats


def read_weights(op: Kind, segment: Segment, flat: Array, block: Array) -> list[Array]:
    """Read an instruction's weights from the buffer [F], where its pieces lie in a row from `block` on."""
    offset, out = block * BLOCK, []
    for shape in op.weight_shapes(segment.src, segment.dst):
        size = functools.reduce(lambda a, b: a * b, shape)
        out.append(lax.dynamic_slice(flat, (offset,), (size,)).reshape(shape))
        offset = offset + block_floats(shape)
    return out


def switch(index: Array, branches: Sequence[Callable], *operands: Any) -> Any:
    """Call lax.switch such that it stays one.

    Inlined, a single branch would be fused with what reads and writes the tape, and XLA would copy the tape
    for it.
    """
    shapes = jax.eval_shape(branches[0], *operands)
    zeros = lambda *_: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    with jax.named_scope('switch'):
        return lax.switch(index, branches if len(branches) > 1 else [*branches, zeros], *operands)
