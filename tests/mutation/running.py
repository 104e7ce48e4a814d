"""Runs the tests of mutants: on copies of the tree, in processes with a limit of time and of memory."""

import concurrent.futures
import dataclasses
import os
import pathlib
import queue
import re
import resource
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree
from collections.abc import Callable, Mapping, Sequence

from tests.mutation.mutants import Mutant

MEMORY = 24 * 2**30  # of addresses; JAX reserves far more than it uses
_PYTEST = (sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider')
_LEFT_OUT = shutil.ignore_patterns('.*', '__pycache__', 'runs', 'dist', '*.egg-info')


class CleanTreeFails(Exception):
    """The tests fail without any change: of mutants they say nothing."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """noticed_by: the test that failed, or what else happened; None for a mutant that survived."""

    mutant: Mutant
    noticed_by: str | None


class Trees:
    """Copies of a tree in which mutants are tried, as many at once as there are copies."""

    def __init__(self, root: pathlib.Path, folder: pathlib.Path, count: int):
        self._cache, self._free = folder / 'compiled', queue.SimpleQueue()
        self.count = count
        for i in range(count):
            tree = folder / str(i) / root.name
            shutil.copytree(root, tree, ignore=_LEFT_OUT)
            if (root.parent / 'shared').is_dir():  # reference data, which some tests need
                (tree.parent / 'shared').symlink_to(root.parent / 'shared')
            self._free.put(tree)

    def time_unchanged(self, files: Sequence[str]) -> dict[str, float]:
        """Seconds of each test file, and the programs compiled for all of them. Raises CleanTreeFails."""
        tree = self._free.get()
        try:
            report = tree.parent / 'report.xml'
            # Apart from one another, as they run for the mutants, and as many at once.
            processes = self.count if self.count > 1 else 0
            args = ['-n', str(processes), '--dist=loadfile', '-o', 'junit_family=xunit1']
            status, output = self._pytest(tree, [*args, f'--junitxml={report}', *files], None)
            if status:
                raise CleanTreeFails(f'the tests fail without any change:\n{output[-3000:]}')
            seconds = dict.fromkeys(files, 0.0)
            for case in xml.etree.ElementTree.parse(report).iter('testcase'):
                seconds[case.get('file')] += float(case.get('time'))
            return seconds
        finally:
            self._free.put(tree)

    def try_all(
        self,
        mutants: Sequence[Mutant],
        tests: Mapping[str, Sequence[str]],
        limits: Mapping[str, float],
        done: Callable[[Outcome], object],
    ) -> list[Outcome]:
        """The outcomes of all, in order. tests, limits: by module; done: called as each ends."""

        def attempt(mutant: Mutant) -> Outcome:
            outcome = self.attempt(mutant, tests[mutant.module], limits[mutant.module])
            done(outcome)
            return outcome

        with concurrent.futures.ThreadPoolExecutor(self.count) as pool:
            return list(pool.map(attempt, mutants))

    def attempt(self, mutant: Mutant, files: Sequence[str], seconds: float) -> Outcome:
        """Runs the tests until one fails. A mutant whose tests take longer than this is noticed."""
        tree = self._free.get()
        path = tree / mutant.path
        text = path.read_text()
        try:
            path.write_text(mutant.edit.apply(text))
            status, output = self._pytest(tree, ['-n', '0', '-x', *files], seconds)
        finally:
            path.write_text(text)
            self._free.put(tree)
        if status is None:
            return Outcome(mutant, f'no end within {seconds:.0f} s')
        failed = re.search(r'^(?:FAILED|ERROR) (\S+)', output, re.MULTILINE)
        how = failed[1] if failed else f'exit status {status}'
        return Outcome(mutant, how if status else None)

    def _pytest(
        self, tree: pathlib.Path, args: Sequence[str], seconds: float | None
    ) -> tuple[int | None, str]:
        """(exit status, output); the status is None where the time was up."""
        own = tree.parent / 'own'
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir()
        with open(own / 'output', 'w+') as output:
            process = subprocess.Popen(
                [*_PYTEST, f'--basetemp={own}/tmp', *args],
                cwd=tree, env=self._environment(tree, own), stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            if hasattr(resource, 'prlimit'):
                resource.prlimit(process.pid, resource.RLIMIT_AS, (MEMORY, MEMORY))
            try:
                status = process.wait(seconds)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                try:
                    os.killpg(process.pid, signal.SIGKILL)  # with what the tests have started
                except ProcessLookupError:
                    pass
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
