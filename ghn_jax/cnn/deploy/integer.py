"""A calibrated network in integer arithmetic alone: the plain way, for checking what a device would compute.

It follows arXiv 1712.05877 and gemmlowp. Every weight, and every activation that enters a convolution or
linear layer, is q in 0 .. 2^b - 1 (2 <= b <= 8) with a scale s and a zero point z, as in `quant.grid`;
weights on the grids that the fake-quantized network has, one for the tensor or for each output channel.
Layers multiply and sum (q - z), in int32. What lies between the layers (accumulators after their rescaling,
shifts, sums, pools, means, logits) is int32 fixed point (`fixed_point`). Factors, such as s_x s_w 2^point,
are an int32 multiplier and a shift; a factor for each channel takes in the one of a `corrected`
normalisation.

The only differences to the fake-quantized form are these roundings: each value between layers to 31 bits, of
which the largest sum possible takes the first (pools and means: to 4 or more bits less), factors to 31 bits,
halves upward instead of to even. An activation on the border of two levels may so fall on the other side, and
what follows from it differs by a level.

Axes: N images | H, W rows and columns | C, O channels | L classes.
"""

import functools
from collections.abc import Iterable

import jax
import numpy as np
from jax import Array, lax

from ghn_jax.base.errors import UserError
from ghn_jax.cnn import instructions as kinds
from ghn_jax.cnn.deploy.fixed_point import (
    INT32,
    Fixed,
    Levels,
    Sums,
    make_factor,
    moved,
    point_for,
    rectified,
    rescale,
    rescaled,
    saturate,
)
from ghn_jax.cnn.lowering import IMAGE, Instruction
from ghn_jax.cnn.packing import Piece, piece_part
from ghn_jax.cnn.program import Layout, Program
from ghn_jax.cnn.tables import Bits, Ranges, Tables
from ghn_jax.cnn.weights import quantize_weights
from ghn_jax.networks.graph import build_graph
from ghn_jax.networks.spec import NetworkSpec
from ghn_jax.quant.grid import Grid, make_grid
from ghn_jax.quant.policy import TERNARY, Policy
from ghn_jax.quant.scheme import QAT, Scheme

MIN_BITS, MAX_BITS = 2, 8


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
) -> Fixed:
    """Compute the logits [N, L] of a network whose normalisations are fixed (`cnn.calibration`).

    flat: its weights [F], float. images: uint8 [N, H, W, 3]; mean, std [3] in units of 0..1. scheme: of the
    weights. On the host.

    The network and the policy must pass `check`.

    Raises:
      UserError: sums that may leave int32.
    """
    return _Interpreter(program, spec, layout, flat, bits, ranges, scheme).run(images, mean, std)


def check(specs: Iterable[NetworkSpec], policies: Iterable[Policy]) -> None:
    """Check that this arithmetic serves these networks and policies; float is let be.

    Raises:
      UserError: it does not; says what it lacks.
    """
    for policy in policies:
        exceptions = (bits for rule in (*policy.rules, *policy.layers) for bits in rule[1:])
        widths = policy.weight_bits, policy.activation_bits, *exceptions, *(policy.edges or ())
        unfit = next((bits for bits in widths if not MIN_BITS <= bits <= MAX_BITS), None)
        if unfit is not None and not policy.is_float:
            has = 'ternary weights' if unfit == TERNARY else f'tensors of {unfit} bits'
            raise UserError(
                f'policy {policy} has {has}: integer arithmetic is for {MIN_BITS} to {MAX_BITS} bits of '
                'every weight and activation; leave out --integer or the policy'
            )
    for spec in specs:
        if uncovered := sorted(op for op in spec.genotype.ops if not _covers(op)):
            raise UserError(
                f'network {spec.name!r} has {" and ".join(uncovered)}, which integer arithmetic does not '
                'cover: leave out --integer, or take networks without'
            )


def _covers(op: str) -> bool:
    return all(kind.integer for stride in (1, 2) for kind in kinds.kinds_of(op, stride))


