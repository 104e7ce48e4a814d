"""Fake quantization of a whole weight buffer.

Axes: F floats of the buffer | B blocks of BLOCK floats | T tensors.

The range of a weight is that of the logical tensor, however many instructions read parts of it, so weights
are quantized here, before any instruction reads them. All loops go page by page over the blocks in use:
their cost follows the network, not the buffer.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from ghn_jax.cnn.lowering import BLOCK
from ghn_jax.cnn.program import PAGE_BLOCKS, Tables
from ghn_jax.quant.fake_quant import fake_quantize


def pages(tables: Tables) -> Array:
    """Pages of PAGE_BLOCKS blocks that hold the network's weights, int32 []."""
    return (tables.n_blocks + PAGE_BLOCKS - 1) // PAGE_BLOCKS


def get_page(buffer: Array, p: Array) -> Array:
    """Page p of a [F] buffer as [PAGE_BLOCKS, BLOCK], or of a [B] table as [PAGE_BLOCKS]."""
    width = BLOCK if jnp.issubdtype(buffer.dtype, jnp.floating) else 1
    page = lax.dynamic_slice(buffer, (p * PAGE_BLOCKS * width,), (PAGE_BLOCKS * width,))
    return page.reshape(PAGE_BLOCKS, BLOCK) if width == BLOCK else page


def set_page(buffer: Array, page: Array, p: Array) -> Array:
    """Writes page p of a [F] buffer."""
    return lax.dynamic_update_slice(buffer, page.ravel(), (p * PAGE_BLOCKS * BLOCK,))


def tensor_ranges(flat: Array, tables: Tables, n_tensors: int) -> tuple[Array, Array]:
    """(lo, hi), each [T]: the range of every tensor in the buffer, always including 0."""

    def page(p, ranges):
        lo, hi = ranges
        w = get_page(flat, p)
        tensor = get_page(tables.block_tensor, p)
        return lo.at[tensor].min(jnp.min(w, 1)), hi.at[tensor].max(jnp.max(w, 1))

    zeros = jnp.zeros(n_tensors, flat.dtype)
    return lax.fori_loop(0, pages(tables), page, (zeros, zeros))


def _quantize_page(w, ranges, bits, tensor, mode, key):
    lo, hi = (r[tensor][:, None] for r in ranges)
    return fake_quantize(w, lo, hi, bits[tensor][:, None], mode=mode, key=key)


def _page_key(key, p):
    return None if key is None else jax.random.fold_in(key, p)


def quantize_weights(
    flat: Array, tables: Tables, bits: Array, out: Array, *, mode: str, key: Array | None = None
) -> Array:
    """The buffer with every tensor fake-quantized by its own range, written into `out` [F].

    bits: int32 [T]. Blocks that no tensor owns (norms, biases) are copied. mode: 'qat' or 'noise'; `key` for
    the latter.
    """
    ranges = tensor_ranges(flat, tables, bits.shape[0])

    def page(p, out):
        tensor = get_page(tables.block_tensor, p)
        quantized = _quantize_page(get_page(flat, p), ranges, bits, tensor, mode, _page_key(key, p))
        return set_page(out, quantized, p)

    return lax.fori_loop(0, pages(tables), page, out)


def quantize_weights_backward(
    flat: Array, tables: Tables, bits: Array, g: Array, *, mode: str, key: Array | None = None
) -> Array:
    """The gradient [F] to `flat` from the gradient to the quantized weights, in place of the latter."""
    ranges = tensor_ranges(flat, tables, bits.shape[0])

    def page(p, g):
        tensor = get_page(tables.block_tensor, p)
        quantize = lambda w: _quantize_page(w, ranges, bits, tensor, mode, _page_key(key, p))
        _, pull = jax.vjp(quantize, get_page(flat, p))
        return set_page(g, pull(get_page(g, p))[0], p)

    return lax.fori_loop(0, pages(tables), page, g)
