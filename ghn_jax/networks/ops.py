"""The operations that cells are made of: one record each, from which everything else about them follows.

An operation is a few layers in a row. A layer says what it adds to the forward pass of a network (`add_to`):
from that come the nodes of the graph, the names and shapes of the parameters, and every count
(`counts.cost`).
`cnn.instructions` says how layers are run. docs/contributing.md shows how to add an operation.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable
from typing import NamedTuple

PRIMITIVES = (
    'max_pool', 'avg_pool', 'sep_conv', 'dil_conv', 'conv', 'msa', 'cse', 'sum', 'concat', 'input', 'bias',
    'bn', 'ln', 'pos_enc', 'glob_avg',
)  # fmt: skip
"""What a node of a graph can be, in the published order: a hypernetwork has a row of a table for each."""

LAYERS = ('conv', 'sep_conv', 'dil_conv')  # nodes of the weights of convolutions and of linear layers
PASS = ''  # kind of an operation of the forward pass that is no node: relu, slicing, reshaping, ...
POOL_SHAPE = (1, 1, 3, 3)
Shape = tuple[int, ...]


# ---- the forward pass that layers are added to


class ForwardPass:
    """The differentiable operations of a forward pass, as parallel lists; operation 0 is the network's input.

    kind: primitive, or PASS.   name, shape: of the parameter; None without.   cell: of the parameter.
    shift: name of a second parameter of that shape, which a norm adds; None without.
    parents: the operations that feed it.   inputs: its arguments as the depth-first numbering visits them.
    The two differ in linear layers, where the input feeds the weight, and the weight the bias.
    """

    def __init__(self):
        self.kind: list[str] = []
        self.name: list[str | None] = []
        self.shift: list[str | None] = []
        self.shape: list[Shape | None] = []
        self.cell: list[int] = []
        self.parents: list[tuple[int, ...]] = []
        self.inputs: list[tuple[int, ...]] = []
        self.current_cell = 0
        self.add('input', ())

    def add(
        self,
        kind: str,
        parents: tuple[int, ...],
        name: str | None = None,
        shape: Shape | None = None,
        inputs: tuple[int, ...] | None = None,
        shift: str | None = None,
    ) -> int:
        """Add an operation and return its number; so do the methods below."""
        self.kind.append(kind)
        self.name.append(name)
        self.shift.append(shift)
        self.shape.append(shape)
        self.cell.append(self.current_cell)
        self.parents.append(parents)
        self.inputs.append(parents if inputs is None else inputs)
        return len(self.kind) - 1

    def conv(
        self, x: int, name: str, c_out: int, c_in: int, kernel: tuple[int, int], *, primitive: str = 'conv'
    ) -> int:
        return self.add(primitive, (x,), name + '.weight', (c_out, c_in, *kernel))

    def norm(self, x: int, name: str, width: int, primitive: str = 'bn') -> int:
        return self.add(primitive, (x,), name + '.weight', (width,), shift=name + '.bias')

    def passing(self, x: int) -> int:
        return self.add(PASS, (x,))

    def linear(self, x: int, name: str, c_out: int, c_in: int, bias: bool = True) -> int:
        weight = self.add('conv', (x,), name + '.weight', (c_out, c_in), inputs=())
        if bias:
            return self.add('bias', (weight,), name + '.bias', (c_out,), inputs=(x, weight))
        return self.add(PASS, (weight,), inputs=(x, weight))

    def tensors(self, i: int) -> list[tuple[str, Shape]]:
        """Return names and shapes of the parameters of operation i: its own, and what a norm adds."""
        shape = self.shape[i]
        return [
            (name, shape) for name in (self.name[i], self.shift[i]) if name is not None and shape is not None
        ]


# ---- layers


class Place(NamedTuple):
    """Where a layer stands: the name its parameters begin with, the channels it maps, and its surroundings.

    Attributes:
      strided: the layer's operation halves the resolution.
      norm: the network has batch normalisation.
    """

    name: str
    c_in: int
    c_out: int
    strided: bool = False
    norm: bool = True


@dataclasses.dataclass(frozen=True)
class Layer:
    """One step of an operation."""

    def add_to(self, net: ForwardPass, x: int, at: Place) -> int:
        """Add the layer, reading operation x; return the operation that makes its result."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Relu(Layer):
    """max(x, 0). A convolution follows it."""

    def add_to(self, net, x, at):
        return net.passing(x)


