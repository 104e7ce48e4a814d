"""The tool itself: what it changes, what it leaves alone, and that it tells noticed from survived."""

import ast
import pathlib
import random
import textwrap

import pytest

from tests.mutation.changes import edits
from tests.mutation.harmless import HARMLESS
from tests.mutation.killers import KILLERS, killers
from tests.mutation.mutants import PACKAGE, Mutant, computing_modules, draw
from tests.mutation.running import Outcome, Trees

ROOT = pathlib.Path(__file__).resolve().parents[2]

# One line for each kind of change, with all that it may become.
KINDS = {
    'x = a < b': {'a <= b', 'a > b'},
    'x = a is None': {'a is not None'},
    'x = a + b': {'a - b'},
    'x = a // b': {'a * b'},
    'x = a and b': {'a or b'},
    'x = not a': {'a'},
    'x = -a': {'a'},
    'x = 8': {'9', '7', '4'},
    'x = True': {'False'},
    'x = 0.5': {'0.25', '1.0'},
    'x = a if b else c': {'not b'},
    'x = f(a, b=c)': {'f(a)'},
    'x = f(a, b)': {'f(b, a)'},
    'x = f(a, b[c])': set(),
    'x = jnp.minimum(a, b)': {'jnp.maximum(a, b)', 'a'},
    'x = max(a, b)': {'min(a, b)', 'a'},
    "x = ('a', 'b')": {"('b',)", "('a',)"},
    "x = {'a': b}": {'{}'},
    'x = f(x)': {'pass'},
    'f(x)': {'pass'},
    'raise ValueError(a + b)': {'pass'},
    'x += a': {'pass', 'x -= a'},
    'def f(a, b): return a': {'b'},
    'def f(a: int, b: str, c: int): return a, b': {'c'},
    'def f(x):\n    a, b = x\n    return b': {'a'},
}


@pytest.mark.parametrize('code', KINDS)
def test_a_line_becomes_all_that_its_kind_allows(code):
    assert {edit.after for edit in edits(code)} == KINDS[code]


@pytest.mark.parametrize(
    'code',
    [
        '"""A module: 1 < 2 and 3."""',
        'def f():\n    """Returns 1 + 1."""',
        'def f(a: 1 + 1 = None) -> 2 + 2: ...',
        'x: int | None = None',
        'Widths = int | None',
        'Result = dict[str, list[1]]',
        'import a.b as c',
        "x = f'{a + 1}'",
        "raise ValueError(f'{a + 1}', 2)".replace('raise', 'def f():\n    raise') + '\n    pass',
        "print('a', 1, file=sys.stderr)",
        "logging.info('%s', 1 + 1)",
        "if __name__ == '__main__':\n    main(1)",
        '@functools.cache\n@dataclass(frozen=True)\nclass A(B, c=1): ...',
    ],
)
def test_what_a_program_says_is_left_alone(code):
    assert [e.after for e in edits(code) if e.after != 'pass'] == []


def test_a_changed_part_keeps_its_place_among_its_neighbours():
    code = 'x = (a + b) * c - (1 if d and e else f)'
    for edit in edits(code):
        changed, expected = ast.parse(edit.apply(code)), code.replace(edit.before, f'({edit.after})', 1)
        assert ast.dump(changed) == ast.dump(ast.parse(expected)), edit


