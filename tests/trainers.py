"""For the tests of runs: real training processes on this machine, one or several together."""

import contextlib
import os
import socket
import subprocess
import sys

from tests import quick_compiler
from tests.small_run import ROOT


@contextlib.contextmanager
def trainers(cache, flags, *, stdout=subprocess.DEVNULL):
    """start(workdir, *args, n=1, each=()) -> n processes that train together; they end with the context.

    cache: folder of compiled programs, for all of them. flags: of every run. each: a flag for each process.
    start's stdout and stderr: in place of the usual ones.
    """
    started = []

    def start(workdir, *args, n=1, each=(), stdout=stdout, stderr=subprocess.PIPE):
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            port = s.getsockname()[1]
        env = {
            **os.environ,
            'JAX_PLATFORMS': 'cpu',
            'XLA_FLAGS': quick_compiler.FLAGS,
            'GHN_JAX_CACHE': str(cache),
        }
        together = lambda i: [f'--coordinator=127.0.0.1:{port}', f'--num_processes={n}', f'--process_id={i}']
        run = [sys.executable, '-m', 'ghn_jax.train', *flags, f'--workdir={workdir}', *args]
        out = [
            subprocess.Popen(
                run + (together(i) if n > 1 else []) + list(each[i : i + 1]),
                cwd=ROOT, env=env, stdout=stdout, stderr=stderr, text=True,
            )
            for i in range(n)
        ]  # fmt: skip
        started.extend(out)
        return out

    try:
        yield start
    finally:
        for process in started:
            process.kill()
            process.wait()
