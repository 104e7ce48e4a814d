"""Mutants: the modules that compute, each with one small change, drawn from a seed."""

import dataclasses
import fnmatch
import pathlib
import random

from tests.mutation.changes import Edit, edits
from tests.mutation.harmless import HARMLESS
from tests.mutation.killers import KILLERS

PACKAGE = 'ghn_jax'


@dataclasses.dataclass(frozen=True)
class Mutant:
    """module: path under the package, without its suffix, as in `quant/policy`."""

    module: str
    edit: Edit

    @property
    def path(self) -> str:
        return f'{PACKAGE}/{self.module}.py'

    def __str__(self) -> str:
        return f'{self.path}:{self.edit.line}: {_short(self.edit.before)} -> {_short(self.edit.after)}'


def computing_modules(root: pathlib.Path, pattern: str = '*') -> list[str]:
    """The modules that have tests to tell mutants from, of those that match `pattern`."""
    package = root / PACKAGE
    names = [path.relative_to(package).with_suffix('').as_posix() for path in sorted(package.rglob('*.py'))]
    return [n for n in names if fnmatch.fnmatch(n, pattern) and any(fnmatch.fnmatch(n, t) for t in KILLERS)]


def draw(root: pathlib.Path, count: int, seed: int, pattern: str = '*') -> list[Mutant]:
    """So many mutants, of lines drawn without repetition: first the lines, then a change of each.

    Lines, not changes, have the same chance, for a long call has changes by the dozen.
    """
    lines: dict[tuple[str, int], list[Mutant]] = {}
    for module in computing_modules(root, pattern):
        text = (root / PACKAGE / f'{module}.py').read_text()
        for edit in edits(text):
            if not is_harmless(module, edit):
                lines.setdefault((module, edit.line), []).append(Mutant(module, edit))
    rng = random.Random(seed)
    drawn = rng.sample(sorted(lines), min(count, len(lines)))
    return [rng.choice(lines[line]) for line in drawn]


def is_harmless(module: str, edit: Edit) -> bool:
    return (module, edit.before, edit.after) in HARMLESS


def _short(code: str, most: int = 110) -> str:
    code = ' '.join(code.split())
    return code if len(code) <= most else f'{code[:most]} ...'
