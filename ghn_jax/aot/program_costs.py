"""What an optimised program computes and moves, from its text: the same count for every backend.

FLOPs are those of convolutions and matrix products. Bytes are what each instruction that runs by itself reads
and writes: of a buffer that is sliced or written in place, the slice alone.
"""

import functools
import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ghn_jax.aot.hlo import Computation, Instruction, Module, Shape, inside, results, walk

_LABELS = re.compile(r'dim_labels=(?P<input>\w+)_(?P<kernel>\w+)->(?P<output>\w+)')
_WINDOW = re.compile(r'window=\{(?P<fields>[^}]*)\}')
_CONTRACTED = re.compile(
    r'lhs_contracting_dims=\{(?P<dims>[\d,]*)\}|"lhs_contracting_dimensions":\[(?P<quoted>[^\]]*)\]'
)
_TARGET = re.compile(r'custom_call_target="(?P<name>[^"]*)"')
_FREE = (
    'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'conditional', 'call',
    'async-start', 'async-update', 'after-all', 'partition-id', 'replica-id', 'opt-barrier',
)  # fmt: skip
_SLICES = ('dynamic-slice', 'slice', 'gather')


class ProgramCost(NamedTuple):
    """What one pass through a program costs."""

    flops: float = 0
    bytes: float = 0


def cost(module: Module) -> ProgramCost:
    """Return the cost of a pass: each loop turns once, each conditional takes its dearest branch."""

    @functools.cache
    def of(name: str) -> ProgramCost:
        known, total = module.computations.get(name, {}), ProgramCost()
        for each in known.values():
            called = [of(callee) for how, callee in each.calls if _runs(each, how)]
            if each.opcode == 'conditional':
                called = [ProgramCost(*map(max, zip(*called)))] if called else []
            own = ProgramCost(flops(module, each, known), moved(module, each, known))
            total = _sum([total, own, *called])
        return total

    return of(module.entry)


def flops(module: Module, each: Instruction, known: Computation) -> float:
    """Count the floating-point operations of an instruction; of a fusion, those of all that is in it.

    Args:
      module: the program.
      each: the instruction.
      known: the instructions of its computation, by name.
    """
    if each.opcode == 'fusion':
        return sum(flops(module, i, around) for i, around in _alone(module, each, known))
    shapes = [_shape(known.get(name)) for name in each.operands]
    target = _TARGET.search(each.attributes) if each.opcode == 'custom-call' else None
    name = target['name'] if target else each.opcode
    if len(shapes) < 2 or not each.shapes:
        return 0
    result, left, right = each.shapes[0], shapes[0], shapes[1]
    if name == 'convolution' or 'convForward' in name:
        return _convolution(each, left, right, result)
    if 'convBackwardInput' in name:  # these two are written as the convolution that they differentiate
        return _convolution(each, result, right, left)
    if 'convBackwardFilter' in name:
        return _convolution(each, left, result, right)
    if contracted := _CONTRACTED.search(each.attributes):
        numbers = re.findall(r'\d+', contracted['dims'] or contracted['quoted'] or '')
        return 2 * result.size * math.prod(left.dims[int(n)] for n in numbers if int(n) < len(left.dims))
    return 0


def operand_types(module: Module) -> dict[str, float]:
    """Return the operations of all convolutions and matrix products by the type of what they multiply.

    Each that stands in the program counts once, as the wider type of its two operands: a matrix unit takes
    bfloat16 as it is, and float32 in parts, or rounded by what the text does not say.
    """
    found: dict[str, float] = {}
    for each, _, known in walk(module):
        for i, around in _alone(module, each, known):
            if count := flops(module, i, around):
                pair = [_shape(around.get(name)) for name in i.operands[:2]]
                wider = max(pair, key=lambda shape: shape.bits).type
                found[wider] = found.get(wider, 0) + count
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _alone(
    module: Module, each: Instruction, known: Computation
) -> Iterator[tuple[Instruction, Computation]]:
    """Yield an instruction, or all that are in it as a fusion, with what stands around them."""
    if each.opcode != 'fusion':
        yield each, known
        return
    inner = inside(module, each)
    for i in inner.values():
        yield from _alone(module, i, inner)


