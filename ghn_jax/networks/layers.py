"""What operations are made of: the forward pass of a network, and the layers that are added to it."""

import dataclasses
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

    def channels(self, c_in: int, width: int) -> int:
        """Return the channels of its result. c_in: of what it reads. width: of the operation."""
        return c_in

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
    """A dense convolution without bias.

    Attributes:
      kernel: (height, width), odd.
      expansion: channels of the result, in widths of the operation.
    """

    kernel: tuple[int, int]
    dilation: int = 1
    expansion: int = 1

    @property
    def is_pointwise(self) -> bool:
        """Whether it mixes channels only."""
        return self.kernel == (1, 1)

    def channels(self, c_in, width):
        return self.expansion * width

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

    def channels(self, c_in, width):
        return width

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
