"""The tests pass with the other Python and JAX, too, where that environment is there."""

import fnmatch
import os
import subprocess
import tomllib

import pytest

from tests.small_run import ROOT


def test_the_source_distribution_has_what_makes_the_environments_of_its_tests():
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())
    included = project['tool']['hatch']['build']['targets']['sdist']['include']
    for file in ROOT.glob('constraints*.txt'):
        assert any(fnmatch.fnmatch(f'/{file.name}', pattern) for pattern in included), file.name


PYTHON = ROOT / '.venv-3.12/bin/python'


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON.exists(), reason='no .venv-3.12: bash launch/test.sh --python=3.12 makes it')
def test_the_quick_tests_pass_with_python_3_12():
    command = [str(PYTHON), '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '@tests/quick.txt']
    env = {name: value for name, value in os.environ.items() if not name.startswith('PYTEST_')}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
