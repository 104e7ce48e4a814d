"""Output channels of the quantized weights, numbered: what grids by channel are found by.

A column is COLUMN output channels side by side, which is how they lie in the weight buffer: every count of
channels is a multiple of it. Columns are numbered through all quantized tensors of a network.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ghn_jax.cnn.packing import BLOCK, Piece

COLUMN = 8


def count_columns(pieces: Iterable[Piece]) -> dict[str, int]:
    """Columns of every tensor that these pieces hold, padding included."""
    columns: dict[str, int] = {}
    for piece in pieces:
        if piece.name is not None and piece.is_matrix:
            columns[piece.name] = max(columns.get(piece.name, 0), (piece.col + piece.pad_cols) // COLUMN)
    return columns


def column_tables(
    capacity: Any, matrices: Sequence[tuple[int, Piece]], tensors: Mapping[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """(block_columns, column_tensor) of `tables.Tables`.

    matrices: (first block, piece) of the quantized tensors. tensors: their numbers. The last column, and the
    last tensor, stand for "never quantized".
    """
    columns = count_columns(piece for _, piece in matrices)
    first = dict(zip(columns, np.cumsum([0, *columns.values()]).tolist()))
    none = capacity.columns - 1
    column_tensor = np.full(capacity.columns, capacity.tensors - 1, np.int32)
    for name, count in columns.items():
        column_tensor[first[name] : first[name] + count] = tensors[name]
    block_columns = np.tile(np.array([none, 1, 0], np.int32), (capacity.blocks, 1))
    for block, piece in matrices:
        count, blocks = piece.pad_cols // COLUMN, np.arange(piece.size // BLOCK)
        rows = block_columns[block : block + len(blocks)]
        rows[:, 0] = first[piece.name] + piece.col // COLUMN
        rows[:, 1], rows[:, 2] = count, blocks * (BLOCK // COLUMN) % count
    return block_columns, column_tensor
