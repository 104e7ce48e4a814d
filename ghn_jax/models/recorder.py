"""What a walk through a model's program finds: its operations as a `ForwardPass`, its layers, its tensors.

The rules (`rules`, `layer_rules`) say what each primitive does; what they have in common is here.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NoReturn

from ghn_jax.base.errors import UserError
from ghn_jax.models.layout import OperandLayout, PredictedTensor, of_positions
from ghn_jax.models.program import Operand, Step
from ghn_jax.models.values import CONSTANT, Flow, Mixed, Shape, Statistic, Value, View, leaves_of
from ghn_jax.networks.layers import PASS, ForwardPass

NORMS = ('bn', 'ln')


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A parameter of the model: where it is in the pytree, joined by dots, and its shape."""

    name: str
    shape: Shape


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution or a linear layer of a model.

    Attributes:
      name: its weight, as the model's pytree has it, joined by dots; a later use of the same weight has a
        number behind it: `head.kernel#2`.
      kind: 'conv' or 'linear'.
      parameter: the weight's name without that number.
      shape: of the weight: (out, in / groups, height, width) or (out, in).
      stride, groups, dilation: of convolutions.
    """

    name: str
    kind: str
    parameter: str
    shape: Shape
    stride: tuple[int, ...] = ()
    groups: int = 1
    dilation: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Site:
    """The step that runs a layer: which of its operands is the weight, in what layout, which the activation.

    Attributes:
      whole: the slot of the tensor that the activation is a cut or another shape of; None: of itself.
      reader: the weight of the first layer that reads that tensor: both read it rounded to one width.
    """

    layer: Layer
    weight: int
    activation: int
    layout: OperandLayout
    whole: int | None
    reader: str


class Recorder:
    """What has been found so far.

    forward: the operations; channels: of each one's result.   tensors: what is to be predicted, by name.
    sites: the steps that run a layer, by number.   layers: all, in order.   kept: parameters that nothing is
    predicted for (number of the leaf), and why.   values: what is known of each slot.   axes: of a slot, that
    images lie along (`image_axes`).
    """

    def __init__(self, leaves: Sequence[Leaf], *, images: int, channels: int, keep: bool):
        self.leaves, self.images, self.keep = leaves, images, keep
        self.forward = ForwardPass()
        self.channels = [channels]
        self.tensors: dict[str, PredictedTensor] = {}
        self.sites: dict[int, Site] = {}
        self.layers: list[Layer] = []
        self.kept: dict[int, str] = {}
        self.normalised: dict[int, int] = {}  # a norm -> what it normalises
        self.pools: dict[int, int] = {}  # the slot of a mean over all pixels -> its operation
        self.readers: dict[Operand, str] = {}  # a slot -> the weight of the first layer that reads it
        self.cut: dict[int, int] = {}  # a slot -> the slot that it is a cut or another shape of
        self.values: dict[int, Value] = {}
        self.axes: dict[int, int | None] = {}
        self.step_number = 0

    # ---- operations

    def add(
        self,
        kind: str,
        ops: Sequence[int],
        *,
        channels: int,
        name: str | None = None,
        shape: Shape | None = None,
    ) -> int:
        """Add an operation and return its number."""
        self.channels.append(channels)
        return self.forward.add(kind, tuple(ops), name, shape)

    def join(self, kind: str, values: Sequence[Value]) -> Value:
        """Return what is computed from several values of the image: a node where they differ in operation."""
        found = [v for v in values if isinstance(v, Flow | Statistic)]
        if not found:
            return CONSTANT
        statistics = [v for v in found if isinstance(v, Statistic)]
        if len({v.op for v in found}) == 1:
            if len(statistics) == len(found):
                return _together(statistics)
            flows = [v for v in found if isinstance(v, Flow)]
            return Flow(flows[0].op, squared=any(f.squared for f in flows), scores=flows[0].scores)
        flows = [self.as_flow(v) for v in found]
        ops = list(dict.fromkeys(f.op for f in flows))
        if len(ops) == 1:
            return Flow(ops[0])
        if kind == 'cse':
            self._squeezed(ops)
        return Flow(self.add(kind, ops, channels=self.channels[ops[0]]))

    def as_flow(self, value: Flow | Statistic) -> Flow:
        """Return a value that a layer reads: of sums over all pixels, a global pool."""
        if isinstance(value, Flow):
            return value
        if not self.is_pool(value):
            return Flow(value.op)
        if value.origin not in self.pools:
            kind, shape = ('glob_avg', None) if value.window is None else ('max_pool', (1, 1, *value.window))
            self.pools[value.origin] = self.add(kind, [value.op], channels=value.left, shape=shape)
        return Flow(self.pools[value.origin])

    def axes_of(self, step: Step) -> list[int | None]:
        """Return the axes of what a step reads that images lie along; None: there are none."""
        return [self.axes.get(operand) if isinstance(operand, int) else None for operand in step.inputs]

    def is_pool(self, value: Statistic) -> bool:
        """Return whether a value has one number for each channel of each image."""
        return not value.batch and value.left == self.channels[value.op]

    # ---- parameters

    def scale(self, value: Flow, view: View, step: Step) -> Flow:
        """Multiply by a parameter: a norm's scale, or one that stands by itself, which counts as a norm.

        One factor for all channels, such as PReLU's slope, is neither: as a norm's it would begin with 1.
        """
        op = value.op
        if math.prod(self.leaves[view.leaf].shape) == 1 < self.channels[op]:
            self.refuse([view.leaf], step, 'as one factor for all channels, which is no scale of a norm')
            return value
        of_pixels = value.fresh and self.forward.kind[op] == 'ln'  # a layer norm may be of more than channels
        taken = self.forward.name[op] is not None or self.forward.shift[op] is not None
        if taken or not (of_pixels or self._is_of_norm(value, view)):
            op = self.add('bn', [op], channels=self.channels[op])
        self.forward.name[op], self.forward.shape[op] = self._vector(view)
        return Flow(op, fresh=True)

    def shift(self, value: Flow, view: View, operand: Shape, step: Step) -> Flow:
        """Add a parameter, an operand of this shape: a norm's shift, a bias or positions."""
        op, forward, leaf = value.op, self.forward, self.leaves[view.leaf]
        if forward.shift[op] is None and self._is_of_norm(value, view):
            forward.shift[op], _ = self._vector(view)
            return value
        C = self.channels[op]
        if sum(size > 1 for size in leaf.shape) < 2 or math.prod(leaf.shape) == C:
            name, shape = self._vector(view)
            return Flow(self.add('bias', [op], channels=C, name=name, shape=shape))
        layout = of_positions(operand, C)
        if view.repeated or layout is None:
            self.refuse([view.leaf], step, 'which adds it neither to channels nor to the pixels of a map')
            return Flow(op)
        self.tensors.setdefault(leaf.name, PredictedTensor(layout.shape, view, layout))
        return Flow(self.add('pos_enc', [op], channels=C, name=leaf.name, shape=layout.shape))

    def layer(
        self,
        kind: str,
        value: Flow,
        view: View,
        layout: OperandLayout,
        operands: tuple[int, int],
        step: Step,
        **of: Any,
    ) -> Flow:
        """Run a convolution or a linear layer. operands: places of the activation and of the weight.

        of: what `Layer` says of a convolution.
        """
        activation, weight = operands
        name = self.leaves[view.leaf].name
        self.tensors.setdefault(name, PredictedTensor(layout.shape, view, layout))
        uses = sum(layer.parameter == name for layer in self.layers)
        full_name = f'{name}#{uses + 1}' if uses else name
        of_kind = 'linear' if len(layout.shape) == 2 else 'conv'
        layer = Layer(full_name, of_kind, name, layout.shape, **of)
        self.layers.append(layer)
        whole = self._whole(step.inputs[activation])
        reader = name if whole is None else self.readers.get(whole, name)
        self.readers.setdefault(step.inputs[activation], name)
        self.sites[self.step_number] = Site(layer, weight, activation, layout, whole, reader)
        return Flow(
            self.add(kind, [value.op], channels=layout.shape[0], name=name, shape=layout.shape), fresh=True
        )

    def norm(self, value: Flow, statistic: Statistic, step: Step) -> Flow:
        """Multiply by what takes a value to unit variance."""
        C = self.channels[value.op]
        kind, width = ('bn', statistic.left) if statistic.batch else ('ln', C)
        op = self.add(kind, [value.op], channels=C, shape=(width,))
        self.normalised[op] = value.op
        made = Flow(op, fresh=True)
        return made if statistic.scale is None else self.scale(made, statistic.scale, step)

    def is_centre(self, statistic: Statistic, value: Flow) -> bool:
        """Return whether a statistic, divided by the deviation, centres what a norm has divided by it."""
        batch = self.forward.kind[value.op] == 'bn'
        return self.normalised.get(value.op) == statistic.op and statistic.root and statistic.batch == batch

    def refuse(self, leaves: Sequence[int], step: Step, why: str) -> None:
        """Say that nothing can be predicted for some parameters: an error, or they are kept as they are."""
        first = self.leaves[min(leaves)]
        if not self.keep:
            raise UserError(
                f'parameter {first.name!r} enters {step}, {why}: write the model without, or trace it with '
                "unsupported='keep', which leaves such parameters as initialised"
            )
        self.kept |= {leaf: f'enters {step.primitive!r}, {why}' for leaf in leaves if leaf not in self.kept}

    def refuse_mixed(self, values: Sequence[Value], step: Step) -> None:
        """Refuse the parameters among what an operation reads that it is no known use for."""
        for value in values:
            if leaves := leaves_of(value):
                cause = value.step if isinstance(value, Mixed) else step
                self.refuse(sorted(leaves), cause, 'which is no convolution, linear layer, norm or bias')

    # ---- inside

    def _is_of_norm(self, value: Flow, view: View) -> bool:
        """Whether a parameter has a number for each that the norm before it has, and so is a part of it."""
        op = value.op
        if not value.fresh or self.forward.kind[op] not in NORMS:
            return False
        return self.forward.shape[op] == (math.prod(self.leaves[view.leaf].shape),)

    def _squeezed(self, ops: Sequence[int]) -> None:
        """Leave out the pool with which a gate begins: it is a part of squeeze-and-excitation, no node."""
        forward = self.forward
        for op in ops:
            while len(forward.parents[op]) == 1 and forward.kind[op] != 'glob_avg':
                (op,) = forward.parents[op]
            if forward.kind[op] == 'glob_avg' and forward.parents[op][0] in ops:
                forward.kind[op] = PASS

    def _vector(self, view: View) -> tuple[str, Shape]:
        leaf = self.leaves[view.leaf]
        shape = (math.prod(leaf.shape),)
        self.tensors.setdefault(leaf.name, PredictedTensor(shape, view))
        return leaf.name, shape

    def _whole(self, slot: object) -> int | None:
        found = None
        while isinstance(slot, int) and slot in self.cut:
            found = slot = self.cut[slot]
        return found


def _together(statistics: Sequence[Statistic]) -> Statistic:
    """What is computed from several statistics of one operation's result."""
    one_of = lambda values: next((v for v in values if v is not None), None)
    first = statistics[0]
    return dataclasses.replace(
        first,
        batch=any(s.batch for s in statistics),
        squared=any(s.squared for s in statistics),
        root=any(s.root for s in statistics),
        scale=one_of(s.scale for s in statistics),
        shift=one_of(s.shift for s in statistics),
    )


def unknown(step: Step) -> NoReturn:
    """Raise for an operation that no rule is for."""
    raise UserError(
        f'operation {step} has no rule: write the model without it, or compute it outside of the model'
    )
