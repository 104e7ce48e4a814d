"""How the values of a tape lie in memory: decided here, once, for every backend.

Axes: S slots | N images | H size, C channels.

Ops see values as [N, H, H, C]. All that is outside of a switch's branches keeps to the order of the tape. On
CPUs and GPUs that is the same order: their convolutions want channels innermost. XLA:TPU wants what fills the
128 lanes of a vector best innermost, and what fills its 8 sublanes next: images, then channels, or the other
way round. Given tapes in another order it converts a whole tape for every instruction. It does not move that
through a switch either, so there a slot is read before the switch. (XLA:CPU would copy the slot for it.)
"""

import dataclasses
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.typing import DTypeLike

from ghn_jax.base import backends
from ghn_jax.base.whole_numbers import round_up
from ghn_jax.cnn.packing import TapeShape

_LANES, _SUBLANES = 128, 8  # of a TPU's vectors
_IMAGES = 'NHWC'


@dataclasses.dataclass(frozen=True)
class TapeLayout:
    """The order of the axes of a tape's values, and where slots of it are read.

    value_shape: of a value as ops see it, [N, H, H, C]. axes: a permutation of NHWC: a tape is [S, *axes].
    reads_in_branches: the branches of a switch are given the tape and read their slot, else they are given
    the slot. slots_in_group: between the runs of networks, tapes of more slots are [groups, slots, *axes].
    """

    value_shape: tuple[int, ...]
    axes: str
    reads_in_branches: bool
    slots_in_group: int | None = None

    def shape(self, slots: int) -> tuple[int, ...]:
        """Return the shape of a tape between the runs of networks, with room for so many slots."""
        value = (self.value_shape[_IMAGES.index(axis)] for axis in self.axes)
        if self.slots_in_group is None or slots <= self.slots_in_group:
            return (slots, *value)
        groups = -(-slots // self.slots_in_group)
        return (groups, -(-slots // groups), *value)

    def as_images(self, values: Array) -> Array:
        """Return values [..., *axes] of a tape as [..., N, H, H, C]."""
        return _transposed(values, [self.axes.index(axis) for axis in _IMAGES])

    def as_stored(self, values: Array) -> Array:
        """Return values [..., N, H, H, C] in the order of the tape, [..., *axes]."""
        stored = _transposed(values, [_IMAGES.index(axis) for axis in self.axes])
        if self.reads_in_branches:
            return stored
        # XLA:TPU would give a tape the order that some of its ops compute in, and convert it for the others.
        return with_layout_constraint(stored, Layout(tuple(range(stored.ndim))))

    def operand(self, tape: Array, index: Array, slots: int | None = None) -> Array:
        """Return what a switch is given of a tape, for its branches to `read` a slot or some."""
        if self.reads_in_branches:
            return tape
        # XLA would move what few branches use into these, and convert the whole tape to the order of each.
        return lax.optimization_barrier(read_slot(tape, index, slots))

    def read(self, operand: Array, index: Array, slots: int | None = None) -> Array:
        """Read the slot in a branch, as `read_slot` does: values in the order of the tape."""
        return read_slot(operand, index, slots) if self.reads_in_branches else operand


def layout_of(tape_shape: TapeShape, batch: int) -> TapeLayout:
    """Return the layout of a tape for batches of `batch` images, on the backend that a program is for."""
    size, channels = tape_shape
    value_shape = (batch, size, size, channels)
    if backends.current() != 'tpu':
        return TapeLayout(value_shape, 'NHWC', reads_in_branches=True)
    images_minor = array_bytes((channels, batch)) < array_bytes((batch, channels))
    axes, innermost = ('HWCN', batch) if images_minor else ('HWNC', channels)
    # What a program is given and returns has the order that XLA pads least. Of tapes of more slots than this
    # it would put the slots innermost, and every step would convert them twice.
    group = None if innermost % _LANES == 0 else _LANES * innermost // round_up(innermost, _LANES)
    return TapeLayout(value_shape, axes, reads_in_branches=False, slots_in_group=group)


def array_bytes(shape: Sequence[int], dtype: DTypeLike = np.float32) -> int:
    """Return the bytes of an array, with what a TPU pads its two innermost axes by."""
    itemsize = np.dtype(dtype).itemsize
    if backends.current() == 'tpu' and len(shape) > 1:
        *outer, sublanes, lanes = shape  # numbers of 16 bits lie in pairs
        shape = (*outer, round_up(sublanes, _SUBLANES * max(1, 4 // itemsize)), round_up(lanes, _LANES))
    return math.prod(shape) * itemsize


def _transposed(values: Array, order: Sequence[int]) -> Array:
    if list(order) == sorted(order):
        return values
    leading = values.ndim - len(order)
    return jnp.transpose(values, (*range(leading), *(leading + axis for axis in order)))


# ---- slots of tapes, in any layout


def ungrouped(tapes: dict[TapeShape, Array]) -> dict[TapeShape, Array]:
    """Return tapes [S, *axes] whose slots may lie in groups; nothing is moved."""
    return {c: tape.reshape(-1, *tape.shape[-4:]) if tape.ndim > 5 else tape for c, tape in tapes.items()}


def grouped_like(tapes: dict[TapeShape, Array], like: dict[TapeShape, Array]) -> dict[TapeShape, Array]:
    """Return tapes [S, *axes] with the slots in groups again, as they are in `like`."""
    return {c: tape.reshape(like[c].shape) if like[c].ndim > 5 else tape for c, tape in tapes.items()}


def read_slot(tape: Array, index: Array, slots: int | None = None) -> Array:
    """Read a slot of a tape: a value; or so many slots from it on, [slots, *axes]."""
    if slots is not None:
        return lax.dynamic_slice_in_dim(tape, index, slots, 0)
    return lax.dynamic_index_in_dim(tape, index, 0, keepdims=False)


def set_slot(tape: Array, value: Array, index: Array) -> Array:
    """Write a value to a slot of a tape."""
    return lax.dynamic_update_index_in_dim(tape, value, index, 0)


def add_to_slot(tape: Array, value: Array, index: Array, keep: Array) -> Array:
    """Write a value to a slot, plus what was there if `keep`."""
    return set_slot(tape, jnp.where(keep > 0, read_slot(tape, index), 0) + value, index)
