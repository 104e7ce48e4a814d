"""Reads an optimised program: which instructions run, how deep in loops and branches, and what they move.

The text is what `jax.jit(f).lower(...).compile().as_text()` gives: XLA's HLO after all passes, so a copy that
stands in it is made. It is the same language for every backend.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

_HEAD = re.compile(r'(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\) -> .*\{\s*$')
_NAME = re.compile(r'\s+(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = ')
_OPCODE = re.compile(r' (?P<opcode>[\w\-]+)\(')
_ARRAY = re.compile(
    r'(?P<type>pred|bf16|[fsuc]\d+\w*)\[(?P<dims>[\d,]*)\]'
    r'(?:\{(?P<order>[\d,]*)(?::(?:[^}]*S\((?P<memory>\d+)\))?[^}]*)?\})?'
)
_CALLS = re.compile(
    r'(?P<how>body|condition|calls|to_apply|branch_computations|true_computation|false_computation)='
    r'(?:\{(?P<several>[^}]*)\}|%?(?P<one>[\w.\-]+))'
)
_OPERAND = re.compile(r'%([\w.\-]+)')
# Groups of devices: a list {{0,1},{2,3}}, a table [2,2]<=[4], or axes of a mesh, mesh['a'=2,'b'=2] {'b'}.
_GROUPS = re.compile(
    r'replica_groups=(?:\{\{(?P<listed>[\d,]+)\}|\[\d+,(?P<tiled>\d+)\]'
    r'|mesh\[(?P<mesh>[^\]]*)\][^{]*\{(?P<axes>[^}]*)\})'
)
_AXIS = re.compile(r"'(?P<name>[^']*)'(?:=(?P<size>\d+)|:\(\d+\)(?P<part>\d+))?")
_COLLECTIVES = (
    'all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute', 'collective-broadcast',
    'ragged-all-to-all',
)  # fmt: skip
_COPIES = ('copy', 'copy-start', 'transpose')
_MOVES_NOTHING = ('parameter', 'bitcast', 'tuple', 'get-tuple-element')


class Shape(NamedTuple):
    """An array.

    Attributes:
      type: its name.
      dims: its dimensions.
      order: its dimensions from the one whose values lie side by side on, as in `1,0`; '' where the text does
        not say.
      memory: the number of the device's memory that it lies in; '' is the main one.
    """

    type: str
    dims: tuple[int, ...]
    order: str = ''
    memory: str = ''

    @property
    def size(self) -> int:
        """How many values it has."""
        return math.prod(self.dims)

    @property
    def bits(self) -> int:
        """The bits of one value."""
        digits = re.search(r'\d+', self.type)
        return int(digits[0]) if digits else 8

    @property
    def bytes(self) -> int:
        """What its values take, without padding."""
        return math.ceil(self.size * self.bits / 8)

    def __str__(self) -> str:
        return f'{self.type}[{",".join(map(str, self.dims))}]'


class Instruction(NamedTuple):
    """One instruction.

    Attributes:
      name: in its computation.
      opcode: what it does.
      shapes: of its result; several of a tuple.
      operands: the names of what it reads, in the same computation.
      calls: (how, computation) of those that it names: 'body', 'branch_computations', 'calls', ...
      attributes: the rest of the line, from its operands on.
      root: whether its result is that of its computation.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...] = ()
    calls: tuple[tuple[str, str], ...] = ()
    attributes: str = ''
    root: bool = False


class Place(NamedTuple):
    """Where an instruction stands: in so many loops, one in another, and so many branches."""

    loops: int = 0
    branches: int = 0

    def __str__(self) -> str:
        words = [f'{n} {word}' for n, word in zip(self, ('loops', 'branches')) if n]
        return ' and '.join(words).replace('1 loops', '1 loop').replace('1 branches', '1 branch') or 'outside'


Computation = Mapping[str, Instruction]


class Module(NamedTuple):
    """A program.

    Attributes:
      entry: the name of the computation that it begins with.
      computations: of each its instructions by name, in the order of the text.
    """

    entry: str
    computations: Mapping[str, Computation]


class Copy(NamedTuple):
    """Copies or transposes of arrays of one shape in one place.

    Attributes:
      opcode: copy, copy-start, transpose, fusion (one that does nothing else), or move.
      shape: of the array.
      place: where they stand; one in a loop runs in each of its turns.
      count: how many of them.
    """

    opcode: str
    shape: Shape
    place: Place
    count: int


class Collective(NamedTuple):
    """An instruction by which devices exchange values.

    Attributes:
      op: which.
      bytes: of its result on one device.
      shape: of its result.
      group: devices that take part in one; 0: all.
      place: where it stands; one in a loop runs in each of its turns.
    """

    op: str
    bytes: int
    shape: str
    group: int
    place: Place = Place()


def read(text: str) -> Module:
    """Read the text of a program."""
    entry, computations, current = '', {}, None
    for line in text.splitlines():
        if line.startswith('}'):
            current = None
        elif current is None:
            if head := _HEAD.match(line):
                current = computations.setdefault(head['name'], {})
                entry = head['name'] if head['entry'] else entry
        elif found := instruction(line):
            current[found.name] = found
    return Module(entry, computations)


def instruction(line: str) -> Instruction | None:
    """Read one line; None where it is no instruction."""
    if not (named := _NAME.match(line)):
        return None
    stop = _after(line, named.end()) if line[named.end()] == '(' else line.find(' ', named.end())
    if stop < 0 or not (opcode := _OPCODE.match(line, stop)):
        return None
    end = _after(line, opcode.end() - 1)
    return Instruction(
        name=named['name'],
        opcode=opcode['opcode'],
        shapes=tuple(_shapes(line[named.end() : stop])),
        operands=tuple(_OPERAND.findall(line[opcode.end() : end])),
        calls=tuple(_calls(line[end:].split(', metadata=')[0])),
        attributes=line[opcode.end() - 1 :],
        root=bool(named['root']),
    )


