"""Where the batch norms of a traced model begin and end, and which layers they can be folded into.

A batch norm is all steps from one tensor, its source, to the source centred, scaled and shifted, its result.
Slots are as in `program`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ghn_jax.base.errors import UserError
from ghn_jax.models.program import CASTS, PASSED_ON, FlatProgram, Operand, Step
from ghn_jax.models.recorder import Recorder
from ghn_jax.models.values import Flow, Shape, Statistic, Value, View


class DependsOnBatch(UserError):
    """A model that depends on the other images of its batch by something that is no known batch norm."""


_SAME = (*PASSED_ON, *CASTS)
_ARITHMETIC = ('mul', 'div', 'add', 'sub')


@dataclasses.dataclass(frozen=True)
class BatchNorm:
    """A batch norm.

    Attributes:
      source, result: slots.
      shape: of both.
      axes: that both the mean and the variance are taken over.
      images: the one of them that images lie along, maybe with pixels.
      steps: numbers of the steps from the source (and parameters) to the result, in order.
    """

    source: int
    result: int
    shape: Shape
    axes: tuple[int, ...]
    images: int
    steps: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class LayerEnd:
    """What a layer is followed by directly.

    Attributes:
      step: that runs the layer.
      axis: of its result, that output channels lie along; None: several.
      biases: (slot of the sum, slot of the bias) of each bias that is added.
      end: slot of the last sum.
    """

    step: int
    axis: int | None
    biases: tuple[tuple[int, int], ...]
    end: int


class Structure:
    """Batch norms and layer ends of a program, and how they fit together.

    norms: in the order of the forward pass.   ends: of the layers, by step.
    folds: for each norm the steps of the layers that it folds into (several: those whose results are
      concatenated), or None.
    """

    def __init__(self, program: FlatProgram, recorder: Recorder):
        self.program, self.values, self.axes = program, recorder.values, recorder.axes
        self.made = {slot: k for k, step in enumerate(program.steps) for slot in step.outputs}
        self.readers: dict[int | None, list[int]] = {}
        for k, step in enumerate(program.steps):
            for slot in set(_slots(step.inputs)):
                self.readers.setdefault(slot, []).append(k)
        for slot in _slots(program.outputs):
            self.readers.setdefault(slot, []).append(len(program.steps))
        kinds = recorder.forward.kind
        self.norms = [self._norm(op, of) for op, of in recorder.normalised.items() if kinds[op] == 'bn']
        self.ends = {k: self._end(k, site.weight) for k, site in recorder.sites.items()}
        by_end = {end.end: end for end in self.ends.values()}
        self.folds = [self._layers_before(norm, by_end) for norm in self.norms]

    def _step_of(self, slot: object) -> Step | None:
        k = self.made.get(slot) if isinstance(slot, int) else None
        return None if k is None else self.program.steps[k]

    # ---- norms

    def _norm(self, op: int, normalised: int) -> BatchNorm:
        result = self._result(op)
        sums = [] if result is None else self._sums(result, op, normalised)
        common = [slot for slot in sums[0][1] if all(slot in path for _, path in sums)] if sums else []
        if result is not None and common:
            source, images = common[0], self.axes.get(common[0])
            axes = tuple(sorted(set.intersection(*(set(axes) for axes, _ in sums))))
            steps, shape = self._between(source, result), self.aval(source).shape
            if steps is not None and images is not None and images in axes:
                if shape == self.aval(result).shape:
                    return BatchNorm(source, result, shape, axes, images, steps)
        end = '' if result is None else f' that ends in {self._step_of(result)}'
        raise DependsOnBatch(
            f'the batch norm{end} is of a form that cannot be calibrated: it is no mean and variance over '
            'the images, a scale and a shift for each channel; score the model by the statistics of each '
            'batch'
        )

    def _result(self, op: int) -> int | None:
        """Follow a norm from where it divides by the deviation through its scale and its shift.

        None: it divides by the deviation times a parameter that is no scale of channels.
        """
        is_norm = lambda v: isinstance(v, Flow) and v.op == op and v.fresh
        steps = self.program.steps
        slot = result = next((s.outputs[0] for s in steps if is_norm(self.values.get(s.outputs[0]))), None)
        while len(readers := self.readers.get(slot, [])) == 1 and readers[0] < len(steps):
            step = steps[readers[0]]
            if step.primitive not in (*_SAME, *_ARITHMETIC) or not is_norm(self.values[step.outputs[0]]):
                break
            slot = step.outputs[0]
            result = slot if step.primitive in _ARITHMETIC else result
        return result

    def _sums(self, result: int, op: int, normalised: int) -> list[tuple[tuple[int, ...], list[int]]]:
        """Find the sums over images in a norm: their axes, and slots from what is summed back to the tensor.

        The tensor that is normalised is the first that all sums have.
        """
        found = []
        ahead, seen = [result], set()
        while ahead:
            slot = ahead.pop()
            step = self._step_of(slot)
            if slot in seen or step is None:
                continue
            seen.add(slot)
            of_images = {
                s: v for s in _slots(step.inputs) if isinstance(v := self.values[s], Flow | Statistic)
            }
            flows = [s for s, v in of_images.items() if not of_batch(v)]
            # Those of the tensor that is normalised: it may be the result of a norm without scale and shift.
            statistics = [s for s, v in of_images.items() if of_batch(v) and v.op == normalised]
            value = self.values[slot]
            if of_batch(value) and flows:  # a sum over the images
                path, more = self._summed(flows[0])
                found.append((tuple(step.eqn.params.get('axes', ())), path))
                ahead += more
            else:
                inside = isinstance(value, Flow) and (value.op == op or statistics)
                ahead += statistics + (flows if inside else [])
        return found

    def _summed(self, slot: int) -> tuple[list[int], list[int]]:
        """Go back from what is summed to the tensor itself: slots on the way but casts, and statistics."""
        path, statistics = [], []
        while True:
            step = self._step_of(slot)
            others = [] if step is None else _slots(step.inputs)
            if step is not None and step.primitive in _SAME and len(others) == 1:
                slot = others[0]
                continue
            path.append(slot)
            if step is None or not others:
                return path, statistics
            if step.primitive == 'sub' and of_batch(self.values.get(others[-1])):
                statistics.append(others[-1])
            elif not _is_square(step):
                return path, statistics
            slot = others[0]

    def _between(self, source: int, result: int) -> tuple[int, ...] | None:
        """Return the steps from source and parameters to result; None if more than these enter."""
        ahead, steps = [result], set()
        while ahead:
            slot = ahead.pop()
            if slot == source:
                continue
            if (k := self.made.get(slot)) is None:
                if slot == self.program.inputs[-1]:
                    return None
                continue
            if k not in steps:
                steps.add(k)
                ahead += _slots(self.program.steps[k].inputs)
        return tuple(sorted(steps))

    def aval(self, slot: int) -> Any:
        """Return the shape and dtype of what is in a slot."""
        step = self._step_of(slot)
        if step is not None:
            return step.eqn.outvars[step.outputs.index(slot)].aval
        reader = self.program.steps[self.readers[slot][0]]
        return reader.eqn.invars[reader.inputs.index(slot)].aval

    # ---- layers

    def _end(self, k: int, weight: int) -> LayerEnd:
        step = self.program.steps[k]
        slot, axis, biases = step.outputs[0], _channel_axis(step, weight), []
        while axis is not None and len(readers := self.readers.get(slot, [])) == 1:
            if readers[0] == len(self.program.steps):
                break
            added = self.program.steps[readers[0]]
            others = [s for s in _slots(added.inputs) if s != slot]
            if added.primitive != 'add' or len(others) != 1 or not self._is_bias(added, slot, axis):
                break
            slot = added.outputs[0]
            biases.append((slot, others[0]))
        return LayerEnd(k, axis, tuple(biases), slot)

    def _is_bias(self, added: Step, slot: int, axis: int) -> bool:
        """Whether a step adds one number of a parameter to each channel."""
        (place,) = (i for i, s in enumerate(added.inputs) if s != slot)
        other = added.inputs[place]
        if not isinstance(other, int) or not isinstance(self.values.get(other), View):
            return False
        sizes, axes = added.shapes[place], tuple(range(len(added.out_shape)))
        step = self._step_of(other)
        if step is not None and step.primitive == 'broadcast_in_dim':
            sizes, axes = step.shapes[0], step.eqn.params['broadcast_dimensions']
        return all(size == 1 or to == axis for size, to in zip(sizes, axes))

    def _layers_before(self, norm: BatchNorm, by_end: Mapping[int, LayerEnd]) -> tuple[int, ...] | None:
        kept = [axis for axis in range(len(norm.shape)) if axis not in norm.axes]
        if len(kept) != 1 or not set(self.readers[norm.source]) <= set(norm.steps):
            return None
        producer = self._step_of(norm.source)
        if norm.source in by_end:
            before = [by_end[norm.source]]
        elif producer is not None and producer.primitive == 'concatenate':
            joined = [by_end.get(s) if isinstance(s, int) else None for s in producer.inputs]
            before = [end for end in joined if end is not None and len(self.readers[end.end]) == 1]
            if len(before) < len(joined) or producer.eqn.params['dimension'] != kept[0]:
                return None
        else:
            return None
        return tuple(end.step for end in before) if all(end.axis == kept[0] for end in before) else None


def _channel_axis(step: Step, weight: int) -> int | None:
    """Return the axis of a layer's result that output channels lie along, if it is one."""
    if step.primitive == 'conv_general_dilated':
        return step.eqn.params['dimension_numbers'].out_spec[1]
    contracting, batch = step.eqn.params['dimension_numbers']
    free = len(step.shapes[weight]) - len(contracting[weight]) - len(batch[weight])
    if free != 1:
        return None
    return len(step.out_shape) - 1 if weight == 1 else 0


def _is_square(step: Step) -> bool:
    same = step.primitive == 'mul' and step.inputs[0] == step.inputs[1]
    return same or step.primitive in ('square', 'integer_pow')


def _slots(operands: Sequence[Operand]) -> list[int]:
    return [operand for operand in operands if isinstance(operand, int)]


def of_batch(value: Value | None) -> bool:
    """Return whether a value is a statistic of several images."""
    return isinstance(value, Statistic) and value.batch
