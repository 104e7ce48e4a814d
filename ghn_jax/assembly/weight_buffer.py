"""From decoded tiles to the executor's weight buffer, and back for gradients: where hypernet and cnn meet.

Both sides are tables. A tile holds 64x64 channels; a weight of any shape repeats it cyclically. All channel
counts are multiples of 8, so the buffer is filled in units of 8 output channels, each a copy of 8
neighbouring floats of a tile: index arithmetic on a handful of integers for each piece, done on the device.

Axes: F floats of the weight buffer | B blocks of BLOCK floats | U units of 8 floats of the tiles | P pieces.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ghn_jax.base import backends
from ghn_jax.base.whole_numbers import round_up
from ghn_jax.cnn.capacity import Capacity
from ghn_jax.cnn.packing import BLOCK, TILE, Piece
from ghn_jax.cnn.program import Layout
from ghn_jax.cnn.tables import ArrayOrNumpy
from ghn_jax.cnn.weight_quantization import get_page, set_page
from ghn_jax.hypernet.tiles import Items, Tiles

UNIT = 8
_UNITS = BLOCK // UNIT
_SPAN = TILE * TILE // UNIT  # units of a tile, which a window reaches over


class Sources(NamedTuple):
    """Where the weight buffer of one network comes from, as data.

    Attributes:
      block_piece: int32 [B], the piece each block belongs to.
      pieces: int32 [P, 13], columns below.
      windows: int32 [W, 9]: the same from the tiles' side, columns below. Of small tiles up to n_windows[0],
        of dense tiles from there to n_windows[1].
    """

    block_piece: ArrayOrNumpy
    pieces: ArrayOrNumpy
    windows: ArrayOrNumpy
    n_windows: ArrayOrNumpy


# Columns of Sources.pieces. A unit of a piece at (tap, row, column) is, of the dense or the small tiles, the
# unit BASE + tap * TAP_STEP + ((ROW + row) % TILE) * ROW_STEP + (COL + column) % MODULO; zero beyond ROWS and
# COLS.
FIRST, PAD_ROWS, PAD_COLS, ROWS, COLS, BASE, TAP_STEP, ROW_STEP, ROW, MODULO, COL, TAPS, DENSE = range(13)

# Columns of Sources.windows. A window is a rectangle of one tile that a piece copies, without wrapping round:
# the tile's unit i * STEP + o goes to the buffer's unit FLAT + (i - I) * FLAT_STEP + (o - O), for HEIGHT rows
# i from I and WIDTH columns o from O. Of the tile it has the units from START on, which are the tiles' from
# BASE_UNIT on: where there are more classes than a tile has columns, their weight takes several windows.
FLAT, FLAT_STEP, BASE_UNIT, START, STEP, I, HEIGHT, O, WIDTH = range(9)


class _Units(NamedTuple):
    """First unit of each part of the small tiles, in the order of `_small`."""

    depth: int
    norm: int
    class_weight: int
    class_bias: int
    one: int
    zero: int
    end: int


def _units(tiles: Tiles) -> _Units:
    classes = round_up(tiles.class_bias.shape[0], UNIT)
    sizes = [np.prod(tiles.depth.shape), np.prod(tiles.norm.shape), tiles.class_weight.shape[0] * classes]
    return _Units(0, *(int(n) for n in np.cumsum([*sizes, classes, UNIT, UNIT]) // UNIT))


def _small(tiles: Tiles) -> Array:
    """All but the dense tiles, then a unit of ones and a unit of zeros: [U', 8]. Affine in the tiles."""
    pad = -tiles.class_bias.shape[0] % UNIT
    dtype = tiles.depth.dtype
    class_weight = jnp.pad(tiles.class_weight, ((0, 0), (0, pad)))
    class_bias = jnp.pad(tiles.class_bias, (0, pad))
    constants = (jnp.ones(UNIT, dtype), jnp.zeros(UNIT, dtype))
    parts = (tiles.depth, tiles.norm, class_weight, class_bias, *constants)
    return jnp.concatenate([p.reshape(-1, UNIT) for p in parts])


def make_sources(layout: Layout, items: Items, tiles: Tiles, capacity: Capacity) -> Sources:
    """Make the table of one network.

    Args:
      layout: where its parameters lie in the weight buffer.
      items: where the tiles of each parameter begin (`tiles.decoder_table`).
      tiles: their shapes.
      capacity: of the program.
    """
    table = np.zeros((capacity.pieces, 13), np.int32)
    blocks, windows, dense_windows = [], [], []
    for k, (first, piece) in enumerate(layout.pieces):
        kind, item = items[piece.name] if piece.name else ('constant', int(piece.constant == 0))
        origin, (pad_cols, cols, col) = _origin(kind, item, tiles), _columns(piece)
        table[k] = (
            first, piece.pad_rows, pad_cols, piece.rows, cols, origin.base, origin.tap_step, origin.row_step,
            piece.row, origin.modulo, col, piece.taps, kind == 'dense',
        )  # fmt: skip
        blocks.append(piece.size // BLOCK)
        if kind != 'constant':
            (dense_windows if kind == 'dense' else windows).extend(_windows(first, piece, kind, origin))
    owner = np.zeros(layout.tables.block_tensor.shape, np.int32)
    owner[: sum(blocks)] = np.repeat(np.arange(len(blocks), dtype=np.int32), blocks)
    out = np.zeros((capacity.rectangles, 9), np.int32)
    n_windows = np.cumsum([len(windows), len(dense_windows)]).astype(np.int32)
    out[: n_windows[1]] = windows + dense_windows
    return Sources(owner, table, out, n_windows)


class _Origin(NamedTuple):
    """Where a piece comes from, in units of the tiles: the columns of Sources.pieces with these names."""

    base: int
    tap_step: int
    row_step: int
    modulo: int


def _origin(kind: str, item: int, tiles: Tiles) -> _Origin:
    """Say where a tensor lies by its item in the decoder's table; of constants, 0 is one and 1 zero."""
    units, channels = _units(tiles), tiles.depth.shape[1] // UNIT
    if kind == 'dense':
        return _Origin(item * TILE * channels, TILE * channels, channels, channels)
    if kind == 'depth':
        return _Origin(units.depth + item * channels, channels, 0, channels)
    if kind == 'norm':
        return _Origin(units.norm + item * channels, 0, 0, channels)
    if kind == 'class':
        classes = round_up(tiles.class_bias.shape[0], UNIT) // UNIT
        return _Origin(units.class_bias if item else units.class_weight, 0, classes, classes)
    return _Origin(units.one + item, 0, 0, 1)


def _columns(piece: Piece) -> tuple[int, int, int]:
    """Return a piece's padded columns, its columns, and its first column in the tensor, in units."""
    return -(-piece.pad_cols // UNIT), -(-piece.cols // UNIT), piece.col // UNIT


def _windows(first: int, piece: Piece, kind: str, origin: _Origin) -> Iterator[tuple[int, ...]]:
    """Yield the windows of a piece that begins at block `first`: rows of Sources.windows."""
    pad_cols, cols, col = _columns(piece)
    # Bands are rows of windows: (row of the piece, first unit of the tile, first row in it, rows).
    if kind == 'depth':  # taps are rows, of a window as many as a tile has
        bands = [
            (tap, origin.base + tap * origin.tap_step, 0, min(TILE, piece.taps - tap))
            for tap in range(0, piece.taps, TILE)
        ]
    else:
        bands = [
            (tap * piece.pad_rows + r, origin.base + tap * origin.tap_step, i, height)
            for tap in range(piece.taps)
            for r, i, height in _unwrapped(piece.row, piece.rows, TILE)
        ]
    step = max(origin.row_step, origin.modulo)
    for r, begin, i, height in bands:
        for c, o, width in _unwrapped(col, cols, origin.modulo):
            flat = first * _UNITS + r * pad_cols + c
            for start in range(0, (i + height - 1) * step + o + width, _SPAN):
                yield flat, pad_cols, begin + start, start, step, i, height, o, width


def _unwrapped(start: int, count: int, modulo: int) -> list[tuple[int, int, int]]:
    """range(start, start + count) cut where it wraps: (offset from start, first index modulo, length)."""
    cuts = []
    offset = 0
    while offset < count:
        at = (start + offset) % modulo
        cuts.append((offset, at, min(modulo - at, count - offset)))
        offset += cuts[-1][2]
    return cuts


class _Places(NamedTuple):
    """Where the units of a page come from, [P, BLOCK / UNIT] each for P blocks."""

    is_dense: Array  # from a dense tile
    is_small: Array  # from the small tiles; what is neither is padding, zero
    index: Array  # of the unit there


def _places(sources: Sources, p: Array) -> _Places:
    """Find where the units of page p come from."""
    owner = get_page(sources.block_piece, p)
    piece = sources.pieces[owner]  # [P, 13]
    column = [piece[:, c, None] for c in range(13)]
    block = p * len(owner) + jnp.arange(len(owner), dtype=jnp.int32)
    unit = (block[:, None] - column[FIRST]) * _UNITS + jnp.arange(_UNITS, dtype=jnp.int32)
    pad_rows, pad_cols = jnp.maximum(column[PAD_ROWS], 1), jnp.maximum(column[PAD_COLS], 1)
    rows, col = unit // pad_cols, unit % pad_cols
    tap, row = rows // pad_rows, rows % pad_rows
    used = (row < column[ROWS]) & (col < column[COLS]) & (tap < column[TAPS])
    index = column[BASE] + tap * column[TAP_STEP] + (column[ROW] + row) % TILE * column[ROW_STEP]
    index = index + (column[COL] + col) % jnp.maximum(column[MODULO], 1)
    is_dense = used & (column[DENSE] > 0)
    return _Places(is_dense, used & ~is_dense, index)


def assemble(tiles: Tiles, sources: Sources, pages: Array | int, out: Array) -> Array:
    """Write the first `pages` pages of the weight buffer into `out` [F]."""
    dense, small, zero = tiles.dense.reshape(-1, UNIT), _small(tiles), _units(tiles).zero

    def page(p, out):
        place = _places(sources, p)
        from_dense = dense[jnp.where(place.is_dense, place.index, 0)]
        from_small = small[jnp.where(place.is_small, place.index, zero)]
        units = jnp.where(place.is_dense[..., None], from_dense, from_small)
        return set_page(out, units.reshape(-1, BLOCK), p)

    return lax.fori_loop(0, pages, page, out)


def assemble_transposed(g: Array, sources: Sources, tiles: Tiles) -> Tiles:
    """Return the gradient to the tiles from the gradient g [F] to the weight buffer.

    tiles: their values or shapes.
    """
    back = _scattered if backends.kernels_are_launches() else _window_by_window
    small, dense = back(g.reshape(-1, UNIT), sources, tiles)
    rest = tiles._replace(dense=jnp.zeros(0, g.dtype))
    _, pull = jax.vjp(_small, jax.tree.map(lambda t: jnp.zeros(t.shape, g.dtype), rest))
    return pull(small)[0]._replace(dense=dense.reshape(tiles.dense.shape))


def _scattered(g: Array, sources: Sources, tiles: Tiles) -> tuple[Array, Array]:
    """Return the gradient to the units of the small tiles and of the dense ones, in two kernels."""
    place = _places(sources, jnp.int32(0))

    def add(units: int, here: Array) -> Array:
        index = jnp.where(here, place.index, units).ravel()  # beyond the end: dropped
        return jnp.zeros((units, UNIT), g.dtype).at[index].add(g, mode='drop')

    return add(_units(tiles).end, place.is_small), add(tiles.dense.size // UNIT, place.is_dense)


def _window_by_window(g: Array, sources: Sources, tiles: Tiles) -> tuple[Array, Array]:
    """Return what `_scattered` does, window by window: a scatter takes XLA:CPU several times as long."""
    span = jnp.arange(_SPAN, dtype=jnp.int32)

    def window(k, g_units):
        w = sources.windows[k]
        unit = w[START] + span
        i, o = unit // w[STEP] - w[I], unit % w[STEP] - w[O]
        used = (i >= 0) & (i < w[HEIGHT]) & (o >= 0) & (o < w[WIDTH])
        copied = jnp.where(used[:, None], g[jnp.where(used, w[FLAT] + i * w[FLAT_STEP] + o, 0)], 0)
        tile = lax.dynamic_slice_in_dim(g_units, w[BASE_UNIT], _SPAN, 0)
        return lax.dynamic_update_slice_in_dim(g_units, tile + copied, w[BASE_UNIT], 0)

    n_small, n = sources.n_windows
    # Room for the last window: slices that do not fit would be moved, silently.
    small = lax.fori_loop(0, n_small, window, jnp.zeros((_units(tiles).end + _SPAN, UNIT), g.dtype))
    dense = lax.fori_loop(n_small, n, window, jnp.zeros((tiles.dense.size // UNIT, UNIT), g.dtype))
    return small[: _units(tiles).end], dense
