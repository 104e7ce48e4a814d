"""Fake quantization of a whole weight buffer.

Axes: F floats of the buffer | B blocks of BLOCK floats | T tensors | U columns of COLUMN output channels |
G grids.

The grid of a weight is that of the logical tensor (or of its output channel), however many instructions read
parts of it, so weights are quantized here, before any instruction reads them. All loops go page by page over
the blocks in use: their cost follows the network, not the buffer.

A page is seen as rows [R, K], and each row has an index into arrays of what the rows share. By tensor: rows
are blocks, the arrays [T, 1]. By channel: rows are columns of channels, the arrays [U, COLUMN], an entry for
each channel. Zeros, padding among them, count in no sum (`quant.ranges`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from ghn_jax.cnn.columns import COLUMN
from ghn_jax.cnn.pieces import BLOCK
from ghn_jax.cnn.tables import PAGE_BLOCKS, Tables
from ghn_jax.quant.fake_quant import Grid, make_grid, quantize
from ghn_jax.quant.policy import TERNARY
from ghn_jax.quant.ranges import LEAN, sigma, sigmas_for
from ghn_jax.quant.scheme import Scheme

TERNARY_CUT = 0.7  # times the mean magnitude (arXiv 1605.04711, eq. 6)
_PERCENTILE_STEPS, _MSE_STEPS, _MSE_LEAST = 256, 16, 3  # fractions of a range that are tried: k / steps


def pages(tables: Tables) -> Array:
    """Pages of PAGE_BLOCKS blocks that hold the network's weights, int32 []."""
    return (tables.n_blocks + PAGE_BLOCKS - 1) // PAGE_BLOCKS


def get_page(buffer: Array, p: Array) -> Array:
    """Page p of a [F] buffer as [PAGE_BLOCKS, BLOCK], or of a [B, ...] table as [PAGE_BLOCKS, ...]."""
    if not jnp.issubdtype(buffer.dtype, jnp.floating):
        return lax.dynamic_slice_in_dim(buffer, p * PAGE_BLOCKS, PAGE_BLOCKS)
    page = lax.dynamic_slice(buffer, (p * PAGE_BLOCKS * BLOCK,), (PAGE_BLOCKS * BLOCK,))
    return page.reshape(PAGE_BLOCKS, BLOCK)


def set_page(buffer: Array, page: Array, p: Array) -> Array:
    """Writes page p of a [F] buffer."""
    return lax.dynamic_update_slice(buffer, page.ravel(), (p * PAGE_BLOCKS * BLOCK,))


def quantize_weights(
    flat: Array, tables: Tables, bits: Array, out: Array, *, scheme: Scheme, key: Array | None = None
) -> tuple[Array, Grid]:
    """The buffer with every tensor fake-quantized, written into `out` [F], and its grids [G, 1 or COLUMN].

    bits: int32 [T]. Blocks that no tensor owns (norms, biases) are copied. scheme: of mode 'qat' or 'noise';
    `key` for the latter.
    """
    rows = _by_channel if scheme.granularity == 'channel' else _by_tensor
    grid = _fit(_Buffer(flat, tables), rows, bits, scheme)

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
    """The gradient [F] to `flat` from the gradient to the quantized weights, in place of the latter."""
    rows = _by_channel if scheme.granularity == 'channel' else _by_tensor

    def page(p, g):
        w, unit = get_page(flat, p), rows(tables, p)
        rounded = lambda w: _on_grid(unit.rows(w), grid, unit, bits, scheme, key, p)
        _, pull = jax.vjp(rounded, w)
        return set_page(g, pull(unit.rows(get_page(g, p)))[0], p)

    return lax.fori_loop(0, pages(tables), page, g)


# ---- pages as rows


class _Unit(NamedTuple):
    """What the rows of a page have in common. index: int32 [R]. tensor: int32 [R]. width: K."""

    index: Array
    tensor: Array
    width: int

    def rows(self, page: Array) -> Array:
        return page.reshape(-1, self.width)

    def reduce(self, x: Array, how: Callable = jnp.sum) -> Array:
        """x [R, K] -> [R, 1] where a row has one grid, as it is where each of its channels has its own."""
        return how(x, 1, keepdims=True) if self.width == BLOCK else x


def _by_tensor(tables: Tables, p: Array) -> _Unit:
    tensor = get_page(tables.block_tensor, p)
    return _Unit(tensor, tensor, BLOCK)


