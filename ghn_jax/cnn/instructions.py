"""What an executor can do to a value: kinds of instructions.

`stages` says which of them the layers of an operation become.

A kind is a frozen dataclass: the shapes of its weights, its result, what it quantizes, what is observed of
it, whether integer arithmetic covers it. Kinds are static: equal ones share a branch, sorted by their text.

They are small because the backward pass recomputes each from its input (what is cheap to recompute, relu and
rounding, goes with what follows it) and because each kind of each pair of tapes takes its time to compile.
"""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array

from ghn_jax.cnn import batch_norm, blocks, ops
from ghn_jax.cnn.packing import TapeShape, block_floats

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of instruction.

    Attributes:
      quantizes: how many tensors it rounds: what it reads, then what lies between its layers. The first so
        many of its kernels and matrices name them.
      normed: of its weights, those whose output channels, side by side, are the channels of its result.
      integer: whether `cnn.deploy.integer` runs it.
    """

    quantizes: ClassVar[int] = 0
    normed: ClassVar[slice] = slice(None)
    integer: ClassVar[bool] = True

    def weight_shapes(self, src: TapeShape, dst: TapeShape) -> list[Shape]:
        """Return the shapes of its weights, in the order of its pieces. Dense: HWIO, depthwise: HWC."""
        return []

    def weight_floats(self, src: TapeShape, dst: TapeShape) -> int:
        """Count the floats that its weights take in the weight buffer."""
        return sum(map(block_floats, self.weight_shapes(src, dst)))

    def apply(self, x: Array, w: list[Array], q: Any, has_norm: Array, shape: Shape) -> Array:
        """Compute its result [N, H', H', O] from what it reads, x [N, H, H, C], and its weights.

        q: a `Quantizer`.   has_norm: [], 1.0 or 0.0.   shape: of the result.
        """
        raise NotImplementedError

    @property
    def observed(self) -> 'Kind':
        """The kind to run in its place to see what it quantizes: few different ones, so few branches."""
        return self if self.quantizes else Nothing()


# ---- convolutions


class _Convolution(Kind):
    """[relu,] one convolution."""

    rectify: bool
    quantizes = 1

    def rounded(self, x: Array, q: Any) -> Array:
        """Quantize what enters the convolution: relu(x) by its group's range, or x by that of x."""
        return q.quantize_relu(ops.relu(x)) if self.rectify else q.quantize(x, 0)

    @property
    def observed(self):
        return Rounded(self.rectify)


@dataclasses.dataclass(frozen=True)
class Rounded(_Convolution):
    """[relu,] rounding: what is observed of a convolution."""

    rectify: bool

    def apply(self, x, w, q, has_norm, shape):
        return self.rounded(x, q)


@dataclasses.dataclass(frozen=True)
class Conv(_Convolution):
    """[relu,] convolution. A kernel of one row or one column strides along its length only."""

    height: int
    width: int
    stride: int
    rectify: bool
    dilation: int = 1

    @property
    def strides(self) -> tuple[int, int]:
        """Of rows and of columns."""
        rows, columns = self.height > 1 or self.width == 1, self.width > 1 or self.height == 1
        return self.stride if rows else 1, self.stride if columns else 1

    def weight_shapes(self, src, dst):
        return [(self.height, self.width, src[1], dst[1])]

    def apply(self, x, w, q, has_norm, shape):
        (kernel,) = _like(x, w)
        return ops.conv(self.rounded(x, q), kernel, self.strides, self.dilation)


@dataclasses.dataclass(frozen=True)
class Depthwise(_Convolution):
    """[relu,] depthwise convolution."""

    size: int
    dilation: int
    stride: int
    rectify: bool = True

    def weight_shapes(self, src, dst):
        return [(self.size, self.size, src[1])]

    def apply(self, x, w, q, has_norm, shape):
        (kernel,) = _like(x, w)
        return ops.depthwise_conv(self.rounded(x, q), kernel, self.stride, self.dilation)


