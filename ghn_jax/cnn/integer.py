"""A calibrated network in integer arithmetic alone: the plain way, for checking what a device would compute.

It follows arXiv 1712.05877 and gemmlowp. Every weight, and every activation that enters a convolution or
linear layer, is q in 0 .. 2^b - 1 (2 <= b <= 8) with a scale s and a zero point z, as in `quant.fake_quant`;
weights on the grids that the fake-quantized network has, one for the tensor or for each output channel.
Layers multiply and sum (q - z), in int32. What lies between the layers (accumulators after their rescaling,
shifts, sums, pools, means, logits) is int32 fixed point with F fractional bits (`fraction_bits`: 17 to 20 for
ranges up to 64). Factors, such as s_x s_w 2^F, are an int32 multiplier and a shift (`Factor`); a factor for
each channel takes in the one of a `corrected` normalisation. What does not fit into int32 saturates.

The only differences to the fake-quantized form are these roundings: each value between layers to a multiple
of 2^-F, factors to 31 bits, halves upward instead of to even. An activation on the border of two levels may
so fall on the other side, and what follows from it differs by a level: rarer, the more bits F has. F is one
for the network: where values shrink below 2^-F from layer to layer, as without normalisation they may, they
are lost.

Axes: N images | H, W rows and columns | C, O channels | L classes.
"""

import functools
import math
from collections.abc import Iterable
from typing import NamedTuple

import jax
import numpy as np
from jax import Array, lax

from ghn_jax.cnn.lowering import IMAGE, Instruction, Piece
from ghn_jax.cnn.program import Bits, Layout, Program, Ranges, Tables, piece_part
from ghn_jax.cnn.weights import quantize_weights
from ghn_jax.errors import UserError
from ghn_jax.networks.graph import build_graph
from ghn_jax.networks.spec import NetworkSpec
from ghn_jax.quant.fake_quant import Grid, make_grid
from ghn_jax.quant.policy import TERNARY, Policy
from ghn_jax.quant.scheme import QAT, Scheme

MIN_BITS, MAX_BITS = 2, 8
MAX_FRACTION = 20
_ROOM = 8  # bits that sums, pools and values beyond their calibrated range may grow by
_INT32 = np.iinfo(np.int32)


class Factor(NamedTuple):
    """multiplier * 2^-shift, int64 arrays, 1 <= shift <= 62. The multiplier fits int32 and has 31 bits; fewer
    for factors below 2^-31, at last none.
    """

    multiplier: np.ndarray
    shift: np.ndarray


class Levels(NamedTuple):
    """A quantized tensor: uint8 q, stands for (q - zero) * scale.

    Of a weight zero and scale are arrays, [O, 1, ..] and [O].
    """

    q: np.ndarray
    zero: int | np.ndarray
    scale: float | np.ndarray

    @property
    def centred(self) -> np.ndarray:
        """q - zero, int32."""
        return self.q.astype(np.int32) - self.zero


