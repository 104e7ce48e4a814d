"""The files that a module of this package is made of: its own, and all that it imports, directly or not."""

import ast
import functools
import pathlib
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[2]
_PACKAGE = pathlib.Path(__file__).parents[1].name


@functools.cache  # reading some fifty files takes part of a second
def source_files(*starts: pathlib.Path, root: pathlib.Path = ROOT) -> tuple[pathlib.Path, ...]:
    """Find the given files and all of the package that they import, sorted.

    An import counts wherever in a file it stands, but for those of a type checker (`if TYPE_CHECKING:`). The
    `__init__.py` of a folder counts where a name is imported from it, not where it is only on the way to a
    module.

    Args:
      starts: Python files; they need not be of the package.
      root: the folder that holds the package.
    """
    found: set[pathlib.Path] = set()
    waiting = list(starts)
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += _imported(file, root)
    return tuple(sorted(found))


def _imported(file: pathlib.Path, root: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield the files of the package that a file imports itself."""
    tree = ast.parse(file.read_text(encoding='utf-8'))
    for statement in [s for s in tree.body if isinstance(s, ast.If) and _is_type_checking(s.test)]:
        tree.body.remove(statement)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            choices = [(alias.name,) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # A name of a folder is a module in it, or else a name in its __init__.py.
            module = _absolute(file, node, root)
            choices = [(f'{module}.{alias.name}', module) for alias in node.names]
        else:
            continue
        for names in choices:
            candidates = (path for name in names for path in _paths(name, root))
            if path := next((path for path in candidates if path.is_file()), None):
                yield path


def _is_type_checking(test: ast.expr) -> bool:
    return isinstance(test, ast.Name) and test.id == 'TYPE_CHECKING'


def _absolute(file: pathlib.Path, node: ast.ImportFrom, root: pathlib.Path) -> str:
    """Give the full name of the module that names are imported from."""
    if not node.level:
        return node.module or ''
    folder = file.parents[node.level - 1].relative_to(root)
    return '.'.join([*folder.parts, *([node.module] if node.module else [])])


def _paths(name: str, root: pathlib.Path) -> list[pathlib.Path]:
    """Give the places where a module of the package may lie; none for other names."""
    first, *rest = name.split('.')
    if first != _PACKAGE:
        return []
    path = root.joinpath(first, *rest)
    return [path.with_suffix('.py'), path / '__init__.py']
