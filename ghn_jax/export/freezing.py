"""A network with everything fixed that does not depend on the single image.

The program of a traced model is one of training: a batch norm takes the statistics of the batch, and a
quantizer the range of the batch. Both are values without an axis for the images. So are parameters, rounded
or not, and all that is computed from them. On a device each image is to be judged by itself: here these
values are computed once, on images that stand for all, and are constants from then on.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, export
from jax.typing import ArrayLike

from ghn_jax.base.errors import UserError, one_line
from ghn_jax.export.levels import MARKS
from ghn_jax.models.program import FlatProgram, Step, flatten, needed, run

BATCH = 'batch'  # what the number of images is called, in files too


@dataclasses.dataclass(frozen=True, eq=False)
class Frozen:
    """A program of images alone.

    Attributes:
      program: its one input are the images; the shapes in it have a symbol for their number.
      images: the shape of any number of images, with that symbol first.
    """

    program: FlatProgram
    images: jax.ShapeDtypeStruct

    def apply(self, x: Array) -> Array:
        """Compute the logits [N, classes] of images [N, ...], each by itself, on the device that is here."""
        return self._here(x)

    @functools.cached_property
    def _here(self) -> Callable[[Array], Array]:
        return jax.jit(self.exported().call)

    def exported(self, *platforms: str) -> export.Exported:
        """Lower the program for platforms such as 'cpu', 'cuda' and 'tpu', be they here or not.

        platforms: none stands for the one that is here.
        """
        compute = lambda x: run(self.program, [x])[0]
        return export.export(jax.jit(compute), platforms=platforms or None)(self.images)


def freeze(function: Callable[[Array], Array], images: ArrayLike) -> Frozen:
    """Fix what does not depend on the single image: parameters, statistics and ranges of a batch.

    Args:
      function: from images to logits, such as `lambda x: model.apply(params, x, quantizer)`.
      images: [N, ...] that the statistics and ranges are those of.

    Returns:
      The function for any number of images, each judged by itself.

    Raises:
      UserError: the function is for a certain number of images only, or gives no logits for each of them.
    """
    given = jnp.asarray(images)
    (batch,) = export.symbolic_shape(BATCH)
    any_number = jax.ShapeDtypeStruct((batch, *given.shape[1:]), given.dtype)
    try:
        closed = jax.make_jaxpr(function)(any_number)
    except UserError:
        raise
    except Exception as e:
        raise UserError(
            f'the model cannot be run on images of any number: {type(e).__name__}: {one_line(e)}'
        ) from e
    shapes = [aval.shape for aval in closed.out_avals]
    if len(shapes) != 1 or shapes[0][:1] != (batch,):
        raise UserError(
            f'the model returns {shapes} for images {any_number.shape}: expected logits [images, classes]'
        )
    program = flatten(closed, derivatives=False)
    kept = needed(_staying(program.steps), program.outputs)
    made = {slot for step in kept for slot in step.outputs} | {*program.inputs}
    read = dict.fromkeys(slot for step in kept for slot in step.inputs if isinstance(slot, int))
    constants = {slot: np.asarray(program.constants[slot]) for slot in read if slot in program.constants}
    fixed = [slot for slot in read if slot not in made and slot not in constants]
    if fixed:
        constants |= zip(fixed, _measured(program, fixed, any_number, given))
    return Frozen(FlatProgram(kept, program.inputs, constants, program.outputs), any_number)


def _measured(
    program: FlatProgram, slots: Sequence[int], any_number: jax.ShapeDtypeStruct, images: Array
) -> list[np.ndarray]:
    """Compute what is in some slots for these images.

    Constants are arguments: XLA would compute with them while it compiles, one number after another.
    """
    (given,) = program.inputs
    steps = needed(program.steps, slots)
    read = {slot for step in steps for slot in step.inputs if isinstance(slot, int)} | {*slots}
    constants = {slot: jnp.asarray(value) for slot, value in program.constants.items() if slot in read}
    part = FlatProgram(steps, (given, *constants), {}, tuple(slots))
    shapes = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in constants.values()]
    measure = export.export(jax.jit(lambda x, *arrays: run(part, [x, *arrays])))(any_number, *shapes)
    return [np.asarray(value) for value in measure.call(images, *constants.values())]


def _staying(steps: Sequence[Step]) -> list[Step]:
    """Return the steps whose results depend on the single image, or are marked integers or made of these."""
    staying, marked = [], set()
    for step in steps:
        if step.primitive in MARKS or any(isinstance(slot, int) and slot in marked for slot in step.inputs):
            marked.update(step.outputs)
            staying.append(step)
        elif _of_images(step):
            staying.append(step)
    return staying


def _of_images(step: Step) -> bool:
    """Whether its results have an axis for the images, whose length is a symbol."""
    return any(not isinstance(size, int) for size in step.out_shape)
