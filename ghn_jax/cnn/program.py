"""A program: everything static about one compiled executor, and the tables that make it run a given network.

A program knows its tape shapes (H, C), its segments (all instructions from one tape to another) with the ops
each may hold, and the capacities of its buffers. It is built (`building`) once for a space and a family
(`covering`), from networks that together hold every instruction the space can produce. A network then becomes
`Tables`: plain integers.

Words: slot = place of a value on the tape of its shape, or of its gradient on the gradient tape; block =
BLOCK floats of the weight buffer; panel = the part of a linear weight that maps BLOCK inputs to BLOCK (or all
class) outputs.

A value keeps its slot, for the backward pass reads it again. A gradient is dead once what made its value has
run in reverse, and its slot goes to the next: a tenth of the slots is enough.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from ghn_jax.base.whole_numbers import round_up
from ghn_jax.cnn.capacity import Capacity, Segment
from ghn_jax.cnn.channel_groups import channel_group_tables, count_channel_groups
from ghn_jax.cnn.gradient_slots import place_gradients
from ghn_jax.cnn.head_pieces import head_pieces
from ghn_jax.cnn.joined_norms import join_norms
from ghn_jax.cnn.lowering import IMAGE, Instruction, Lowered, lower
from ghn_jax.cnn.packing import BLOCK, Piece, TapeShape, piece_part, piece_view
from ghn_jax.cnn.tables import (
    ACCUMULATE,
    DST,
    G_DST,
    G_SRC,
    GROUP,
    OP,
    PARTS,
    SEEN,
    SRC,
    WEIGHTS,
    Bits,
    HeadTable,
    Tables,
)
from ghn_jax.networks.spec import NetworkSpec
from ghn_jax.quant.policy import FLOAT_BITS, NamedWidths, Policy


class Layout(NamedTuple):
    """What the host remembers of a network: its tables, and where its parameters lie in the weight buffer."""

    tables: Tables
    pieces: tuple[tuple[int, Piece], ...]  # (first block, piece)
    tensors: Mapping[str, int]  # quantized weight -> index in Bits.weights
    instructions: tuple[Instruction, ...]  # in order of execution: row r of the table
    head_weights: tuple[str, ...]
    edges: frozenset[str]  # weights of the layers that read the image, and of the one that gives the logits
    head_group: tuple[int, ...]  # values that the classifier reads


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """The static side of an executor; hashable, so that jit compiles once for each.

    tape_shapes: all but the image's, in an order in which a tape depends on earlier ones only.
    heads: (tape shape, glob_avg) pairs the classifier may read from.
    joins_norms: ops and the norms after them are one instruction (`joined_norms`): to train on GPUs. Such a
      program observes nothing.
    """

    image_size: int
    tape_shapes: tuple[TapeShape, ...]
    segments: tuple[Segment, ...]
    heads: tuple[tuple[TapeShape, bool], ...]
    num_classes: int
    capacity: Capacity
    joins_norms: bool = False

    @property
    def image_shape(self) -> TapeShape:
        """The tape shape of the input images."""
        return (self.image_size, 3)

    @property
    def slots(self) -> dict[TapeShape, int]:
        """Slots on the tape of each shape."""
        return dict(self.capacity.slots)

    @property
    def gradient_slots(self) -> dict[TapeShape, int]:
        """Slots on the gradient tape of each shape."""
        return dict(self.capacity.gradient_slots)

    @property
    def features(self) -> int:
        """Width of the buffer that holds a head's input, padded to whole blocks."""
        parts = self.capacity.parts
        return round_up(max(parts * c * (1 if pooled else h * h) for (h, c), pooled in self.heads), BLOCK)

    def layout(self, spec: NetworkSpec) -> Layout:
        """Place `spec` in this program: slots, order of execution, weight offsets, flags.

        Raises:
          ValueError: an instruction this program does not hold, or a full buffer; says which and how full.
        """
        if spec.num_classes != self.num_classes:
            raise ValueError(
                f'network {spec.name!r} has {spec.num_classes} classes, this program has {self.num_classes}: '
                'build the program for a space that contains the network'
            )
        lowered = lower(spec, self.image_size)
        return _place(self, join_norms(lowered) if self.joins_norms else lowered)

    def bits(self, layout: Layout, policy: Policy) -> Bits:
        """Find the bit-widths of every tensor of a network under `policy`.

        Raises:
          UserError: a rule of the policy matches no weight of the network.
        """
        return self.bit_table(layout, policy.resolve(layout.tensors, edges=layout.edges))

    def bit_table(self, layout: Layout, widths: NamedWidths) -> Bits:
        """Return the bits of every tensor of a network as a table. widths: of all its weights, by name."""
        activations = np.full((self.capacity.rows, 2), FLOAT_BITS, np.int32)
        for r, instruction in enumerate(layout.instructions):
            for k, name in enumerate(instruction.quantized):
                activations[r, k] = widths[name][1]
        head = np.full(2, FLOAT_BITS, np.int32)
        for k, name in enumerate(layout.head_weights):
            head[k] = widths[name][1]
        weights = np.full(self.capacity.tensors, FLOAT_BITS, np.int32)
        for name, index in layout.tensors.items():
            weights[index] = widths[name][0]
        return Bits(activations, head, weights)

    def pack(
        self, layout: Layout, params: Mapping[str, np.ndarray], dtype: DTypeLike = np.float32
    ) -> np.ndarray:
        """Lay parameters, by DeepNets-1M name and in PyTorch layouts, into a weight buffer [F]."""
        flat = np.zeros(self.capacity.blocks * BLOCK, dtype)
        for block, piece in layout.pieces:
            view = piece_view(flat, block, piece)
            view[...] = piece.constant if piece.name is None else piece_part(params[piece.name], piece)
        return flat

    def unpack(self, layout: Layout, flat: np.ndarray, shapes: Mapping[str, tuple[int, ...]]) -> dict:
        """Return the parameters, or gradients, in a weight buffer by name: what `pack` laid there."""
        params = {name: np.zeros(shape, flat.dtype) for name, shape in shapes.items()}
        for block, piece in layout.pieces:
            if piece.name is not None:
                piece_part(params[piece.name], piece)[...] = piece_view(flat, block, piece)
        return params


