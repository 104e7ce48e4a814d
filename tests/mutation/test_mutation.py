"""Do the tests notice a small change of the code? Mutants drawn from a seed, tried by their module's tests.

The slow suite tries a dozen (ten minutes on two cores) and prints what became of each:

    bash launch/test.sh -m slow tests/mutation

More of them, others, or those of some modules: GHN_JAX_MUTANTS=129 GHN_JAX_MUTATION_SEED=3
GHN_JAX_MUTATION_MODULES='quant/*'. With -n 0 -s outcomes are shown as they come. The tests aim at 90 % of the
changes that matter; a change that cannot matter belongs into harmless.py.
"""

import os
import pathlib

import pytest

from tests.mutation.killers import killers
from tests.mutation.mutants import draw
from tests.mutation.running import Outcome, Trees

COUNT = int(os.environ.get('GHN_JAX_MUTANTS', 12))
SEED = int(os.environ.get('GHN_JAX_MUTATION_SEED', 0))
MODULES = os.environ.get('GHN_JAX_MUTATION_MODULES', '*')
SECONDS, SECONDS_UNCHANGED = 480, 320  # for the tests of one mutant
LEAST = 0.75  # noticed of a dozen, in which one more or less is chance
_ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_most_small_changes_of_the_code_are_noticed(tmp_path, record_property):
    mutants = draw(_ROOT, COUNT, SEED, MODULES)
    tests = {m.module: killers(_ROOT, m.module) for m in mutants}
    count = min(os.cpu_count() or 1, 4)
    trees = Trees(_ROOT, tmp_path, count=count, seconds=SECONDS, seconds_unchanged=SECONDS_UNCHANGED)
    outcomes = trees.try_all(mutants, tests, tell=lambda outcome: print(_line(outcome), flush=True))
    record_property('mutants', table := _table(outcomes))
    assert sum(o.noticed for o in outcomes) >= LEAST * len(outcomes), table


def _table(outcomes: list[Outcome]) -> str:
    """The survivors first."""
    noticed = sum(o.noticed for o in outcomes)
    share = f'{noticed} of {len(outcomes)} changes were noticed ({noticed / len(outcomes):.0%})'
    lines = map(_line, sorted(outcomes, key=lambda o: o.noticed))
    return '\n'.join([f'{share}; seed {SEED}, modules {MODULES}', *lines])


def _line(outcome: Outcome) -> str:
    word = 'noticed ' if outcome.noticed else 'SURVIVED'
    return f'{word} {outcome.mutant}' + (f'  [{outcome.how}]' if outcome.how else '')
