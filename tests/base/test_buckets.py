"""Files in a bucket are as those on a disk: whole, listed as they are, in the same words where they fail."""

import json
import threading

import pytest

from ghn_jax.base import buckets, cli, files, jsonfile, paths
from ghn_jax.base.errors import UserError
from ghn_jax.base.jsonlines import Records, read_jsonl
from ghn_jax.runs.checkpoint import Checkpoints
from ghn_jax.runs.tensorboard import Events
from tests.small_run import command, is_one_error_line


@pytest.fixture
def folder(cloud):
    return paths.place(cloud, 'workdir')


def upload(path, content):
    """Writes an object as another process would: with another client."""
    buckets.blob(path).upload_from_string(content)


def test_an_object_is_written_whole_or_keeps_its_old_content(folder):
    files.write(folder / 'x', 'old')
    with pytest.raises(KeyError), files.replacing(folder / 'x') as file:
        file.write(b'half')
        raise KeyError
    assert (folder / 'x').read_text() == 'old'
    files.write(folder / 'x', b'new')
    assert (folder / 'x').read_text() == 'new' and files.names(folder) == ['x']


def test_a_path_is_what_was_given_below_any_folder(folder, cloud):
    assert str(folder / 'a' / 'b.json') == f'{cloud}/a/b.json' and paths.in_bucket(folder / 'a')
    assert paths.place(folder, 'workdir') == folder == paths.absolute(f'{cloud}/', 'workdir')


def test_what_another_process_writes_is_seen_at_once(folder):
    assert files.names(folder) == [] and not files.is_folder(folder) and not files.is_file(folder / 'x')
    for name in ('x', 'a/y', 'a/z'):
        upload(folder / name, name)
    assert sorted(files.names(folder)) == ['a', 'x'] and sorted(files.names(folder / 'a')) == ['y', 'z']
    assert files.is_folder(folder / 'a') and files.is_file(folder / 'x') and not files.is_file(folder / 'a')
    assert files.read(folder / 'x', 99) == (b'x', 1) and files.read(folder / 'a/y', 2) == (b'a/', 3)
    upload(folder / 'x', 'longer')
    assert files.opened(folder / 'x').read() == b'longer'
    found = {name.split('/', 2)[2] for name in files.tree(folder)}
    assert found >= {'x', 'a/', 'a/y', 'a/z'} and files.tree(folder / 'none') <= {f'{folder / "none"}/'[5:]}


def test_a_folder_is_moved_with_all_that_is_in_it(folder):
    for name in ('1/a', '1/b/c', '10/a'):
        upload(folder / name, name)
    files.move(folder / '1', folder / 'aside/1')
    assert sorted(files.names(folder)) == ['10', 'aside']
    assert (folder / 'aside/1/b/c').read_text() == '1/b/c' and (folder / 'aside/1/a').read_text() == '1/a'


def test_what_cannot_be_read_is_one_line(folder):
    with pytest.raises(UserError, match=r"'gs://.*/none' cannot be read \(No such file or directory\)"):
        jsonfile.read(folder / 'none', 'result', 'give another')
    upload(folder / 'x', 'x' * (jsonfile.MAX_BYTES + 1))
    with pytest.raises(UserError, match='has 8,388,609 bytes'):
        jsonfile.read(folder / 'x', 'result', 'give another')
    with pytest.raises(UserError, match='there are no metrics in gs://'):
        read_jsonl(folder / 'metrics.jsonl')


def test_an_output_is_judged_before_the_work(folder, cloud):
    assert cli.check_output(f'{cloud}/new/x.json', 'json') == folder / 'new/x.json'
    upload(folder / 'a/x', '')
    with pytest.raises(UserError, match=f'^json={cloud}/a cannot be written .it is a directory'):
        cli.check_output(f'{cloud}/a', 'json')
    with pytest.raises(UserError, match=f'^workdir={cloud}/a/x is a file'):
        cli.check_workdir(f'{cloud}/a/x')
    with pytest.raises(UserError, match=f'^workdir={cloud}/none does not exist'):
        cli.check_workdir(f'{cloud}/none', must_exist=True)
    assert cli.check_workdir(f'{cloud}/none') == folder / 'none'
    with pytest.raises(
        UserError, match='^json=gs://none-such/x cannot be used: there is no bucket none-such'
    ):
        cli.check_output('gs://none-such/x', 'json')


