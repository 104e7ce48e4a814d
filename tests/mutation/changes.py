"""Small changes of Python code: each function gives what a node of the syntax tree may become.

What a program says is left alone: docstrings, type hints, texts of errors, what it prints, logs and draws.
"""

import ast
import builtins
import dataclasses
from collections.abc import Iterator

Change = tuple[ast.AST, ast.AST]  # a node, and what takes its place

_COMPARED = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_COMPUTED = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
# Functions with the same arguments, one for the other.
_CALLED = {
    'min': 'max', 'minimum': 'maximum', 'argmin': 'argmax', 'floor': 'ceil', 'round': 'floor',
    'any': 'all', 'sum': 'mean', 'zeros': 'ones', 'zeros_like': 'ones_like', 'logical_and': 'logical_or',
}  # fmt: skip
_CALLED |= {b: a for a, b in _CALLED.items() if b != 'floor'}
_ORDERLESS = frozenset(
    ('min', 'max', 'minimum', 'maximum', 'add', 'multiply', 'logical_and', 'logical_or', 'isinstance')
)
# What they return is like their first argument, and may be missed.
_LIKE_FIRST = frozenset(
    ('clip', 'round', 'abs', 'floor', 'ceil', 'sqrt', 'square', 'maximum', 'minimum', 'max', 'min', 'sign')
    + ('stop_gradient', 'relu', 'roll', 'flip', 'sort', 'sorted', 'reversed', 'transpose', 'cumsum', 'log')
)
_SAYING = frozenset(('print', 'logging', 'warnings', 'progress', 'panel', 'fig', 'figures'))
_TYPES = frozenset(('int', 'float', 'str', 'bool', 'dict', 'list', 'tuple', 'set', 'Any', 'Array'))


def changes(tree: ast.Module) -> Iterator[Change]:
    """All changes of a module, in the order of its nodes."""
    for node, siblings in _computing(tree, ()):
        for kind, what in _CHANGES:
            if isinstance(node, kind):
                yield from ((node, new) for new in what(node))
        yield from _negated(node)
        yield from _neighbours(node, siblings)


# ---- which nodes compute

_Siblings = tuple[tuple[str, ...], ...]  # names that are bound together, of the functions around a node


def _computing(node: ast.AST, siblings: _Siblings) -> Iterator[tuple[ast.AST, _Siblings]]:
    if _says(node):
        return
    if isinstance(node, ast.FunctionDef | ast.Lambda):
        siblings = (*_bound_together(node), *siblings)
    yield node, siblings
    skipped = _SKIPPED.get(type(node), ())
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if name not in skipped and isinstance(child, ast.AST):
                yield from _computing(child, siblings)


_SKIPPED = {
    ast.FunctionDef: ('returns', 'decorator_list'),
    ast.ClassDef: ('bases', 'keywords', 'decorator_list'),
    ast.arg: ('annotation',),
    ast.AnnAssign: ('annotation', 'target'),
    ast.Raise: ('exc', 'cause'),
    ast.ExceptHandler: ('type',),
}


def _says(node: ast.AST) -> bool:
    """It is text, an import, a union of types, or a call that prints, logs or draws."""
    if isinstance(node, ast.Expr):
        return _says(node.value)
    if isinstance(node, ast.Call):
        return _root(node.func) in _SAYING
    if isinstance(node, ast.If):  # of a module that runs as a program
        return isinstance(node.test, ast.Compare) and _root(node.test.left) == '__name__'
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return any(_root(x) in _TYPES for x in (node.left, node.right))
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript):  # a name for a type
        return _root(node.value) in _TYPES
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str)
    return isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom)


