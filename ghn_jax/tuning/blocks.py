"""A calibrated model cut into blocks, for methods that treat one block after another.

What is computed from the image flows through the model's steps, in their order. Between two steps a number
of values cross: computed before, read behind. A model is cut where that number is 1, or 2 and a local
minimum. Between two residual blocks one value crosses, and two or more inside of one; a cell of DARTS reads
the results of the two cells before it, so two values cross between cells and more inside. Of the pieces
between neighbouring cuts those without a layer join the one before them (activation functions, pools). So a
block is a residual block, a cell, or a single layer with what follows it (arXiv 2102.05426, sec. 3.2).
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax import Array

from ghn_jax.models.folded_program import FoldedProgram
from ghn_jax.models.folding import Calibrated
from ghn_jax.models.model import rewriter
from ghn_jax.models.program import FlatProgram, Step, needed, run
from ghn_jax.models.quantizer import Quantizer
from ghn_jax.models.recorder import Site

MOST = 2  # values that cross where a model is cut
Values = tuple[Array, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """A part of a calibrated model.

    Attributes:
      program: from the values that enter to those that leave.
      sites: the steps that run a layer, by number. `layer.parameter` is the layer's own name, as
        `Calibrated.weights` has it: a weight that is used twice is folded twice.
      made: places, among the values that leave, of those that are computed here; others pass through.
      norms: number of a batch norm of the model -> slot of what it normalises, or of its scaled and shifted
        result where it is folded; of those that are first read here.
    """

    program: FlatProgram
    sites: dict[int, Site]
    made: tuple[int, ...]
    norms: dict[int, int]

    def run(self, entering: Sequence[Array], quantizer: Quantizer | None = None) -> Values:
        """Compute the values that leave. quantizer: as of `Model.apply`, by the layers' own names."""
        return tuple(run(self.program, entering, rewriter(self.sites, quantizer)))

    def run_to_norms(self, entering: Sequence[Array]) -> Values:
        """Compute what is in the slots of `norms`, in float."""
        return tuple(run(dataclasses.replace(self.program, outputs=tuple(self.norms.values())), entering))

    @property
    def readers(self) -> tuple[str, ...]:
        """The names of the activations that layers read here (`Site.reader`), in order."""
        return tuple(dict.fromkeys(site.reader for site in self.sites.values()))

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers, in order."""
        return tuple(site.layer.name for site in self.sites.values())


def blocks_of(calibrated: Calibrated, images: int) -> tuple[Block, ...]:
    """Cut a model into blocks that run one after another, on so many images.

    The first takes the images, the last gives the logits; each of the others takes what the one before gives.
    Inside of `jax.jit` the arrays may be traced ones: where the cuts are does not depend on them.
    """
    folded = calibrated.program((images, *calibrated.model.input_shape[1:]))
    leaves = jax.tree.leaves(calibrated.params)
    program = folded.program
    constants = program.constants | dict(zip(program.inputs, leaves))
    program = dataclasses.replace(program, inputs=program.inputs[-1:], constants=constants)
    return _cut(dataclasses.replace(folded, program=program))


def _cut(folded: FoldedProgram) -> tuple[Block, ...]:
    program = folded.program
    flow, fixed = _flow(program)
    crossing = _crossing(program, flow)
    site_of = {program.steps[k].outputs[0]: site for k, site in folded.sites.items()}
    ends = _ends(flow, [len(values) for values in crossing], set(site_of))
    blocks, read = [], set[int]()
    for begin, end in zip((0, *ends), ends):
        reads = {slot for step in flow[begin:end] for slot in step.inputs if isinstance(slot, int)} - read
        norms = {k: slot for k, slot in enumerate(folded.sources) if slot in reads}
        steps = [*fixed, *flow[begin:end]]
        blocks.append(_block(program, site_of, steps, crossing[begin], crossing[end], norms))
        read |= reads
    return tuple(blocks)


def _flow(program: FlatProgram) -> tuple[list[Step], list[Step]]:
    """Return the steps that depend on the image, and the others."""
    flowing, flow, fixed = set(program.inputs), [], []
    for step in program.steps:
        depends = flowing.intersection(s for s in step.inputs if isinstance(s, int))
        (flow if depends else fixed).append(step)
        if depends:
            flowing.update(step.outputs)
    return flow, fixed


def _crossing(program: FlatProgram, flow: Sequence[Step]) -> list[tuple[int, ...]]:
    """Return the slots that cross before each step, and behind the last; in the order they are filled."""
    order = {slot: k for k, slot in enumerate([*program.inputs, *(s for step in flow for s in step.outputs)])}
    wanted = {slot for slot in program.outputs if isinstance(slot, int)}
    crossing = [wanted]
    for step in reversed(flow):
        wanted = (wanted - {*step.outputs}) | {s for s in step.inputs if isinstance(s, int) and s in order}
        crossing.append(wanted)
    return [tuple(sorted(slots, key=order.__getitem__)) for slots in reversed(crossing)]


def _ends(flow: Sequence[Step], widths: Sequence[int], layers: set[int]) -> list[int]:
    """Return the numbers of the steps that blocks end before, of widths [steps + 1]."""
    cuts = [0, *(k for k in range(1, len(flow)) if widths[k] <= MOST and _is_minimum(widths, k)), len(flow)]
    ends, filled = [], False
    for begin, end in zip(cuts, cuts[1:]):
        has_layer = any(step.outputs[0] in layers for step in flow[begin:end])
        if has_layer and filled:
            ends.append(begin)
        filled |= has_layer
    return [*ends, len(flow)]


def _is_minimum(widths: Sequence[int], k: int) -> bool:
    """Whether the nearest width that differs is a larger one, to both sides of k."""
    others = (next((w for w in side if w != widths[k]), np.inf) for side in (widths[k::-1], widths[k:]))
    return all(other > widths[k] for other in others)


def _block(
    whole: FlatProgram,
    site_of: Mapping[int, Site],
    steps: Sequence[Step],
    entering: tuple[int, ...],
    leaving: tuple[int, ...],
    norms: dict[int, int],
) -> Block:
    """Make a block of some steps of the whole program. site_of: by the slot of a step's result."""
    filled = {slot for step in steps for slot in step.outputs}
    kept = needed(steps, (*leaving, *norms.values()))
    program = FlatProgram(kept, entering, whole.constants, leaving)
    sites = {
        k: _inside(site_of[step.outputs[0]], filled.union(entering))
        for k, step in enumerate(kept)
        if step.outputs[0] in site_of
    }
    made = tuple(place for place, slot in enumerate(leaving) if slot not in entering)
    return Block(program, sites, made, norms)


def _inside(site: Site, known: set[int]) -> Site:
    layer = dataclasses.replace(site.layer, parameter=site.layer.name)
    return dataclasses.replace(site, layer=layer, whole=site.whole if site.whole in known else None)
