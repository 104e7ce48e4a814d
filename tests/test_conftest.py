"""Tests do not depend on what the machine has set for its own work."""

import os
import subprocess
import sys

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