@pytest.mark.parametrize('module', random.Random(1).sample(computing_modules(ROOT), 12))
def test_mutants_of_the_modules_are_python_and_differ_in_one_place(module):
    source = (ROOT / PACKAGE / f'{module}.py').read_text()
    tree = ast.parse(source)
    docstrings = [ast.get_docstring(n) for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    found = list(edits(source))
    for edit in random.Random(0).sample(found, min(8, len(found))):
        changed = edit.apply(source)
        mutant = ast.parse(changed)
        assert ast.dump(mutant) != ast.dump(tree), edit
        data, parts = source.encode(), changed.encode()
        assert data[: edit.start] == parts[: edit.start] and parts.endswith(data[edit.end :]), edit
        if edit.after != 'pass':
            assert docstrings == [
                ast.get_docstring(n) for n in ast.walk(mutant) if isinstance(n, ast.FunctionDef)
            ]


def test_a_seed_draws_the_same_mutants_and_another_one_others():
    first, again, other = (draw(ROOT, 20, seed, 'quant/*') for seed in (0, 0, 1))
    assert first == again != other
    assert len({(m.module, m.edit.line) for m in first}) == 20
    assert {m.module.split('/')[0] for m in first} == {'quant'}


def test_harmless_changes_are_changes_of_today_and_are_not_drawn():
    for module, before, after in HARMLESS:
        found = edits((ROOT / PACKAGE / f'{module}.py').read_text())
        assert (before, after) in {(e.before, e.after) for e in found}, (module, before)
        drawn = {(m.edit.before, m.edit.after) for m in draw(ROOT, 10**6, 0, module)}
        assert (before, after) not in drawn


def test_every_pattern_of_modules_and_tests_matches_some():
    modules = computing_modules(ROOT)
    assert all(killers(ROOT, m) for m in modules), [m for m in modules if not killers(ROOT, m)]
    for pattern, files in KILLERS.items():
        assert computing_modules(ROOT, pattern), pattern
        for file in files:
            assert list((ROOT / 'tests').glob(file)), f'{pattern}: no test is called {file}'


@pytest.fixture
def small(tmp_path):
    """A tree of one function and its test, which does not look at 0, and would not end where n grows."""
    root = tmp_path / 'small'
    (root / PACKAGE).mkdir(parents=True)
    (root / 'tests').mkdir()
    (root / PACKAGE / '__init__.py').touch()
    (root / 'pyproject.toml').write_text('[tool.pytest.ini_options]\npythonpath = ["."]\naddopts = "-ra"\n')
    (root / PACKAGE / 'steps.py').write_text(
        textwrap.dedent("""
            def count(n):
                steps = 0
                while n > 0:
                    n -= 1
                    steps += 1
                return steps
        """)
    )
    (root / 'tests' / 'test_steps.py').write_text(
        'from ghn_jax.steps import count\ndef test_count(): assert count(3) == 3\n'
    )
    return root


def copies(root, folder, *, count, seconds=240):
    return Trees(root, folder, count=count, seconds=seconds, seconds_unchanged=240)


def test_noticed_survived_and_endless_are_told_apart(small, tmp_path):
    source, test = (small / PACKAGE / 'steps.py').read_text(), small / 'tests' / 'test_steps.py'
    files = killers(small, 'steps')
    assert files == ['tests/test_steps.py']
    of = {(e.before, e.after): Mutant('steps', e) for e in edits(source)}
    mutants = [of['steps += 1', 'steps -= 1'], of['n > 0', 'n >= 0']]
    told, name = [], 'tests/test_steps.py::test_count'
    outcomes = copies(small, tmp_path / 'a', count=2).try_all(mutants, {'steps': files}, told.append)
    assert outcomes == [Outcome(m, True, name) for m in mutants]
    assert sorted(map(str, told)) == sorted(map(str, outcomes))

    endless = of['n -= 1', 'n += 1']
    impatient = copies(small, tmp_path / 'b', count=1, seconds=3)
    assert impatient.attempt(endless, files) == Outcome(endless, True, 'no end')

    test.write_text('import ghn_jax.steps\ndef test_nothing(): pass\n')
    blind = copies(small, tmp_path / 'c', count=1)
    assert blind.attempt(mutants[0], files) == Outcome(mutants[0], False, '')

    assert (small / PACKAGE / 'steps.py').read_text() == source
    assert not list(small.rglob('__pycache__'))


def test_tests_that_fail_without_the_change_notice_nothing(small, tmp_path):
    (small / 'tests' / 'test_steps.py').write_text('def test_count(): assert False\n')
    mutant = Mutant('steps', next(edits((small / PACKAGE / 'steps.py').read_text())))
    outcome = copies(small, tmp_path / 'a', count=1).attempt(mutant, killers(small, 'steps'))
    assert not outcome.noticed and outcome.how == 'tests/test_steps.py::test_count; without the change: fails'
