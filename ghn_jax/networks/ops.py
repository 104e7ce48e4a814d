"""The operations that cells are made of: one record each, from which everything else about them follows.

An operation is a few `layers` in a row. A layer says what it adds to the forward pass of a network
(`add_to`): from that come the nodes of the graph, the names and shapes of the parameters, and every count
(`counts.cost`).
`cnn.stages` says how layers are run. docs/contributing.md shows how to add an operation.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable

from ghn_jax.networks.layers import (
    PASS,
    Conv,
    Depthwise,
    ForwardPass,
    Gate,
    Layer,
    Norm,
    Place,
    Pool,
    Relu,
    Shape,
    Skip,
    TransformerBlock,
)


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of a genotype, from C channels to C. Without layers it gives nothing: `none`.

    Attributes:
      layers: in order. Several are numbered as in a PyTorch Sequential (`op.1.weight`); a single one names
        its parameters itself.
      spaces: the named spaces that draw it; others ask for it by its name.
      large: a cell of a sampled network has at most one of these.

    Raises ValueError on construction for a row of layers that cannot be run.
    """

    layers: tuple[Layer, ...]
    spaces: tuple[str, ...] = ()
    large: bool = False

    def __post_init__(self):
        for layer, following in itertools.pairwise((None, *self.layers, None)):
            if isinstance(layer, Relu) and not isinstance(following, (Conv, Depthwise)):
                raise ValueError(f'{self.layers} has a Relu before {following}: expected Conv or Depthwise')
            if isinstance(following, Norm) and not isinstance(layer, (Conv, Depthwise)):
                raise ValueError(f'{self.layers} has a Norm after {layer}: expected Conv or Depthwise')

    @property
    def convolves(self) -> bool:
        """Whether it has convolutions at any stride."""
        return any(isinstance(layer, (Conv, Depthwise)) for layer in self.layers)

    @property
    def pools(self) -> bool:
        """Whether it is pooling."""
        return any(isinstance(layer, Pool) for layer in self.layers)

    @property
    def attends(self) -> bool:
        """Whether it has self-attention."""
        return any(isinstance(layer, TransformerBlock) for layer in self.layers)

    @property
    def strided_layers(self) -> tuple[int, ...]:
        """Numbers of the layers that halve the resolution where the operation does: the first with a kernel.

        A 1x1 convolution does it only where no layer has a larger kernel. A convolution of a single row or
        column halves along its length only; the next one does the rest.
        """
        kernels = [i for i, layer in enumerate(self.layers) if not isinstance(layer, (Relu, Norm))]
        is_pointwise = lambda layer: isinstance(layer, Conv) and layer.is_pointwise
        kernels = [i for i in kernels if not is_pointwise(self.layers[i])] or kernels
        first = self.layers[kernels[0]] if kernels else None
        partly = isinstance(first, Conv) and 1 in first.kernel and not first.is_pointwise
        return tuple(kernels[: 2 if partly else 1])

    def add_to(self, net: ForwardPass, x: int, at: Place) -> int:
        """Add all layers, reading operation x; return the operation that makes the result."""
        c_in = at.c_in
        for i, layer in enumerate(self.layers):
            name = f'{at.name}.op.{i}' if len(self.layers) > 1 else at.name
            c_out = layer.channels(c_in, at.c_out)
            x = layer.add_to(net, x, at._replace(name=name, c_in=c_in, c_out=c_out))
            c_in = c_out
        return x


def _conv(height: int, width: int) -> tuple[Layer, ...]:
    return Relu(), Conv((height, width)), Norm()


def _separable(size: int, dilation: int = 1) -> tuple[Layer, ...]:
    return Relu(), Depthwise(size, dilation), Conv((1, 1)), Norm()


def _inverted_bottleneck(size: int, expansion: int) -> tuple[Layer, ...]:
    """MobileNetV2's block without its sum (arXiv 1801.04381): wide inside, no relu at either end."""
    widened = Conv((1, 1), expansion=expansion), Norm()
    return *widened, Relu(), Depthwise(size), Norm(), Relu(), Conv((1, 1)), Norm()


_BOTH = ('deepnets1m', 'convnets250k')

OPERATIONS: dict[str, Operation] = {
    'none': Operation((), _BOTH),
    'max_pool_3x3': Operation((Pool('max'),), _BOTH),
    'avg_pool_3x3': Operation((Pool('avg'),), _BOTH),
    'skip_connect': Operation((Skip(),), _BOTH),
    'sep_conv_3x3': Operation(2 * _separable(3), _BOTH),
    'sep_conv_5x5': Operation(2 * _separable(5), _BOTH),
    'dil_conv_3x3': Operation(_separable(3, dilation=2), _BOTH),
    'dil_conv_5x5': Operation(_separable(5, dilation=2), _BOTH),
    'conv_1x1': Operation(_conv(1, 1), _BOTH),
    'conv_7x1_1x7': Operation((Relu(), Conv((1, 7)), Conv((7, 1)), Norm()), _BOTH),
    'conv_3x3': Operation(_conv(3, 3), _BOTH),
    'conv_5x5': Operation(_conv(5, 5), _BOTH, large=True),
    'conv_7x7': Operation(_conv(7, 7), _BOTH, large=True),
    'msa': Operation((TransformerBlock(),), ('deepnets1m',)),
    'cse': Operation((Gate(),), ('deepnets1m',)),
    'mbconv_3x3': Operation(_inverted_bottleneck(3, expansion=4), large=True),  # not DeepNets-1M's
}
OPS = tuple(OPERATIONS)  # names; seeds draw by this order, so a new one goes to the end

_ATTENTION = frozenset(name for name, op in OPERATIONS.items() if op.attends)

# What brings the inputs of a cell to its width, at their resolution.
POINTWISE = Operation(_conv(1, 1))


def has_attention(ops: Iterable[str]) -> bool:
    """Return whether one of these operations is self-attention."""
    return not _ATTENTION.isdisjoint(ops)


def plain_ops(ops: Iterable[str]) -> tuple[str, ...]:
    """Return those of these operations that plain networks are chains of (`drawing.plain`)."""
    return tuple(op for op in ops if OPERATIONS[op].convolves and op not in _ATTENTION)


def primitives_of(ops: Iterable[str]) -> frozenset[str]:
    """Return the kinds of nodes that networks of these operations have, stem and head included."""
    ops = tuple(ops)
    found = {kind for op in ops for kind in alone(op, 16, strided=True).kind}
    found |= {'input', 'conv', 'bn', 'bias', 'sum', 'concat', 'max_pool', 'glob_avg'}
    return frozenset(found | ({'pos_enc'} if has_attention(ops) else set())) - {PASS}


# ---- an operation by itself


def alone(op: str, width: int, *, strided: bool = False, norm: bool = True) -> ForwardPass:
    """Make the forward pass of one operation on `width` channels; names of parameters begin with a dot."""
    net = ForwardPass()
    OPERATIONS[op].add_to(net, 0, Place('', width, width, strided, norm))
    return net


@functools.lru_cache(maxsize=4096)
def tensors(op: str, width: int, *, strided: bool = False) -> tuple[tuple[str, Shape], ...]:
    """List the parameters of an operation on `width` channels: what their names end in, and shapes."""
    net = alone(op, width, strided=strided)
    return tuple(tensor for i in range(len(net.kind)) for tensor in net.tensors(i))