@dataclasses.dataclass(frozen=True)
class Norm(Layer):
    """Batch normalisation of what the convolution before it gives; nothing in networks without."""

    def add_to(self, net, x, at):
        return net.norm(x, at.name, at.c_out) if at.norm else x


@dataclasses.dataclass(frozen=True)
class Conv(Layer):
    """A dense convolution without bias. kernel: (height, width), odd."""

    kernel: tuple[int, int]
    dilation: int = 1

    def add_to(self, net, x, at):
        return net.conv(x, at.name, at.c_out, at.c_in, self.kernel)


@dataclasses.dataclass(frozen=True)
class Depthwise(Layer):
    """A convolution of each channel by itself, without bias. size: of the kernel, odd."""

    size: int
    dilation: int = 1

    def add_to(self, net, x, at):
        primitive = 'sep_conv' if self.dilation == 1 else 'dil_conv'
        return net.conv(x, at.name, at.c_out, 1, (self.size, self.size), primitive=primitive)


@dataclasses.dataclass(frozen=True)
class Pool(Layer):
    """Maximum or mean over 3x3 pixels. of: 'max' or 'avg'."""

    of: str

    def add_to(self, net, x, at):
        return net.add(f'{self.of}_pool', (x,), shape=POOL_SHAPE)


@dataclasses.dataclass(frozen=True)
class FactorizedReduce(Layer):
    """relu, two strided 1x1 convolutions, the second a pixel off, for half of the channels each, norm."""

    def add_to(self, net, x, at):
        x = net.passing(x)
        left = net.conv(x, at.name + '.conv_1', at.c_out // 2, at.c_in, (1, 1))
        right = net.conv(net.passing(x), at.name + '.conv_2', at.c_out // 2, at.c_in, (1, 1))
        x = net.add('concat', (left, right))
        return net.norm(x, at.name + '.bn', at.c_out) if at.norm else x


@dataclasses.dataclass(frozen=True)
class Skip(Layer):
    """The identity; a FactorizedReduce where the operation is strided."""

    def add_to(self, net, x, at):
        return FactorizedReduce().add_to(net, x, at) if at.strided else x


@dataclasses.dataclass(frozen=True)
class Gate(Layer):
    """Squeeze-and-excitation (arXiv 1709.01507): channels scaled by a gate computed from their means."""

    def add_to(self, net, x, at):
        y = net.linear(net.passing(x), at.name + '.fc1', at.c_out // 2, at.c_out)
        y = net.linear(net.passing(y), at.name + '.fc2', at.c_out, at.c_out // 2)
        x = net.add('cse', (x, net.passing(y)))
        return net.passing(x) if at.strided else x


@dataclasses.dataclass(frozen=True)
class TransformerBlock(Layer):
    """Self-attention over the pixels and a perceptron, each after a layer norm and with a residual sum.

    Networks that have one get a stem and positional encodings of their own (arXiv 2010.11929).
    """

    def add_to(self, net, x, at):
        C = at.c_out
        y = net.norm(x, at.name + '.ln1', C, 'ln')
        y = net.add('msa', (net.linear(y, at.name + '.to_qkv', 3 * C, C, bias=False),))
        x = net.add('sum', (net.linear(y, at.name + '.to_out.0', C, C), x))
        y = net.norm(x, at.name + '.ln2', C, 'ln')
        y = net.passing(net.linear(y, at.name + '.ff.net.0', C, C))
        return net.add('sum', (net.linear(y, at.name + '.ff.net.3', C, C), x))


# ---- operations


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

        A convolution of a single row or column halves along its length only; the next one does the rest.
        """
        kernels = [i for i, layer in enumerate(self.layers) if not isinstance(layer, (Relu, Norm))]
        first = self.layers[kernels[0]] if kernels else None
        partly = isinstance(first, Conv) and 1 in first.kernel and first.kernel != (1, 1)
        return tuple(kernels[: 2 if partly else 1])

    def add_to(self, net: ForwardPass, x: int, at: Place) -> int:
        """Add all layers, reading operation x; return the operation that makes the result."""
        for i, layer in enumerate(self.layers):
            place = at._replace(name=f'{at.name}.op.{i}') if len(self.layers) > 1 else at
            x = layer.add_to(net, x, place)
        return x


def _conv(height: int, width: int) -> tuple[Layer, ...]:
    return Relu(), Conv((height, width)), Norm()


def _separable(size: int, dilation: int = 1) -> tuple[Layer, ...]:
    return Relu(), Depthwise(size, dilation), Conv((1, 1)), Norm()


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