def _root(node: ast.AST) -> str | None:
    """`a` of `a.b.c`, `a[b]` and `a(b)`."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None


def _bound_together(function: ast.FunctionDef | ast.Lambda) -> Iterator[tuple[str, ...]]:
    """Its parameters of each type, and the names on the left of each assignment to several."""
    types: dict[str, list[str]] = {}
    for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs):
        if a.arg not in ('self', 'cls'):
            types.setdefault(ast.unparse(a.annotation) if a.annotation else '', []).append(a.arg)
    yield from map(tuple, types.values())
    for node in ast.walk(function):
        if isinstance(node, ast.Tuple) and isinstance(node.ctx, ast.Store):
            yield tuple(x.id for x in node.elts if isinstance(x, ast.Name))


# ---- what they become


def _compared(node: ast.Compare) -> Iterator[ast.AST]:
    if len(node.ops) == 1:
        for op in _COMPARED[type(node.ops[0])]:
            yield _with(node, ops=[op()])


def _computed(node: ast.BinOp | ast.AugAssign) -> Iterator[ast.AST]:
    if op := _COMPUTED.get(type(node.op)):
        yield _with(node, op=op())


def _joined(node: ast.BoolOp) -> Iterator[ast.AST]:
    yield _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())


def _signed(node: ast.UnaryOp) -> Iterator[ast.AST]:
    yield node.operand


def _counted(node: ast.Constant) -> Iterator[ast.AST]:
    value = node.value
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, int):
        yield ast.Constant(value + 1)
        if value:
            yield ast.Constant(value - 1)
        if value > 3:
            yield ast.Constant(value // 2)
    elif isinstance(value, float):
        yield ast.Constant(value / 2 if value else 1.0)
        yield ast.Constant(value * 2 if value else -1.0)


def _called(node: ast.Call) -> Iterator[ast.AST]:
    """A like function, a keyword less, two arguments in the other order, the first argument alone."""
    function, arguments = node.func, node.args
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, 'id', None)
    other = _CALLED.get(name)
    if other and isinstance(function, ast.Attribute):
        yield _with(node, func=_with(function, attr=other))
    elif other and hasattr(builtins, other):
        yield _with(node, func=ast.Name(other, ast.Load()))
    for i, keyword in enumerate(node.keywords):
        if keyword.arg is not None:
            yield _with(node, keywords=node.keywords[:i] + node.keywords[i + 1 :])
    if any(isinstance(x, ast.Starred) for x in arguments):
        return
    if name not in _ORDERLESS:
        for i, (a, b) in enumerate(zip(arguments, arguments[1:])):
            if type(a) is type(b):  # others are rarely taken for each other, and fail at once
                yield _with(node, args=[*arguments[:i], b, a, *arguments[i + 2 :]])
    if arguments and name in _LIKE_FIRST:
        yield arguments[0]


def _shortened(node: ast.Tuple | ast.List | ast.Set | ast.Dict) -> Iterator[ast.AST]:
    """A literal of constants, or a dict, without one of its parts."""
    if isinstance(node, ast.Dict):
        for i in range(len(node.keys)):
            yield _with(node, keys=_without(node.keys, i), values=_without(node.values, i))
    elif len(node.elts) > 1 and all(isinstance(x, ast.Constant) for x in node.elts):
        for i in range(len(node.elts)):
            yield _with(node, elts=_without(node.elts, i))


def _dropped(node: ast.stmt) -> Iterator[ast.AST]:
    """No statement, where its absence is no error at once: what it names was bound before."""
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        target = node.targets[0]
        names = {x.id for x in ast.walk(target) if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store)}
        if names - {x.id for x in ast.walk(node.value) if isinstance(x, ast.Name)}:
            return
    yield ast.Pass()


def _negated(node: ast.AST) -> Iterator[Change]:
    """The other branch; comparisons are turned round by their own."""
    if isinstance(node, ast.If | ast.While | ast.IfExp) and not isinstance(
        node.test, ast.Compare | ast.UnaryOp
    ):
        yield node.test, ast.UnaryOp(ast.Not(), node.test)


def _neighbours(node: ast.AST, siblings: _Siblings) -> Iterator[Change]:
    """For a name that is returned, handed over or computed with, one that is bound together with it."""
    used = {
        ast.Return: lambda n: n.value.elts if isinstance(n.value, ast.Tuple) else [n.value],
        ast.Call: lambda n: [*n.args, *(k.value for k in n.keywords)],
        ast.BinOp: lambda n: [n.left, n.right],
        ast.Compare: lambda n: [n.left, *n.comparators],
    }
    for x in used.get(type(node), lambda n: ())(node):
        names = next((s for s in siblings if isinstance(x, ast.Name) and x.id in s), ())
        if len(names) > 1:
            other = names[(names.index(x.id) + 1) % len(names)]
            yield x, ast.Name(other, ast.Load())


def _with(node: ast.AST, **fields) -> ast.AST:
    return type(node)(**{**dict(ast.iter_fields(node)), **fields})


def _without(values: list, at: int) -> list:
    return values[:at] + values[at + 1 :]


_CHANGES = (
    (ast.Compare, _compared),
    (ast.BinOp | ast.AugAssign, _computed),
    (ast.BoolOp, _joined),
    (ast.UnaryOp, _signed),
    (ast.Constant, _counted),
    (ast.Call, _called),
    (ast.Tuple | ast.List | ast.Set | ast.Dict, _shortened),
    (ast.Expr | ast.Assign | ast.AugAssign | ast.Raise | ast.Continue | ast.Break, _dropped),
)


@dataclasses.dataclass(frozen=True)
class Edit:
    """Bytes start..end of a source become `text`. line: where, from 1. before, after: what is to be shown."""

    line: int
    start: int
    end: int
    text: str
    before: str
    after: str

    def apply(self, source: str) -> str:
        data = source.encode()
        return (data[: self.start] + self.text.encode() + data[self.end :]).decode()


def edits(source: str) -> Iterator[Edit]:
    """The changes of a module as edits of its text, those that change nothing left out."""
    starts = [0]
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for old, new in changes(ast.parse(source)):
        before, after = ast.unparse(old), ast.unparse(new)
        if before != after:
            text = f'({after})' if isinstance(new, ast.expr) and not _is_closed(new) else after
            start = starts[old.lineno - 1] + old.col_offset
            end = starts[old.end_lineno - 1] + old.end_col_offset
            yield Edit(old.lineno, start, end, text, before, after)


def _is_closed(node: ast.expr) -> bool:
    """It needs no parentheses wherever it stands."""
    return isinstance(node, ast.Name | ast.Attribute | ast.Call | ast.Subscript | ast.Dict)