# ---- placing a network


def _place(program: Program, lowered: Lowered) -> Layout:
    slot = _slots(program, lowered)
    by_segment = _by_segment(program, lowered)
    executed = [i for rows in by_segment for i in rows]
    rows, bounds = _instruction_rows(program, lowered, by_segment, slot)
    pieces, head, blocks = _place_head(program, lowered, slot)
    blocks = _place_weights(program, lowered, executed, pieces, blocks, rows)
    tensors, block_tensor, channel_groups = _number_tensors(program, lowered, pieces)
    has_norm = np.float32(lowered.has_norm)
    tables = Tables(rows, bounds, head, has_norm, block_tensor, np.int32(blocks), *channel_groups)
    head_weights = tuple(f'{p}.weight' for p in (lowered.head.hidden, lowered.head.final) if p)
    edges = {name for i in executed if i.src == IMAGE for name in i.quantized} | {head_weights[-1]}
    return Layout(
        tables, tuple(pieces), tensors, tuple(executed), head_weights, frozenset(edges), lowered.head.group
    )


def _by_segment(program: Program, lowered: Lowered) -> list[list[Instruction]]:
    """Sort the instructions into the program's segments, each in the order of the network."""
    number = {(s.src, s.dst): k for k, s in enumerate(program.segments)}
    by_segment: list[list[Instruction]] = [[] for _ in program.segments]
    for i in lowered.instructions:
        edge = (lowered.shapes[i.src], lowered.shapes[i.dst])
        k = number.get(edge)
        if k is None or i.op not in program.segments[k].ops:
            raise ValueError(
                f'network {lowered.name!r} needs instruction {i.op} from {edge[0]} to {edge[1]} (size, '
                'channels), which this program does not hold: build the program for a space that contains it'
            )
        by_segment[k].append(i)
    return by_segment


