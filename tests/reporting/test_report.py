"""The page of a report: whole in itself, with the numbers of its evaluation, whatever the names in it."""

import copy
import json
import os
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.evaluation import results
from ghn_jax.networks.graph import build_graph
from ghn_jax.networks.spaces import make_space
from ghn_jax.reporting import closeup, contents, graph_drawing, page, tables
from ghn_jax.reporting.report_subject import make_subject, read_subject
from tests.pages import Page, check_self_contained
from tests.reporting.examples import BITS, HOSTILE, METRICS, make_layers, make_networks, make_result
from tests.small_run import command, is_one_error_line, write_run

TITLES = (
    'Results', 'Distribution of accuracy', 'Accuracy against bits', 'Float against quantized',
    'Best and worst network', 'Weights and activations', 'Architecture', 'Training', 'Protocol and command',
)  # fmt: skip
ABOUT = {'date': '2026-01-02', 'command': f'python -m ghn_jax.report --workdir={HOSTILE}'}


def make_sections(subject, metrics=METRICS):
    specs, _ = make_networks()
    chosen = {which: specs[i] for which, i in subject.extremes.items()}
    return contents.sections(subject, chosen, make_layers(), metrics, ABOUT)


@pytest.fixture(scope='module')
def sections():
    return make_sections(make_subject(make_result(), make_result(seed=1)))


@pytest.fixture(scope='module')
def text(sections) -> str:
    return page.render(f'Report on {HOSTILE}', HOSTILE, sections)


def test_a_page_has_all_sections_and_needs_nothing_else(text, sections):
    found = Page(text)
    assert tuple(found.texts['h2']) == TITLES
    check_self_contained(text)
    assert len(found.all('img')) == sum(len(section.figures) for section in sections)
    assert {figure.name for section in sections for figure in section.figures} < contents.NAMES
    ids = {attributes['id'] for attributes in found.all('section')}
    assert all((a['href'] or '').removeprefix('#') in ids for a in found.all('a'))
    assert found.texts['pre'] == [ABOUT['command']] and '2026-01-02' in found.texts['td']


def test_the_table_has_the_numbers_of_the_result(text):
    result = results.compare(make_result(), make_result(seed=1))
    cells = Page(text).texts['td']
    for row in result['rows']:
        line = [row['split'], row['bits'], str(row['n']), f'{row["top1_mean"]:.2f} ± {row["top1_sem"]:.2f}']
        assert line in [cells[i : i + 4] for i in range(len(cells))]
        assert any(cell.startswith(f'{row["difference_top1_mean"]:+.2f} [') for cell in cells)


def test_a_table_says_whose_parameters_were_scored_and_by_which_statistics():
    result = make_result()
    said = lambda **more: tables.notes(result | {'protocol': result['protocol'] | more})[0]
    assert said().startswith('qat w4a4, step 9. Mean') and 'of each batch of 16.' in said()
    assert said(parameters='initial').startswith('The parameters are those that the model starts with; none')
    assert said(parameters='a.safetensors').startswith('The parameters are those of a.safetensors; none are')
    fixed = {'batch_norm': 'calibrated', 'ranges': 'calibrated', 'quantized': {'bits': 'w4a4'}}
    assert said(**fixed).startswith('The network is quantized already; no parameters are predicted. Mean')
    assert said(**fixed).endswith('Bits, statistics and ranges are its own.')
    fixed['quantized'] |= {'method': 'mse', 'calibration_images': '128'}
    assert said(**fixed).endswith('are its own (method mse, 128 training images).')


def test_the_best_and_the_worst_are_those_of_the_first_split_at_the_bits_of_the_closer_look():
    result = make_result()
    for bits in BITS:
        subject = make_subject(result, closeup=bits)
        top1 = [network['scores'][bits]['top1'] for network in result['networks'][:3]]
        assert subject.extremes == {'best': int(np.argmax(top1)), 'worst': int(np.argmin(top1))}
    assert make_subject(result).closeup == 'w4a4'
    with pytest.raises(UserError, match='^closeup=w2a2 is none of .*w32a32, w8a8, w4a4'):
        make_subject(result, closeup='w2a2')


def test_hostile_names_are_text(text):
    found = Page(text)
    assert '<script' not in text
    assert found.texts['h1'] == [f'Report on {HOSTILE}'] and HOSTILE in found.texts['td']


