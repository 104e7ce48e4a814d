"""Hostile input is refused in one line, soon, in little memory and inside its folder: seeded fuzzing.

The slow suite gives INPUTS (100,000) inputs to the same targets, each in a process of its own (20 minutes):

    bash launch/test.sh -m slow tests/fuzz

One finding again, or other seeds: python -m tests.fuzz.test_fuzz TARGET SEED COUNT.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import pytest

from tests.fuzz.harness import MEMORY, SECONDS, run
from tests.fuzz.targets import TARGETS

INPUTS = int(os.environ.get('GHN_JAX_FUZZ_INPUTS', 100_000))
_FAST = {'states': 60, 'figures': 80, 'configs': 100, 'saved-configs': 100, 'paths': 30}  # others: 300
_ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize('target', TARGETS, ids=lambda t: t.name)
def test_some_hostile_inputs_are_refused_in_one_line(target, tmp_path):
    report = run(target, tmp_path, seed=0, count=_FAST.get(target.name, 300))
    assert report.slowest < SECONDS


@pytest.mark.slow
@pytest.mark.parametrize('target', TARGETS, ids=lambda t: t.name)
def test_many_hostile_inputs_are_refused_in_little_memory(target, record_property):
    count = round(INPUTS * target.share)
    done = subprocess.run(
        [sys.executable, '-m', 'tests.fuzz.test_fuzz', target.name, '1', str(count)],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    record_property('report', done.stdout)
    print(target.name, report)
    assert report['inputs'] == count and report['slowest'] < SECONDS and report['peak'] < MEMORY


def test_the_shares_of_the_targets_are_all_there_is():
    assert round(sum(target.share for target in TARGETS), 6) == 1


if __name__ == '__main__':
    name, seed, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with tempfile.TemporaryDirectory() as folder:
        target = next(t for t in TARGETS if t.name == name)
        print(json.dumps(vars(run(target, pathlib.Path(folder), seed=seed, count=count))))
