"""Pieces: the block-aligned parts of parameters that lie in the weight buffer, and what they take there."""

import math
from typing import NamedTuple

import numpy as np

BLOCK = 256  # floats; every piece of the weight buffer starts at a multiple of it
TILE = 64  # channels of a hypernetwork's tiles
Class = tuple[int, int]  # (H, C)


class Piece(NamedTuple):
    """A block-aligned part of the weight buffer: [taps, pad_rows, pad_cols] floats, row-major.

    It holds rows [row, row + rows) and columns [col, col + cols) of a parameter seen as [taps, in, out]
    (a vector is [1, 1, out]); the rest is zeros. `name` None: every used element is `constant`. position: it
    holds positional encodings, [positions, 1, channels].
    """

    name: str | None
    taps: int
    rows: int
    cols: int
    pad_rows: int
    pad_cols: int
    row: int = 0
    col: int = 0
    constant: float = 0.0
    position: bool = False

    @property
    def size(self) -> int:
        """Floats in the buffer, a multiple of BLOCK."""
        return -(-self.taps * self.pad_rows * self.pad_cols // BLOCK) * BLOCK

    @property
    def windows(self) -> int:
        """Rectangles that do not wrap round, if the parameter repeats tiles of TILE x TILE channels."""
        columns = -(-(self.col % TILE + self.cols) // TILE)
        if self.rows == 1:  # a vector, a depthwise kernel or positional encodings
            return -(-self.taps // TILE) * columns
        return self.taps * -(-(self.row % TILE + self.rows) // TILE) * columns

    @property
    def is_matrix(self) -> bool:
        """Whether the piece belongs to a convolution or linear weight: what gets quantized."""
        return self.taps * self.pad_rows > 1 and not self.position


def dense_piece(name: str, taps: int, c_in: int, c_out: int, row: int = 0) -> Piece:
    """Of a convolution's weight, from input channel `row` on."""
    return Piece(name, taps, c_in, c_out, c_in, c_out, row)


def vector_piece(name: str, col: int, cols: int, pad_cols: int) -> Piece:
    """Of a vector, from entry `col` on."""
    return Piece(name, 1, 1, cols, 1, pad_cols, col=col)


def linear_pieces(name: str, rows: int, cols: int, panel_cols: int) -> list[Piece]:
    """A linear weight as panels of BLOCK inputs x panel_cols outputs, output panels outermost."""
    pieces = []
    for col in range(0, cols, panel_cols):
        for row in range(0, rows, BLOCK):
            pieces.append(
                Piece(
                    name, 1, min(BLOCK, rows - row), min(panel_cols, cols - col), BLOCK, panel_cols, row, col
                )
            )
    return pieces


def weight_shapes(op: tuple, src: Class, dst: Class) -> list[tuple[int, ...]]:
    """Shapes of an instruction's weights, in the order of its pieces. Dense: HWIO, depthwise: HWC."""
    (_, c), (_, o) = src, dst
    match op:
        case ('conv', kh, kw, _, _):
            return [(kh, kw, c, o)]
        case ('depthwise', k, _, _):
            return [(k, k, c)]
        case ('reduce',):
            return [(1, 1, c, o // 2)] * 2
        case ('split', _):
            return [(1, 7, c, o), (7, 1, o, o)]
        case ('excite', _):
            return [(c, c // 2), (c // 2,), (c // 2, c), (c,)]
        case ('attention',):
            return [(c,), (c,), (c, 3 * c), (c, c), (c,)]
        case ('mlp',):
            return [(c,), (c,), (c, c), (c,), (c, c), (c,)]
        case ('position',):
            return [(src[0], src[0], c)]
        case ('norm',):
            return [(o,), (o,)]
    return []


def weight_floats(op: tuple, src: Class, dst: Class) -> int:
    """Floats that the weights of an instruction take in the weight buffer."""
    return sum(block_floats(shape) for shape in weight_shapes(op, src, dst))


def block_floats(shape: tuple[int, ...]) -> int:
    """Floats a weight of this shape takes in the weight buffer."""
    return round_up(int(np.prod(shape)), BLOCK)


def round_up(n: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least n."""
    return math.ceil(n / multiple) * multiple


# ---- parameters on the host


def piece_view(flat: np.ndarray, block: int, piece: Piece) -> np.ndarray:
    """The used elements of a piece in the weight buffer, as [taps, rows, cols] (a view)."""
    padded = flat[block * BLOCK :][: piece.taps * piece.pad_rows * piece.pad_cols]
    return padded.reshape(piece.taps, piece.pad_rows, piece.pad_cols)[:, : piece.rows, : piece.cols]


def piece_part(param: np.ndarray, piece: Piece) -> np.ndarray:
    """The elements of a parameter (PyTorch layout) that a piece holds, as [taps, rows, cols] (a view)."""
    if param.ndim == 1:
        matrix = param[None, None]
    elif piece.position:  # [1, C, H, W] -> [HW, 1, C]
        matrix = param.reshape(*param.shape[:2], -1).transpose(2, 0, 1)
    elif param.ndim == 2:
        matrix = param.T[None]
    else:  # OIHW -> [HW, I, O]
        o, i, h, w = param.shape
        matrix = param.reshape(o, i, h * w).transpose(2, 1, 0)
    return matrix[:, piece.row : piece.row + piece.rows, piece.col : piece.col + piece.cols]
