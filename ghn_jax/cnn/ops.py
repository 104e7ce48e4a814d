"""The operations of a CNN, in the formulation that is fastest on each backend.

Axes: N images | H, W rows and columns | C, O input and output channels | K kernel size.
Images are NHWC, dense kernels HWIO, depthwise kernels HWC. Every function keeps its input's dtype; sums over
many values are at least float32.

Why not plain `lax` with autodiff: these functions run inside `lax.switch` inside a loop, where XLA:CPU
takes the slow path for convolutions that autodiff makes (15 to 200 times slower), because it brings only
convolutions in NHWC/HWIO form to its fast kernel there. So the gradient to the image is written out in that
form, with barriers that keep the transposition from being folded back into it, and the gradient to the kernel
as matrix products (as a convolution it is 2 to 30 times slower). Depthwise convolutions and
pools are sums of shifted slices, 10 to 40 times faster than XLA:CPU's own. On other backends the library's
operations are used: `base.backends` says which backend a program is for.
"""

import functools
import math
from collections.abc import Iterable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ghn_jax.base import backends

_NHWC = ('NHWC', 'HWIO', 'NHWC')
_PIXELS_AT_A_TIME = 512  # on a CPU: so much of a batch stays in cache for all taps of a kernel


def wide(x: Array) -> Array:
    """Widen x to float32, where it has fewer bits."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def relu(x: Array) -> Array:
    """Return max(x, 0), with gradient 0 at 0 as in PyTorch (jnp.maximum would pass one half).

    What is no number stays none: 0 in its place would hide that a network is broken.
    """
    return jnp.where(x <= 0, 0, x)


def _in_parts(pixels: int, *batches: Array) -> Any:
    """Cut batches [N, ...] of images of so many pixels into parts that a CPU's cache holds: [P, N/P, ...]."""
    images = math.gcd(len(batches[0]), max(1, _PIXELS_AT_A_TIME // pixels))
    return tuple(x.reshape(-1, images, *x.shape[1:]) for x in batches)


# ---- dense convolution


def _extent(kernel: Iterable[int], dilation: int) -> list[int]:
    """Return rows and columns from the first to the last tap of a kernel."""
    return [(k - 1) * dilation + 1 for k in kernel]


def _forward(x: Array, w: Array, stride: tuple[int, int], dilation: int) -> Array:
    padding = [(k // 2,) * 2 for k in _extent(w.shape[:2], dilation)]
    return _convolve(x, w, stride, dilation, padding)


def _convolve(x: Array, w: Array, stride: tuple[int, int], dilation: int, padding: list) -> Array:
    # XLA:CPU's fast kernel does not take kernels larger than the image (40 times slower): widen the image.
    if backends.on_cpu() and any(k > n for k, n in zip(_extent(w.shape[:2], dilation), x.shape[1:3])):
        x, padding = lax.optimization_barrier(jnp.pad(x, ((0, 0), *padding, (0, 0)))), [(0, 0), (0, 0)]
    spread = (dilation, dilation)
    return lax.conv_general_dilated(x, w, stride, padding, rhs_dilation=spread, dimension_numbers=_NHWC)


def _input_gradient(w: Array, g: Array, stride, dilation: int, size: tuple[int, int]) -> Array:
    """Convolve g, dilated by the stride, with the mirrored kernel, O and C exchanged."""
    mirrored = lax.optimization_barrier(jnp.swapaxes(w[::-1, ::-1], 2, 3))
    padding = []
    for k, s, n_in, n_out in zip(_extent(w.shape[:2], dilation), stride, size, g.shape[1:3], strict=True):
        before = k - 1 - k // 2
        padding.append((before, n_in - ((n_out - 1) * s + 1) - before + k - 1))
    if stride != (1, 1):
        pads = [(0, 0, s - 1) for s in stride]
        g = lax.optimization_barrier(lax.pad(g, jnp.zeros((), g.dtype), ((0, 0, 0), *pads, (0, 0, 0))))
    return _convolve(g, mirrored, (1, 1), dilation, padding)


def _kernel_gradient(x: Array, g: Array, kernel, stride: tuple[int, int], dilation: int) -> Array:
    """Multiply g^T @ columns, once for each kernel row, a few images at a time so that all of it stays
    in cache. The columns of a pixel are the C * KW inputs beside it in its row: the rows of the kernel read
    the same columns, each from another row on.
    """
    (kh, kw), c, (rows, cols, o) = kernel, x.shape[-1], g.shape[1:]
    pads = [(k // 2,) * 2 for k in _extent(kernel, dilation)]

    def several(total: Array, pair: tuple[Array, Array]):
        x, g = pair
        padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
        width, height = (cols - 1) * stride[1] + 1, (rows - 1) * stride[0] + 1
        shifted = [padded[:, :, j : j + width : stride[1]] for j in range(0, kw * dilation, dilation)]
        columns = lax.optimization_barrier(jnp.concatenate(shifted, -1))
        gt = g.reshape(-1, o).T
        each = (columns[:, i : i + height : stride[0]] for i in range(0, kh * dilation, dilation))
        taps = [gt @ part.reshape(-1, kw * c) for part in each]
        return total + wide(jnp.stack(taps)), None

    total = wide(jnp.zeros((kh, o, kw * c), x.dtype))
    total = lax.scan(several, total, _in_parts(rows * cols, x, g))[0]
    return total.reshape(kh, o, kw, c).transpose(0, 2, 3, 1).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x: Array, w: Array, stride: tuple[int, int], dilation: int) -> Array:
    return _forward(x, w, stride, dilation)


def _conv_backward(stride, dilation, residuals, g):
    x, w = residuals
    g_x = _input_gradient(w, g, stride, dilation, x.shape[1:3])
    return g_x, _kernel_gradient(x, g, w.shape[:2], stride, dilation)


_conv.defvjp(lambda x, w, *spread: (_forward(x, w, *spread), (x, w)), _conv_backward)


def conv(x: Array, w: Array, stride: tuple[int, int] = (1, 1), dilation: int = 1) -> Array:
    """Convolve, 'same' padding. x [N,H,W,C], w [KH,KW,C,O], K odd -> [N, H/stride, W/stride, O]."""
    if w.shape[:2] == (1, 1):
        x = x[:, :: stride[0], :: stride[1]]
        return (x.reshape(-1, x.shape[-1]) @ w[0, 0]).reshape(*x.shape[:3], w.shape[-1])
    return (_conv if backends.on_cpu() else _forward)(x, w, stride, dilation)


# ---- depthwise convolution


def _upsample(g: Array, stride: int, size: tuple[int, int], fill: float = 0) -> Array:
    """Transpose x[:, ::stride, ::stride]: zeros (or `fill`) between the entries of g."""
    if stride == 1:
        return g
    pads = [(0, n - ((m - 1) * stride + 1), stride - 1) for m, n in zip(g.shape[1:3], size, strict=True)]
    return lax.pad(g, jnp.asarray(fill, g.dtype), ((0, 0, 0), *pads, (0, 0, 0)))


def _pad(x: Array, p: int, fill: float = 0) -> Array:
    return jnp.pad(x, ((0, 0), (p, p), (p, p), (0, 0)), constant_values=fill)


def _taps(x: Array, k: int, dilation: int, stride: int):
    """Yield (i, j, the slice of x that tap (i, j) of a KxK 'same' kernel reads), x already padded."""
    h, w = (n - (k - 1) * dilation for n in x.shape[1:3])
    for i in range(k):
        for j in range(k):
            rows, columns = (slice(at, at + n, stride) for at, n in ((i * dilation, h), (j * dilation, w)))
            yield i, j, x[:, rows, columns]


def _depthwise(x: Array, w: Array, stride: int, dilation: int) -> Array:
    k = w.shape[0]

    def some(x: Array) -> Array:
        # Fused with its padding, each tap asks of every element whether it lies inside: twice as long.
        padded = lax.optimization_barrier(_pad(x, (k - 1) * dilation // 2))
        taps = _taps(padded, k, dilation, stride)
        return cast(Array, sum(wide(read) * w[i, j] for i, j, read in taps)).astype(x.dtype)

    y = lax.map(some, *_in_parts(x.shape[1] * x.shape[2], x))
    return y.reshape(-1, *y.shape[2:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise_shifts(x: Array, w: Array, stride: int, dilation: int) -> Array:
    return _depthwise(x, w, stride, dilation)


def _depthwise_backward(stride, dilation, residuals, g):
    x, w = residuals
    (_, h, width, c), k = x.shape, w.shape[0]
    g = _upsample(g, stride, (h, width))

    # One row of taps at a time, so that a 5x5 kernel takes half as long to compile as with all 25 written
    # out (and is as fast). Sums over pixels are matrix products: XLA's own add one number after another.
    def some(total, pair):
        x, g = pair
        x, g = lax.optimization_barrier(_pad(wide(x), (k - 1) * dilation // 2)), wide(g)
        ones = jnp.ones((1, g.size // c), g.dtype)

        def row(i, total):
            rows = lax.dynamic_slice_in_dim(x, i * dilation, h, 1)
            products = (rows[:, :, j : j + width] * g for j in range(0, k * dilation, dilation))
            taps = [ones @ lax.optimization_barrier(p.reshape(-1, c)) for p in products]
            return lax.dynamic_update_index_in_dim(total, total[i] + jnp.concatenate(taps), i, 0)

        return lax.fori_loop(0, k, row, total), None

    gw = lax.scan(some, wide(jnp.zeros_like(w)), _in_parts(h * width, x, g))[0]
    return _depthwise(g, w[::-1, ::-1], 1, dilation), gw.astype(w.dtype)


_depthwise_shifts.defvjp(
    lambda x, w, stride, dilation: (_depthwise(x, w, stride, dilation), (x, w)), _depthwise_backward
)


def depthwise_conv(x: Array, w: Array, stride: int = 1, dilation: int = 1) -> Array:
    """Convolve each channel with its kernel, 'same' padding. x [N,H,W,C], w [K,K,C] -> [N,H/s,W/s,C]."""
    if backends.on_cpu():
        return _depthwise_shifts(x, w, stride, dilation)
    p = (w.shape[0] - 1) * dilation // 2
    return lax.conv_general_dilated(
        x, w[:, :, None], (stride, stride), [(p, p)] * 2, rhs_dilation=(dilation, dilation),
        dimension_numbers=_NHWC, feature_group_count=x.shape[-1],
    )  # fmt: skip


# ---- pools


def _max_pool(x: Array, stride: int) -> tuple[Array, Array]:
    taps = _taps(_pad(x, 1, -jnp.inf), 3, 1, stride)
    _, _, best = next(taps)
    where = jnp.zeros(best.shape, jnp.uint8)
    for i, j, read in taps:
        better = read > best
        best = jnp.where(better, read, best)
        where = jnp.where(better, jnp.uint8(3 * i + j), where)
    return best, where


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool(x: Array, stride: int = 1) -> Array:
    """Take the 3x3 maximum, padding ignored. Of equal maxima the first in row-major order takes the gradient
    (as in PyTorch; it matters because quantized activations tie often). x [N,H,W,C] -> [N,H/s,W/s,C].
    """
    return _max_pool(x, stride)[0]


def _max_pool_forward(x, stride):
    best, where = _max_pool(x, stride)
    return best, (where, x)


def _max_pool_backward(stride, residuals, g):
    where, x = residuals
    size = x.shape[1:3]
    g = _pad(_upsample(g, stride, size), 1)
    where = _pad(_upsample(where, stride, size, 99), 1, 99)
    pairs = zip(_taps(g, 3, 1, 1), _taps(where, 3, 1, 1), strict=True)
    # The slice at (i, j) of the padded gradient belongs to the output whose tap (2 - i, 2 - j) is here.
    return (sum(jnp.where(k == 3 * (2 - i) + (2 - j), gw, 0) for (i, j, gw), (_, _, k) in pairs),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _reciprocal_counts(size: tuple[int, ...], stride: int, dtype) -> Array:
    counts = [np.convolve(np.ones(n), np.ones(3))[1:-1:stride] for n in size]  # 'same' fails below 3 pixels
    return jnp.asarray(1 / (counts[0][:, None, None] * counts[1][None, :, None]), dtype)


def _sum_pool(x: Array, stride: int) -> Array:
    return cast(Array, sum(wide(read) for _, _, read in _taps(_pad(x, 1), 3, 1, stride)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def avg_pool(x: Array, stride: int = 1) -> Array:
    """Take the 3x3 mean, the padding not counted. [N,H,W,C] -> [N,H/s,W/s,C]."""
    y = _sum_pool(x, stride)
    return (y * _reciprocal_counts(x.shape[1:3], stride, y.dtype)).astype(x.dtype)


def _avg_pool_backward(stride, residuals, g):
    (x,) = residuals
    scaled = wide(g) * _reciprocal_counts(x.shape[1:3], stride, wide(g).dtype)
    return (_sum_pool(_upsample(scaled, stride, x.shape[1:3]), 1).astype(x.dtype),)


avg_pool.defvjp(lambda x, stride: (avg_pool(x, stride), (x,)), _avg_pool_backward)
