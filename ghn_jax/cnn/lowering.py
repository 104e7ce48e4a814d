"""Lowers a network's spec to instructions on numbered values: the host side of the executor.

A value is one tensor of the network, [N, H, H, C]; its shape, (H, C), says on which tape it lies. An
instruction reads one value and adds its result to another. Sums need no instruction (their terms write to one
value) and concatenations need none either: the parts of a cell's output are a *group*, laid side by side on
the tape, and a convolution over them is one convolution of each, with its rows of the weight, into one sum.
What they share is the range of the activation: an instruction names all parts, and quantizes by their joint
range.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from ghn_jax.base.errors import UserError
from ghn_jax.base.whole_numbers import round_up
from ghn_jax.cnn.instructions import Conv, Kind, MaxPool, Norm, Position, Reduce, Subsample, Zero
from ghn_jax.cnn.packing import Piece, TapeShape, cut_piece, dense_piece, whole_piece
from ghn_jax.cnn.stages import Stage, stages_of
from ghn_jax.networks.ops import tensors
from ghn_jax.networks.spec import IMAGE_SIZE, VIT_SIZE, NetworkSpec


class Instruction(NamedTuple):
    """`dst += op(src)`. `quantized`: the weights whose activation policies apply to its inputs, in order."""

    op: Kind
    src: int
    dst: int
    group: tuple[int, ...]
    pieces: tuple[Piece, ...]
    quantized: tuple[str, ...]


class Head(NamedTuple):
    """Classifier over a group of values: features -> [hidden ->] logits."""

    group: tuple[int, ...]
    glob_avg: bool
    hidden: str | None  # parameter prefixes
    final: str
    hidden_size: int
    features: int  # input size of the first linear layer


class Lowered(NamedTuple):
    """A network as instructions, in an order in which every value is complete before it is read."""

    name: str
    instructions: tuple[Instruction, ...]
    head: Head
    shapes: dict[int, TapeShape]  # of values; value 0 is the image
    groups: tuple[tuple[int, ...], ...]  # values that must lie side by side
    has_norm: bool


IMAGE = 0  # the value that holds the input images
Parts = tuple[int, ...]  # values that are concatenated


def lower(spec: NetworkSpec, image_size: int = IMAGE_SIZE) -> Lowered:
    """Lower `spec` for images of image_size x image_size x 3; what the logits do not need is dropped.

    Raises:
      UserError: as `check_lowerable`.
    """
    check_lowerable(spec, image_size)
    return _Lowering(spec, image_size).lower()


def check_lowerable(spec: NetworkSpec, image_size: int) -> None:
    """Raise UserError, with its name and the field, for a network that the executor does not run.

    Its widths are no multiples of 16 (C) and 8 (fc_dim), images are of another size than the positional
    encodings of msa are for, or of one that its stem and reductions do not halve to whole pixels.
    """
    if spec.is_vit and image_size != IMAGE_SIZE:
        raise UserError(
            f'network {spec.name!r} uses msa, whose positional encodings are for images of {IMAGE_SIZE} '
            f'pixels, not {image_size}: take images of {IMAGE_SIZE} pixels, or networks without msa'
        )
    halvings = spec.stem_pool + spec.stem_type + sum(map(spec.is_reduction, range(spec.n_cells)))
    if not spec.is_vit and image_size % 2**halvings:
        raise UserError(
            f'network {spec.name!r} halves images {halvings} times, and {image_size} pixels are no multiple '
            f'of {2**halvings}: take images of {round_up(image_size, 2**halvings)} pixels'
        )
    if spec.C % 16:
        raise UserError(
            f'network {spec.name!r} has C={spec.C}: the executor runs widths that are multiples of 16'
        )
    if spec.fc_layers == 2 and spec.fc_dim % 8:
        raise UserError(
            f'network {spec.name!r} has fc_dim={spec.fc_dim}: the executor runs hidden layers '
            'that are multiples of 8'
        )


class _Lowering:
    """Emits instructions while walking the network from the image to the logits."""

    def __init__(self, spec: NetworkSpec, image_size: int):
        self.spec = spec
        self.shapes = {IMAGE: (image_size, 3)}
        self.instructions: list[Instruction] = []
        self.groups: list[tuple[int, ...]] = []
        self.unrectified: Parts | None = None  # output of the stem's second part

    # -- values and instructions

    def value(self, size: int, channels: int) -> int:
        self.shapes[len(self.shapes)] = (size, channels)
        return len(self.shapes) - 1

    def emit(
        self, op: Kind, src: int, dst: int, pieces: Iterable[Piece] = (), group: tuple[int, ...] | None = None
    ) -> int:
        pieces = tuple(pieces)
        weights = [piece.name for piece in pieces if piece.name and piece.is_matrix]
        quantized = tuple(weights[: op.quantizes])
        self.instructions.append(Instruction(op, src, dst, group or (src,), pieces, quantized))
        return dst

    def norm_pieces(self, name: str, channels: int) -> tuple[Piece, Piece]:
        """Return scale and shift; ones and zeros where the network has no normalisation."""
        scale, shift = (whole_piece(f'{name}.{part}', (channels,)) for part in ('weight', 'bias'))
        if self.spec.norm:
            return scale, shift
        return scale._replace(name=None, constant=1.0), shift._replace(name=None)

    # -- layers: each adds its result to value `dst`

    def operation(self, name: str, src: int, dst: int, stride: int, prefix: str) -> None:
        """Emit an operation of a genotype; the names of its parameters begin with `prefix`."""
        (size, _), (out_size, channels) = self.shapes[src], self.shapes[dst]
        steps, tensor = [], iter(tensors(name, channels, strided=stride > 1))
        for stage in stages_of(name, stride):
            parameters = [next(tensor) for _ in stage.kind.weight_shapes(self.shapes[src], self.shapes[dst])]
            if isinstance(stage.kind, Norm):
                pieces = self.norm_pieces(
                    prefix + parameters[0][0].removesuffix('.weight'), stage.parts * channels
                )
            else:
                pieces = tuple(whole_piece(prefix + suffix, shape) for suffix, shape in parameters)
            steps.append((stage, pieces))

        def values(stage: Stage) -> tuple[int, ...]:
            shape = out_size if stage.strided else size, channels
            return tuple(self.value(*shape) for _ in range(stage.parts))

        # A value that a normalisation completes is numbered before those that it is made from.
        parts = (src,)
        while steps:
            is_norm = (isinstance(stage.kind, Norm) for stage, _ in steps)
            count = next((k + 1 for k, found in enumerate(is_norm) if found), len(steps))
            (*inner, (last, pieces)), steps = steps[:count], steps[count:]
            out = values(last) if steps else (dst,)
            for stage, pieces_of_stage in inner:
                parts = self.emit_parts(stage.kind, parts, values(stage), pieces_of_stage)
            parts = self.emit_parts(last.kind, parts, out, pieces)
            if len(parts) > 1:
                self.groups.append(parts)

    def emit_parts(
        self, op: Kind, src: tuple[int, ...], dst: tuple[int, ...], pieces: tuple[Piece, ...]
    ) -> tuple[int, ...]:
        """Emit op for the parts of what it reads and makes, with the rows and columns of its weights."""
        dense = isinstance(op, Conv)
        for j, out in enumerate(dst):
            for k, part in enumerate(src) if dense else [(0, src[j])]:
                cut = [cut_piece(piece, len(src) if dense else 1, k, len(dst), j) for piece in pieces]
                self.emit(op, part, out, cut, src if op.quantizes else None)
        return dst

    def point_group(self, parts: Parts, channels: int, name: str) -> int:
        """Emit relu, conv 1x1, norm over a concatenation."""
        size, _ = self.shapes[parts[0]]
        return self.group(Conv(1, 1, 1, True), parts, size, channels, (f'{name}.op.1',), f'{name}.op.2')

    def reduce_group(self, parts: Parts, channels: int, name: str) -> int:
        """Emit a FactorizedReduce over a concatenation: strided convolutions, the second shifted; norm."""
        size, _ = self.shapes[parts[0]]
        layers = f'{name}.conv_1', f'{name}.conv_2'
        return self.group(Reduce(), parts, size // 2, channels, layers, f'{name}.bn')

    def group(
        self, op: Kind, parts: Parts, size: int, channels: int, layers: tuple[str, ...], norm: str
    ) -> int:
        """Emit convolutions of the parts of a concatenation, summed, then the norm."""
        dst, raw = self.value(size, channels), self.value(size, channels)
        row = 0
        for part in parts:
            c_in = self.shapes[part][1]
            cols = channels // len(layers)
            self.emit(op, part, raw, [dense_piece(f'{x}.weight', 1, c_in, cols, row) for x in layers], parts)
            row += c_in
        return self.emit(Norm(), raw, dst, self.norm_pieces(norm, channels))

    # -- the network

    def lower(self) -> Lowered:
        spec = self.spec
        s0: Parts | None
        s1: Parts | None
        s0, s1 = self.stem()
        width, after_reduction = spec.C, spec.stem_type == 1
        for i in range(spec.n_cells):
            reduction = spec.is_reduction(i)
            width *= spec.C_mult if reduction else 1
            # Transformer networks never change their resolution.
            halve, strided = (after_reduction, reduction) if not spec.is_vit else (False, False)
            output = self.cell(i, (s0, s1), width, halve=halve, strided=strided)
            s0, s1, after_reduction = s1, output, reduction
        assert s1 is not None  # a spec that exists is connected
        return self.finish(s1)

    def stem(self) -> tuple[Parts, Parts]:
        """Emit the stem; return the two values that the first cell reads."""
        spec, (size, _) = self.spec, self.shapes[IMAGE]
        if spec.is_vit:
            piece = dense_piece('stem0.weight', 9, 3, spec.C)
            raw = self.emit(Conv(3, 3, 3, False), IMAGE, self.value(VIT_SIZE, spec.C), (piece,))
            positions = Piece('pos_enc.weight', VIT_SIZE**2, 1, spec.C, 1, spec.C, position=True)
            out = self.emit(Position(), raw, self.value(VIT_SIZE, spec.C), (positions,))
            return (out,), (out,)

        def stem_conv(src: int, dst: int, k: int, stride: int, name: str, norm: str) -> int:
            """Emit [relu,] conv kxk, norm."""
            piece = dense_piece(f'{name}.weight', k * k, self.shapes[src][1], self.shapes[dst][1])
            raw = self.value(*self.shapes[dst])
            self.emit(Conv(k, k, stride, src != IMAGE), src, raw, (piece,))
            return self.emit(Norm(), raw, dst, self.norm_pieces(norm, self.shapes[dst][1]))

        if spec.stem_type == 0:
            out = self.value(size, 3 * spec.C if spec.preproc else spec.C)
            stem_conv(IMAGE, out, spec.ks, 1, 'stem.0', 'stem.1')
            if spec.stem_pool:
                out = self.emit(MaxPool(2), out, self.value(size // 2, self.shapes[out][1]))
            return (out,), (out,)
        first = stem_conv(IMAGE, self.value(size, spec.C // 2), spec.ks, 1, 'stem0.0', 'stem0.1')
        s0 = stem_conv(first, self.value(size, spec.C), 3, 1, 'stem0.3', 'stem0.4')
        s1 = stem_conv(s0, self.value(size // 2, spec.C), 3, 2, 'stem1.1', 'stem1.2')
        self.unrectified = (s0,)
        return (s0,), (s1,)

    def preprocess(self, parts: Parts | None, width: int, halve: bool, name: str) -> int | None:
        if parts is None:
            return None
        if self.spec.preproc:
            return (self.reduce_group if halve else self.point_group)(parts, width, name)
        if not halve:
            return parts[0]
        size, channels = self.shapes[parts[0]]
        # The relu of the stem's second part acts in place, so all that reads its output sees the relu. All
        # others rectify what they read by themselves.
        rectify = parts == self.unrectified
        return self.emit(Subsample(rectify), parts[0], self.value(size // 2, channels))

    def cell(
        self, i: int, inputs: tuple[Parts | None, Parts | None], width: int, *, halve: bool, strided: bool
    ) -> Parts | None:
        """Return the values of the cell's output, or None where all of them are absent.

        halve: the first input has twice the resolution of the second. strided: the cell halves it.
        """
        entries, listed = self.spec.genotype.cell(self.spec.is_reduction(i))
        states: list[Any] = [  # a value, or None where it is absent
            self.preprocess(inputs[0], width, halve, f'cells.{i}.preprocess0'),
            self.preprocess(inputs[1], width, False, f'cells.{i}.preprocess1'),
        ]
        present = next((s for s in states if s is not None), None)
        if present is None:
            return None
        out_size = self.shapes[present][0] // (2 if strided else 1)
        for step in range(len(entries) // 2):
            terms = [(e, *entries[e]) for e in (2 * step, 2 * step + 1)]
            terms = [(e, op, s) for e, op, s in terms if op != 'none' and states[s] is not None]
            if not terms:
                states.append(None)
                continue
            dst = self.value(out_size, width)
            for e, op, s in terms:
                self.operation(op, states[s], dst, 2 if strided and s < 2 else 1, f'cells.{i}._ops.{e}')
            states.append(dst)
        output = [states[s] for s in listed]
        present = next((s for s in output if s is not None), None)
        if present is None:
            return None
        for k, part in enumerate(output):
            if part is None:
                output[k] = self.emit(Zero(), present, self.value(*self.shapes[present]))
        self.groups.append(tuple(output))
        return tuple(output)

    def finish(self, parts: Parts) -> Lowered:
        """Add the head and drop instructions whose results the logits do not need."""
        spec = self.spec
        size, channels = self.shapes[parts[0]]
        features = channels * len(parts) * (1 if spec.glob_avg else size * size)
        two = spec.fc_layers == 2
        head = Head(
            group=parts,
            glob_avg=spec.glob_avg,
            hidden='classifier.0' if two else None,
            final='classifier.3' if two else 'classifier.0',
            hidden_size=spec.fc_dim if two else 0,
            features=features,
        )
        live = set(parts)
        kept = []
        for instruction in reversed(self.instructions):
            if instruction.dst in live:
                kept.append(instruction)
                live.update(instruction.group)
        groups = tuple(g for g in self.groups if live.issuperset(g))
        grouped = {v for g in groups for v in g}
        groups += tuple((v,) for v in sorted(live - grouped - {IMAGE}))
        shapes = {v: c for v, c in self.shapes.items() if v in live}
        return Lowered(spec.name, tuple(kept[::-1]), head, shapes, groups, spec.norm is not None)
