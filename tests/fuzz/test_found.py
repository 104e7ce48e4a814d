"""What the fuzzers found, and cases thought of: each is refused in one line, as the commands do."""

import io
import json
import os
import time
import zipfile

import numpy as np
import pytest

from ghn_jax.assembly.memory import check_scoring
from ghn_jax.base import jsonfile
from ghn_jax.base.errors import UserError, shown
from ghn_jax.base.jsonlines import read_jsonl
from ghn_jax.cnn.building import build_program
from ghn_jax.evaluation import results
from ghn_jax.hypernet.ghn import GHNConfig
from ghn_jax.hypernet.statefile import load_checkpoint
from ghn_jax.networks.files import load_networks
from ghn_jax.networks.genotype import Genotype
from ghn_jax.networks.spec import NetworkSpec
from ghn_jax.quant.policy import Policy
from ghn_jax.runs.metrics import Metrics
from tests.fuzz import states
from tests.small_run import command, is_one_error_line, write_run

CONV = [['conv_3x3', 0], ['skip_connect', 1]]
CELLS = {'normal': CONV, 'normal_concat': [2], 'reduce': CONV, 'reduce_concat': [2]}
GOOD = {
    'C': 32,
    'n_cells': 5,
    'ks': 3,
    'stem_type': 0,
    'stem_pool': True,
    'norm': 'bnorm',
    'preproc': True,
    'C_mult': 2,
    'fc_layers': 2,
    'fc_dim': 64,
    'glob_avg': True,
    'genotype': CELLS,
    'name': 'good',
}


def cells(op: str, steps: int) -> dict:
    entries = [[op, i % 2] for i in range(2 * steps)]
    concat = list(range(2, steps + 2))
    return {'normal': entries, 'normal_concat': concat, 'reduce': entries, 'reduce_concat': concat}


@pytest.mark.parametrize(
    ('value', 'told'),
    [
        (GOOD | {'C': 4096, 'genotype': cells('conv_7x7', 4)}, 'parameters, more than'),
        (GOOD | {'C': 16, 'n_cells': 512, 'genotype': cells('sep_conv_3x3', 4)}, 'operations, more than'),
        (GOOD | {'C': 2, 'n_cells': 120, 'genotype': cells('conv_7x7', 2)}, 'kernel positions to decode'),
        (GOOD | {'genotype': cells('conv_1x1', 100_000)}, '200,000 entries'),
        ([GOOD | {'C': 8}] * 10_001, '10,001 networks'),
        (GOOD | {'name': 'a' * 201}, 'at most 200 bytes'),
        (GOOD | {'name': 'a\nb'}, 'printable'),
        (GOOD | {'name': '\ud800'}, 'printable'),
        ({'id': [1], 'args': {k: v for k, v in GOOD.items() if k != 'name'}}, 'id is [1]'),
        (GOOD | {'C': [[[[[0] * 100] * 100] * 100]]}, 'C is [[[[['),
        (GOOD | {'n_cells': 10**30}, 'beyond 64 bits'),
        ([GOOD, GOOD | {'name': 'odd', 'C': 33}], "network 1 ('odd')"),
    ],
)
def test_networks_beyond_reason(tmp_path, value, told):
    path = tmp_path / 'nets.json'
    path.write_text(json.dumps(value))
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        load_networks(path)
    assert told in str(error.value) and '\n' not in str(error.value) and len(str(error.value)) < 500
    assert time.monotonic() - start < 5


def test_files_beyond_reason(tmp_path):
    path = tmp_path / 'nets.json'
    path.write_bytes(b'[' * 100 * 2**20)
    with pytest.raises(UserError, match='104,857,600 bytes, more than'):
        load_networks(path)
    os.mkfifo(tmp_path / 'fifo')
    for special in (tmp_path / 'fifo', '/dev/zero', tmp_path, 'a\0b', 'a' * 5000):
        with pytest.raises(UserError, match='cannot be read'):
            load_networks(special)
    path.write_text('{"a": 1e999}')
    with pytest.raises(UserError, match='beyond what a float holds'):
        load_networks(path)


def test_what_is_not_shown_is_not_visited():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, [deep] * 3, {'a': deep}, 'x' * 10**6, 10**6000, list(range(10**6))):
        assert len(shown(value)) <= 60
    assert shown([1, 'a', None]) == repr([1, 'a', None])


