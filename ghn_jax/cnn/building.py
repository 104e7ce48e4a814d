"""Builds a program from networks that together hold every instruction it is to run: `covering` finds them."""

from collections.abc import Iterable

from ghn_jax.base.whole_numbers import round_up
from ghn_jax.cnn.capacity import Capacity, Segment
from ghn_jax.cnn.channel_groups import count_channel_groups
from ghn_jax.cnn.gradient_slots import place_gradients
from ghn_jax.cnn.head_pieces import HeadPieces, head_pieces
from ghn_jax.cnn.joined_norms import join_norms
from ghn_jax.cnn.lowering import Lowered, lower
from ghn_jax.cnn.packing import BLOCK, Piece, TapeShape
from ghn_jax.cnn.program import Program
from ghn_jax.cnn.tables import PAGE_BLOCKS
from ghn_jax.networks.spec import NetworkSpec

_SPARE = 2  # gradient slots: covering networks are the hungriest by design, which no proof stands behind


def build_program(
    networks: Iterable[NetworkSpec], *, image_size: int, max_params: float, joins_norms: bool = False
) -> Program:
    """Build a program that runs every network whose instructions all occur in `networks`.

    Args:
      networks: all of one family and number of classes, for instance `covering.covering_networks(...)`.
      image_size: pixels on a side.
      max_params: the program has room for the longest of the networks, but for no more parameters than this.
      joins_norms: see `Program`.
    """
    specs = list(networks)
    lowered = [lower(spec, image_size) for spec in specs]
    if joins_norms:
        lowered = [join_norms(net) for net in lowered]
    segments = _segments(lowered, image_size)
    num_classes = specs[0].num_classes
    heads = [head_pieces(net.head, num_classes) for net in lowered]
    return Program(
        image_size=image_size,
        tape_shapes=tuple(dict.fromkeys(s.dst for s in segments)),
        segments=segments,
        heads=tuple(sorted({(net.shapes[net.head.group[0]], net.head.glob_avg) for net in lowered})),
        num_classes=num_classes,
        capacity=_capacity(lowered, segments, heads, max_params),
        joins_norms=joins_norms,
    )


def _segments(lowered: list[Lowered], image_size: int) -> tuple[Segment, ...]:
    """Group the instructions of the networks by the shapes they read and write, in an order of execution."""
    ops: dict[tuple[TapeShape, TapeShape], set] = {}
    for net in lowered:
        for i in net.instructions:
            ops.setdefault((net.shapes[i.src], net.shapes[i.dst]), set()).add(i.op)
    image = (image_size, 3)
    shapes = _ordered({c for edge in ops for c in edge} - {image}, ops)
    segments = []
    for dst in shapes:
        sources = [image, *(c for c in shapes if c != dst), dst]  # what crosses to a tape comes first
        segments += [
            Segment(src, dst, tuple(sorted(ops[src, dst], key=str))) for src in sources if (src, dst) in ops
        ]
    return tuple(segments)


def _capacity(
    lowered: list[Lowered], segments: tuple[Segment, ...], heads: list[HeadPieces], max_params: float
) -> Capacity:
    """Find the room that the longest of the networks need, each for itself, with their classifiers."""
    parts = max(len(g) for net in lowered for g in net.groups)
    pieces = [[p for i in net.instructions for p in i.pieces] for net in lowered]
    weights = [{p.name: p for p in ps if p.name and p.is_matrix} for ps in pieces]
    dense = [sum(p.taps for p in w.values() if p.pad_rows > 1) for w in weights]
    depth = [sum(p.taps for p in w.values() if p.pad_rows == 1) for w in weights]
    positions = max(sum(p.taps for p in ps if p.position) for ps in pieces)
    channel_groups = lambda pieces: sum(count_channel_groups(pieces).values())
    return Capacity(
        slots=tuple(
            (c, max(sum(v == c for v in net.shapes.values()) for net in lowered) + parts)
            for c in dict.fromkeys(s.dst for s in segments)
        ),
        gradient_slots=_gradient_slots(lowered, segments, parts),
        rows=max(len(net.instructions) for net in lowered),
        blocks=_blocks(pieces, segments, heads, max_params),
        tensors=max(map(len, weights)) + 3,  # two of the head, one that stands for "never quantized"
        channel_groups=max(map(channel_groups, pieces)) + max(channel_groups(h.all) for h in heads) + 1,
        parts=parts,
        hidden_panels=max(1, *(len(h.hidden_bias) for h in heads)),
        pieces=max(len(ps) + len(h.all) for ps, h in zip(pieces, heads, strict=True)),
        dense_tiles=round_up(max(dense) + 1, 64) + 64,  # small and large ones begin a chunk each
        depth_tiles=round_up(max(depth) + 1, 128) + round_up(positions, 128),  # these begin a chunk
        rectangles=max(sum(p.rectangles for p in [*ps, *h.all]) for ps, h in zip(pieces, heads, strict=True)),
    )


def _blocks(
    pieces: list[list[Piece]], segments: tuple[Segment, ...], heads: list[HeadPieces], max_params: float
) -> int:
    """Blocks of the weight buffer: those of the longest network, if not more than max_params allow."""
    body = [sum(p.size for p in ps) // BLOCK for ps in pieces]
    head = [sum(p.size for p in h.all) // BLOCK for h in heads]
    # No network has more than max_params parameters; a tenth more for pieces that do not fill their last
    # block.
    bound = max(head) + max_params / BLOCK * 1.1 + 1024
    # Gradients are padded to at most the longest of their segment; the last one written must fit as well.
    overhang = max(s.weight_floats for s in segments) // BLOCK
    longest = max(map(sum, zip(head, body, strict=True)))
    return round_up(int(min(longest, bound)) + overhang, PAGE_BLOCKS)


def _gradient_slots(
    lowered: list[Lowered], segments: tuple[Segment, ...], parts: int
) -> tuple[tuple[TapeShape, int], ...]:
    """Count the slots that the hungriest network needs; at least `parts` each, which a head writes."""
    number = {(s.src, s.dst): k for k, s in enumerate(segments)}
    room = {s.dst: parts for s in segments}
    for net in lowered:
        of = lambda i, c=net.shapes: number[c[i.src], c[i.dst]]
        _, used = place_gradients(sorted(net.instructions, key=of), net)
        room = {c: max(n, used.get(c, 0)) for c, n in room.items()}
    return tuple((c, n + _SPARE) for c, n in room.items())


def _ordered(shapes: set[TapeShape], ops: Iterable[tuple[TapeShape, TapeShape]]) -> tuple[TapeShape, ...]:
    """Sort tape shapes such that each comes after all that lead to it."""
    edges = [(a, b) for a, b in ops if a in shapes and a != b]
    order: list[TapeShape] = []
    while len(order) < len(shapes):
        free = sorted(c for c in shapes - set(order) if all(a in order for a, b in edges if b == c))
        order.append(free[-1])  # the largest images first: the order in which networks run
    return tuple(order)
