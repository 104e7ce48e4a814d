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
      slots: values that each tape holds.
      gradient_slots: gradients that each tape of gradients holds.
      rows: instructions in the table.
      blocks: blocks of BLOCK floats in the weight buffer.
      tensors: quantized weights, and one that stands for "never quantized".
      channel_groups: groups of GROUP_CHANNELS output channels of these, and one that stands for none.
      parts: values that a concatenation joins at most.
      hidden_panels: panels of BLOCK units in the hidden layer.
      pieces: pieces that the weight buffer is filled with.
      dense_tiles, depth_tiles: tiles that a hypernetwork decodes for a network, one for each kernel position.
      rectangles: rectangles that a network copies out of these tiles.
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