def test_values_that_fit_no_memory_are_refused_before_anything_is_compiled(monkeypatch):
    monkeypatch.setattr('ghn_jax.assembly.memory.free_bytes', lambda mesh: 8 * 2**30)  # whatever is free here
    genotype = Genotype.from_dict(cells('conv_1x1', 4))
    spec = NetworkSpec(**GOOD | {'C': 256, 'n_cells': 12, 'genotype': genotype})
    program = build_program([spec], image_size=32, max_params=10**8)
    check_scoring([program], 1)
    with pytest.raises(UserError, match='GiB for batches of 65536 images.*: give a smaller batch_size'):
        check_scoring([program], 65_536)


@pytest.mark.parametrize(
    'pattern',
    [
        '(a+)+b',
        '(a{,}){,}b',
        '(.|.)*x',
        '(a?){50}',
        '.*' * 9,
        '(x' * 30,
        'a{999999999999}',
        '(?=a)',
        '(.*)\\1',
        'x' * 201,
        None,
    ],
)
def test_patterns_that_might_match_for_years(pattern):
    with pytest.raises(UserError, match='rule'):
        Policy(4, 4, [(pattern, 8, 8)])


def test_patterns_that_people_write_are_taken():
    for pattern in (
        'stem.*',
        r'cells\.[0-9]+\._ops\.\d+\.op\.1\.weight',
        '(classifier|stem).*',
        'cells.1?2.*',
    ):
        assert Policy(4, 4, [(pattern, 8, 8)]).rules[0][0] == pattern


# ---- state files


def test_an_archive_that_swells_or_lies_is_not_unpacked(tmp_path):
    path = tmp_path / 'state.npz'
    path.write_bytes(states.bomb(300))
    with pytest.raises(UserError, match='bytes unpacked, more than'):
        load_checkpoint(path)
    for shape in ((10**12,), (2**40, 2**40), (-2, -3)):
        out = io.BytesIO()
        with zipfile.ZipFile(out, 'w') as archive:
            archive.writestr('a.npy', states.npy(states.header(shape), bytes(16)))
        path.write_bytes(out.getvalue())
        with pytest.raises(UserError, match='not the size that its header says'):
            load_checkpoint(path)
    with zipfile.ZipFile(path, 'w') as archive:
        for i in range(10_001):
            archive.writestr(f'{i}', b'')
    with pytest.raises(UserError, match='10,001 entries'):
        load_checkpoint(path)


def test_a_hypernetwork_of_terabytes_is_refused_by_its_config():
    for fields in ({'hid': 4 * 10**5}, {'max_shape': [10**5, 10**5, 11, 11]}, {'num_classes': 10**9}):
        with pytest.raises(UserError, match='parameters, more than'):
            GHNConfig.from_dict(fields)


def test_state_files_of_torch_are_read_without_running_what_is_in_them(tmp_path):
    torch = pytest.importorskip('torch', reason='torch is not installed')
    pytest.importorskip('ptloader', reason='ptloader is not installed: .pt files are not tested')
    path = tmp_path / 'state.pt'

    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'made'),)

    for value, told in (
        ({'a': Hostile()}, 'no dict of named tensors'),
        ({1: torch.zeros(2)}, 'no dict of named tensors'),
        ([torch.zeros(2)], 'it holds a list'),
        ({'a': torch.zeros(2).to_sparse()}, 'does not load'),
        ({'a' * 5 * 2**20: torch.zeros(1)}, 'bytes of pickle'),
    ):
        torch.save(value, path)
        with pytest.raises(UserError, match=told):
            load_checkpoint(path)
    assert not (tmp_path / 'made').exists()
    torch.save({'a': torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match='neither a zip archive'):
        load_checkpoint(path)
    torch.save({'a': torch.nn.Parameter(torch.ones(2))}, path)
    np.testing.assert_array_equal(load_checkpoint(path)[0]['a'], [1, 1])


# ---- files of older runs


def test_metrics_of_an_older_run_are_read_past_whatever_is_in_them(tmp_path):
    path, outside = tmp_path / 'metrics.jsonl', tmp_path / 'outside'
    good = [json.dumps({'step': i, 'train/loss': 1.0}) for i in (1, 2, 3)]
    odd = [
        '[' * 10_000,
        '{"step": true}',
        '{"step": 1.5}',
        'x' * (5 << 20),
        '\0',
        '{"step": ' + '9' * 5000 + '}',
    ]
    lines = [good[0], *odd, good[1], good[2]]
    path.write_bytes('\n'.join(lines).encode() + b'\n\xff\xfe{"step": 9}')
    assert [row['step'] for row in read_jsonl(path)] == [1, 2, 3]
    (tmp_path / 'metrics.jsonl.part').symlink_to(outside)
    with Metrics(tmp_path, 2) as resumed:
        resumed.write(3, {'train/loss': 2.0})
    assert path.read_text().splitlines() == [*good[:2], '{"step": 3, "train/loss": 2.0}']
    assert not outside.exists()
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match='metrics.jsonl is no file: move it away'):
        Metrics(tmp_path, 0)


