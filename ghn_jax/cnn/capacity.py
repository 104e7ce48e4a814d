"""What a program holds and has room for: its segments, with the ops of each, and the sizes of its buffers."""

import dataclasses
from typing import NamedTuple

from ghn_jax.cnn.instructions import Kind
from ghn_jax.cnn.packing import TapeShape


class Segment(NamedTuple):
    """All instructions that read from tape `src` and write to tape `dst`."""

    src: TapeShape
    dst: TapeShape
    ops: tuple[Kind, ...]

    @property
    def weight_floats(self) -> int:
        """The most weight-buffer floats one of its instructions uses: no gradient is padded to more."""
        return max(op.weight_floats(self.src, self.dst) for op in self.ops)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Capacity:
    """Room in a program's buffers; a network that needs more is refused by `Program.layout`.

    Attributes:
      slots: of each tape.
      gradient_slots: of its gradient tape.
      rows: of the instruction table.
      blocks: of the weight buffer.
      tensors: quantized weights and one.
      channel_groups: of GROUP_CHANNELS output channels of these, and one.
      parts: of a group.
      hidden_panels: of BLOCK units each, of the hidden layer.
      pieces: of the weight buffer.
      dense_tiles, depth_tiles: what a hypernetwork decodes for a network, one for each kernel position.
      rectangles: of tiles, that a network copies.
    """

    slots: tuple[tuple[TapeShape, int], ...]
    gradient_slots: tuple[tuple[TapeShape, int], ...]
    rows: int
    blocks: int
    tensors: int
    channel_groups: int
    parts: int
    hidden_panels: int
    pieces: int
    dense_tiles: int
    depth_tiles: int
    rectangles: int