def _by_channel(tables: Tables, p: Array) -> _Unit:
    first, count, begin = (c[:, None] for c in get_page(tables.block_columns, p).T)
    index = first + (begin + jnp.arange(BLOCK // COLUMN, dtype=jnp.int32)) % count
    return _Unit(index.ravel(), jnp.repeat(get_page(tables.block_tensor, p), BLOCK // COLUMN), COLUMN)


class _Buffer(NamedTuple):
    """Weights to be read page by page."""

    flat: Array
    tables: Tables

    def fold(self, rows, add: Callable, start: Any, count: Array | None = None) -> Any:
        """add(totals, rows [R, K], unit) over all pages, or over the first `count`."""
        step = lambda p, total: add(total, (u := rows(self.tables, p)).rows(get_page(self.flat, p)), u)
        return lax.fori_loop(0, pages(self.tables) if count is None else count, step, start)


def _on_grid(w: Array, grid: Grid, unit: _Unit, bits: Array, scheme: Scheme, key: Array | None, p: Array):
    own = Grid(*(part[unit.index] for part in grid))
    key = None if key is None else jax.random.fold_in(key, p)
    b = bits[unit.tensor][:, None]
    return quantize(w, own, b, mode=scheme.mode, key=key)


# ---- grids


def _fit(buffer: _Buffer, rows: Callable, bits: Array, scheme: Scheme) -> Grid:
    """The grid of every tensor or channel: arrays [G, 1 or COLUMN]."""
    by_channel, dtype = rows is _by_channel, buffer.flat.dtype
    b = (bits[buffer.tables.column_tensor] if by_channel else bits)[:, None]
    zeros = jnp.zeros((b.shape[0], COLUMN if by_channel else 1), dtype)

    def extend(ranges, w, unit):
        lo, hi = ranges
        return (
            lo.at[unit.index].min(unit.reduce(w, jnp.min)),
            hi.at[unit.index].max(unit.reduce(w, jnp.max)),
        )

    lo, hi = buffer.fold(rows, extend, (zeros, zeros))
    if scheme.symmetric:
        hi = jnp.maximum(-lo, hi)
        lo = -hi
    grid_of = lambda lo, hi: make_grid(lo, hi, b, dtype, symmetric=scheme.symmetric)
    if scheme.weight_range == 'sigma':
        far = scheme.weight_sigmas or sigmas_for(b, lo, dtype, symmetric=scheme.symmetric)
        far = far * sigma(*buffer.fold(rows, _add(lambda w, unit: w * w), (zeros, zeros)))
        lo, hi = jnp.maximum(lo, -far if scheme.symmetric else -LEAN * far), jnp.minimum(hi, far)
    elif scheme.weight_range == 'percentile':
        fraction = _percentile_fraction(buffer, rows, lo, hi, scheme.percentile)
        lo, hi = fraction * lo, fraction * hi
    elif scheme.weight_range == 'mse':
        fraction = _mse_fraction(buffer, rows, lo, hi, b, grid_of)
        lo, hi = fraction * lo, fraction * hi
    return _with_signs(buffer, rows, grid_of(lo, hi), b, zeros)


def _add(measure: Callable) -> Callable:
    """Adds up measure(w, unit) and the number of weights that are not 0, by index."""

    def add(totals, w, unit):
        x = measure(w, unit)
        total, count = totals
        return (
            total.at[unit.index].add(unit.reduce(x)),
            count.at[unit.index].add(unit.reduce((w != 0).astype(w.dtype))),
        )

    return add


def _with_signs(buffer: _Buffer, rows: Callable, grid: Grid, b: Array, zeros: Array) -> Grid:
    """The grid, with those of 1 bit (arXiv 1603.05279, eq. 6) and of ternary weights (arXiv 1605.04711).

    The scale is the mean magnitude of the weights beyond the cut: 0, or TERNARY_CUT mean magnitudes.
    """
    n = jnp.where(jnp.any(b < 2), pages(buffer.tables), 0)  # no pass over the weights where there are none
    total, count = buffer.fold(rows, _add(lambda w, unit: jnp.abs(w)), (zeros, zeros), n)
    cut = jnp.where(b == TERNARY, TERNARY_CUT, 0) * total / jnp.maximum(count, 1)

    def beyond(totals, w, unit):
        x = jnp.where(jnp.abs(w) > cut[unit.index], jnp.abs(w), 0)
        return _add(lambda x, unit: x)(totals, x, unit)

    total, count = buffer.fold(rows, beyond, (zeros, zeros), n)
    scale = total / jnp.maximum(count, 1)
    return grid._replace(scale=jnp.where(b < 2, scale, grid.scale), cut=jnp.where(b < 2, cut, 0))


def _percentile_fraction(buffer: _Buffer, rows: Callable, lo: Array, hi: Array, percentile: float) -> Array:
    """The least k / 256 of a range outside of which lie no more than 100 - percentile percent: bisection."""

    def outside(fraction):
        def beyond(w, unit):
            f, low, high = (x[unit.index] for x in (fraction, lo, hi))
            return ((w < f * low) | (w > f * high)).astype(w.dtype)

        return buffer.fold(rows, _add(beyond), (jnp.zeros_like(lo), jnp.zeros_like(lo)))

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) // 2
        beyond, count = outside(middle.astype(lo.dtype) / _PERCENTILE_STEPS)
        fits = beyond <= (1 - percentile / 100) * count
        return jnp.where(fits, low, middle), jnp.where(fits, middle, high)

    none = jnp.zeros(lo.shape, jnp.int32)
    halvings = _PERCENTILE_STEPS.bit_length() - 1
    _, k = lax.fori_loop(0, halvings, halve, (none, none + _PERCENTILE_STEPS))
    return k.astype(lo.dtype) / _PERCENTILE_STEPS


def _mse_fraction(buffer: _Buffer, rows: Callable, lo: Array, hi: Array, b: Array, grid_of) -> Array:
    """The k / 16 of a range with the least squared error of rounding; of equal ones the largest."""

    def attempt(i, best):
        least, fraction = best
        f = (_MSE_STEPS - i).astype(lo.dtype) / _MSE_STEPS
        grid = grid_of(f * lo, f * hi)

        def error(w, unit):
            own, bits = Grid(*(part[unit.index] for part in grid)), (b + jnp.zeros_like(lo, b.dtype))
            return (w - quantize(w, own, bits[unit.index])) ** 2

        e, _ = buffer.fold(rows, _add(error), (jnp.zeros_like(lo), jnp.zeros_like(lo)))
        return jnp.where(e < least, e, least), jnp.where(e < least, f, fraction)

    start = jnp.full_like(lo, jnp.inf), jnp.ones_like(lo)
    return lax.fori_loop(0, _MSE_STEPS - _MSE_LEAST + 1, attempt, start)[1]
