"""Reading the weight buffer where the place is data, and picking an op: what a compiled loop does."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ghn_jax.cnn.capacity import Segment
from ghn_jax.cnn.instructions import Kind
from ghn_jax.cnn.packing import BLOCK, block_floats
from ghn_jax.cnn.tables import OP


def read_weights(op: Kind, segment: Segment, flat: Array, block: Array) -> list[Array]:
    """Read an instruction's weights from the buffer [F], where its pieces lie in a row from `block` on."""
    offset, out = block * BLOCK, []
    for shape in op.weight_shapes(segment.src, segment.dst):
        out.append(lax.dynamic_slice(flat, (offset,), (math.prod(shape),)).reshape(shape))
        offset = offset + block_floats(shape)
    return out


def visit_one(
    groups: Sequence[tuple[Sequence[Sequence[int]], Callable]], rows: Array, r: Array, carry: Any
) -> Any:
    """Visit instruction r by the group that its op belongs to; return the carry.

    Args:
      groups: (numbers of the ops of each of its branches, visit) each; visit(r, carry, which) takes the place
        of the branch among these.
      rows: the instruction table.
      r: row of it.
      carry: buffers.
    """
    groups = [group for group in groups if group[0]]
    count = sum(len(numbers) for branches, _ in groups for numbers in branches)
    for branches, visit in groups:
        place = {o: k for k, numbers in enumerate(branches) for o in numbers}
        which = rows[r, OP]
        if [place.get(o) for o in range(count)] != list(range(count)):
            which = jnp.asarray([place.get(o, -1) for o in range(count)])[which]
        if len(groups) == 1:
            return visit(r, carry, which)
        # A loop of one turn or none: a conditional would copy the buffers that it returns. All of it
        # depends on its counter: XLA would move what does not out of it, to be done each time.
        once = lambda i, c, f=visit, w=which: f(r + i, c, w + i)
        carry = lax.fori_loop(0, (which >= 0).astype(jnp.int32), once, carry)
    return carry


def switch(index: Array, branches: Sequence[Callable], *operands: Any) -> Any:
    """Call lax.switch such that it stays one.

    Inlined, a single branch would be fused with what reads and writes the tape, and XLA would copy the tape
    for it.
    """
    shapes = jax.eval_shape(branches[0], *operands)
    zeros = lambda *_: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    with jax.named_scope('switch'):
        return lax.switch(index, branches if len(branches) > 1 else [*branches, zeros], *operands)