def walk(module: Module) -> Iterator[tuple[Instruction, Place, Computation]]:
    """Yield the instructions that run by themselves, with their places and what stands around them.

    Those inside of fusions do not run by themselves.
    """

    def visit(name: str, place: Place) -> Iterator[tuple[Instruction, Place, Computation]]:
        around = module.computations.get(name, {})
        for each in around.values():
            yield each, place, around
            for how, called in each.calls:
                if each.opcode == 'while':
                    yield from visit(called, place._replace(loops=place.loops + 1))
                elif each.opcode == 'conditional':
                    yield from visit(called, place._replace(branches=place.branches + 1))
                elif each.opcode in ('call', 'async-start') and how in ('calls', 'to_apply'):
                    yield from visit(called, place)

    return visit(module.entry, Place())


def counts(module: Module) -> Counter[tuple[str, Place]]:
    """Count the instructions that run by themselves, by opcode and place."""
    return Counter((each.opcode, place) for each, place, _ in walk(module))


def copies(module: Module, least: int) -> list[Copy]:
    """List the copies and transposes of arrays of at least so many bytes, the largest first.

    A fusion counts where it does nothing else; one that computes with what it has copied writes its result
    once, as it would without. What is brought into another memory of the device as it is counts as 'move':
    compilers do that with arrays that fit there, to read them faster.
    """
    found: Counter[tuple[str, Shape, Place]] = Counter()
    for each, place, around in walk(module):
        if each.opcode in _COPIES:
            moved = each.shapes[:1]  # of copy-start, the first is the result
            opcode = 'move' if _only_moves(each, around) else each.opcode
        elif each.opcode == 'fusion' and _only_copies(module, each):
            moved, opcode = each.shapes, each.opcode
        else:
            continue
        plain = (Shape(shape.type, shape.dims) for shape in moved)
        found.update((opcode, shape, place) for shape in plain if shape.bytes >= least)
    rows = [Copy(op, shape, place, n) for (op, shape, place), n in found.items()]
    return sorted(rows, key=lambda c: (-c.shape.bytes, c.place, str(c.shape), c.opcode))


def collectives(module: Module) -> list[Collective]:
    """List the collectives, those inside of fusions too, in the order in which they run."""
    found = []
    for each, place, _ in walk(module):
        inner = inside(module, each).values() if each.opcode == 'fusion' else (each,)
        found += [c for i in inner if (c := _collective(i, place))]
    return found


def _collective(each: Instruction, place: Place) -> Collective | None:
    op = each.opcode.removesuffix('-start')
    if op not in _COLLECTIVES:
        return None
    shape = ', '.join(map(str, each.shapes))
    groups = _GROUPS.search(each.attributes)
    group = _group_size(groups) if groups else 0
    return Collective(op, sum(made.bytes for made in results(each)), shape, group, place)


def results(each: Instruction) -> tuple[Shape, ...]:
    """Return the arrays that an instruction makes: of an asynchronous one they stand behind its operands."""
    if not each.opcode.endswith('-start') or each.opcode == 'all-reduce-start':
        return each.shapes
    count = len(each.operands)
    return each.shapes[count : 2 * count]


def inside(module: Module, fusion: Instruction) -> Computation:
    """Return the instructions that a fusion runs as one."""
    name = next((name for how, name in fusion.calls if how == 'calls'), '')
    return module.computations.get(name, {})


def _only_copies(module: Module, fusion: Instruction) -> bool:
    opcodes = {i.opcode for i in inside(module, fusion).values()}
    return bool(opcodes & {*_COPIES}) and opcodes <= {*_COPIES, *_MOVES_NOTHING}


def _only_moves(copy: Instruction, around: Computation) -> bool:
    """Whether a copy changes the memory that values lie in, and not their order."""
    read = around.get(copy.operands[0]) if copy.operands else None
    if copy.opcode == 'transpose' or not (read and read.shapes):
        return False
    before, after = read.shapes[0], copy.shapes[0]
    return before.order == after.order and before.memory != after.memory


def _after(line: str, start: int) -> int:
    """The place after the parenthesis that closes the one at `start`; layouts such as T(8,128) have some."""
    depth = 0
    for at in range(start, len(line)):
        depth += (line[at] == '(') - (line[at] == ')')
        if not depth:
            return at + 1
    return len(line)


def _shapes(text: str) -> Iterator[Shape]:
    for m in _ARRAY.finditer(text):
        dims = tuple(int(d) for d in m['dims'].split(',') if d)
        yield Shape(m['type'], dims, m['order'] or '', m['memory'] or '')


def _calls(attributes: str) -> Iterator[tuple[str, str]]:
    for m in _CALLS.finditer(attributes):
        for name in (m['several'] if m['one'] is None else m['one']).split(','):
            yield m['how'], name.strip().lstrip('%')


def _group_size(groups: re.Match) -> int:
    if groups['listed']:
        return len(groups['listed'].split(','))
    if groups['tiled']:
        return int(groups['tiled'])
    sizes = {axis['name']: int(axis['size']) for axis in _AXIS.finditer(groups['mesh'])}
    return math.prod(int(axis['part'] or sizes[axis['name']]) for axis in _AXIS.finditer(groups['axes']))
