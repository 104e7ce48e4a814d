"""A calibrated network in integer arithmetic alone: the plain way, for checking what a device would compute.

It follows arXiv 1712.05877 and gemmlowp. Every weight, and every activation that enters a convolution or
linear layer, is q in 0 .. 2^b - 1 (2 <= b <= 8) with a scale s and a zero point z, as in `quant.grid`;
weights on the grids that the fake-quantized network has, one for the tensor or for each output channel.
Layers multiply and sum (q - z), in int32. What lies between the layers (accumulators after their rescaling,
shifts, sums, pools, means, logits) is int32 fixed point (`FixedReal`). Where its point lies is known before
any image is: from the largest sum that a layer's weights allow, so that nothing can overflow; a value that
does not fit is an error, never cut off. Factors, such as s_x s_w 2^point, are an int32 multiplier and a shift
(`Factor`); a factor for each channel takes in the one of a `corrected` normalisation.

The only differences to the fake-quantized form are these roundings: each value between layers to 31 bits, of
which the largest sum possible takes the first (pools and means: to 4 or more bits less), factors to 31 bits,
halves upward instead of to even. An activation on the border of two levels may so fall on the other side, and
what follows from it differs by a level.

Axes: N images | H, W rows and columns | C, O channels | L classes.
"""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array, lax

from ghn_jax.base.errors import FieldError, UserError
from ghn_jax.cnn import instructions as kinds
from ghn_jax.cnn.deploy.int32_arithmetic import (
    FixedReal,
    added,
    averaged,
    make_factor,
    moved,
    rescale,
    rescaled,
)
from ghn_jax.cnn.lowering import IMAGE, Instruction
from ghn_jax.cnn.packing import Piece, piece_part
from ghn_jax.cnn.program import Layout, Program
from ghn_jax.cnn.stages import stages_of
from ghn_jax.cnn.tables import RunnableNetwork, Tables
from ghn_jax.cnn.weight_quantization import quantize_weights
from ghn_jax.networks.graph import build_graph
from ghn_jax.networks.spec import NetworkSpec
from ghn_jax.quant.grid import Grid, make_grid
from ghn_jax.quant.policy import TERNARY, Policy
from ghn_jax.quant.scheme import QAT, Scheme

MIN_BITS, MAX_BITS = 2, 8
_INT32 = np.iinfo(np.int32)


class Levels(NamedTuple):
    """A quantized tensor: uint8 q, stands for (q - zero) * scale.

    zero is an int and scale a float; of a weight they are arrays, [O, 1, ..] and [O].
    """

    q: np.ndarray
    zero: Any
    scale: Any

    @property
    def centred(self) -> np.ndarray:
        """q - zero, int32."""
        return self.q.astype(np.int32) - self.zero


def logits(
    program: Program,
    spec: NetworkSpec,
    layout: Layout,
    network: RunnableNetwork,
    images: np.ndarray,
    mean: np.ndarray,
    std: np.ndarray,
    *,
    scheme: Scheme = QAT,
) -> FixedReal:
    """Compute the logits of a network whose normalisations are fixed (`cnn.deploy.calibration`), on the host.

    The network and the policy must pass `check`.

    Args:
      program, spec, layout: the network, and where it lies in its program.
      network: its weights not rounded, with ranges; arrays of numpy.
      images: uint8 [N, H, W, 3].
      mean, std: of the images, [3], in units of 0..1.
      scheme: how weights are quantized.

    Returns:
      The logits, [N, L].

    Raises:
      UserError: sums that may leave int32.
    """
    return _Interpreter(program, spec, layout, network, scheme).run(images, mean, std)


def check(specs: Iterable[NetworkSpec], policies: Iterable[Policy]) -> None:
    """Raise UserError for networks and policies that integer arithmetic does not cover; float passes."""
    for policy in policies:
        exceptions = (bits for rule in (*policy.rules, *policy.layers) for bits in rule[1:])
        widths = policy.weight_bits, policy.activation_bits, *exceptions, *(policy.edges or ())
        unfit = next((bits for bits in widths if not MIN_BITS <= bits <= MAX_BITS), None)
        if unfit is not None and not policy.is_float:
            has = 'ternary weights' if unfit == TERNARY else f'tensors of {unfit} bits'
            raise FieldError(
                'integer',
                f': policy {policy} has {has}: integer arithmetic is for {MIN_BITS} to {MAX_BITS} bits of '
                'every weight and activation; leave it or the policy out',
            )
    for spec in specs:
        if uncovered := sorted(op for op in spec.genotype.ops if not _covers(op)):
            raise FieldError(
                'integer',
                f': network {spec.name!r} has {" and ".join(uncovered)}, which integer arithmetic does not '
                'cover: leave it out, or take networks without',
            )


def _covers(op: str) -> bool:
    return all(stage.kind.integer for stride in (1, 2) for stage in stages_of(op, stride))


class Sums(NamedTuple):
    """int32 accumulators [N, ..., C], stand for x * scale; |x| <= bound; scale and bound [C]."""

    x: np.ndarray
    scale: np.ndarray
    bound: np.ndarray