def test_a_result_is_taken_only_with_all_that_is_read_from_it(tmp_path):
    scores = {'w4a4': {'top1': 1.0, 'top5': 2.0}}
    network = {'split': 'test', 'name': 'a', 'digest': 'd', 'scores': scores}
    protocol = {'training': 'float', 'workdir': 'w', 'step': 1, 'images': 64}
    good = {'rows': [], 'networks': [network], 'protocol': protocol}
    path = tmp_path / 'x.json'
    path.write_text(json.dumps(good))
    assert results.read_result(path) == good
    for bad, told in (
        (good | {'protocol': {}}, 'training of its protocol'),
        (good | {'networks': [1]}, 'network 0'),
        (good | {'networks': [network | {'name': None}]}, 'name of network 0'),
        (
            good | {'networks': [network | {'scores': {'w4a4': {'top1': '9', 'top5': 1}}}]},
            'scores of network 0',
        ),
    ):
        path.write_text(json.dumps(bad))
        with pytest.raises(UserError, match=told):
            results.read_result(path)


def test_integers_of_64_bits_are_told_from_longer_ones():
    assert jsonfile.parse(f'[{2**63 - 1}, {-(2**63)}]', 'x', 'y') == [2**63 - 1, -(2**63)]
    for number in (2**63, -(2**63) - 1):
        with pytest.raises(UserError, match='beyond 64 bits'):
            jsonfile.parse(str(number), 'x', 'y')


# ---- through the commands


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp('hostile') / 'run')


@pytest.mark.parametrize(
    ('value', 'words'),
    [
        (GOOD | {'C': 4096, 'genotype': cells('conv_7x7', 4)}, ["'good'", 'parameters']),
        (GOOD | {'C': 24}, ["'good'", 'C=24']),
        (GOOD | {'fc_dim': 12}, ["'good'", 'fc_dim=12']),
        ([GOOD | {'C': 16 * i, 'n_cells': 1} for i in range(1, 18)], ['17 different widths']),
        ([GOOD, GOOD | {'name': 'odd', 'num_classes': 7}], ["'odd'", '7 classes']),
    ],
)
def test_evaluate_and_benchmark_refuse_at_the_door(workdir, tmp_path, value, words):
    path = tmp_path / 'nets.json'
    path.write_text(json.dumps(value))
    assert is_one_error_line(command('ghn_jax.evaluate', f'--workdir={workdir}', f'--archs={path}'), *words)
    assert is_one_error_line(command('ghn_jax.benchmark', f'--archs={path}'), *words)


def test_predict_writes_no_file_where_a_name_leads_out(workdir, tmp_path):
    path, before = tmp_path / 'nets.json', None
    for name in ('../x', '/tmp/x', '..', 'a/b'):
        path.write_text(json.dumps([GOOD, GOOD | {'name': name}]))
        before = before or sorted(tmp_path.iterdir())
        result = command('ghn_jax.predict', f'--workdir={workdir}', f'--arch={path}', f'--out={tmp_path}')
        assert is_one_error_line(result, 'has no name for a file')
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    'override',
    [
        'ghn={}',
        'seed=99999999999',
        'image_size=9',
        'train.batch_size=10000000',
        'space.cells=(4,512)',
        'space.channels=(24,)',
        '.=3',
        'seed=' + '9' * 5000,
        f'space.channels={tuple(range(16, 1000, 16))}',
    ],
)
def test_train_refuses_configs_beyond_reason(tmp_path, override):
    flags = '--config=configs/test.py', f'--workdir={tmp_path}/run', f'--config.{override}'
    result = command('ghn_jax.train', *flags)
    assert is_one_error_line(result) and len(result[2]) < 1100
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('name', ['a' * 300, '~nobody-of-this-name/x'])
def test_names_that_no_file_can_have(name, tmp_path):
    assert is_one_error_line(command('ghn_jax.predict', f'--workdir={name}'), '--workdir=')