@dataclasses.dataclass(frozen=True)
class Reduce(Kind):
    """relu, the two convolutions of a FactorizedReduce, which read one rounded tensor."""

    quantizes = 1

    def weight_shapes(self, src, dst):
        return [(1, 1, src[1], dst[1] // 2)] * 2

    def apply(self, x, w, q, has_norm, shape):
        left, right = _like(x, w)
        x = q.quantize_relu(ops.relu(x))
        return jnp.concatenate([ops.conv(x[:, ::2, ::2], left), ops.conv(x[:, 1::2, 1::2], right)], -1)

    @property
    def observed(self):
        return Rounded(True)


@dataclasses.dataclass(frozen=True)
class Split(Kind):
    """relu, convolutions 1 x length and length x 1, strided: between them height and width differ."""

    stride: int
    length: int = 7
    quantizes = 2
    normed = slice(1, 2)

    def weight_shapes(self, src, dst):
        return [(1, self.length, src[1], dst[1]), (self.length, 1, dst[1], dst[1])]

    def apply(self, x, w, q, has_norm, shape):
        first, second = _like(x, w)
        x = ops.conv(q.quantize_relu(ops.relu(x)), first, (1, self.stride))
        return ops.conv(q.quantize(x, 1), second, (self.stride, 1))


def _like(x: Array, w: list[Array]) -> list[Array]:
    return [part.astype(x.dtype) for part in w]


# ---- gates, attention


@dataclasses.dataclass(frozen=True)
class Excite(Kind):
    """Squeeze-and-excitation, every stride-th row and column of it."""

    stride: int
    quantizes = 2
    integer = False

    def weight_shapes(self, src, dst):
        _, c = src
        return [(c, c // 2), (c // 2,), (c // 2, c), (c,)]

    def apply(self, x, w, q, has_norm, shape):
        return blocks.excite(ops.wide(x), w, q.quantize)[:, :: self.stride, :: self.stride].astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class Attention(Kind):
    """The first half of a transformer block, with its residual sum."""

    quantizes = 2
    integer = False

    def weight_shapes(self, src, dst):
        _, c = src
        return [(c,), (c,), (c, 3 * c), (c, c), (c,)]

    def apply(self, x, w, q, has_norm, shape):
        return blocks.attention(ops.wide(x), w, q.quantize).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class Mlp(Kind):
    """The second half of a transformer block, with its residual sum."""

    quantizes = 2
    integer = False

    def weight_shapes(self, src, dst):
        _, c = src
        return [(c,), (c,), (c, c), (c,), (c, c), (c,)]

    def apply(self, x, w, q, has_norm, shape):
        return blocks.mlp(ops.wide(x), w, q.quantize).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class Position(Kind):
    """Positional encodings added."""

    integer = False

    def weight_shapes(self, src, dst):
        return [(src[0], src[0], src[1])]

    def apply(self, x, w, q, has_norm, shape):
        return (x + w[0]).astype(x.dtype)


# ---- what follows convolutions, and what has no weights


@dataclasses.dataclass(frozen=True)
class Norm(Kind):
    """Batch normalisation. Observed, it is itself, for the moments of what it reads."""

    def weight_shapes(self, src, dst):
        return [(dst[1],), (dst[1],)]

    def apply(self, x, w, q, has_norm, shape):
        return batch_norm.batch_norm(x, w[0], w[1], has_norm, q.axis)

    @property
    def observed(self):
        return self


@dataclasses.dataclass(frozen=True)
class MaxPool(Kind):
    """3x3 maximum."""

    stride: int

    def apply(self, x, w, q, has_norm, shape):
        return ops.max_pool(x, self.stride)


@dataclasses.dataclass(frozen=True)
class AvgPool(Kind):
    """3x3 mean."""

    stride: int

    def apply(self, x, w, q, has_norm, shape):
        return ops.avg_pool(x, self.stride)


@dataclasses.dataclass(frozen=True)
class Copy(Kind):
    """The value itself."""

    def apply(self, x, w, q, has_norm, shape):
        return x


@dataclasses.dataclass(frozen=True)
class Subsample(Kind):
    """[relu,] every second row and column."""

    rectify: bool

    def apply(self, x, w, q, has_norm, shape):
        x = x[:, ::2, ::2]
        return ops.relu(x) if self.rectify else x


@dataclasses.dataclass(frozen=True)
class Zero(Kind):
    """Nothing, where a part of a concatenation is absent."""

    def apply(self, x, w, q, has_norm, shape):
        return jnp.zeros(shape, x.dtype)


@dataclasses.dataclass(frozen=True)
class Nothing(Kind):
    """The value as it is: what is observed of a kind that rounds nothing."""

    def apply(self, x, w, q, has_norm, shape):
        return x