def accumulated(a: Sums, b: Sums) -> Sums:
    """a + b, exactly: the convolutions of the parts of a concatenation share their scales."""
    bound = a.bound + b.bound
    _check_int32(bound)
    return Sums(a.x + b.x, a.scale, bound)


def _check_int32(bound: np.ndarray) -> None:
    if bound.max() > _INT32.max:
        raise UserError(
            f'a layer may sum up to {bound.max():.0f}, more than int32 holds: take fewer bits than {MAX_BITS}'
        )


class _Interpreter:
    def __init__(
        self, program: Program, spec: NetworkSpec, layout: Layout, network: RunnableNetwork, scheme: Scheme
    ):
        flat, tables, self.bits, ranges = network
        assert ranges is not None  # there are no integers without
        self.layout, self.ranges = layout, ranges
        shapes = {p.name: p.shape for p in build_graph(spec).parameters}
        self.params = program.unpack(layout, np.asarray(flat), shapes)
        _, self.pooled = program.heads[int(tables.head.variant)]
        self.weights: dict[str, Levels] = {}
        grid = jax.device_get(_fit(flat, tables, self.bits.weights, scheme))
        for name, t in layout.tensors.items():
            its_grids = tables.channel_group_tensor == t if scheme.granularity == 'channel' else t
            self.weights[name] = _weight_levels(
                self.params[name], Grid(*(part[its_grids].ravel() for part in grid))
            )
        self.values: dict[int, FixedReal] = {}
        self.sums: dict[int, Sums] = {}  # values that are not rescaled yet

    def run(self, images: np.ndarray, mean: np.ndarray, std: np.ndarray) -> FixedReal:
        mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
        self.values[IMAGE] = rescaled(images, 1 / (255 * std), np.full(3, 255.0), -mean / std)
        for r, instruction in enumerate(self.layout.instructions):
            self._execute(r, instruction)
        return self._classify()

    def _execute(self, r: int, instruction: Instruction) -> None:
        op, src, dst = instruction.op, instruction.src, instruction.dst
        match op:
            case kinds.Conv(kh, kw, _, rectify, dilation):
                x = self._quantized(r, 0, self._read(src), rectify)
                self._add_sums(dst, self._conv(x, instruction.pieces[0], (kh, kw), op.strides, dilation))
            case kinds.Depthwise(k, dilation, stride, rectify):
                x = self._quantized(r, 0, self._read(src), rectify)
                piece = instruction.pieces[0]
                self._add_sums(dst, self._conv(x, piece, (k, k), (stride, stride), dilation, depthwise=True))
            case kinds.Reduce():
                x = self._quantized(r, 0, self._read(src), True)
                halves = [
                    self._conv(x._replace(q=x.q[:, at::2, at::2]), piece, (1, 1), (1, 1))
                    for at, piece in enumerate(instruction.pieces)
                ]
                self._add_sums(dst, Sums(*(np.concatenate(parts, -1) for parts in zip(*halves))))
            case kinds.Split(stride, length):
                x = self._quantized(r, 0, self._read(src), True)
                middle = rescaled(*self._conv(x, instruction.pieces[0], (1, length), (1, stride)))
                x = self._quantized(r, 1, middle, False)
                self._add_sums(dst, self._conv(x, instruction.pieces[1], (length, 1), (stride, 1)))
            case kinds.Norm():
                sums, scale, bound = self.sums.pop(src)
                factor, shift = (self._vector(piece) for piece in instruction.pieces)
                self._add(dst, rescaled(sums, scale * factor, bound, shift))
            case kinds.MaxPool(stride):
                x = self._read(src)
                shifted = _shifted(x.x, stride, _INT32.min)
                self._add(dst, x._replace(x=functools.reduce(np.maximum, shifted)))
            case kinds.AvgPool(stride):
                x = self._read(src)
                add = lambda v: functools.reduce(np.add, _shifted(v, stride, 0))
                self._add(dst, averaged(x, add, add(np.ones((1, *x.x.shape[1:3], 1), np.int64))))
            case kinds.Copy():
                self._add(dst, self._read(src))
            case kinds.Subsample(rectify):
                x = self._read(src)
                x = x._replace(x=x.x[:, ::2, ::2])
                self._add(dst, _relu(x) if rectify else x)
            case kinds.Zero():
                x = self._read(src)
                self._add(dst, FixedReal(np.zeros_like(x.x), x.point, 0.0))
            case _:
                raise AssertionError(f'no such op: {op}')

    def _classify(self) -> FixedReal:
        parts = [self._read(v) for v in self.layout.head_group]
        point, bound = min(p.point for p in parts), max(p.bound for p in parts)
        x = FixedReal(np.stack([moved(p, point).x for p in parts], 1), point, bound)  # [N, K, H, W, C]
        if self.pooled:
            for _ in ('rows', 'columns'):  # one after the other: that takes less room than all at once
                x = averaged(x, lambda v: v.sum(2), x.x.shape[2])
        else:
            x = x._replace(x=x.x.transpose(0, 1, 4, 2, 3))
        x = x._replace(x=x.x.reshape(len(x.x), -1))
        for k, name in enumerate(self.layout.head_weights):
            levels = to_levels(_relu(x) if k else x, self.ranges.head[k], self.bits.head[k])
            w = self.weights[name]
            dot = lambda a, b: np.asarray(_dot(a, b))
            sums = _multiplied(levels, w.centred.T, w.scale, dot, (0,))
            x = rescaled(*sums, self.params[name.removesuffix('weight') + 'bias'].astype(np.float64))
        return x

    # -- values

    def _read(self, value: int) -> FixedReal:
        if value in self.sums:
            self.values[value] = rescaled(*self.sums.pop(value))
        return self.values[value]

    def _add(self, value: int, term: FixedReal) -> None:
        before = self.values.get(value)
        self.values[value] = term if before is None else added(before, term)

    def _add_sums(self, value: int, sums: Sums) -> None:
        before = self.sums.get(value)
        self.sums[value] = sums if before is None else accumulated(before, sums)

    def _quantized(self, r: int, which: int, x: FixedReal, rectify: bool) -> Levels:
        bits = self.bits.activations[r, which]
        return to_levels(_relu(x) if rectify else x, self.ranges.rows[r, which], bits)

    def _vector(self, piece: Piece) -> np.ndarray:
        if piece.name is None:
            return np.full(piece.cols, piece.constant)
        return self.params[piece.name][piece.col : piece.col + piece.cols].astype(np.float64)

    def _conv(self, x: Levels, piece: Piece, kernel, stride, dilation=1, depthwise=False) -> Sums:
        assert piece.name is not None
        w = self.weights[piece.name]
        part = piece_part(w.centred, piece).reshape(*kernel, -1, piece.cols)
        padding = tuple((k - 1) * dilation // 2 for k in kernel)
        groups = piece.cols if depthwise else 1
        convolve = lambda a, b: np.asarray(_convolve(a, b, stride, padding, dilation, groups))
        return _multiplied(x, part, w.scale[piece.col : piece.col + piece.cols], convolve, (0, 1, 2))


def _relu(x: FixedReal) -> FixedReal:
    return x._replace(x=np.maximum(x.x, 0))


@functools.partial(jax.jit, static_argnums=3)
def _fit(flat: Array, tables: Tables, bits: Array, scheme: Scheme) -> Grid:
    return quantize_weights(flat, tables, bits, flat, scheme=scheme)[1]


def to_levels(x: FixedReal, ends: np.ndarray, bits: int) -> Levels:
    """Quantize x on the grid of `bits` bits for the range `ends`, (lo, hi)."""
    lo, hi = ends
    grid = make_grid(lo, hi, int(bits), np.float32)
    s, z = float(grid.scale), int(grid.zero)
    # A factor of 2^8 takes all but 0 off the grid: no range, however small, needs more.
    factor = min(1 / (s * 2.0**x.point), 2.0**MAX_BITS) if s > 0 else 0
    q = rescale(x.x, make_factor(factor)) + z
    return Levels(np.clip(q, 0, 2 ** int(bits) - 1).astype(np.uint8), z, s)


def _weight_levels(w: np.ndarray, grid: Grid) -> Levels:
    """Quantize a weight [O, ..]. grid: one for all output channels, [1], or one for each and for padding."""
    s, z, top, _ = (np.resize(part, (len(w), *[1] * (w.ndim - 1))) for part in grid)
    q = np.clip(np.round(w / np.where(s > 0, s, 1)) + z, 0, top)
    return Levels(q.astype(np.uint8), z.astype(np.int32), s.ravel().astype(np.float64))


def _multiplied(x: Levels, w: np.ndarray, scale: np.ndarray, multiply, inputs: tuple[int, ...]) -> Sums:
    """multiply(x, w) in int32, if no sum can leave it. w: (q - zero) of weights with `scale` [C] by output
    channel. inputs: axes of w that are summed.
    """
    bound = 255.0 * np.abs(w.astype(np.int64)).sum(inputs)
    _check_int32(bound)
    with jax.default_device(jax.local_devices(backend='cpu')[0]):
        return Sums(multiply(x.centred, w), x.scale * scale, bound)


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _convolve(x: Array, w: Array, stride, padding, dilation: int, groups: int) -> Array:
    return lax.conv_general_dilated(
        x, w, stride, [(p, p) for p in padding], rhs_dilation=(dilation, dilation),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=groups,
    )  # fmt: skip


@jax.jit
def _dot(x: Array, w: Array) -> Array:
    return x @ w


def _shifted(x: np.ndarray, stride: int, fill: int) -> list[np.ndarray]:
    """Return x [N, H, W, C], padded by one, as each of the nine positions of a 3x3 pool sees it."""
    _, h, w, _ = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=fill)
    return [padded[:, i : i + h : stride, j : j + w : stride] for i in range(3) for j in range(3)]
