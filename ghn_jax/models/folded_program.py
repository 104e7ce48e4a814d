"""The program of a model whose batch norms are fixed: without them, or with a scale and a shift for each.

The folded weight of a layer stands in its step as a constant, the bias is the step behind it. What a bias
or a norm did before is gone. Everything else is as the model has it.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from ghn_jax.models.model import Traced
from ghn_jax.models.norms import BatchNorm, LayerEnd
from ghn_jax.models.program import FlatProgram, Operand, Step, flatten, needed, new_slot
from ghn_jax.models.recorder import Site


@dataclasses.dataclass(frozen=True, eq=False)
class FoldedProgram:
    """A program, with its layers and norms marked.

    Attributes:
      sites: the steps that run a layer, by number.
      weights, biases: slot of a constant -> name of its layer.
      sources: for each batch norm of the model, the slot that it, or what stands for it, reads.
    """

    program: FlatProgram
    sites: dict[int, Site]
    weights: dict[int, str]
    biases: dict[int, str]
    sources: tuple[int, ...]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class BatchStatistics:
    """A batch norm that stays as the model has it: it takes the statistics of each batch."""


NormForm = tuple[Any, Any] | BatchStatistics | None
"""What stands for a batch norm: (scale, shift), the norm itself, or None where it is folded into layers."""


def fold_program(
    traced: Traced,
    weights: Mapping[str, Any],
    biases: Mapping[str, Any],
    norms: Sequence[NormForm],
) -> FoldedProgram:
    """Write the program of a model with folded weights and biases.

    Args:
      traced: the model's own program, for images of the shape that is wanted.
      weights, biases: by the layer's name, as in `folding.Calibrated`.
      norms: of each batch norm in the order of the forward pass; its `NormForm`.
    """
    structure = traced.structure
    writer = _Writer(traced)
    norm_at = {max(norm.steps): (norm, fixed) for norm, fixed in zip(structure.norms, norms, strict=True)}
    for end in structure.ends.values():
        before = traced.program.steps[end.step].outputs[0]
        for slot, _ in end.biases:
            writer.instead[slot], before = before, slot
    for k, step in enumerate(traced.program.steps):
        if (site := traced.recorder.sites.get(k)) is not None:
            writer.layer(step, site, structure.ends[k], weights, biases)
        elif k in norm_at:
            writer.norm(step, *norm_at[k])
        elif step.outputs[0] not in writer.instead:
            writer.write(step)
    return writer.finish()


class _Writer:
    """Steps that are written one after another. instead: slot -> the slot to read in its place."""

    def __init__(self, traced: Traced):
        self.traced, self.structure = traced, traced.structure
        self.steps: list[Step] = []
        self.instead: dict[int, int] = {}
        self.constants = dict(traced.program.constants)
        self.site_of: dict[int, Site] = {}  # by the slot of the step's result
        self.weights: dict[int, str] = {}
        self.biases: dict[int, str] = {}

    def read(self, operand: Operand) -> Operand:
        while isinstance(operand, int) and operand in self.instead:
            operand = self.instead[operand]
        return operand

    def write(self, step: Step) -> None:
        self.steps.append(dataclasses.replace(step, inputs=tuple(map(self.read, step.inputs))))

    def constant(self, value: Any) -> int:
        slot = new_slot()
        self.constants[slot] = value
        return slot

    def compute(self, function: Callable[..., Any], *slots: int) -> int:
        """Write the steps of a function of values in slots; return the slot of its result."""
        avals = [
            jax.ShapeDtypeStruct(of.shape, of.dtype)
            for of in (self.constants[s] if s in self.constants else self.structure.aval(s) for s in slots)
        ]
        program = flatten(jax.make_jaxpr(function)(*avals))
        place = dict(zip(program.inputs, map(self.read, slots)))
        self.constants |= program.constants
        for step in program.steps:
            inputs = tuple(place.get(s, s) if isinstance(s, int) else s for s in step.inputs)
            self.steps.append(dataclasses.replace(step, inputs=inputs))
        (result,) = program.outputs
        assert isinstance(result, int)
        return result

    def layer(
        self, step: Step, site: Site, end: LayerEnd, weights: Mapping[str, Any], biases: Mapping[str, Any]
    ) -> None:
        name, inputs = site.layer.name, list(map(self.read, step.inputs))
        dtype = step.eqn.invars[site.weight].aval.dtype  # pyright: ignore[reportAttributeAccessIssue]
        inputs[site.weight] = weight = self.constant(site.layout.to_operand(weights[name]).astype(dtype))
        self.weights[weight] = name
        self.steps.append(dataclasses.replace(step, inputs=tuple(inputs)))
        (out,) = step.outputs
        whole = None if site.whole is None else self.read(site.whole)
        self.site_of[out] = dataclasses.replace(site, whole=whole)
        if (bias := biases[name]) is not None:
            assert end.axis is not None
            shape = [1] * len(step.out_shape)
            shape[end.axis] = -1
            slot = self.constant(bias.reshape(shape).astype(self.structure.aval(out).dtype))
            self.biases[slot] = name
            self.instead[out] = self.compute(lambda y, b: y + b, out, slot)

    def norm(self, step: Step, norm: BatchNorm, fixed: NormForm) -> None:
        source, dtype = norm.source, self.structure.aval(norm.result).dtype
        if isinstance(fixed, BatchStatistics):
            self.write(step)
        elif fixed is not None:
            scale, shift = map(self.constant, fixed)
            affine = lambda x, scale, shift: (x * scale + shift).astype(dtype)
            self.instead[norm.result] = self.compute(affine, source, scale, shift)
        elif self.structure.aval(source).dtype != dtype:
            self.instead[norm.result] = self.compute(lambda x: x.astype(dtype), source)
        else:
            self.instead[norm.result] = source

    def finish(self) -> FoldedProgram:
        old = self.traced.program
        outputs = tuple(map(self.read, old.outputs))
        wholes = [site.whole for site in self.site_of.values() if site.whole is not None]
        steps = needed(self.steps, (*outputs, *wholes))
        sites = {k: self.site_of[s.outputs[0]] for k, s in enumerate(steps) if s.outputs[0] in self.site_of}
        program = FlatProgram(steps, old.inputs, self.constants, outputs)
        sources: Any = tuple(self.read(norm.source) for norm in self.structure.norms)
        return FoldedProgram(program, sites, self.weights, self.biases, sources)