class _Interpreter:
    """Runs the instructions of one network. A value is `Sums` until something other than a norm reads it."""

    def __init__(
        self,
        program: Program,
        spec: NetworkSpec,
        layout: Layout,
        flat: np.ndarray,
        bits: Bits,
        ranges: Ranges,
        scheme: Scheme = QAT,
    ):
        self.layout, self.bits, self.ranges = layout, bits, ranges
        shapes = {p.name: p.shape for p in build_graph(spec).parameters}
        self.params = program.unpack(layout, np.asarray(flat), shapes)
        _, self.pooled = program.heads[int(layout.tables.head.variant)]
        self.weights: dict[str, Levels] = {}
        grid = jax.device_get(_fit(flat, layout.tables, bits.weights, scheme))
        for name, t in layout.tensors.items():
            its_grids = layout.tables.column_tensor == t if scheme.granularity == 'channel' else t
            self.weights[name] = _weight_levels(
                self.params[name], Grid(*(part[its_grids].ravel() for part in grid))
            )
        self.values: dict[int, Fixed] = {}
        self.sums: dict[int, Sums] = {}  # values that are not rescaled yet

    def run(self, images: np.ndarray, mean: np.ndarray, std: np.ndarray) -> Fixed:
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
                shifted = _shifted(x.x, stride, INT32.min)
                self._add(dst, x._replace(x=functools.reduce(np.maximum, shifted)))
            case kinds.AvgPool(stride):
                x = self._read(src)
                x = moved(x, x.point - 4)  # room for nine
                counts = sum(_shifted(np.ones((1, *x.x.shape[1:3], 1), np.int64), stride, 0))
                total = saturate(sum(_shifted(x.x.astype(np.int64), stride, 0)))
                self._add(dst, x._replace(x=rescale(total, make_factor(1 / counts))))
            case kinds.Copy():
                self._add(dst, self._read(src))
            case kinds.Subsample(rectify):
                x = self._read(src)
                x = x._replace(x=x.x[:, ::2, ::2])
                self._add(dst, rectified(x) if rectify else x)
            case kinds.Zero():
                x = self._read(src)
                self._add(dst, Fixed(np.zeros_like(x.x), x.point, 0.0))
            case _:
                raise AssertionError(f'no such op: {op}')

    def _classify(self) -> Fixed:
        parts = [self._read(v) for v in self.layout.head_group]
        point, bound = min(p.point for p in parts), max(p.bound for p in parts)
        x = Fixed(np.stack([moved(p, point).x for p in parts], 1), point, bound)  # [N, K, H, W, C]
        if self.pooled:
            for axis in (2, 2):  # of the rows, then of what is left: less room than for all at once
                x, n = moved(x, x.point - x.x.shape[axis].bit_length()), x.x.shape[axis]
                total = saturate(x.x.sum(axis, dtype=np.int64))
                x = x._replace(x=rescale(total, make_factor(1 / n)))
        else:
            x = x._replace(x=x.x.transpose(0, 1, 4, 2, 3))
        x = x._replace(x=x.x.reshape(len(x.x), -1))
        for k, name in enumerate(self.layout.head_weights):
            levels = self._levels(rectified(x) if k else x, self.ranges.head[k], self.bits.head[k])
            w = self.weights[name]
            dot = lambda a, b: np.asarray(_dot(a, b))
            sums = _multiplied(levels, w.centred.T, w.scale, dot, (0,))
            x = rescaled(*sums, self.params[name.removesuffix('weight') + 'bias'].astype(np.float64))
        return x

    # -- values

    def _read(self, value: int) -> Fixed:
        if value in self.sums:
            self.values[value] = rescaled(*self.sums.pop(value))
        return self.values[value]

    def _add(self, value: int, term: Fixed) -> None:
        if before := self.values.get(value):
            bound = before.bound + term.bound
            point = point_for(bound)
            total = moved(before, point).x.astype(np.int64) + moved(term, point).x
            term = Fixed(saturate(total), point, bound)
        self.values[value] = term

    def _add_sums(self, value: int, sums: Sums) -> None:
        """Convolutions of the parts of a concatenation share their scales: their sums add up exactly."""
        if before := self.sums.get(value):
            total = saturate(before.x.astype(np.int64) + sums.x)
            sums = Sums(total, sums.scale, before.bound + sums.bound)
        self.sums[value] = sums

    def _quantized(self, r: int, which: int, x: Fixed, rectify: bool) -> Levels:
        bits = self.bits.activations[r, which]
        return self._levels(rectified(x) if rectify else x, self.ranges.rows[r, which], bits)

    def _levels(self, x: Fixed, ends: np.ndarray, bits: int) -> Levels:
        grid = make_grid(*ends, int(bits), np.float32)
        s, z = float(grid.scale), int(grid.zero)
        factor = make_factor(1 / (s * 2.0**x.point) if s > 0 else 0)
        q = rescale(x.x, factor).astype(np.int64) + z
        return Levels(np.clip(q, 0, 2 ** int(bits) - 1).astype(np.uint8), z, s)

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


@functools.partial(jax.jit, static_argnums=3)
def _fit(flat: Array, tables: Tables, bits: Array, scheme: Scheme) -> Grid:
    return quantize_weights(flat, tables, bits, flat, scheme=scheme)[1]


def _weight_levels(w: np.ndarray, grid: Grid) -> Levels:
    """Convert a weight [O, ..] to levels. grid: of all output channels, [1], or of each and of padding."""
    s, z, top, _ = (np.resize(part, (len(w), *[1] * (w.ndim - 1))) for part in grid)
    q = np.clip(np.round(w / np.where(s > 0, s, 1)) + z, 0, top)
    return Levels(q.astype(np.uint8), z.astype(np.int32), s.ravel().astype(np.float64))


def _multiplied(x: Levels, w: np.ndarray, scale: np.ndarray, multiply, inputs: tuple[int, ...]) -> Sums:
    """Compute multiply(x, w) in int32, if no sum can leave it.

    w: (q - zero) of weights with `scale` [C] by output channel. inputs: axes of w that are summed.
    """
    bound = 255.0 * np.abs(w.astype(np.int64)).sum(inputs)
    if bound.max() > INT32.max:
        raise UserError(
            f'a layer may sum up to {bound.max():.0f}, more than int32 holds: take fewer bits than {MAX_BITS}'
        )
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
