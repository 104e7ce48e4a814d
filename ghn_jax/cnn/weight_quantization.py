"""Fake quantization of a whole weight buffer.

Axes: F floats of the buffer | B blocks of BLOCK floats | T tensors | U groups of output channels |
G grids.

The grid of a weight is that of the logical tensor (or of its output channel), however many instructions read
parts of it, so weights are quantized here, before any instruction reads them. All loops go page by page over
the blocks in use: their cost follows the network, not the buffer. On a GPU the whole buffer is one page:
there, a turn of a loop takes longer than a pass over all of it.

A page is seen as rows [R, K], and each row has an index into arrays of what the rows share. By tensor: rows
are blocks, the arrays [T, 1]. By channel: rows are channel groups, the arrays [U, GROUP_CHANNELS], an entry
for each channel. Their grids are those of `quant.weight_grids`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from ghn_jax.base import backends
from ghn_jax.cnn.channel_groups import GROUP_CHANNELS
from ghn_jax.cnn.packing import BLOCK
from ghn_jax.cnn.tables import PAGE_BLOCKS, Tables
from ghn_jax.quant.grid import Grid, quantize
from ghn_jax.quant.scheme import Scheme
from ghn_jax.quant.weight_grids import fit


def pages(tables: Tables) -> Array | int:
    """Return the number of pages that hold the network's weights, int32 []."""
    if backends.kernels_are_launches():
        return 1
    return (tables.n_blocks + PAGE_BLOCKS - 1) // PAGE_BLOCKS


def get_page(buffer: Array, p: Array) -> Array:
    """Read page p of a [F] buffer as [P, BLOCK], or of a [B, ...] table as [P, ...], P blocks to a page."""
    is_table = not jnp.issubdtype(buffer.dtype, jnp.floating)
    if backends.kernels_are_launches():
        return buffer if is_table else buffer.reshape(-1, BLOCK)
    if is_table:
        return lax.dynamic_slice_in_dim(buffer, p * PAGE_BLOCKS, PAGE_BLOCKS)
    page = lax.dynamic_slice(buffer, (p * PAGE_BLOCKS * BLOCK,), (PAGE_BLOCKS * BLOCK,))
    return page.reshape(PAGE_BLOCKS, BLOCK)


def set_page(buffer: Array, page: Array, p: Array) -> Array:
    """Write page p of a [F] buffer."""
    if backends.kernels_are_launches():
        return page.ravel()
    return lax.dynamic_update_slice(buffer, page.ravel(), (p * PAGE_BLOCKS * BLOCK,))


def quantize_weights(
    flat: Array, tables: Tables, bits: Array, out: Array, *, scheme: Scheme, key: Array | None = None
) -> tuple[Array, Grid]:
    """Fake-quantize every tensor of the buffer, written into `out` [F]. Returns it and its grids [G, ...].

    bits: int32 [T]. Blocks that no tensor owns (norms, biases) are copied. scheme: of mode 'qat' or 'noise';
    `key` for the latter.
    """
    if scheme.granularity == 'channel':
        rows, width, bits_of_grids = _by_channel, GROUP_CHANNELS, bits[tables.channel_group_tensor]
    else:
        rows, width, bits_of_grids = _by_tensor, 1, bits
    zeros = jnp.zeros((len(bits_of_grids), width), flat.dtype)
    grid = fit(_Buffer(flat, tables, rows, zeros), bits_of_grids[:, None], scheme)

    def page(p, out):
        w, unit = get_page(flat, p), rows(tables, p)
        y = _on_grid(unit.rows(w), grid, unit, bits, scheme, key, p)
        return set_page(out, y, p)

    return lax.fori_loop(0, pages(tables), page, out), grid


def quantize_weights_backward(
    flat: Array,
    tables: Tables,
    bits: Array,
    g: Array,
    grid: Grid,
    *,
    scheme: Scheme,
    key: Array | None = None,
) -> Array:
    """Compute the gradient [F] to `flat`, in the place of g, the gradient to the quantized weights."""
    rows = _by_channel if scheme.granularity == 'channel' else _by_tensor

    def page(p, g):
        w, unit = get_page(flat, p), rows(tables, p)
        rounded = lambda w: _on_grid(unit.rows(w), grid, unit, bits, scheme, key, p)
        _, pull = jax.vjp(rounded, w)
        return set_page(g, pull(unit.rows(get_page(g, p)))[0], p)

    return lax.fori_loop(0, pages(tables), page, g)