def _instruction_rows(
    program: Program, lowered: Lowered, by_segment: list[list[Instruction]], slot: Mapping[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """(rows of the instruction table but for WEIGHTS and SEEN, where each segment begins in it)."""
    executed = [i for rows in by_segment for i in rows]
    _check_room('instructions', len(executed), program.capacity.rows, lowered.name)
    gradient_slot, used = place_gradients(executed, lowered)
    for c, n in used.items():
        _check_room(f'gradient slots of shape {c}', n, program.gradient_slots[c], lowered.name)
    bounds = np.cumsum([0, *map(len, by_segment)]).astype(np.int32)
    rows = np.zeros((program.capacity.rows, 10), np.int32)
    written: set[int] = set()
    for k, segment in enumerate(program.segments):
        number = {op: n for n, op in enumerate(segment.ops)}
        for r, i in enumerate(by_segment[k], bounds[k]):
            rows[r, [OP, SRC, DST]] = number[i.op], slot[i.src], slot[i.dst]
            rows[r, ACCUMULATE] = i.dst in written
            rows[r, [GROUP, PARTS]] = slot[i.group[0]], len(i.group)
            rows[r, [G_SRC, G_DST]] = gradient_slot[i.src], gradient_slot[i.dst]
            written.add(i.dst)
    return rows, bounds


def _place_weights(
    program: Program,
    lowered: Lowered,
    executed: list[Instruction],
    pieces: list[tuple[int, Piece]],
    blocks: int,
    rows: np.ndarray,
) -> int:
    """Append the instructions' pieces to those of the head, fill WEIGHTS and SEEN; return the blocks in use.

    The head's gradients are written first, exactly; then those of the instructions, last to first, each
    padded to at most the longest of its segment: the padding falls on what is written next.
    """
    has_gradient = set(lowered.head.group)
    for r in range(len(executed) - 1, -1, -1):
        rows[r, WEIGHTS] = blocks
        rows[r, SEEN] = executed[r].src in has_gradient
        has_gradient.add(executed[r].src)
        for piece in executed[r].pieces:
            pieces.append((blocks, piece))
            blocks += piece.size // BLOCK
    _check_room('pieces of weights', len(pieces), program.capacity.pieces, lowered.name)
    _check_room('rectangles', sum(p.rectangles for _, p in pieces), program.capacity.rectangles, lowered.name)
    overhang = max(s.weight_floats for s in program.segments) // BLOCK
    _check_room('weight blocks', blocks + overhang, program.capacity.blocks, lowered.name)
    return blocks


def _number_tensors(
    program: Program, lowered: Lowered, pieces: list[tuple[int, Piece]]
) -> tuple[dict[str, int], np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """(number of each quantized weight, which of them a block belongs to, the tables of channel groups)."""
    unquantized = program.capacity.tensors - 1
    tensors: dict[str, int] = {}
    block_tensor = np.full(program.capacity.blocks, unquantized, np.int32)
    matrices = [(block, piece) for block, piece in pieces if piece.name is not None and piece.is_matrix]
    for block, piece in matrices:
        assert piece.name is not None
        index = tensors.setdefault(piece.name, len(tensors))
        block_tensor[block : block + piece.size // BLOCK] = index
    _check_room('weight tensors', len(tensors), unquantized, lowered.name)
    counts = count_channel_groups(piece for _, piece in matrices)
    _check_room('channel groups', sum(counts.values()), program.capacity.channel_groups - 1, lowered.name)
    return tensors, block_tensor, channel_group_tables(program.capacity, matrices, tensors)


def _slots(program: Program, lowered: Lowered) -> dict[int, int]:
    """Give values their slots; those of a group side by side, so that one slice reads them all."""
    slot, used = {IMAGE: 0}, dict.fromkeys(program.tape_shapes, 0)
    for group in lowered.groups:
        c = lowered.shapes[group[0]]
        if c not in used:
            raise ValueError(
                f'network {lowered.name!r} has tensors of shape {c} (size, channels), this program has '
                f'{program.tape_shapes}: build the program for a space that contains the network'
            )
        _check_room('parts of a concatenation', len(group), program.capacity.parts, lowered.name)
        for v in group:
            slot[v] = used[c]
            used[c] += 1
    for c, n in used.items():
        # A slice of `parts` slots from any group must lie inside the tape.
        _check_room(f'slots of shape {c}', n + program.capacity.parts, program.slots[c], lowered.name)
    return slot


def _place_head(program: Program, lowered: Lowered, slot: Mapping[int, int]):
    """Place the head from block 0 on: its pieces [(first block, piece)], its table, the blocks it takes."""
    head = lowered.head
    variant = (lowered.shapes[head.group[0]], head.glob_avg)
    if variant not in program.heads:
        raise ValueError(
            f'the classifier of network {lowered.name!r} reads {variant} ((size, channels), glob_avg), '
            f'this program has {program.heads}: build the program for a space that contains the network'
        )
    layers = head_pieces(head, program.num_classes)
    _check_room(
        'panels of hidden units', len(layers.hidden_bias), program.capacity.hidden_panels, lowered.name
    )
    pieces: list[tuple[int, Piece]] = []
    first, blocks = [], 0
    for layer in layers:
        first.append(blocks)
        for piece in layer:
            pieces.append((blocks, piece))
            blocks += piece.size // BLOCK
    table = HeadTable(
        variant=program.heads.index(variant),
        slot=slot[head.group[0]],
        parts=len(head.group),
        hidden_weights=first[0],
        hidden_bias=first[1],
        hidden_rows=-(-head.features // BLOCK),
        hidden_cols=len(layers.hidden_bias),
        final_weights=first[2],
        final_bias=first[3],
        final_rows=-(-(head.hidden_size or head.features) // BLOCK),
        two_layers=int(head.hidden is not None),
    )
    return pieces, HeadTable(*(np.int32(x) for x in table)), blocks


def _check_room(what: str, needed: int, room: int, name: str) -> None:
    if needed > room:
        raise ValueError(
            f'network {name!r} needs {needed} {what}, this program has room for {room}: '
            'build the program for a space that contains the network'
        )
