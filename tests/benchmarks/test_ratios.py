"""Comparisons of two files of figures: ratios of what was measured on the same thing, and only of that."""

import json
import os
import pathlib

import pytest

from ghn_jax.benchmarks import ratios
from tests.pictures import check_picture, drawn, lengths_of_bars
from tests.small_run import command, is_one_error_line


def figures(probe=0.1, **changes):
    """A result of one training row and one evaluation row."""
    train = {'what': 'train', 'mode': 'qat', 'meta_batch': 8, 'images_per_step': 64, 'networks': 24,
             'mean_s': 2.0, 'peak_rss_gib': 4.0, 'compilations_after_warmup': 0}  # fmt: skip
    score = {'what': 'evaluate', 'mode': 'float', 'networks': 24, 'images': 1000, 'mean_s': 5.0,
             'median_s': 4.0, 'images_per_s': 200.0, 'mean_s_per_10k_images': 50.0}  # fmt: skip
    return {'machine': {'probe_matmul2048_f32_s': [probe, probe]}, 'rows': [train | changes, score]}


def ratios_of(a, b, key='ratio'):
    return {(r['what'], r['figure']): r[key] for r in ratios.compare(a, b)['rows']}


def test_a_file_compared_with_itself_has_ratios_of_one():
    for key in ('ratio', 'scaled_ratio'):
        assert set(ratios_of(figures(), figures(), key).values()) == {1.0, None}  # None: no compilations


def test_ratios_are_b_over_a():
    a, b = figures(), figures(mean_s=3.0, peak_rss_gib=2.0)
    assert ratios_of(a, b)['train', 'mean_s'] == 1.5
    assert ratios_of(a, b)['train', 'peak_rss_gib'] == 0.5
    assert ratios_of(b, a)['train', 'mean_s'] == pytest.approx(1 / 1.5)


def test_a_machine_of_half_the_speed_scales_times_and_rates_but_not_memory():
    a, b = figures(probe=0.1), figures(probe=0.2, mean_s=4.0)
    b['rows'][1] |= {'images_per_s': 100.0, 'mean_s_per_10k_images': 100.0}
    scaled = ratios_of(a, b, 'scaled_ratio')
    assert scaled['train', 'mean_s'] == scaled['evaluate', 'images_per_s'] == 1.0
    assert scaled['evaluate', 'mean_s_per_10k_images'] == scaled['train', 'peak_rss_gib'] == 1.0
    assert ratios_of(a, b)['train', 'mean_s'] == 2.0


def test_without_a_probe_times_are_not_scaled():
    b = figures()
    del b['machine']['probe_matmul2048_f32_s']
    scaled = ratios_of(figures(), b, 'scaled_ratio')
    assert scaled['train', 'mean_s'] is None
    assert scaled['train', 'peak_rss_gib'] == 1.0


def test_rows_of_other_settings_are_not_paired():
    a, b = figures(), figures(meta_batch=4)
    both = ratios.compare(a, b)
    assert {r['what'] for r in both['rows']} == {'evaluate'}
    assert 'meta_batch=8' in both['only_a'][0]
    assert 'meta_batch=4' in both['only_b'][0]


def test_scores_on_other_numbers_of_images_compare_by_10000_images():
    a, b = figures(), figures()
    b['rows'][1] |= {'images': 2000, 'median_s': 8.0, 'mean_s': 10.0}
    found = ratios_of(a, b)
    assert found['evaluate', 'median_s_per_10k_images'] == 1.0
    assert ('evaluate', 'mean_s') not in found


PEER = {
    'machine': {'torch': '2'},
    'probe_matmul2048_f32_s': 0.1,
    'predict': {'predict_mean_s': 0.2, 'predict_median_s': 0.1, 'predict_p95_s': 0.4, 'per_arch': [{}, {}]},
    'train:8': {'mb': 8, 'mean_step_per_net_s': 1.0, 'peak_rss_gib': 8.0},
    'qtrain:8': {'mb': 8, 'mean_step_per_net_s': 4.0, 'peak_rss_gib': 8.0},
    'evaluate_10k_images_median_s': {'float': 20.0, 'fakequant': 30.0},
}


@pytest.fixture
def files(tmp_path):
    def write(**contents):
        for name, content in contents.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (tmp_path / f'{name}.json').write_text(text)
        return f'--compare={tmp_path}/a.json,{tmp_path}/b.json'

    return write


def test_the_peers_figures_stand_for_ours(files, tmp_path):
    code, out, err = command('ghn_jax.benchmark', files(a=PEER, b=figures()), f'--json={tmp_path}/out.json')
    assert code == 0, err
    rows = {
        (r['what'], r['mode'], r['figure']): r
        for r in json.loads((tmp_path / 'out.json').read_text())['rows']
    }
    assert rows['train', 'qat', 'mean_s']['ratio'] == 0.5  # of 4 seconds
    assert (
        rows['evaluate', 'float', 'median_s_per_10k_images']['ratio'] == 2.0
    )  # 4 s for 1,000: 40 for 10,000
    assert ('train', 'float', 'mean_s') not in rows  # we have none
    assert '0.500' in out


def test_every_figure_of_the_real_peer_file_is_read(shared):
    peer = json.loads((shared / 'peer/perf.json').read_text())
    rows = ratios.read_figures(shared / 'peer/perf.json')['rows']
    steps = sum('train:' in k for k in peer)
    assert len(rows) == 1 + steps + len(peer['evaluate_10k_images_median_s'])
    assert all(v is not None for row in rows for v in row.values())


def test_a_picture_of_the_ratios_is_written(files, tmp_path):
    flags = files(a=PEER, b=figures()), f'--plot={tmp_path}/out.png', f'--json={tmp_path}/out.json'
    with drawn() as pictures:
        code, _, err = command('ghn_jax.benchmark', *flags)
    assert code == 0, err
    check_picture((tmp_path / 'out.png').read_bytes())
    rows = json.loads((tmp_path / 'out.json').read_text())['rows']
    (panel,) = pictures[0].axes
    known = [row[key] for key in ('ratio', 'scaled_ratio') for row in rows if row['ratio'] is not None]
    assert lengths_of_bars(panel) == [ratio for ratio in known if ratio is not None]


def test_a_picture_of_no_known_kind_is_refused(files, tmp_path):
    result = command('ghn_jax.benchmark', files(a=PEER, b=figures()), f'--plot={tmp_path}/out.txt')
    assert is_one_error_line(result, '--plot', '.png')


@pytest.mark.parametrize(
    ('b', 'words'),
    [
        ('{', ('no JSON',)),
        ({'rows': [1]}, ('no figures',)),
        ([], ('no figures',)),
        (
            {'machine': {}, 'rows': [{'what': 'fly', 'mean_s': 1.0}]},
            ('no rows in common', 'train, qat', 'fly'),
        ),
    ],
)
def test_files_that_do_not_compare_are_one_line(files, tmp_path, b, words):
    result = command('ghn_jax.benchmark', files(a=figures(), b=b), f'--json={tmp_path}/out.json')
    assert is_one_error_line(result, *words)
    assert not os.path.exists(tmp_path / 'out.json')


def test_a_missing_file_and_a_single_file_are_one_line(files, tmp_path):
    flag = files(a=figures())
    assert is_one_error_line(command('ghn_jax.benchmark', flag), 'b.json', 'cannot be read')
    alone = f'--compare={pathlib.Path(tmp_path)}/a.json'
    assert is_one_error_line(command('ghn_jax.benchmark', alone), 'two files')
    assert is_one_error_line(command('ghn_jax.benchmark', flag, '--what=train'), '--what')
