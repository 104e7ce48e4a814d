"""Lowers a network's spec to instructions on numbered values: the host side of the executor.

A value is one tensor of the network, [N, H, H, C]; its class is (H, C). An instruction reads one value and
adds its result to another. Sums need no instruction (their terms write to one value) and concatenations
need none either: the parts of a cell's output are a *group*, laid side by side on the tape, and a convolution
over them is one convolution of each, with its rows of the weight, into one sum. What they share is the range
of the activation: an instruction names all parts, and quantizes by their joint range.

Instructions:
  ('conv', kh, kw, stride, rectify)    [relu,] convolution
  ('depthwise', k, dilation, stride)   relu, depthwise convolution
  ('reduce',)                          relu, the two convolutions of a FactorizedReduce
  ('split', stride)                    relu, convolutions 1x7 and 7x1, strided
  ('excite', stride)                   squeeze-and-excitation, every stride-th row and column of it
  ('attention',) ('mlp',)              the two halves of a transformer block, each with its residual sum
  ('position',)                        positional encodings added
  ('norm',)                            batch normalisation
  ('subsample', rectify)               [relu,] every second row and column
  ('max', stride) ('avg', stride) ('copy',) ('zero',)

Instructions are as small as they are because the backward pass recomputes each from its input (what is cheap
to recompute, relu and rounding, goes with what follows it) and because compiling takes its time for each op
of each pair of classes.
"""

from typing import NamedTuple

from ghn_jax.cnn.pieces import Piece, dense_piece
from ghn_jax.errors import UserError
from ghn_jax.networks.spec import IMAGE_SIZE, VIT_SIZE, NetworkSpec


class Instruction(NamedTuple):
    """`dst += op(src)`. `quantized`: the weights whose activation policies apply to its inputs, in order."""

    op: tuple
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
    classes: dict[int, tuple[int, int]]  # value -> (H, C); value 0 is the image
    groups: tuple[tuple[int, ...], ...]  # values that must lie side by side
    has_norm: bool


IMAGE = 0  # the value that holds the input images
_SIZES = {'1x1': 1, '3x3': 3, '5x5': 5, '7x7': 7}


def lower(spec: NetworkSpec, image_size: int = 32) -> Lowered:
    """Lowers `spec` for images of image_size x image_size x 3; what the logits do not need is dropped.

    Raises:
      UserError: as `check_lowerable`.
    """
    check_lowerable(spec, image_size)
    return _Lowering(spec, image_size).lower()


