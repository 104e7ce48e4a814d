"""Where the channels that a model's parameters read lie in the tiles that these are cut from.

The hypernetwork decodes tiles of 64 x 64 channels. A weight is cut from them, its first input channel from
the first row. What a row is for, it has learnt on networks whose tensors are all as wide as their space says:
16 channels, 32, and so on. So the tensors that a concatenation joins begin at multiples of 16 there. A tensor
of 12 channels, as DenseNet has them (arXiv 1608.06993), would shift all that are behind it. So here each
tensor of a concatenation begins at the next multiple of 16, and the rows between are left out. Halves of one
width stay side by side, as in a FactorizedReduce.
"""

from collections.abc import Sequence

from ghn_jax.base.whole_numbers import round_up
from ghn_jax.networks.layers import LAYERS, ForwardPass

ALIGNMENT = 16  # channels
Places = tuple[int, ...]


def find_places(forward: ForwardPass, channels: Sequence[int]) -> dict[str, Places]:
    """Find the places of the channels that each parameter reads, where they are not 0, 1, 2, ...

    Args:
      forward: the operations of a model.
      channels: of the result of each.

    Returns:
      Name of a parameter -> place of each of its input channels. Of a depthwise weight, a norm or a bias it
      is that of each of its channels.
    """
    results: list[Places] = []
    found: dict[str, Places] = {}
    for op, kind in enumerate(forward.kind):
        read = [results[parent] for parent in forward.parents[op]]
        shape = forward.shape[op] or ()
        dense = kind in LAYERS and len(shape) > 1 and not _keeps_channels(shape)
        result = tuple(range(channels[op])) if dense else _result(kind, read, channels[op])
        results.append(result)
        for name, tensor in forward.tensors(op):
            places = read[0] if dense else result
            counts = tensor[1] if dense else tensor[0]
            if len(places) == counts and places != tuple(range(counts)):
                found.setdefault(name, places)
    return found


def _keeps_channels(shape: Sequence[int]) -> bool:
    """Whether a weight is of a depthwise convolution."""
    return len(shape) == 4 and shape[1] == 1


def _result(kind: str, read: Sequence[Places], count: int) -> Places:
    """Return the places of the channels of a result: those of what is read, if they are as many."""
    joined = _joined(read) if kind == 'concat' else None
    candidates = {places for places in (joined, *read) if places is not None and len(places) == count}
    if joined in candidates:
        return joined
    return candidates.pop() if len(candidates) == 1 else tuple(range(count))


def _joined(parts: Sequence[Places]) -> Places:
    """Return the places of the channels of a concatenation."""
    halves = len(parts) == 2 and len(parts[0]) == len(parts[1])
    joined: list[int] = []
    for part in parts:
        end = joined[-1] + 1 if joined else 0
        first = end if halves else round_up(end, ALIGNMENT)
        joined += [first + place for place in part]
    return tuple(joined)