def test_a_run_without_metrics_and_one_of_float_only_say_what_is_missing():
    result = make_result()
    result['protocol'] |= {'bits': ['w32a32']}
    found = make_sections(make_subject(result), metrics=None)
    missing = [section.title for section in found if not section.figures]
    assert missing == [
        'Results', 'Float against quantized', 'Best and worst network', 'Training', 'Protocol and command'
    ]  # fmt: skip
    said = ' '.join(paragraph for section in found for paragraph in section.paragraphs)
    assert 'no metrics' in said and 'needs networks scored in float and quantized' in said
    assert 'Rounding noise is not shown' in said
    check_self_contained(page.render('a', 'b', found))
    empty = make_sections(make_subject(result), metrics=[{'step': 1, 'train/loss': None}])
    assert 'have no values' in ' '.join(empty[-2].paragraphs)


def test_files_are_replaced_whole_and_older_figures_removed(tmp_path, sections, monkeypatch):
    figures = [figure for section in sections for figure in section.figures]
    (tmp_path / 'mine.png').write_text('not of a report')
    page.write(tmp_path, 'first', figures, contents.NAMES)
    page.write(tmp_path, 'second', figures[:1], contents.NAMES)
    names = {'index.html', 'mine.png', f'{figures[0].name}.png'}
    assert {file.name for file in tmp_path.iterdir()} == names
    assert (tmp_path / 'index.html').read_text() == 'second'

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(UserError, match='No space left on device'):
        page.write(tmp_path, 'third', figures, contents.NAMES)
    assert {file.name for file in tmp_path.iterdir()} == names
    assert (tmp_path / 'index.html').read_text() == 'second'


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda r: r['protocol'].pop('range_rule'), 'its protocol lacks range_rule'),
        (lambda r: r['protocol'].update(num_classes=None), 'num_classes of its protocol is None'),
        (lambda r: r['protocol'].update(num_classes=0), 'num_classes of its protocol is 0'),
        (lambda r: r['protocol'].update(seed=-1), 'seed of its protocol is -1'),
        (lambda r: r['protocol'].update(calibration_images=0), 'calibration_images of its protocol is 0'),
        (lambda r: r['protocol'].update(seed=True), 'seed of its protocol is True'),
        (lambda r: r['protocol'].update(bits=[]), 'its bits are'),
        (lambda r: r['protocol'].update(bits=['w3a3']), 'its bits are'),
        (lambda r: r['protocol']['policies'].update(w4a4={'weight_bits': 99}), 'activation_bits'),
        (lambda r: r['protocol'].update(batch_norm='none'), 'batch_norm'),
        (lambda r: r['protocol'].update(predicted_for='a'), "bits 'a'"),
        (lambda r: r.update(networks=[]), 'no networks'),
        (lambda r: r['networks'][0].update(split='../x'), 'split of network 0'),
        (lambda r: r['networks'][5].update(depth='deep'), 'depth of network 5'),
        (lambda r: r['networks'][1]['scores'].pop('w4a4'), "network 1 has no scores at 'w4a4'"),
        (lambda r: r['networks'][1].pop('layers'), 'sqnr_weights_by_layer of network 1 at w8a8'),
        (lambda r: r['networks'][1]['layers'].pop(), 'sqnr_weights_by_layer of network 1 at w8a8'),
        (lambda r: r['networks'][1]['scores']['w4a4'].update(agreement='all'), 'agreement of network 1'),
    ],
)
def test_a_result_that_cannot_be_reported_is_refused(tmp_path, change, words):
    result = copy.deepcopy(make_result())
    change(result)
    (tmp_path / 'a.json').write_text(json.dumps(result))
    with pytest.raises(UserError, match=words):
        read_subject(tmp_path / 'a.json')


def test_a_file_is_compared_with_a_file(tmp_path):
    for name, seed in (('a', 0), ('b', 1)):
        (tmp_path / f'{name}.json').write_text(json.dumps(make_result(seed)))
    subject = read_subject(tmp_path / 'a.json', str(tmp_path / 'b.json'))
    assert subject.result['rows'] == results.compare(make_result(), make_result(1))['rows']
    with pytest.raises(UserError, match='is a directory'):
        read_subject(tmp_path / 'a.json', str(tmp_path))


