"""A program: everything static about one compiled executor, and the tables that make it run a given network.

A program knows its classes (H, C), its segments (all instructions from one class to another) with the ops
each may hold, and the capacities of its buffers. It is built (`building`) once for a space and a family
(`coverage`), from networks that together hold every instruction the space can produce. A network then becomes
`Tables`: plain integers.

Words: slot = place of a value on its class's tape, or of its gradient on the class's gradient tape; block =
BLOCK floats of the weight buffer; panel = the part of a linear weight that maps BLOCK inputs to BLOCK (or all
class) outputs.

A value keeps its slot, for the backward pass reads it again. A gradient is dead once what made its value has
run in reverse, and its slot goes to the next: a tenth of the slots is enough.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ghn_jax.cnn.channel_groups import column_tables, count_columns
from ghn_jax.cnn.gradient_slots import place_gradients
from ghn_jax.cnn.instructions import Kind
from ghn_jax.cnn.lowering import IMAGE, Head, Instruction, Lowered, lower
from ghn_jax.cnn.packing import (
    BLOCK,
    Class,
    Piece,
    linear_pieces,
    piece_part,
    piece_view,
    round_up,
    vector_piece,
)
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


class Segment(NamedTuple):
    """All instructions from class `src` to class `dst`."""

    src: Class
    dst: Class
    ops: tuple[Kind, ...]

    @property
    def weight_floats(self) -> int:
        """The most weight-buffer floats one of its instructions uses: no gradient is padded to more."""
        return max(op.weight_floats(self.src, self.dst) for op in self.ops)


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
class Capacity:
    """Room in a program's buffers; a network that needs more is refused by `Program.layout`.

    slots: of each class's tape. gradient_slots: of its gradient tape. rows: of the instruction table. blocks:
    of the weight buffer. tensors: quantized weights and one. columns: of COLUMN output channels of these, and
    one. parts: of a group. hidden_panels: of BLOCK units each, of the hidden layer. pieces: of the weight
    buffer. dense_tiles, depth_tiles: what a hypernetwork decodes for a network, one for each kernel position;
    windows: rectangles of tiles that it copies.
    """

    slots: tuple[tuple[Class, int], ...]
    gradient_slots: tuple[tuple[Class, int], ...]
    rows: int
    blocks: int
    tensors: int
    columns: int
    parts: int
    hidden_panels: int
    pieces: int
    dense_tiles: int
    depth_tiles: int
    windows: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """The static side of an executor; hashable, so that jit compiles once for each.

    classes: every class but the image's, in an order in which a class depends on earlier ones only.
    heads: (class, glob_avg) pairs the classifier may read from.
    """

    image_size: int
    classes: tuple[Class, ...]
    segments: tuple[Segment, ...]
    heads: tuple[tuple[Class, bool], ...]
    num_classes: int
    capacity: Capacity

    @property
    def image_class(self) -> Class:
        """The class of the input images."""
        return (self.image_size, 3)

    @property
    def slots(self) -> dict[Class, int]:
        """Slots on the tape of each class."""
        return dict(self.capacity.slots)

    @property
    def gradient_slots(self) -> dict[Class, int]:
        """Slots on the gradient tape of each class."""
        return dict(self.capacity.gradient_slots)

    @property
    def features(self) -> int:
        """Width of the buffer that holds a head's input, padded to whole blocks."""
        parts = self.capacity.parts
        return round_up(max(parts * c * (1 if pooled else h * h) for (h, c), pooled in self.heads), BLOCK)

    @property
    def class_columns(self) -> int:
        """Columns of the class layer, padded to a multiple of 8."""
        return round_up(self.num_classes, 8)

    def layout(self, spec: NetworkSpec) -> Layout:
        """Places `spec` in this program: slots, order of execution, weight offsets, flags.

        Raises:
          ValueError: an instruction this program does not hold, or a full buffer; says which and how full.
        """
        if spec.num_classes != self.num_classes:
            raise ValueError(
                f'network {spec.name!r} has {spec.num_classes} classes, this program has {self.num_classes}: '
                'build the program for a space that contains the network'
            )
        return _place(self, lower(spec, self.image_size))

    def bits(self, layout: Layout, policy: Policy) -> Bits:
        """The bit-widths of every tensor of a network under `policy`.

        Raises:
          UserError: a rule of the policy matches no weight of the network.
        """
        return self.bit_table(layout, policy.resolve(layout.tensors, edges=layout.edges))

    def bit_table(self, layout: Layout, widths: NamedWidths) -> Bits:
        """The bit-widths of every tensor of a network as a table. widths: of all its weights, by name."""
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

    def pack(self, layout: Layout, params: Mapping[str, np.ndarray], dtype=np.float32) -> np.ndarray:
        """Parameters by DeepNets-1M name, in PyTorch layouts -> weight buffer [F]."""
        flat = np.zeros(self.capacity.blocks * BLOCK, dtype)
        for block, piece in layout.pieces:
            view = piece_view(flat, block, piece)
            view[...] = piece.constant if piece.name is None else piece_part(params[piece.name], piece)
        return flat

    def unpack(self, layout: Layout, flat: np.ndarray, shapes: Mapping[str, tuple[int, ...]]) -> dict:
        """The inverse of `pack` (also for gradients)."""
        params = {name: np.zeros(shape, flat.dtype) for name, shape in shapes.items()}
        for block, piece in layout.pieces:
            if piece.name is not None:
                piece_part(params[piece.name], piece)[...] = piece_view(flat, block, piece)
        return params


