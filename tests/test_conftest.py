"""Tests do not depend on what the machine has set for its own work, and long files are begun first."""

import os
import subprocess
import sys

from tests import order
from tests.small_run import ROOT

CODE = """
import tests.conftest, os, jax
print(jax.numpy.arange(2.0).dtype, jax.default_backend(), jax.config.jax_compilation_cache_dir)
print(*sorted(name for name in os.environ if name.startswith(('JAX_', 'XLA_', 'GHN_JAX_CACHE'))))
"""


def test_jax_and_processes_that_tests_start_have_the_defaults_whatever_the_machine_has_set(tmp_path):
    machine = {
        'JAX_COMPILATION_CACHE_DIR': str(tmp_path),
        'JAX_ENABLE_X64': '1',
        'JAX_PLATFORMS': 'nowhere',
        'XLA_FLAGS': '--no_such_flag',  # JAX ends the process
        'GHN_JAX_CACHE': str(tmp_path),
    }
    run = subprocess.run(
        [sys.executable, '-c', CODE], env=os.environ | machine, cwd=ROOT, capture_output=True, text=True
    )
    assert (run.returncode, run.stdout) == (0, 'float32 cpu None\nJAX_PLATFORMS\n'), run.stderr[-2000:]


def test_the_files_that_are_begun_first_are_there():
    assert all((ROOT / 'tests' / file).is_file() for file in order.LONGEST)


def test_long_files_come_first_and_each_file_stays_together(request):
    items = [str(item.path) for item in request.session.items]
    files = list(dict.fromkeys(items))
    places = [order.place_of(os.path.relpath(file, ROOT / 'tests')) for file in files]
    assert places == sorted(places)
    assert sum(a != b for a, b in zip(items, items[1:])) == len(files) - 1
