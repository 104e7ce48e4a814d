"""The lock in a bucket: one holder, whoever comes at once; a dead one is waited for, and not for long."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from ghn_jax.base import lease, lock, paths
from ghn_jax.base.errors import UserError
from tests.base.test_lock import HOLD
from tests.small_run import ROOT


@pytest.fixture
def quick(monkeypatch):
    """Lives of two seconds."""
    monkeypatch.setattr(lease, 'RENEWAL', 0.1)
    monkeypatch.setattr(lease, 'TTL', 2.0)
    monkeypatch.setattr(lease, '_LOOK', 0.02)


@pytest.fixture
def path(cloud):
    return paths.place(f'{cloud}/lock', 'workdir')


def write(path, **holder):
    path.write_text(
        json.dumps({'pid': 1, 'host': 'far', 'since': '2026', 'machine': 'far', 'lease': 'x'} | holder)
    )


def test_a_second_holder_is_refused_by_the_name_of_the_first_until_that_has_given_it_up(cloud, path, quick):
    with lock.holding(cloud):
        for _ in range(2):
            with pytest.raises(UserError, match=f'in use by process {os.getpid()} on .*, since 20'):
                with lock.holding(cloud):
                    pass
        time.sleep(0.3)  # it is renewed meanwhile
        assert json.loads(path.read_text())['pid'] == os.getpid()
    assert path.read_text() == ''
    with pytest.raises(ValueError, match='^inside$'), lock.holding(cloud):
        raise ValueError('inside')
    assert path.read_text() == ''


def test_a_process_that_was_killed_on_this_machine_is_not_waited_for(cloud, path):
    with subprocess.Popen(
        [sys.executable, '-c', HOLD, cloud], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as first:
        try:
            assert first.stdout is not None and first.stdout.readline() == 'held\n'
        finally:
            first.send_signal(signal.SIGKILL)
    assert json.loads(path.read_text())['pid'] == first.pid
    begin = time.monotonic()
    with lock.holding(cloud):
        assert time.monotonic() - begin < lease.TTL / 4
        assert json.loads(path.read_text())['pid'] == os.getpid()


def test_a_holder_on_another_machine_is_taken_for_dead_where_it_renews_nothing(cloud, path, quick, capsys):
    write(path, pid=os.getpid())  # a number that says nothing there
    begin = time.monotonic()
    with lock.holding(cloud):
        assert time.monotonic() - begin >= lease.TTL
        assert json.loads(path.read_text())['lease'] != 'x'
    assert 'whether it lives' in capsys.readouterr().err


def test_a_holder_that_renews_is_alive_whatever_its_clock_says(cloud, path, quick):
    stop = threading.Event()

    def renew():
        while not stop.wait(0.2):
            write(path, since='1970-01-01')

    write(path, since='1970-01-01')
    renewing = threading.Thread(target=renew)
    renewing.start()
    try:
        with pytest.raises(UserError, match='in use by process 1 on far, since 1970-01-01'):
            with lock.holding(cloud):
                pass
    finally:
        stop.set()
        renewing.join()


def test_whoever_waits_gets_the_lock_when_it_is_free(cloud, quick):
    order = []

    def second():
        with lock.holding(cloud, 'study.lock', wait=True):
            order.append('second')

    with lock.holding(cloud, 'study.lock'):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(1.5 * lease.TTL)  # renewed all the while
        order.append('first')
    thread.join(30)
    assert order == ['first', 'second']


@pytest.mark.parametrize('before', ['', 'dead', 'absent'])
def test_of_many_that_come_at_once_one_gets_the_lock(cloud, path, quick, before):
    if before != 'absent':
        path.write_text('')
    if before == 'dead':
        write(path)
    got, start, done = [], threading.Barrier(6), threading.Event()

    def come():
        one = lease.Lease(path, {'pid': 1, 'host': 'here', 'since': ''})
        start.wait()
        try:
            one.take()
        except lease.Taken:
            return
        got.append(one)
        done.wait(30)
        one.give_up()

    threads = [threading.Thread(target=come) for _ in range(6)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 60
    while sum(thread.is_alive() for thread in threads) > 1:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert len(got) == 1
    done.set()
    for thread in threads:
        thread.join(30)
    assert path.read_text() == ''


def test_a_process_from_which_it_was_taken_ends_and_leaves_it_alone(cloud, path):
    hold = f'from ghn_jax.base import lease\nlease.RENEWAL = 0.1\n{HOLD}'
    with subprocess.Popen(
        [sys.executable, '-c', hold, cloud],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as first:
        try:
            assert first.stdout is not None and first.stdout.readline() == 'held\n'
            write(path)
            said = first.communicate(timeout=60)[1]
        finally:
            first.kill()
    assert first.returncode == 2 and said.count('\n') == 1
    assert f'error: {cloud}/lock was taken by another process' in said
    assert json.loads(path.read_text())['lease'] == 'x'


def test_a_renewal_whose_answer_got_lost_is_no_loss(path, quick, monkeypatch):
    monkeypatch.setattr(lease, '_leave', lambda path: pytest.fail('it left'))
    one = lease.Lease(path, {'pid': 1, 'host': 'here', 'since': ''})
    one.take()
    one._blob.bucket.blob(one._blob.name).upload_from_string(one._content)  # as the storage has it
    time.sleep(0.5)
    generation = one._generation
    time.sleep(0.3)
    assert one._generation > generation
    one.give_up()
    assert path.read_text() == ''


def test_where_the_storage_is_away_for_a_while_the_lock_is_kept(path, quick, monkeypatch):
    monkeypatch.setattr(lease, '_leave', lambda path: pytest.fail('it left'))
    one = lease.Lease(path, {'pid': 1, 'host': 'here', 'since': ''})
    one.take()
    with monkeypatch.context() as patch:
        patch.setattr(one, '_write', lambda *_, **__: (_ for _ in ()).throw(OSError(5, 'away')))
        time.sleep(0.5)
    time.sleep(0.4)
    assert one._renewal.is_alive()
    with pytest.raises(lease.Taken):
        lease.Lease(path, {'pid': 2, 'host': 'here', 'since': ''}).take()
    one.give_up()


def test_a_bucket_that_cannot_be_written_is_one_line(cloud, monkeypatch):
    def refuse(self, *_, **__):
        raise OSError(5, 'no right to storage.objects.create')

    monkeypatch.setattr(lease.Lease, '_write', refuse)
    with pytest.raises(UserError, match=r'lock cannot be written \(no right to storage.objects.create\)'):
        with lock.holding(cloud):
            pass