def make_factor(x: np.ndarray | float) -> Factor:
    """The nearest factor to x, |x| < 2^30."""
    x = np.asarray(x, np.float64)
    shift = np.clip(31 - np.frexp(x)[1], 1, 62).astype(np.int64)
    multiplier = np.round(np.ldexp(x, shift)).astype(np.int64)
    over = np.abs(multiplier) == 2**31  # rounded up to one bit more
    return Factor(np.where(over, multiplier // 2, multiplier), shift - over)


def rescale(x: np.ndarray, factor: Factor) -> np.ndarray:
    """x * factor to the nearest int32, halves upward: a 32 x 32 bit product and a rounding shift."""
    half = np.left_shift(np.int64(1), factor.shift - 1)
    return saturate((x.astype(np.int64) * factor.multiplier + half) >> factor.shift)


def saturate(x: np.ndarray) -> np.ndarray:
    """int64 to int32, what does not fit to the nearest that does."""
    return np.clip(x, _INT32.min, _INT32.max).astype(np.int32)


def fraction_bits(ranges: Ranges) -> int:
    """Bits after the point that leave room for 2^_ROOM times the farthest end of a range, to MAX_FRACTION."""
    farthest = max(float(np.abs(r).max(initial=1)) for r in ranges)
    return max(1, min(MAX_FRACTION, 31 - _ROOM - math.ceil(math.log2(farthest))))


def logits(
    program: Program,
    spec: NetworkSpec,
    layout: Layout,
    flat: np.ndarray,
    bits: Bits,
    ranges: Ranges,
    images: np.ndarray,
    mean: np.ndarray,
    std: np.ndarray,
    *,
    scheme: Scheme = QAT,
) -> np.ndarray:
    """Logits, int32 [N, L] with `fraction_bits(ranges)` bits after the point, of a network whose
    normalisations are fixed (`cnn.calibration`).

    flat: its weights [F], float. images: uint8 [N, H, W, 3]; mean, std [3] in units of 0..1. scheme: of the
    weights, that does not standardise (they are). On the host.

    The network and the policy must pass `check`.

    Raises:
      UserError: sums that may leave int32.
    """
    return _Interpreter(program, spec, layout, flat, bits, ranges, scheme).run(images, mean, std)


def check(specs: Iterable[NetworkSpec], policies: Iterable[Policy]) -> None:
    """Raises UserError for networks and policies that this arithmetic does not serve; float is let be."""
    for policy in policies:
        exceptions = (bits for rule in (*policy.rules, *policy.layers) for bits in rule[1:])
        widths = policy.weight_bits, policy.activation_bits, *exceptions, *(policy.edges or ())
        odd = next((bits for bits in widths if not MIN_BITS <= bits <= MAX_BITS), None)
        if odd is not None and not policy.is_float:
            has = 'ternary weights' if odd == TERNARY else f'tensors of {odd} bits'
            raise UserError(
                f'policy {policy} has {has}: integer arithmetic is for {MIN_BITS} to {MAX_BITS} bits of '
                'every weight and activation; leave out --integer or the policy'
            )
    for spec in specs:
        if odd := sorted(spec.genotype.ops & {'msa', 'cse'}):
            raise UserError(
                f'network {spec.name!r} has {" and ".join(odd)}, which integer arithmetic does not cover: '
                'leave out --integer, or take networks without'
            )


class _Interpreter:
    def __init__(self, program, spec, layout, flat, bits, ranges, scheme=QAT, *, fraction: int | None = None):
        self.one = 2.0 ** (fraction or fraction_bits(ranges))
        self.layout, self.bits, self.ranges = layout, bits, ranges
        shapes = {p.name: p.shape for p in build_graph(spec).parameters}
        self.params = program.unpack(layout, np.asarray(flat), shapes)
        _, self.pooled = program.heads[int(layout.tables.head.variant)]
        self.weights: dict[str, Levels] = {}
        grid = jax.device_get(_fit(flat, layout.tables, bits.weights, scheme))
        for name, t in layout.tensors.items():
            own = layout.tables.column_tensor == t if scheme.granularity == 'channel' else t
            self.weights[name] = _weight_levels(
                self.params[name], Grid(*(part[own].ravel() for part in grid))
            )
        self.values: dict[int, np.ndarray] = {}  # fixed point
        # Sums that are not rescaled yet, with the scale of each channel.
        self.sums: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def run(self, images: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
        pixels = rescale(images, make_factor(self.one / (255.0 * np.asarray(std, np.float64))))
        self.values[IMAGE] = pixels - self._fixed(np.asarray(mean, np.float64) / std)
        for r, instruction in enumerate(self.layout.instructions):
            self._execute(r, instruction)
        return self._classify()

    def _execute(self, r: int, instruction: Instruction) -> None:
        op, src, dst = instruction.op, instruction.src, instruction.dst
        match op:
            case ('conv', kh, kw, stride, rectify):
                strides = (stride if kh > 1 or kw == 1 else 1, stride if kw > 1 or kh == 1 else 1)
                x = self._quantized(r, 0, self._read(src), rectify)
                self._add_sums(dst, *self._conv(x, instruction.pieces[0], (kh, kw), strides))
            case ('depthwise', k, dilation, stride):
                x = self._quantized(r, 0, self._read(src), True)
                sums = self._conv(
                    x, instruction.pieces[0], (k, k), (stride, stride), dilation, depthwise=True
                )
                self._add_sums(dst, *sums)
            case ('reduce',):
                x = self._quantized(r, 0, self._read(src), True)
                halves = [
                    self._conv(x._replace(q=x.q[:, at::2, at::2]), piece, (1, 1), (1, 1))
                    for at, piece in enumerate(instruction.pieces)
                ]
                self._add_sums(dst, *(np.concatenate(parts, -1) for parts in zip(*halves)))
            case ('split', stride):
                x = self._quantized(r, 0, self._read(src), True)
                sums, scale = self._conv(x, instruction.pieces[0], (1, 7), (1, stride))
                x = self._quantized(r, 1, rescale(sums, make_factor(scale * self.one)), False)
                self._add_sums(dst, *self._conv(x, instruction.pieces[1], (7, 1), (stride, 1)))
            case ('norm',):
                sums, scale = self.sums.pop(src)
                factor, shift = (self._vector(piece) for piece in instruction.pieces)
                self._add(dst, rescale(sums, make_factor(scale * factor * self.one)), self._fixed(shift))
            case ('max', stride):
                self._add(dst, functools.reduce(np.maximum, _windows(self._read(src), stride, _INT32.min)))
            case ('avg', stride):
                x = self._read(src)
                counts = sum(_windows(np.ones((1, *x.shape[1:3], 1), np.int64), stride, 0))
                total = saturate(sum(_windows(x.astype(np.int64), stride, 0)))
                self._add(dst, rescale(total, make_factor(1 / counts)))
            case ('copy',):
                self._add(dst, self._read(src))
            case ('subsample', rectify):
                x = self._read(src)[:, ::2, ::2]
                self._add(dst, np.maximum(x, 0) if rectify else x)
            case ('zero',):
                x = self._read(src)
                self._add(dst, np.zeros_like(x))
            case _:
                raise AssertionError(f'no such op: {op}')

    def _classify(self) -> np.ndarray:
        parts = [self._read(v) for v in self.layout.head_group]
        x = np.stack(parts, 1)  # [N, K, H, W, C]
        if self.pooled:
            total = saturate(x.sum((2, 3), dtype=np.int64))  # [N, K, C]
            x = rescale(total, make_factor(1 / (x.shape[2] * x.shape[3])))
        else:
            x = x.transpose(0, 1, 4, 2, 3)
        x = x.reshape(len(x), -1)
        for k, name in enumerate(self.layout.head_weights):
            x = np.maximum(x, 0) if k else x
            levels = self._levels(x, *self.ranges.head[k], self.bits.head[k])
            w = self.weights[name]
            sums = _checked(levels, w.centred.T, lambda a, b: np.asarray(_dot(a, b)), (0,))
            bias = self._fixed(self.params[name.removesuffix('weight') + 'bias'])
            scale = make_factor(levels.scale * w.scale * self.one)
            x = saturate(rescale(sums, scale).astype(np.int64) + bias)
        return x

    # -- values

    def _read(self, value: int) -> np.ndarray:
        if value in self.sums:
            sums, scale = self.sums.pop(value)
            self.values[value] = rescale(sums, make_factor(scale * self.one))
        return self.values[value]

    def _add(self, value: int, *terms: np.ndarray) -> None:
        before = self.values.get(value, np.int32(0))
        self.values[value] = saturate(sum((t.astype(np.int64) for t in terms), before.astype(np.int64)))

    def _add_sums(self, value: int, sums: np.ndarray, scale: np.ndarray) -> None:
        """Convolutions of the parts of a concatenation share their scales: their sums add up exactly."""
        if value in self.sums:
            sums = saturate(sums.astype(np.int64) + self.sums[value][0])
        self.sums[value] = sums, scale

    def _quantized(self, r: int, which: int, x: np.ndarray, rectify: bool) -> Levels:
        x = np.maximum(x, 0) if rectify else x
        return self._levels(x, *self.ranges.rows[r, which], self.bits.activations[r, which])

    def _levels(self, x: np.ndarray, lo: float, hi: float, bits: int) -> Levels:
        """Fixed point to levels."""
        grid = make_grid(lo, hi, int(bits), np.float32)
        s, z = float(grid.scale), int(grid.zero)
        q = rescale(x, make_factor(1 / (s * self.one) if s > 0 else 0)).astype(np.int64) + z
        return Levels(np.clip(q, 0, 2 ** int(bits) - 1).astype(np.uint8), z, s)

    def _fixed(self, x: np.ndarray) -> np.ndarray:
        """Real numbers to fixed point."""
        return saturate(np.floor(np.asarray(x, np.float64) * self.one + 0.5))

    def _vector(self, piece: Piece) -> np.ndarray:
        if piece.name is None:
            return np.full(piece.cols, piece.constant)
        return self.params[piece.name][piece.col : piece.col + piece.cols].astype(np.float64)

    def _conv(self, x: Levels, piece: Piece, kernel, stride, dilation=1, depthwise=False):
        """(sums int32 [N, H, W, O], their scale [O])."""
        assert piece.name is not None
        w = self.weights[piece.name]
        part = piece_part(w.centred, piece).reshape(*kernel, -1, piece.cols)
        padding = tuple((k - 1) * dilation // 2 if depthwise else k // 2 for k in kernel)
        groups = piece.cols if depthwise else 1
        convolve = lambda a, b: np.asarray(_convolve(a, b, stride, padding, dilation, groups))
        scale = x.scale * w.scale[piece.col : piece.col + piece.cols]
        return _checked(x, part, convolve, (0, 1, 2)), scale


@functools.partial(jax.jit, static_argnums=3)
def _fit(flat: Array, tables: Tables, bits: Array, scheme: Scheme) -> Grid:
    return quantize_weights(flat, tables, bits, flat, scheme=scheme)[1].grid


def _weight_levels(w: np.ndarray, grid: Grid) -> Levels:
    """A weight [O, ..] to levels. grid: of all output channels, [1], or of each and of padding."""
    s, z, top, _ = (np.resize(part, (len(w), *[1] * (w.ndim - 1))) for part in grid)
    q = np.clip(np.round(w / np.where(s > 0, s, 1)) + z, 0, top)
    return Levels(q.astype(np.uint8), z.astype(np.int32), s.ravel().astype(np.float64))


def _checked(x: Levels, w: np.ndarray, multiply, inputs: tuple[int, ...]) -> np.ndarray:
    """multiply(x, w) in int32, if no sum can leave it. inputs: axes of w that are summed over."""
    largest = int(np.abs(w.astype(np.int64)).sum(inputs).max()) * 255
    if largest > _INT32.max:
        raise UserError(
            f'a layer may sum up to {largest}, more than int32 holds: take fewer bits than {MAX_BITS} for it'
        )
    with jax.default_device(jax.local_devices(backend='cpu')[0]):
        return multiply(x.centred, w)


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _convolve(x: Array, w: Array, stride, padding, dilation: int, groups: int) -> Array:
    return lax.conv_general_dilated(
        x, w, stride, [(p, p) for p in padding], rhs_dilation=(dilation, dilation),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=groups,
    )  # fmt: skip


@jax.jit
def _dot(x: Array, w: Array) -> Array:
    return x @ w


def _windows(x: np.ndarray, stride: int, fill: int) -> list[np.ndarray]:
    """What each of the nine positions of a 3x3 window, padded by one, sees."""
    _, h, w, _ = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=fill)
    return [padded[:, i : i + h : stride, j : j + w : stride] for i in range(3) for j in range(3)]