def check_lowerable(spec: NetworkSpec, image_size: int) -> None:
    """Raises UserError, with its name and the field, for a network that the executor does not run.

    Its widths are no multiples of 16 (C) and 8 (fc_dim), or it has msa, and images are of another size than
    its positional encodings are for.
    """
    if spec.is_vit and image_size != IMAGE_SIZE:
        raise UserError(
            f'network {spec.name!r} uses msa, whose positional encodings are for images of {IMAGE_SIZE} '
            f'pixels, not {image_size}: take images of {IMAGE_SIZE} pixels, or networks without msa'
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
        self.classes = {IMAGE: (image_size, 3)}
        self.instructions: list[Instruction] = []
        self.groups: list[tuple[int, ...]] = []
        self.unrectified: tuple[int, ...] | None = None  # output of the stem's second part

    # -- values and instructions

    def value(self, size: int, channels: int) -> int:
        self.classes[len(self.classes)] = (size, channels)
        return len(self.classes) - 1

    def emit(self, op, src, dst, pieces=(), quantized=(), group=None) -> int:
        self.instructions.append(Instruction(op, src, dst, group or (src,), tuple(pieces), tuple(quantized)))
        return dst

    def norm_pieces(self, name: str, channels: int) -> tuple[Piece, Piece]:
        """Scale and shift; ones and zeros where the network has no normalisation."""
        scale = Piece(f'{name}.weight', 1, 1, channels, 1, channels, constant=1.0)
        shift = Piece(f'{name}.bias', 1, 1, channels, 1, channels, constant=0.0)
        return (scale, shift) if self.spec.norm else (scale._replace(name=None), shift._replace(name=None))

    def linear_pieces(self, name: str, c_in: int, c_out: int) -> tuple[Piece, Piece]:
        """Weight and bias of a linear layer inside the network."""
        bias = Piece(f'{name}.bias', 1, 1, c_out, 1, c_out)
        return dense_piece(f'{name}.weight', 1, c_in, c_out), bias

    # -- layers: each adds its result to value `dst`

    def normed(self, src: int, dst: int, op, pieces, weights, norm_name: str):
        """An instruction, then its normalisation."""
        raw = self.emit(op, src, self.value(*self.classes[dst]), pieces, weights)
        self.emit(('norm',), raw, dst, self.norm_pieces(norm_name, self.classes[dst][1]))

    def conv(self, src: int, dst: int, k: int, stride: int, name: str, *, rectify=True, at: int = 1):
        """[relu,] conv kxk (`name.op.at`), norm (`name.op.at+1`)."""
        weight = f'{name}.op.{at}.weight'
        pieces = (dense_piece(weight, k * k, self.classes[src][1], self.classes[dst][1]),)
        self.normed(src, dst, ('conv', k, k, stride, rectify), pieces, (weight,), f'{name}.op.{at + 1}')

    def split_conv(self, src: int, dst: int, stride: int, name: str):
        size, channels = self.classes[dst]
        first, second = f'{name}.op.1.weight', f'{name}.op.2.weight'
        pieces = (dense_piece(first, 7, channels, channels), dense_piece(second, 7, channels, channels))
        if stride == 1:
            middle = self.emit(('conv', 1, 7, 1, True), src, self.value(size, channels), pieces[:1], (first,))
            self.normed(middle, dst, ('conv', 7, 1, 1, False), pieces[1:], (second,), f'{name}.op.3')
        else:  # the value between has another height than width, so it stays inside one instruction
            self.normed(src, dst, ('split', stride), pieces, (first, second), f'{name}.op.3')

    def separable(self, src: int, dst: int, k: int, dilation: int, stride: int, name: str, at: int):
        """relu, depthwise conv (`name.op.at`), conv 1x1, norm."""
        size, channels = self.classes[dst]
        weight = f'{name}.op.{at}.weight'
        piece = Piece(weight, k * k, 1, channels, 1, channels)
        op = ('depthwise', k, dilation, stride)
        middle = self.emit(op, src, self.value(size, channels), (piece,), (weight,))
        self.conv(middle, dst, 1, 1, name, rectify=False, at=at + 1)

    def excite(self, src: int, dst: int, stride: int, name: str):
        """Squeeze-and-excitation: channels scaled by a gate computed from their means."""
        channels = self.classes[src][1]
        first = self.linear_pieces(f'{name}.fc1', channels, channels // 2)
        second = self.linear_pieces(f'{name}.fc2', channels // 2, channels)
        quantized = (f'{name}.fc1.weight', f'{name}.fc2.weight')
        self.emit(('excite', stride), src, dst, (*first, *second), quantized)

    def transformer_block(self, src: int, dst: int, name: str):
        """Attention and MLP, each after a layer norm and with its residual sum."""
        channels = self.classes[src][1]

        def layer_norm(at: str) -> tuple[Piece, Piece]:
            vector = Piece(f'{name}.{at}.weight', 1, 1, channels, 1, channels)
            return vector, vector._replace(name=f'{name}.{at}.bias')

        def names(*layers: str) -> tuple[str, ...]:
            return tuple(f'{name}.{layer}.weight' for layer in layers)

        middle = self.value(*self.classes[src])
        queries = dense_piece(f'{name}.to_qkv.weight', 1, channels, 3 * channels)
        pieces = (*layer_norm('ln1'), queries, *self.linear_pieces(f'{name}.to_out.0', channels, channels))
        self.emit(('attention',), src, middle, pieces, names('to_qkv', 'to_out.0'))
        layers = [self.linear_pieces(f'{name}.ff.net.{i}', channels, channels) for i in (0, 3)]
        pieces = (*layer_norm('ln2'), *layers[0], *layers[1])
        self.emit(('mlp',), middle, dst, pieces, names('ff.net.0', 'ff.net.3'))

    def point_group(self, parts: tuple[int, ...], channels: int, name: str) -> int:
        """relu, conv 1x1, norm over a concatenation."""
        dst = self.value(self.classes[parts[0]][0], channels)
        return self.group(('conv', 1, 1, 1, True), parts, dst, (f'{name}.op.1.weight',), f'{name}.op.2')

    def reduce_group(self, parts: tuple[int, ...], channels: int, name: str, dst: int | None = None) -> int:
        """FactorizedReduce over a concatenation: two strided 1x1 convolutions, the second shifted; norm."""
        dst = self.value(self.classes[parts[0]][0] // 2, channels) if dst is None else dst
        return self.group(
            ('reduce',), parts, dst, (f'{name}.conv_1.weight', f'{name}.conv_2.weight'), f'{name}.bn'
        )

    def group(self, op, parts, dst, weights, norm_name) -> int:
        """Convolutions of the parts of a concatenation, summed, then the norm."""
        size, channels = self.classes[dst]
        raw = self.value(size, channels)
        row = 0
        for part in parts:
            c_in = self.classes[part][1]
            pieces = [dense_piece(weight, 1, c_in, channels // len(weights), row) for weight in weights]
            self.emit(op, part, raw, pieces, weights[:1], group=parts)
            row += c_in
        return self.emit(('norm',), raw, dst, self.norm_pieces(norm_name, channels))

    # -- the network

    def lower(self) -> Lowered:
        spec = self.spec
        s0, s1 = self.stem()
        width, after_reduction = spec.C, spec.stem_type == 1
        for i in range(spec.n_cells):
            reduction = spec.is_reduction(i)
            width *= spec.C_mult if reduction else 1
            # Transformer networks never change their resolution.
            halve, strided = (after_reduction, reduction) if not spec.is_vit else (False, False)
            output = self.cell(i, s0, s1, width, halve, strided)
            s0, s1, after_reduction = s1, output, reduction
        if s1 is None:
            raise UserError(
                f'network {spec.name!r} is disconnected: no path leads from the image to the logits'
            )
        return self.finish(s1)

    def stem(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        spec, (size, _) = self.spec, self.classes[IMAGE]
        if spec.is_vit:
            piece = dense_piece('stem0.weight', 9, 3, spec.C)
            raw = self.value(VIT_SIZE, spec.C)
            self.emit(('conv', 3, 3, 3, False), IMAGE, raw, (piece,), (piece.name,))
            positions = Piece('pos_enc.weight', VIT_SIZE**2, 1, spec.C, 1, spec.C, position=True)
            out = self.emit(('position',), raw, self.value(VIT_SIZE, spec.C), (positions,))
            return (out,), (out,)

        def stem_conv(src: int, dst: int, k: int, stride: int, name: str, norm: str):
            piece = dense_piece(f'{name}.weight', k * k, self.classes[src][1], self.classes[dst][1])
            self.normed(src, dst, ('conv', k, k, stride, src != IMAGE), (piece,), (piece.name,), norm)
            return dst

        if spec.stem_type == 0:
            out = self.value(size, 3 * spec.C if spec.preproc else spec.C)
            stem_conv(IMAGE, out, spec.ks, 1, 'stem.0', 'stem.1')
            if spec.stem_pool:
                out = self.emit(('max', 2), out, self.value(size // 2, self.classes[out][1]))
            return (out,), (out,)
        first = stem_conv(IMAGE, self.value(size, spec.C // 2), spec.ks, 1, 'stem0.0', 'stem0.1')
        s0 = stem_conv(first, self.value(size, spec.C), 3, 1, 'stem0.3', 'stem0.4')
        s1 = stem_conv(s0, self.value(size // 2, spec.C), 3, 2, 'stem1.1', 'stem1.2')
        self.unrectified = (s0,)
        return (s0,), (s1,)

    def preprocess(self, parts, width: int, halve: bool, name: str) -> int | None:
        if parts is None:
            return None
        if self.spec.preproc:
            return (self.reduce_group if halve else self.point_group)(parts, width, name)
        if not halve:
            return parts[0]
        size, channels = self.classes[parts[0]]
        # The relu of the stem's second part acts in place, so all that reads its output sees the relu. All
        # others rectify what they read by themselves.
        rectify = parts == self.unrectified
        return self.emit(('subsample', rectify), parts[0], self.value(size // 2, channels))

    def cell(self, i: int, s0, s1, width: int, halve: bool, strided: bool):
        """Returns the values of the cell's output, or None where all of them are absent.

        halve: s0 has twice the resolution of s1. strided: the cell halves the resolution.
        """
        entries, listed = self.spec.genotype.cell(self.spec.is_reduction(i))
        states = [
            self.preprocess(s0, width, halve, f'cells.{i}.preprocess0'),
            self.preprocess(s1, width, False, f'cells.{i}.preprocess1'),
        ]
        present = next((s for s in states if s is not None), None)
        if present is None:
            return None
        out_size = self.classes[present][0] // (2 if strided else 1)
        for step in range(len(entries) // 2):
            terms = [(e, *entries[e]) for e in (2 * step, 2 * step + 1)]
            terms = [(e, op, s) for e, op, s in terms if op != 'none' and states[s] is not None]
            dst = self.value(out_size, width) if terms else None
            for e, op, s in terms:
                self.operation(op, states[s], dst, 2 if strided and s < 2 else 1, f'cells.{i}._ops.{e}')
            states.append(dst)
        output = [states[s] for s in listed]
        present = next((s for s in output if s is not None), None)
        if present is None:
            return None
        for k, part in enumerate(output):
            if part is None:
                output[k] = self.emit(('zero',), present, self.value(*self.classes[present]))
        self.groups.append(tuple(output))
        return tuple(output)

    def operation(self, op: str, src: int, dst: int, stride: int, name: str):
        kind, _, size = op.rpartition('_')
        if op == 'skip_connect':
            if stride == 2:
                self.reduce_group((src,), self.classes[dst][1], name, dst)
            else:
                self.emit(('copy',), src, dst)
        elif kind in ('max_pool', 'avg_pool'):
            self.emit((kind[:3], stride), src, dst)
        elif op == 'conv_7x1_1x7':
            self.split_conv(src, dst, stride, name)
        elif op == 'cse':
            self.excite(src, dst, stride, name)
        elif op == 'msa':
            self.transformer_block(src, dst, name)
        elif kind == 'conv':
            self.conv(src, dst, _SIZES[size], stride, name)
        elif kind == 'dil_conv':
            self.separable(src, dst, _SIZES[size], 2, stride, name, 1)
        else:  # sep_conv: two depthwise-separable convolutions in a row
            middle = self.value(*self.classes[dst])
            self.separable(src, middle, _SIZES[size], 1, stride, name, 1)
            self.separable(middle, dst, _SIZES[size], 1, 1, name, 5)

    def finish(self, parts: tuple[int, ...]) -> Lowered:
        """Adds the head and drops instructions whose results the logits do not need."""
        spec = self.spec
        size, channels = self.classes[parts[0]]
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
        classes = {v: c for v, c in self.classes.items() if v in live}
        return Lowered(spec.name, tuple(kept[::-1]), head, classes, groups, spec.norm is not None)
