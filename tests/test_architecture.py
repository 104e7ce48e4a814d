"""Imports point one way: rooms stand in one order, and each imports only from those above it."""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'ghn_jax'
CONFIG = ('config', 'config_file')  # files that are a room


def rooms() -> list[str]:
    """The order of rooms, from the page that shows it."""
    page = (ROOT / 'docs' / 'architecture.md').read_text(encoding='utf-8')
    table = re.search(r'<!-- rooms -->(.*)<!-- end of rooms -->', page, re.DOTALL)
    assert table is not None
    return re.findall(r'^\| `([\w/]+)` \|', table[1], re.MULTILINE)


def room_of(file: pathlib.Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix('').parts
    if len(parts) == 1:
        return 'config' if parts[0] in CONFIG else 'commands'
    return '/'.join(parts[:-1])


def imported(file: pathlib.Path) -> set[pathlib.Path]:
    """The files of the package that a file imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f'{node.module}.{alias.name}' for alias in node.names] + [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            path = ROOT.joinpath(*name.split('.')).with_suffix('.py')
            if name.startswith('ghn_jax.') and path.is_file():
                found.add(path)
    return found


def test_every_file_is_in_a_room_and_imports_only_from_its_own_and_those_above():
    order = rooms()
    assert len(order) > 10 and len(set(order)) == len(order)
    upward = []
    for file in PACKAGE.rglob('*.py'):
        if file == PACKAGE / '__init__.py':  # the public names, found when asked for
            continue
        assert room_of(file) in order, f'{file} is in no room of docs/architecture.md'
        for other in imported(file):
            if order.index(room_of(other)) > order.index(room_of(file)):
                upward.append(f'{file.relative_to(PACKAGE)} imports {other.relative_to(PACKAGE)}')
    assert not upward, '\n'.join(upward)


def test_no_file_imports_itself_by_way_of_others():
    graph = {file: imported(file) for file in PACKAGE.rglob('*.py') if file != PACKAGE / '__init__.py'}
    done: set[pathlib.Path] = set()

    def visit(file: pathlib.Path, path: tuple[pathlib.Path, ...]) -> None:
        assert file not in path, ' -> '.join(str(f.relative_to(PACKAGE)) for f in (*path, file))
        if file not in done:
            for other in graph.get(file, ()):
                visit(other, (*path, file))
            done.add(file)

    for file in graph:
        visit(file, ())


def test_files_and_functions_are_short():
    """A file of 350 lines, a function of 60: what is longer wants another noun."""
    long = []
    for file in PACKAGE.rglob('*.py'):
        text = file.read_text(encoding='utf-8')
        if len(text.splitlines()) > 350:
            long.append(f'{file.relative_to(PACKAGE)}: {len(text.splitlines())} lines')
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and (n := node.end_lineno - node.lineno + 1) > 60:
                long.append(f'{file.relative_to(PACKAGE)}: {node.name} has {n} lines')
    assert not long, '\n'.join(long)


def test_errors_name_flags_only_where_flags_are_read():
    """Elsewhere they name fields, as Python has them: `base.cli` puts the flag in their place."""
    readers = PACKAGE / 'base', *PACKAGE.rglob('*_flags.py'), *PACKAGE.glob('*.py')
    readers += tuple(PACKAGE / room / '__main__.py' for room in ('export', 'zoo'))
    found = []
    for file in PACKAGE.rglob('*.py'):
        if any(reader in (file, *file.parents) for reader in readers):
            continue
        raised = [
            n for n in ast.walk(ast.parse(file.read_text(encoding='utf-8'))) if isinstance(n, ast.Raise)
        ]
        texts = [n for r in raised for n in ast.walk(r) if isinstance(n, ast.Constant)]
        for text in texts:
            # Whole commands, as in `python -m ghn_jax.replay --workdir=DIR`, are for a shell.
            if re.search(r'(?<![\w-])--\w', str(text.value)) and 'python -m' not in str(text.value):
                found.append(f'{file.relative_to(PACKAGE)}:{text.lineno}: {text.value}')
    assert not found, '\n'.join(found)