def add_norm_gradient(flat: Array, tables: Tables, tensors: int, g: Array, factor: Array | float) -> Array:
    """Add the gradient of factor * (sum over weights of their Frobenius norms) to g [F], in its place.

    tensors: T; the last stands for norms and biases, which have no part in it.
    """

    def add_squares(p, squares):
        unit = _by_tensor(tables, p)
        return squares.at[unit.index].add(unit.reduce(unit.rows(get_page(flat, p)) ** 2))

    def page(p, g):
        unit = _by_tensor(tables, p)
        w, g_page = (unit.rows(get_page(buffer, p)) for buffer in (flat, g))
        return set_page(g, g_page + scale[unit.index] * w, p)

    squares = lax.fori_loop(0, pages(tables), add_squares, jnp.zeros((tensors, 1), flat.dtype))
    scale = jnp.where(squares > 0, factor / jnp.sqrt(squares), 0).at[-1].set(0)
    return lax.fori_loop(0, pages(tables), page, g)


# ---- pages as rows


class _Unit(NamedTuple):
    """What the rows of a page have in common. index: int32 [R]. tensor: int32 [R]. width: K."""

    index: Array
    tensor: Array
    width: int

    def rows(self, page: Array) -> Array:
        return page.reshape(-1, self.width)

    def reduce(self, x: Array, reduction: Callable = jnp.sum) -> Array:
        """Reduce x [R, K] to [R, 1] where a row has one grid; leave it where each of its channels has one."""
        return reduction(x, 1, keepdims=True) if self.width == BLOCK else x


def _by_tensor(tables: Tables, p: Array) -> _Unit:
    tensor = get_page(tables.block_tensor, p)
    return _Unit(tensor, tensor, BLOCK)


def _by_channel(tables: Tables, p: Array) -> _Unit:
    first, count, begin = (c[:, None] for c in get_page(tables.block_channel_groups, p).T)
    index = first + (begin + jnp.arange(BLOCK // GROUP_CHANNELS, dtype=jnp.int32)) % count
    return _Unit(
        index.ravel(), jnp.repeat(get_page(tables.block_tensor, p), BLOCK // GROUP_CHANNELS), GROUP_CHANNELS
    )


class _Buffer(NamedTuple):
    """The weights as `quant.weight_grids.GridWeights`: what they have in common is added up page by page."""

    flat: Array
    tables: Tables
    rows: Callable  # of a page: _by_channel or _by_tensor
    zeros: Array  # [G, 1 or GROUP_CHANNELS]

    def extremes(self) -> tuple[Array, Array]:
        def extend(ranges, w, unit):
            lo, hi = ranges
            return (
                lo.at[unit.index].min(unit.reduce(w, jnp.min)),
                hi.at[unit.index].max(unit.reduce(w, jnp.max)),
            )

        return self._fold(extend, (self.zeros, self.zeros), pages(self.tables))

    def sums(self, measure: Callable, *of_grids: Array, when: Array | bool = True) -> tuple[Array, Array]:
        def add(totals, w, unit):
            measured = measure(w, *(x[unit.index] for x in of_grids))
            return tuple(
                total.at[unit.index].add(unit.reduce(x.astype(w.dtype)))
                for total, x in zip(totals, measured, strict=True)
            )

        needed = pages(self.tables)
        if not backends.kernels_are_launches():  # there, whether to begin would be a wait of the host
            needed = jnp.where(when, needed, 0)
        return self._fold(add, (self.zeros, self.zeros), needed)

    def _fold(self, add: Callable, start: tuple[Array, Array], count: Array | int) -> tuple[Array, Array]:
        """Fold add(totals, rows [R, K], unit) over the first `count` pages."""

        def step(p, totals):
            unit = self.rows(self.tables, p)
            return add(totals, unit.rows(get_page(self.flat, p)), unit)

        return lax.fori_loop(0, count, step, start)


def _on_grid(w: Array, grid: Grid, unit: _Unit, bits: Array, scheme: Scheme, key: Array | None, p: Array):
    grid = Grid(*(part[unit.index] for part in grid))
    key = None if key is None else jax.random.fold_in(key, p)
    b = bits[unit.tensor][:, None]
    return quantize(w, grid, b, mode=scheme.mode, key=key)
