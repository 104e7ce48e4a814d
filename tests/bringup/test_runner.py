"""Parts run one after another, each a process with a limit: none stops the next, and none is left behind."""

import sys
import time

import psutil
import pytest

from ghn_jax.bringup import runner
from ghn_jax.bringup.runner import DONE, FAILED, LATE, SKIPPED, Part, run_parts

WRITE = (
    'import json, os, pathlib, signal, subprocess, sys, time; say = pathlib.Path(sys.argv[2]).write_text; '
)
GOOD = 'say(json.dumps({"limit": float(sys.argv[1])}))'


def part(name, code, weight=1.0, **environment):
    command = lambda seconds, result: [sys.executable, '-c', WRITE + code, str(seconds), str(result)]
    return Part(name=name, weight=weight, command=command, environment=environment)


@pytest.fixture
def run(tmp_path):
    """run(parts, seconds) -> their records."""

    def run(*parts, seconds=30.0, record=lambda records: None, least=0.0):
        return run_parts(
            parts, seconds=seconds, folder=tmp_path / 'parts', log=tmp_path / 'log.txt', record=record,
            least=least,
        )  # fmt: skip

    return run


def test_what_fails_hangs_or_is_killed_does_not_stop_the_next_and_leaves_what_it_found(run, tmp_path):
    raises, hangs, killed, good = run(
        part('raises', 'say("[1]"); raise ValueError("no such device")'),
        part('hangs', 'say("[2]"); time.sleep(60)', weight=0.1),
        part('killed', 'say("[3]"); print("so far", flush=True); os.kill(os.getpid(), signal.SIGKILL)'),
        part('good', GOOD),
    )
    found = [(r['part'], r['status'], r['result']) for r in (raises, hangs, killed)]
    assert found == [('raises', FAILED, [1]), ('hangs', LATE, [2]), ('killed', FAILED, [3])]
    assert raises['error'] == 'ValueError: no such device'
    assert killed['error'] == 'ended by SIGKILL: so far'
    assert good['status'] == DONE and good['error'] is None
    log = (tmp_path / 'log.txt').read_text()
    assert [line for line in log.splitlines() if line.startswith('==')] == [
        '== raises', '== hangs', '== killed', '== good'
    ]  # fmt: skip
    assert 'Traceback' in log  # of the first: what a line does not hold


def test_a_part_that_does_not_heed_the_end_is_ended_with_all_that_it_started(run, monkeypatch):
    monkeypatch.setattr(runner, 'GRACE', 0.5)
    deaf = 'signal.signal(signal.SIGTERM, signal.SIG_IGN); '
    child = 'subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]); '
    report = 'say(json.dumps(psutil.Process().children()[0].pid))'
    code = deaf + child + 'import psutil; ' + report + '; time.sleep(60)'
    (deaf,) = run(part('deaf', code), seconds=3.0)
    assert deaf['status'] == LATE and deaf['seconds'] < 15
    # At once: a process may go between two questions about it.
    processes = {process.pid: process.info['status'] for process in psutil.process_iter(['status'])}
    assert processes.get(deaf['result'], 'gone') in ('gone', psutil.STATUS_ZOMBIE)


def test_what_a_part_leaves_of_its_time_the_later_ones_share_and_none_is_begun_without_time(run):
    first, second, third = run(
        part('first', GOOD, weight=2), part('second', GOOD), part('third', GOOD), seconds=40.0
    )
    assert first['result'] == {'limit': pytest.approx(20, abs=0.1)}
    assert 15 < second['result']['limit'] < 20  # half of what is left, more than a quarter of all
    assert third['result']['limit'] > 2 * second['result']['limit'] - 10
    none = run(part('late', 'time.sleep(60)', weight=1000), part('none', GOOD), seconds=2.0)
    assert [r['status'] for r in none] == [LATE, SKIPPED] and none[1]['result'] is None


def test_each_part_may_have_the_least_while_there_is_time(run):
    first, last = run(part('first', GOOD, weight=1), part('last', GOOD, weight=1000), seconds=20.0, least=5.0)
    assert first['result']['limit'] == pytest.approx(5, abs=0.1) and last['limit_s'] <= 20


def test_results_are_told_while_a_part_runs_and_one_that_is_torn_is_none(run):
    told = []

    def record(records):
        told.append([(r['part'], r['status'], r['result']) for r in records])

    code = 'say("[1]"); time.sleep(1); say("{torn"); time.sleep(1)'
    (torn,) = run(part('torn', code), record=record)
    assert [('torn', 'running', [1])] in told
    assert torn['status'] == DONE and torn['result'] is None
    assert told[-1] == [('torn', DONE, None)]


def test_a_result_of_an_earlier_run_is_not_taken_for_this_one_and_variables_are_set(run, tmp_path):
    (tmp_path / 'parts').mkdir()
    (tmp_path / 'parts' / 'a.json').write_text('"old"')
    (a, b) = run(part('a', 'pass'), part('b', 'say(json.dumps(os.environ["XLA_FLAGS"]))', XLA_FLAGS='--new'))
    assert a['result'] is None and b['result'] == '--new'


def test_a_command_that_is_not_there_is_a_part_that_failed(run):
    missing = Part(name='missing', weight=1, command=lambda seconds, result: ['/no/such/command'])
    first, second = run(missing, part('good', GOOD))
    assert first['status'] == FAILED and 'No such file' in first['error'] and second['status'] == DONE


def test_an_end_from_outside_ends_the_part_under_way(run):
    pids = []

    def record(records):
        if (pid := records[-1]['result']) and not pids:
            pids.append(pid)
            raise SystemExit(143)

    with pytest.raises(SystemExit):
        run(part('long', 'say(json.dumps(os.getpid())); time.sleep(60)'), record=record)
    time.sleep(0.1)
    assert pids and not psutil.pid_exists(pids[0])