# ---- placing a network


def _place(program: Program, lowered: Lowered) -> Layout:
    slot = _slots(program, lowered)
    segment_of = {(s.src, s.dst): k for k, s in enumerate(program.segments)}
    columns = [{op: k for k, op in enumerate(s.ops)} for s in program.segments]
    by_segment: list[list[Instruction]] = [[] for _ in program.segments]
    for i in lowered.instructions:
        edge = (lowered.classes[i.src], lowered.classes[i.dst])
        k = segment_of.get(edge)
        if k is None or i.op not in columns[k]:
            raise ValueError(
                f'network {lowered.name!r} needs instruction {i.op} from {edge[0]} to {edge[1]} (size, '
                'channels), which this program does not hold: build the program for a space that contains it'
            )
        by_segment[k].append(i)
    executed = [i for rows in by_segment for i in rows]
    _check_room('instructions', len(executed), program.capacity.rows, lowered.name)
    gradient_slot, used = place_gradients(executed, lowered)
    for c, n in used.items():
        _check_room(f'gradient slots of class {c}', n, program.gradient_slots[c], lowered.name)

    bounds = np.cumsum([0, *map(len, by_segment)]).astype(np.int32)
    rows = np.zeros((program.capacity.rows, 10), np.int32)
    written: set[int] = set()
    for k, segment in enumerate(by_segment):
        for r, i in enumerate(segment, bounds[k]):
            rows[r, [OP, SRC, DST]] = columns[k][i.op], slot[i.src], slot[i.dst]
            rows[r, ACCUMULATE] = i.dst in written
            rows[r, [GROUP, PARTS]] = slot[i.group[0]], len(i.group)
            rows[r, [G_SRC, G_DST]] = gradient_slot[i.src], gradient_slot[i.dst]
            written.add(i.dst)

    # The head's gradients are written first, exactly; then those of the instructions, last to first, each
    # padded to at most the longest of its segment: the padding falls on what is written next.
    pieces, head, blocks = _place_head(program, lowered, slot)
    has_gradient = set(lowered.head.group)
    for r in range(len(executed) - 1, -1, -1):
        rows[r, WEIGHTS] = blocks
        rows[r, SEEN] = executed[r].src in has_gradient
        has_gradient.add(executed[r].src)
        for piece in executed[r].pieces:
            pieces.append((blocks, piece))
            blocks += piece.size // BLOCK
    _check_room('pieces of weights', len(pieces), program.capacity.pieces, lowered.name)
    _check_room('windows', sum(p.windows for _, p in pieces), program.capacity.windows, lowered.name)
    overhang = max(s.weight_floats for s in program.segments) // BLOCK
    _check_room('weight blocks', blocks + overhang, program.capacity.blocks, lowered.name)

    unquantized = program.capacity.tensors - 1
    tensors: dict[str, int] = {}
    block_tensor = np.full(program.capacity.blocks, unquantized, np.int32)
    matrices = [(block, piece) for block, piece in pieces if piece.name is not None and piece.is_matrix]
    for block, piece in matrices:
        index = tensors.setdefault(piece.name, len(tensors))
        block_tensor[block : block + piece.size // BLOCK] = index
    _check_room('weight tensors', len(tensors), unquantized, lowered.name)
    counts = count_columns(piece for _, piece in matrices)
    _check_room('columns of channels', sum(counts.values()), program.capacity.columns - 1, lowered.name)
    columns = column_tables(program.capacity, matrices, tensors)

    tables = Tables(
        rows, bounds, head, np.float32(lowered.has_norm), block_tensor, np.int32(blocks), *columns
    )
    head_weights = tuple(f'{p}.weight' for p in (lowered.head.hidden, lowered.head.final) if p)
    edges = {name for i in executed if i.src == IMAGE for name in i.quantized} | {head_weights[-1]}
    return Layout(
        tables, tuple(pieces), tensors, tuple(executed), head_weights, frozenset(edges), lowered.head.group
    )


def _slots(program: Program, lowered: Lowered) -> dict[int, int]:
    """Value -> slot; the values of a group side by side, so that one slice reads them all."""
    slot, used = {IMAGE: 0}, dict.fromkeys(program.classes, 0)
    for group in lowered.groups:
        c = lowered.classes[group[0]]
        if c not in used:
            raise ValueError(
                f'network {lowered.name!r} has tensors of class {c} (size, channels), this program has '
                f'{program.classes}: build the program for a space that contains the network'
            )
        _check_room('parts of a concatenation', len(group), program.capacity.parts, lowered.name)
        for v in group:
            slot[v] = used[c]
            used[c] += 1
    for c, n in used.items():
        # A slice of `parts` slots from any group must lie inside the tape.
        _check_room(f'slots of class {c}', n + program.capacity.parts, program.slots[c], lowered.name)
    return slot


def _place_head(program: Program, lowered: Lowered, slot: Mapping[int, int]):
    """The head's pieces, from block 0 on: [(first block, piece)], its table, and the blocks it takes."""
    head = lowered.head
    variant = (lowered.classes[head.group[0]], head.glob_avg)
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


class HeadPieces(NamedTuple):
    """The pieces of a classifier, layer by layer in the order in which they lie in the weight buffer."""

    hidden_weights: list[Piece]
    hidden_bias: list[Piece]
    final_weights: list[Piece]
    final_bias: list[Piece]

    @property
    def all(self) -> list[Piece]:
        """Those of all layers."""
        return [p for layer in self for p in layer]


def head_pieces(head: Head, num_classes: int) -> HeadPieces:
    """Linear weights in panels of BLOCK inputs x BLOCK hidden units (x all classes); hidden_* empty without
    one.
    """
    columns, features, hidden_weights, hidden_bias = round_up(num_classes, 8), head.features, [], []
    if head.hidden:
        hidden_weights = linear_pieces(f'{head.hidden}.weight', features, head.hidden_size, BLOCK)
        for col in range(0, head.hidden_size, BLOCK):
            hidden_bias.append(
                vector_piece(f'{head.hidden}.bias', col, min(BLOCK, head.hidden_size - col), BLOCK)
            )
        features = head.hidden_size
    final = linear_pieces(f'{head.final}.weight', features, num_classes, columns)
    return HeadPieces(
        hidden_weights, hidden_bias, final, [vector_piece(f'{head.final}.bias', 0, num_classes, columns)]
    )


def _check_room(what: str, needed: int, room: int, name: str) -> None:
    if needed > room:
        raise ValueError(
            f'network {name!r} needs {needed} {what}, this program has room for {room}: '
            'build the program for a space that contains the network'
        )