def test_records_in_a_bucket_are_those_on_a_disk(folder, tmp_path):
    def write(path):
        for start, steps in ((0, (1, 2, 3, 4)), (2, (3, 4)), (2, ()), (2, (3, 5))):
            records = Records(path, start)
            for step in steps:
                records.write({'step': step, 'loss': step / 3, 'of': start})
            records.flush()
            records.close()

    write(folder / 'metrics.jsonl')
    write(tmp_path / 'metrics.jsonl')
    assert (folder / 'metrics.jsonl').read_bytes() == (tmp_path / 'metrics.jsonl').read_bytes()
    assert read_jsonl(folder / 'metrics.jsonl') == read_jsonl(tmp_path / 'metrics.jsonl')


def test_records_are_in_the_bucket_after_a_flush_and_after_a_while(folder, monkeypatch):
    records = Records(folder / 'x')
    written = lambda: [json.loads(line)['step'] for line in (folder / 'x').read_text().splitlines()]
    records.write({'step': 1})
    assert written() == []
    records.flush()
    assert written() == [1]
    monkeypatch.setattr(buckets, '_SECONDS', 0)
    records.write({'step': 2})
    assert written() == [1, 2]
    monkeypatch.setattr(buckets, 'write', lambda *_: (_ for _ in ()).throw(OSError(5, 'the way is cut')))
    records.write({'step': 3})  # nobody asked for it to be there by now
    with pytest.raises(UserError, match=r'/x cannot be written \(the way is cut\)'):
        records.flush()
    monkeypatch.undo()
    records.close()
    assert written() == [1, 2, 3]


@pytest.fixture
def away(folder, monkeypatch):
    """A storage that refuses everything: gcsfs alone would say that nothing is there."""
    from gcsfs.core import GCSFileSystem

    async def refuse(self, *args, **options):
        raise OSError('Forbidden: nobody may')

    monkeypatch.setattr(GCSFileSystem, '_call', refuse)


def test_a_storage_that_cannot_be_reached_is_no_empty_one(folder, away, cloud):
    for look in (files.names, files.exists, files.is_file, files.is_folder):
        with pytest.raises(OSError, match='Forbidden: nobody may'):
            look(folder)
    with pytest.raises(OSError, match='Forbidden'):
        Checkpoints(cloud).steps()
    with pytest.raises(OSError, match='Forbidden'):
        Records(folder / 'metrics.jsonl', 2)
    result = command('ghn_jax.replay', f'--workdir={cloud}')
    assert is_one_error_line(result, 'cloud storage: Forbidden: nobody may')


def test_events_that_cannot_be_written_are_one_line(folder, monkeypatch):
    from google.api_core.exceptions import Forbidden
    from google.cloud.storage import Blob

    def refuse(self, **options):
        raise Forbidden('nobody may')

    events = Events(folder / 'tensorboard')
    events.flush()
    assert len(files.names(folder / 'tensorboard')) == 1
    with monkeypatch.context() as patch:
        patch.setattr(Blob, 'upload_from_string', refuse)
        with pytest.raises(UserError, match=r'/tensorboard cannot be written \(nobody may\)'):
            events.flush()
    events.close()


def test_failures_of_the_storage_are_told_from_faults_of_the_program(folder):
    with pytest.raises(Exception) as raised:  # noqa: B017  whatever gcsfs raises
        (folder / 'none').read_bytes()
    assert buckets.is_failure(raised.value)
    for fault in (lambda: (folder / 'x').write_bytes(3), lambda: [][1], lambda: open('/none')):
        with pytest.raises(Exception) as raised:  # noqa: B017
            fault()
        assert not buckets.is_failure(raised.value)


def test_a_bucket_is_asked_for_once_and_one_that_is_not_there_again(folder, monkeypatch):
    asked = []
    client = buckets._client
    monkeypatch.setattr(buckets, '_client', lambda: asked.append(1) or client())
    for _ in range(3):
        paths.place(folder, 'workdir')
    assert not asked
    for _ in range(2):
        with pytest.raises(UserError, match='no bucket none-such'):
            paths.place('gs://none-such/x', 'workdir')
    assert len(asked) == 2


def test_many_threads_write_one_object_each_whole(folder):
    contents = [bytes([i]) * 50_000 for i in range(8)]
    threads = [threading.Thread(target=files.write, args=(folder / 'x', content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (folder / 'x').read_bytes() in contents
