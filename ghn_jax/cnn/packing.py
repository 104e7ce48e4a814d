"""Pieces: the block-aligned parts of parameters that lie in the weight buffer, and what they take there."""

import math
from typing import NamedTuple

import numpy as np

from ghn_jax.base.whole_numbers import round_up

BLOCK = 256  # floats; every piece of the weight buffer starts at a multiple of it
TILE = 64  # channels of a hypernetwork's tiles
TapeShape = tuple[int, int]  # (H, C) of the values [N, H, H, C] that share a tape


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
        """Floats it takes in the buffer, a multiple of BLOCK."""
        return block_floats((self.taps, self.pad_rows, self.pad_cols))

    @property
    def rectangles(self) -> int:
        """Rectangles that it copies of tiles of TILE x TILE channels, none wrapping round."""
        across = -(-(self.col % TILE + self.cols) // TILE)
        if self.rows == 1:  # a vector, a depthwise kernel or positional encodings
            return -(-self.taps // TILE) * across
        return self.taps * -(-(self.row % TILE + self.rows) // TILE) * across

    @property
    def is_matrix(self) -> bool:
        """Whether the piece belongs to a convolution or linear weight: what gets quantized."""
        return self.taps * self.pad_rows > 1 and not self.position


def dense_piece(name: str, taps: int, c_in: int, c_out: int, row: int = 0) -> Piece:
    """Cut a piece of a convolution's weight, from input channel `row` on."""
    return Piece(name, taps, c_in, c_out, c_in, c_out, row)


def whole_piece(name: str, shape: tuple[int, ...]) -> Piece:
    """Make a piece of a whole parameter: a vector, or a linear or convolution weight in PyTorch's layout."""
    if len(shape) == 1:
        return Piece(name, 1, 1, shape[0], 1, shape[0])
    c_out, c_in, *kernel = shape
    taps = math.prod(kernel)
    if kernel and c_in == 1:  # depthwise
        return Piece(name, taps, 1, c_out, 1, c_out)
    return dense_piece(name, taps, c_in, c_out)


def cut_piece(piece: Piece, rows: int, row: int, cols: int, col: int) -> Piece:
    """Return one part of a whole parameter's piece that is cut into so many parts of rows and of columns."""
    height, width = piece.rows // rows, piece.cols // cols
    return piece._replace(
        rows=height, cols=width, pad_rows=height, pad_cols=width, row=row * height, col=col * width
    )


def vector_piece(name: str, col: int, cols: int, pad_cols: int) -> Piece:
    """Cut a piece of a vector, from entry `col` on."""
    return Piece(name, 1, 1, cols, 1, pad_cols, col=col)


def linear_pieces(name: str, rows: int, cols: int, panel_cols: int) -> list[Piece]:
    """Cut a linear weight into panels of BLOCK inputs x panel_cols outputs, output panels outermost."""
    pieces = []
    for col in range(0, cols, panel_cols):
        for row in range(0, rows, BLOCK):
            pieces.append(
                Piece(
                    name, 1, min(BLOCK, rows - row), min(panel_cols, cols - col), BLOCK, panel_cols, row, col
                )
            )
    return pieces


def block_floats(shape: tuple[int, ...]) -> int:
    """Count the floats a weight of this shape takes in the weight buffer."""
    return round_up(math.prod(shape), BLOCK)


# ---- parameters on the host


def piece_view(flat: np.ndarray, block: int, piece: Piece) -> np.ndarray:
    """View the used elements of a piece in the weight buffer, as [taps, rows, cols]."""
    padded = flat[block * BLOCK :][: piece.taps * piece.pad_rows * piece.pad_cols]
    return padded.reshape(piece.taps, piece.pad_rows, piece.pad_cols)[:, : piece.rows, : piece.cols]


def piece_part(param: np.ndarray, piece: Piece) -> np.ndarray:
    """View the elements of a parameter (PyTorch layout) that a piece holds, as [taps, rows, cols]."""
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
