"""The tests pass with the other Python and JAX, too, where that environment is there."""

import os
import subprocess

import pytest

from tests.small_run import ROOT

PYTHON = ROOT / '.venv-3.12/bin/python'


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON.exists(), reason='no .venv-3.12: bash launch/test.sh --python=3.12 makes it')
def test_the_quick_tests_pass_with_python_3_12():
    command = [str(PYTHON), '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '@tests/quick.txt']
    env = {name: value for name, value in os.environ.items() if not name.startswith('PYTEST_')}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
