"""Where the gradients of a network's values lie: for a short time each, so that few slots are enough."""

import heapq
from collections.abc import Sequence

from ghn_jax.cnn.lowering import IMAGE, Instruction, Lowered
from ghn_jax.cnn.packing import TapeShape


def place_gradients(
    executed: Sequence[Instruction], lowered: Lowered
) -> tuple[dict[int, int], dict[TapeShape, int]]:
    """Place gradients, for instructions in order of execution: (value -> slot, tape shape -> slots used).

    The gradient of a value lives from the last instruction that reads the value to the first that writes it.
    Those of the classifier's input come first, side by side from slot 0 on.
    """
    first_writer: dict[int, int] = {}
    for r, i in enumerate(executed):
        first_writer.setdefault(i.dst, r)
    head = lowered.head.group
    slot = {IMAGE: 0} | {v: k for k, v in enumerate(head)}
    of = {v: c for v, c in lowered.shapes.items() if v != IMAGE}
    free: dict[TapeShape, list[int]] = {c: [] for c in of.values()}  # a heap for each tape
    used = dict.fromkeys(free, 0) | {of[head[0]]: len(head)}
    for r in range(len(executed) - 1, -1, -1):
        src, dst = executed[r].src, executed[r].dst
        if first_writer[dst] == r:  # read for the last time: what is written next may take its place
            heapq.heappush(free[of[dst]], slot[dst])
        if src not in slot:
            c = of[src]
            if not free[c]:
                heapq.heappush(free[c], used[c])
                used[c] += 1
            slot[src] = heapq.heappop(free[c])
    return slot, used
