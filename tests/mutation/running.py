"""Runs the tests of mutants: on copies of the tree, in processes with a limit of time and of memory."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import os
import pathlib
import queue
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

from tests.mutation.mutants import Mutant

MEMORY = 24 * 2**30  # of addresses; JAX reserves far more than it uses
_PYTEST = (sys.executable, '-m', 'pytest', '-q', '-n', '0', '-p', 'no:cacheprovider')
_NAMES_LEFT_OUT = shutil.ignore_patterns('.*', '__pycache__', '*.egg-info')
_OF_RUNS = ('runs', 'dist', 'zoo')  # in the root of the tree: what a person has made there


def _left_out(folder: str, names: list[str], *, root: pathlib.Path) -> set[str]:
    """What is not copied of a folder; the package has a `runs` of its own."""
    return {*_NAMES_LEFT_OUT(folder, names), *(_OF_RUNS if pathlib.Path(folder) == root else ())}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """how: the test that noticed the mutant, or what else happened; empty where all tests pass."""

    mutant: Mutant
    noticed: bool
    how: str


class Trees:
    """Copies of a tree in which mutants are tried, as many at once as there are copies.

    seconds: what the tests of a mutant may take. seconds_unchanged: what they may take without the change,
    if a mutant whose tests do not end is to count as noticed; well under the other.
    """

    def __init__(
        self,
        root: pathlib.Path,
        folder: pathlib.Path,
        *,
        count: int,
        seconds: float,
        seconds_unchanged: float,
    ):
        self._cache, self._free = folder / 'compiled', queue.SimpleQueue()
        self._count, self._seconds, self._seconds_unchanged = count, seconds, seconds_unchanged
        self._running: set[subprocess.Popen] = set()
        self._unchanged: dict[tuple[str, ...], str] = {}  # what is wrong with tests without any change
        for i in range(count):
            tree = folder / str(i) / root.name
            shutil.copytree(root, tree, ignore=functools.partial(_left_out, root=root))
            if (root.parent / 'shared').is_dir():  # reference data, which some tests need
                (tree.parent / 'shared').symlink_to(root.parent / 'shared')
            self._free.put(tree)

    def try_all(
        self, mutants: Sequence[Mutant], tests: Mapping[str, Sequence[str]], tell: Callable[[Outcome], object]
    ) -> list[Outcome]:
        """The outcomes of all, in order. tests: files, by module; tell: called as each ends."""

        def attempt(mutant: Mutant) -> Outcome:
            outcome = self.attempt(mutant, tests[mutant.module])
            tell(outcome)
            return outcome

        with concurrent.futures.ThreadPoolExecutor(self._count) as pool:
            try:
                return list(pool.map(attempt, mutants))
            except BaseException:  # such as an interrupt, which the tests' processes do not see
                pool.shutdown(wait=False, cancel_futures=True)
                for process in list(self._running):
                    _kill(process)
                raise

    def attempt(self, mutant: Mutant, files: Sequence[str]) -> Outcome:
        """Runs the files until a test fails, or does not end; that test must pass without the change."""
        tree = self._free.get()
        path = tree / mutant.path
        text = path.read_text()
        try:
            path.write_text(mutant.edit.apply(text))
            status, output = self._pytest(tree, ['-x', *files], self._seconds)
            path.write_text(text)
            if status == 0:
                return Outcome(mutant, False, '')
            found = re.search(r'^(?:FAILED|ERROR) (.+?)(?: - |$)', output, re.MULTILINE)
            suspects = (found[1],) if found else tuple(files)
            how = 'no end' if status is None else found[1] if found else f'exit status {status}'
            if suspects not in self._unchanged:
                limit = self._seconds_unchanged if status is None else self._seconds
                # A file alone could not be imported: with the change it came to no test.
                collecting = ['--collect-only'] if found and '::' not in found[1] else []
                status, _ = self._pytest(tree, [*collecting, *suspects], limit)
                self._unchanged[suspects] = 'no end' if status is None else 'fails' if status else ''
            fault = self._unchanged[suspects]
            return Outcome(mutant, not fault, f'{how}; without the change: {fault}' if fault else how)
        finally:
            path.write_text(text)
            self._free.put(tree)

    def _pytest(self, tree: pathlib.Path, args: Sequence[str], seconds: float) -> tuple[int | None, str]:
        """(exit status, output); the status is None where the time was up."""
        own = tree.parent / 'own'
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir()
        with open(own / 'output', 'w+', errors='replace') as output:
            process = subprocess.Popen(
                [*_PYTEST, f'--basetemp={own}/tmp', *args],
                cwd=tree, env=self._environment(tree, own), stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            if hasattr(resource, 'prlimit'):
                resource.prlimit(process.pid, resource.RLIMIT_AS, (MEMORY, MEMORY))
            self._running.add(process)
            try:
                status = process.wait(seconds)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                self._running.discard(process)
                _kill(process)
                process.wait()
            output.seek(0)
            return status, output.read()

    def _environment(self, tree: pathlib.Path, own: pathlib.Path) -> dict[str, str]:
        """Nothing of the caller's own; compiled programs are kept, for a mutant changes only some."""
        own_names = ('JAX_', 'GHN_JAX_', 'PYTEST_', 'XLA_')
        kept = {name: value for name, value in os.environ.items() if not name.startswith(own_names)}
        return kept | {
            'JAX_PLATFORMS': 'cpu',
            'JAX_COMPILATION_CACHE_DIR': str(self._cache),
            'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.2',
            'GHN_JAX_CACHE': str(own / 'cache'),
            'PYTHONPATH': str(tree),
            'PYTHONDONTWRITEBYTECODE': '1',  # files are told apart by their second, and mutants come faster
        }  # fmt: skip


def _kill(process: subprocess.Popen) -> None:
    """With all that the tests have started, and what is left of it where they have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
