"""The benchmark: rows of finite times for exactly the networks given, without a compilation after warm-up."""

import json
import sys
import types

import jax
import numpy as np
import pytest

from ghn_jax.base import counters
from ghn_jax.base.errors import UserError
from ghn_jax.benchmarks import benchmark, timing
from ghn_jax.benchmarks.options import USED_BY, BenchmarkOptions
from ghn_jax.networks.files import save_networks
from ghn_jax.networks.spaces import make_space
from tests.commands import flags_of
from tests.small_run import command, is_one_error_line


@pytest.fixture(scope='module')
def networks():
    space = make_space(
        'convnets250k', ops=('skip_connect', 'conv_1x1'), channels=(16,), fc_dims=(64,), cells=(1, 1),
        max_steps=1, max_steps_deep=1, ks=(3,), stem_types=(1,), flat_head_share=0.0,
    )  # fmt: skip
    return [space.sample('train', 0, i) for i in range(3)]


def test_a_flag_that_would_change_nothing_is_refused():
    for args, words in (
        (['--config=quickstart'], '--config is for what=compile,profile'),
        (['--what=profile', '--config=quickstart', '--batch_size=9'], '--batch_size is for what=train,'),
        (['--what=train', '--target=h100'], '--target is for what=compile'),
        (['--compare=a,b', '--archs=c'], '--archs is for what='),
        (['--what=predict', '--mode=qat'], '--mode is for what='),
    ):
        assert is_one_error_line(command('ghn_jax.benchmark', *args), words, 'leave it out')
    others = {'what', 'compare', 'json', 'plot'}
    assert set(USED_BY) == set(flags_of('ghn_jax.benchmark')) - others
    assert {what for users in USED_BY.values() for what in users} == set(benchmark.WHAT)


@pytest.mark.parametrize('platform, unit', [('linux', 1024), ('darwin', 1)])
def test_the_memory_of_a_process_is_in_bytes_whatever_the_system_counts_in(monkeypatch, platform, unit):
    monkeypatch.setattr(sys, 'platform', platform)
    usage = types.SimpleNamespace(ru_maxrss=2**31 // unit)
    monkeypatch.setattr(timing.resource, 'getrusage', lambda who: usage)
    assert timing.peak_rss() == 2**31 and timing.row([1.0], 0)['peak_rss_gib'] == 2


def test_every_network_is_timed_and_nothing_is_compiled_after_warm_up(networks, tmp_path):
    save_networks(tmp_path / 'nets.json', networks)
    code, out, err = command(
        'ghn_jax.benchmark', f'--archs={tmp_path}/nets.json', '--mode=float', '--meta_batch=2',
        '--batch_size=2', '--num_images=4', f'--json={tmp_path}/out.json',
    )  # fmt: skip
    assert code == 0, err
    result = json.loads((tmp_path / 'out.json').read_text())
    assert [row['what'] for row in result['rows']] == ['predict', 'train', 'evaluate']
    for row in result['rows']:
        assert row['networks'] >= 3
        assert 0 < row['median_s'] <= row['p95_s']
        assert row['compilations_after_warmup'] == 0
        assert row['peak_rss_gib'] > 0
    assert result['machine']['probe_matmul2048_f32_s'][0] > 0
    assert 'compilations_after_warmup' in out


def test_networks_are_timed_beside_pytorch(networks):
    pytest.importorskip('torch')
    options = BenchmarkOptions(specs=tuple(networks), modes=('qat',), batch_size=2, num_images=4)
    rows = benchmark.benchmark(['pytorch'], options)['rows']
    assert [(row['what'], row['mode']) for row in rows] == [
        ('pytorch_train', 'qat'),
        ('pytorch_evaluate', 'qat'),
    ]
    for row in rows:
        assert row['networks'] == 3 and 0 < row['median_s'] <= row['p95_s']
    assert rows[1]['images'] == 4
    assert rows[1]['mean_s_per_10k_images'] == pytest.approx(rows[1]['mean_s'] * 10_000 / 4)
    assert 'pytorch_train' in benchmark.text({'machine': {}, 'rows': rows})


def test_without_pytorch_one_line_says_what_to_install(networks, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch', None)
    with pytest.raises(
        UserError, match='^what=pytorch needs PyTorch, which is not installed: pip install torch$'
    ):
        benchmark.benchmark(['pytorch'], BenchmarkOptions(specs=tuple(networks)))


def test_the_compilation_counter_counts_compilations_only():
    counters.start_counting()
    x, step = np.arange(7.0), jax.jit(lambda x: 3 * x + 1)
    counts = [counters.compilations()]
    for _ in range(2):
        step(x)
        counts.append(counters.compilations())
    assert np.diff(counts).tolist() == [1, 0]


@pytest.mark.parametrize(
    ('what', 'mode', 'message'),
    [
        ('fly', 'qat', 'what=fly: choose from predict, train'),
        ('train', 'int', 'modes=int: choose from float, qat'),
    ],
)
def test_an_unknown_name_is_refused(networks, what, mode, message):
    with pytest.raises(UserError, match=f'^{message}'):
        benchmark.benchmark([what], BenchmarkOptions(specs=tuple(networks), modes=(mode,)))


def test_a_field_whose_flag_has_another_name_is_named_by_its_flag():
    done = command('ghn_jax.benchmark', '--what=cells', '--mode=int')
    assert is_one_error_line(done, '--mode=int: choose from float, qat')