@pytest.mark.parametrize('index', range(4))
@pytest.mark.parametrize('space', ['convnets250k', 'deepnets1m'])
def test_every_edge_of_a_drawing_goes_to_a_later_layer(space, index):
    graph = build_graph(make_space(space).sample('test', 0, index))
    drawn = graph_drawing.lay_out(graph)
    edges = set(zip(*map(np.ndarray.tolist, np.nonzero(graph.distance == 1))))
    assert set(drawn.paths) == edges and len(drawn.layer) == len(drawn.x) == len(graph.nodes)
    for (sender, receiver), path in drawn.paths.items():
        np.testing.assert_array_equal(path[0], [drawn.x[sender], drawn.layer[sender]])
        np.testing.assert_array_equal(path[-1], [drawn.x[receiver], drawn.layer[receiver]])
        np.testing.assert_array_equal(np.diff(path[:, 1]), 1)
    assert drawn.layer.min() == 0
    for layer in range(drawn.layer.max() + 1):  # no node lies on another
        assert np.all(np.diff(np.sort(drawn.x[drawn.layer == layer])) > 0.99)
    assert sum(graph_drawing.count_kinds(graph).values()) == len(graph.nodes)


def test_layers_are_chosen_from_the_first_to_the_last():
    assert closeup.evenly(('a', 'b', 'c', 'd', 'e', 'f', 'g'), 4) == ['a', 'c', 'e', 'g']
    assert closeup.evenly(('a', 'b'), 4) == ['a', 'b']


@pytest.fixture(scope='module')
def workdir(tmp_path_factory) -> pathlib.Path:
    return write_run(tmp_path_factory.mktemp('run'))


def test_bad_input_is_one_line(workdir, tmp_path):
    (tmp_path / 'file').write_text('{}')
    (tmp_path / 'a.json').write_text(json.dumps(make_result()))
    result = f'--result={tmp_path}/a.json'
    (tmp_path / 'old').mkdir()
    (tmp_path / 'old/index.html').touch(mode=0o444)
    for flags, words in (
        ([], ['--workdir is missing']),
        ([f'--workdir={tmp_path}/none'], ['does not exist']),
        ([f'--workdir={workdir}', '--splits=best'], ['--splits=best']),
        ([f'--workdir={workdir}', '--closeup=w2a2', '--bits=w4a4'], ['--closeup=w2a2', 'w4a4']),
        ([f'--workdir={workdir}', f'--out={tmp_path}/file'], ['--out=', 'is a file']),
        ([f'--workdir={workdir}', f'--out={tmp_path}/file/x'], ['--out=', 'under the file']),
        ([f'--workdir={workdir}', f'--out={tmp_path}/old'], ['index.html', 'read-only']),
        ([f'--workdir={workdir}', f'--result={tmp_path}/file'], ['is no result']),
        ([f'--workdir={workdir}', result, '--bits=w4a4'], ['--bits is for an evaluation']),
        ([f'--workdir={workdir}', result], ['9']),  # a step that the run has no checkpoint of
    ):
        assert is_one_error_line(command('ghn_jax.report', *flags), *words), flags
    assert not (workdir / 'report').exists()


@pytest.mark.slow
def test_a_browser_shows_the_page_without_errors_at_every_width(text, tmp_path):
    chromium = shutil.which('chromium') or shutil.which('google-chrome')
    if chromium is None:
        pytest.skip('there is no chromium here: this test needs a browser')
    (tmp_path / 'index.html').write_text(text)
    # A page with a frame of a phone's width, for windows are not made as narrow. Its script may look into the
    # frame only where both are one origin, and so the page is put into it as text.
    for width in (390, 1366):
        outer = f"""<!DOCTYPE html><body style="margin:0">
<iframe id="f" style="width:{width}px;height:900px;border:0"></iframe>
<script>const f = document.getElementById('f');
f.onload = () => {{ const e = f.contentDocument.documentElement, n = [...f.contentDocument.images];
document.title = JSON.stringify([e.scrollWidth, e.clientWidth, n.filter(i => i.naturalWidth > 0).length]); }};
f.srcdoc = {json.dumps(text).replace('</', '<' + chr(92) + '/')};</script>"""
        (tmp_path / 'outer.html').write_text(outer)
        done = subprocess.run(
            [
                chromium, '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
                '--disable-background-networking', '--disable-component-update', '--disable-sync',
                '--enable-logging=stderr', '--v=0', f'--user-data-dir={tmp_path}/profile',
                '--virtual-time-budget=5000', '--dump-dom', (tmp_path / 'outer.html').as_uri(),
            ],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        found = re.search(r'<title>(\[.*?\])</title>', done.stdout)
        assert found, done.stderr
        scrolled, shown, images = json.loads(found[1])
        assert scrolled <= shown <= width
        assert images == len(Page(text).all('img'))
        assert 'CONSOLE' not in done.stderr, done.stderr
