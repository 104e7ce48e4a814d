"""Numbers for the output channels of quantized weights, by which each channel finds its own grid.

A group is GROUP_CHANNELS output channels, side by side in the weight buffer: every count of channels is a
multiple of it. Groups are numbered through all quantized tensors of a network.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ghn_jax.cnn.packing import BLOCK, Piece

GROUP_CHANNELS = 8


def count_channel_groups(pieces: Iterable[Piece]) -> dict[str, int]:
    """Count the channel groups of every tensor that these pieces hold, padding included."""
    groups: dict[str, int] = {}
    for piece in pieces:
        if piece.name is not None and piece.is_matrix:
            groups[piece.name] = max(
                groups.get(piece.name, 0), (piece.col + piece.pad_cols) // GROUP_CHANNELS
            )
    return groups


def channel_group_tables(
    capacity: Any, matrices: Sequence[tuple[int, Piece]], tensors: Mapping[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Make `block_channel_groups` and `channel_group_tensor` of `tables.Tables`.

    matrices: (first block, piece) of the quantized tensors. tensors: their numbers. The last group, and the
    last tensor, stand for "never quantized".
    """
    groups = count_channel_groups(piece for _, piece in matrices)
    first = dict(zip(groups, np.cumsum([0, *groups.values()]).tolist()))
    none = capacity.channel_groups - 1
    channel_group_tensor = np.full(capacity.channel_groups, capacity.tensors - 1, np.int32)
    for name, count in groups.items():
        channel_group_tensor[first[name] : first[name] + count] = tensors[name]
    block_channel_groups = np.tile(np.array([none, 1, 0], np.int32), (capacity.blocks, 1))
    for block, piece in matrices:
        count, blocks = piece.pad_cols // GROUP_CHANNELS, np.arange(piece.size // BLOCK)
        rows = block_channel_groups[block : block + len(blocks)]
        assert piece.name is not None  # a quantized tensor has one
        rows[:, 0] = first[piece.name] + piece.col // GROUP_CHANNELS
        rows[:, 1], rows[:, 2] = count, blocks * (BLOCK // GROUP_CHANNELS) % count
    return block_channel_groups, channel_group_tensor
