"""Ops and the norms of their results as one instruction, where nothing else touches what lies between.

On a GPU the kernels of most instructions take less time than launching them and finding out which come next.
There, fewer instructions are better than ones that are cheap to recompute: what lies between is on no tape,
and the backward pass computes the op once more. A third of all instructions are such norms. The sum over the
parts of a concatenation has several writers, and keeps a norm of its own.
"""

import collections
import dataclasses

from ghn_jax.cnn.instructions import Kind, Norm
from ghn_jax.cnn.lowering import IMAGE, Instruction, Lowered


@dataclasses.dataclass(frozen=True)
class Normed(Kind):
    """An op and the batch normalisation of its result, as one instruction."""

    op: Kind
    integer = False

    @property
    def quantizes(self) -> int:
        """How many tensors the op rounds."""
        return self.op.quantizes

    def weight_shapes(self, src, dst):
        return [*self.op.weight_shapes(src, dst), *Norm().weight_shapes(src, dst)]

    def apply(self, x, w, q, has_norm, shape):
        y = self.op.apply(x, w[:-2], q, has_norm, shape)
        return Norm().apply(y, w[-2:], q, has_norm, shape)

    @property
    def observed(self):
        raise TypeError('only networks whose norms are instructions of their own are observed')


def join_norms(lowered: Lowered) -> Lowered:
    """Return the same network with each norm that can be joined to the op before it."""
    writers: dict[int, list[Instruction]] = collections.defaultdict(list)
    reads: collections.Counter[int] = collections.Counter(lowered.head.group)
    for i in lowered.instructions:
        writers[i.dst].append(i)
        reads.update(set(i.group))
    alone = {group[0] for group in lowered.groups if len(group) == 1} - {IMAGE}
    joined: dict[int, Instruction] = {}  # by the value that goes
    for norm in lowered.instructions:
        value = norm.src
        if norm.op == Norm() and value in alone and len(writers[value]) == reads[value] == 1:
            (op,) = writers[value]
            joined[value] = op._replace(op=Normed(op.op), dst=norm.dst, pieces=(*op.pieces, *norm.pieces))
    kept = [joined.get(i.src, i) for i in lowered.instructions if i.dst not in joined]
    return lowered._replace(
        instructions=tuple(kept),
        shapes={v: c for v, c in lowered.shapes.items() if v not in joined},
        groups=tuple(group for group in lowered.groups if group[0] not in joined),
    )