def is_free(each: Instruction) -> bool:
    """Tell whether an instruction does nothing by itself, or ends what another began."""
    return each.opcode in _FREE or each.opcode.endswith('-done')


def moved(module: Module, each: Instruction, known: Computation) -> float:
    """Count the bytes that an instruction reads and writes. The arguments are those of `flops`."""
    if is_free(each):
        return 0
    opcode = each.opcode.removesuffix('-start')
    read = [_bytes(known.get(name)) for name in each.operands]
    written = sum(shape.bytes for shape in results(each))
    if opcode in _SLICES:
        return 2 * written
    if opcode == 'dynamic-update-slice':
        return 2 * (read[1] if len(read) > 1 else written)
    if each.opcode == 'fusion':
        inner = inside(module, each)
        read = _read_by(inner, read)
        written = _written_by(inner, written)
    return sum(read) + written


def _runs(each: Instruction, how: str) -> bool:
    return each.opcode in ('while', 'conditional') or (
        each.opcode in ('call', 'async-start') and how in ('calls', 'to_apply')
    )


def _sum(costs: Sequence[ProgramCost]) -> ProgramCost:
    return ProgramCost(*(sum(each) for each in zip(*costs)))


def _shape(each: Instruction | None) -> Shape:
    return each.shapes[0] if each and each.shapes else Shape('pred', ())


def _bytes(each: Instruction | None) -> int:
    return sum(shape.bytes for shape in each.shapes) if each else 0


def _convolution(each: Instruction, image: Shape, kernel: Shape, output: Shape) -> float:
    """Two operations for each output and each weight that meets a value of the image there, not padding."""
    labels, window = _LABELS.search(each.attributes), _WINDOW.search(each.attributes)
    if labels is None or len(labels['kernel']) != len(kernel.dims):
        return 0
    fields = dict(field.split('=') for field in window['fields'].split()) if window else {}
    at = lambda name, which: which.dims[labels[name[0]].index(name[1])]
    total = 2 * output.size * kernel.size / max(1, kernel.dims[labels['kernel'].index('o')])
    for d, size in enumerate(filter(None, fields.get('size', '').split('x'))):
        length, places = at(('input', str(d)), image), at(('output', str(d)), output)
        before = int(fields['pad'].split('x')[d].split('_')[0]) if 'pad' in fields else 0
        stride, holes, spread = (
            int(fields[name].split('x')[d]) if name in fields else 1
            for name in ('stride', 'lhs_dilate', 'rhs_dilate')
        )
        taps = [o * stride + k * spread - before for o in range(places) for k in range(int(size))]
        met = sum(0 <= tap <= (length - 1) * holes and tap % holes == 0 for tap in taps)
        total *= met / max(1, len(taps))
    return total


def _read_by(inner: Computation, whole: Sequence[int]) -> list[int]:
    """The bytes that a fusion reads of each operand. whole: those of all of it."""
    read = [*whole]
    for parameter in (i for i in inner.values() if i.opcode == 'parameter'):
        number = re.match(r'\((\d+)\)', parameter.attributes)
        users = [i for i in inner.values() if parameter.name in i.operands]
        if number is None or int(number[1]) >= len(read) or not users:
            continue
        if all(i.opcode in _SLICES and i.operands[0] == parameter.name for i in users):
            read[int(number[1])] = sum(map(_bytes, users))
        elif all(i.opcode == 'dynamic-update-slice' and i.operands[0] == parameter.name for i in users):
            read[int(number[1])] = 0
    return read


def _written_by(inner: Computation, whole: int) -> int:
    """The bytes that a fusion writes: of a buffer that it changes in place, what it puts there."""
    root = next((i for i in inner.values() if i.root), None)
    results = [inner.get(name) for name in root.operands] if root and root.opcode == 'tuple' else [root]
    total = 0
    for each in results:
        while each and each.opcode in ('bitcast', 'copy') and each.operands:
            each = inner.get(each.operands[0])
        if each and each.opcode == 'dynamic-update-slice':
            each = inner.get(each.operands[1])
        total += _bytes(each)
    return min(total, whole) if whole else total
