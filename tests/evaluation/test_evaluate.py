"""Scores are those of the plain reference on the predicted weights; a result says all that it rests on."""

import dataclasses
import functools
import itertools
import json
import os
from unittest import mock

import jax
import numpy as np
import pytest

from ghn_jax.assembly.network_batch import prepare
from ghn_jax.base.errors import UserError
from ghn_jax.cnn.lowering import lower
from ghn_jax.cnn.packing import BLOCK
from ghn_jax.cnn.reference import apply_reference
from ghn_jax.datasets.augment import normalize
from ghn_jax.datasets.load import load
from ghn_jax.evaluation import results
from ghn_jax.evaluation.compiled import predictor
from ghn_jax.evaluation.descriptions import about_run, in_percent
from ghn_jax.evaluation.evaluate import check_same_images, evaluate
from ghn_jax.evaluation.evaluation_flags import parse_policies
from ghn_jax.evaluation.evaluation_spec import EvaluationSpec
from ghn_jax.evaluation.protocol import Protocol
from ghn_jax.evaluation.score import score_in_full, score_networks
from ghn_jax.evaluation.selection import Selection, image_batches, select_split
from ghn_jax.hypernet.predict import predict_weights
from ghn_jax.networks.files import load_networks, save_networks
from ghn_jax.networks.graph import build_graph
from ghn_jax.quant.policy import Policy, parse_bits
from ghn_jax.reporting import tables
from ghn_jax.runs.run import load_run
from ghn_jax.runs.task import make_space_of
from tests.evaluation.helpers import FLAGS, INTEGER
from tests.pages import Page, check_self_contained
from tests.pictures import check_picture
from tests.small_run import command, is_one_error_line, write_run
from tests.spies import calls_of
from tests.streams import Ascii, full, without_reader

ARGS = [f'--{key}={value}' for key, value in FLAGS.items()]
SIZE = 8
CALIBRATED = {
    'protocol': Protocol(batch_norm='calibrated', ranges='calibrated', sqnr=True),
    'calibration_batches': 4,
}


@pytest.fixture(scope='module')
def selection(run) -> Selection:
    return select_split(make_space_of(run.config), 'test', seed=0, count=3, image_size=SIZE)


@pytest.fixture(scope='module')
def images(dataset):
    return image_batches(dataset, dataset.test, batch_size=16, num_images=40)


@pytest.fixture(scope='module')
def result(run, dataset):
    return evaluate(run, EvaluationSpec(**FLAGS), dataset=dataset)[0]


def test_scores_are_those_of_the_reference_on_predicted_weights(run, selection, images):
    program, _ = selection.groups[0]
    space = make_space_of(run.config)
    sampled = (space.sample('test', 0, i) for i in range(50))
    # Of the untrained networks these say different classes to different images.
    specs = tuple(itertools.islice((s for s in sampled if s.norm and s.fc_layers == 1), 2))
    shares = score_networks(
        run.ghn,
        run.params,
        Selection(tuple(map(build_graph, specs)), ((program, (0, 1)),)),
        images,
        [parse_bits('float')],
    )
    for spec, share in zip(specs, shares[:, 0]):
        weights = predict_weights(run.ghn, run.params, spec)
        logits_of = jax.jit(lambda x, spec=spec, weights=weights: apply_reference(spec, weights, x))
        counts, classes = np.zeros(2), set()
        for x, y in zip(images.images, images.labels):
            logits = np.asarray(logits_of(normalize(x, images.mean, images.std)))
            classes |= set(logits.argmax(1).tolist())
            rank = np.sum(logits > logits[np.arange(len(y)), y][:, None], axis=1)
            counts += np.sum(rank < 1), np.sum(rank < 5)
        assert len(classes) > 2  # or equal scores would mean little
        np.testing.assert_allclose(share, counts / images.count)


def test_evaluating_again_gives_the_same_numbers_and_compiles_nothing(run, dataset, result, count_compiles):
    with count_compiles() as compiles:
        again, _ = evaluate(run, EvaluationSpec(**FLAGS), dataset=dataset)
    assert compiles.n == 0
    assert again['rows'] == result['rows']
    assert again['networks'] == result['networks']


@pytest.mark.parametrize('bits', [False, True])
def test_each_network_is_lowered_once_and_its_graph_built_once(
    run, dataset, selection, result, tmp_path, monkeypatch, bits
):
    """Whatever the policies; also where the weights are predicted anew for each of them."""
    evaluated = load_run(write_run(tmp_path, bits=True)) if bits else run
    graphs, lowered = calls_of(monkeypatch, build_graph), calls_of(monkeypatch, lower)
    evaluate(evaluated, EvaluationSpec(policies=(Policy(4, 4), Policy(8, 8)), **FLAGS), dataset=dataset)
    assert graphs == list(selection.specs)
    assert [spec for spec in lowered if spec in graphs] == graphs  # others are lowered to build the program


def test_other_parameters_and_other_networks_need_no_compilation(run, images, selection, count_compiles):
    policies = [parse_bits('w3a5')]
    score_networks(run.ghn, run.params, selection, images, policies)
    others = select_split(make_space_of(run.config), 'val', seed=1, count=2, image_size=SIZE)
    assert others.groups[0][0] == selection.groups[0][0]  # one program for both splits
    params = jax.tree.map(lambda p: np.asarray(p) * 0.9, run.params)
    with count_compiles() as compiles:
        score_networks(run.ghn, params, others, images, policies)
    assert compiles.n == 0


def test_a_ghn_told_the_bits_predicts_anew_for_every_policy(selection, images, tmp_path, count_compiles):
    """And one program serves all policies."""
    run = load_run(write_run(tmp_path, bits=True))
    (program, _), *_ = selection.groups
    policies = [parse_bits('float'), Policy(4, 4), Policy(2, 8, (('classifier.*', 8, 8),))]
    score = functools.partial(score_networks, run.ghn, run.params, selection, images)
    shares = score(policies)
    with count_compiles() as compiles:
        for p, policy in enumerate(policies):
            np.testing.assert_array_equal(score([policy])[:, 0], shares[:, p])
            np.testing.assert_array_equal(score(policies, predicted_for=policy)[:, p], shares[:, p])
        assert not np.array_equal(score(policies[1:2], predicted_for=policies[0])[:, 0], shares[:, 1])
    assert compiles.n == 0
    out = jax.numpy.zeros(program.capacity.blocks * BLOCK)
    for policy in policies[:2]:
        networks, (layout,) = prepare(program, [selection.specs[0]], policy, max_nodes=128)
        out = predictor(run.ghn)(run.params, networks, out)
        expected = program.pack(layout, predict_weights(run.ghn, run.params, selection.specs[0], policy))
        np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_ghn_told_the_bits_is_calibrated_for_every_policy(selection, images, dataset, tmp_path):
    run = load_run(write_run(tmp_path, bits=True))
    calibration = image_batches(dataset, dataset.train, batch_size=16, num_images=64)
    how = {'protocol': CALIBRATED['protocol'], 'calibration': calibration}
    score = functools.partial(score_in_full, run.ghn, run.params, selection, images, **how)
    policies = [Policy(4, 4), Policy(8, 8)]
    together, apart = score(policies), [score([policy]) for policy in policies]
    for network, *alone in zip(together, *apart, strict=True):
        for own, (only,) in zip(network, alone, strict=True):
            np.testing.assert_array_equal(own.predicted, only.predicted)
            assert own.sqnr == only.sqnr


def test_policy_files_are_scored_beside_bits(run, dataset, workdir, tmp_path):
    (tmp_path / 'mine.json').write_text(
        '{"weight_bits": 8, "activation_bits": 8, "rules": [["classifier.*", 2, 2]]}'
    )
    (tmp_path / 'w8a8.json').write_text('{"weight_bits": 8, "activation_bits": 8}')
    policies = parse_policies(['w8a8'], [str(tmp_path / 'mine.json')])
    found, _ = evaluate(run, EvaluationSpec(policies=policies, **FLAGS), dataset=dataset)
    assert [row['bits'] for row in found['rows']] == ['w8a8', 'mine'] == found['protocol']['bits']
    assert found['protocol']['policies']['mine']['rules'] == [['classifier.*', 2, 2]]
    assert found['protocol']['predicted_for'] == 'any'
    file = tmp_path / 'a.json'
    flags = f'--workdir={workdir}', f'--json={file}', *ARGS
    code, _, err = command('ghn_jax.evaluate', *flags, f'--policy={tmp_path / "mine.json"}')
    assert code == 0, err
    assert json.loads(file.read_text())['rows'] == found['rows'][1:]  # and no bits that were not asked for
    both = f'--policy={tmp_path / "mine.json"},{tmp_path / "w8a8.json"}'
    (tmp_path / 'none.json').write_text(
        '{"weight_bits": 8, "activation_bits": 8, "rules": [["cells.9.*", 2, 2]]}'
    )
    for more, words in (
        (['--bits=w8a8', both], ["another policy is called 'w8a8'"]),
        ([f'--policy={tmp_path / "none.json"}'], ["policy 'none', network", "'cells.9.*' matches none"]),
        (['--policy=absent.json'], ['absent.json', 'cannot be read']),
        (['--told=w4a4'], ['--told=w4a4', 'told no bits']),
    ):
        assert is_one_error_line(command('ghn_jax.evaluate', *flags, *more), *words)


def test_a_result_says_that_the_ghn_was_told_the_bits(dataset, tmp_path):
    run = load_run(write_run(tmp_path, bits=True, draw=('w2a2', 'w4a4'), draw_per='either'))
    found, _ = evaluate(
        run, EvaluationSpec(policies=[Policy(4, 4)], predicted_for=Policy(8, 8), **FLAGS), dataset=dataset
    )
    p = found['protocol']
    assert (p['predicted_for'], p['training_bits']) == ('w8a8', 'drawn of w2a2, w4a4 by network or layer')
    assert p['training'] == f'qat {p["training_bits"]}, told the bits'


def test_rows_are_the_statistics_of_the_networks(result):
    networks, rows = result['networks'], result['rows']
    assert (
        [r['bits'] for r in rows] == ['w32a32', 'w8a8', 'w4a8', 'w4a4', 'w2a2'] == result['protocol']['bits']
    )
    assert len(networks) == 3 and len({n['digest'] for n in networks}) == 3
    for row in rows:
        assert row['split'] == 'test' and row['n'] == 3
        for top in ('top1', 'top5'):
            values = np.array([n['scores'][row['bits']][top] for n in networks])
            assert np.all((0 <= values) & (values <= 100))
            np.testing.assert_allclose(row[f'{top}_mean'], values.mean())
            np.testing.assert_allclose(row[f'{top}_sem'], np.sqrt(values.var() * 3 / 2 / 3))
            assert row[f'{top}_median'] == np.median(values) and row[f'{top}_max'] == values.max()
    assert all(n['scores'][b]['top1'] <= n['scores'][b]['top5'] for n in networks for b in n['scores'])


def test_the_protocol_says_what_was_scored_and_how(result, dataset):
    p = result['protocol']
    assert (p['dataset'], p['image_split'], p['images'], p['images_dropped']) == ('synthetic', 'test', 32, 8)
    assert (p['step'], p['training_mode'], p['training_bits']) == (3, 'qat', 'w4a4')
    assert p['num_networks'] == {'test': 3}
    assert (p['batch_norm'], p['ranges'], p['units'], p['jax']) == (
        'batch',
        'batch',
        'percent',
        jax.__version__,
    )


def test_the_command_prints_the_table_and_writes_result_and_picture(workdir, result, tmp_path):
    first, second, plot = tmp_path / 'a.json', tmp_path / 'b.json', tmp_path / 'plot.png'
    code, out, err = command('ghn_jax.evaluate', f'--workdir={workdir}', f'--json={first}', *ARGS)
    assert code == 0, err
    written = json.loads(first.read_text())
    assert written['rows'] == result['rows'] and written['networks'] == result['networks']
    assert '--num_networks=3' in written['protocol']['command']
    for row in result['rows']:
        assert f'{row["top1_mean"]:.2f} ± {row["top1_sem"]:.2f}' in out

    code, out, err = command(
        'ghn_jax.evaluate',
        f'--workdir={workdir}',
        f'--json={second}',
        f'--plot={plot}',
        f'--against={first}',
        *ARGS,
    )
    assert code == 0, err
    check_picture(plot.read_bytes())
    for row in json.loads(second.read_text())['rows']:
        assert row['difference_top1_mean'] == row['difference_top1_sem'] == 0
        assert row['against_top1_mean'] == row['top1_mean']
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.json', 'b.json', 'plot.png']


@pytest.mark.parametrize('make', [without_reader, full, Ascii])
def test_the_result_is_written_whatever_becomes_of_the_screen(workdir, result, tmp_path, make):
    flags = f'--workdir={workdir}', f'--json={tmp_path}/a.json', *ARGS
    with make() as stdout, without_reader() as stderr:
        code, _, _ = command('ghn_jax.evaluate', *flags, stdout=stdout, stderr=stderr)
        assert code == 0
        if make is Ascii:
            assert f'{result["rows"][0]["top1_mean"]:.2f} ? ' in stdout.shown
    assert json.loads((tmp_path / 'a.json').read_text())['rows'] == result['rows']


def test_a_full_disk_is_one_line_at_the_end_and_nothing_is_lost_that_can_be_shown(workdir, tmp_path):
    flags = f'--workdir={workdir}', *ARGS
    with full() as stdout:
        code, _, err = command('ghn_jax.evaluate', *flags, stdout=stdout)
    errors = [line for line in err.splitlines() if 'error: ' in line]
    assert code == 2 and len(errors) == 1 and 'in no file' in errors[0] and 'Traceback' not in err
    error = OSError(28, 'No space left on device')
    for flag in ('--json=a.json', '--plot=a.png'):
        with mock.patch.object(os, 'replace', side_effect=error):
            code, out, err = command('ghn_jax.evaluate', *flags, flag.replace('=', f'={tmp_path}/'))
        errors = [line for line in err.splitlines() if 'error: ' in line]
        assert code == 2 and len(errors) == 1 and 'No space left' in errors[0] and 'Traceback' not in err
        assert '±' in out and not list(tmp_path.iterdir())


def test_several_splits_are_scored_one_after_the_other(run, dataset, result):
    both, _ = evaluate(run, EvaluationSpec(splits=['val', 'test'], **FLAGS), dataset=dataset)
    assert [network['split'] for network in both['networks']] == ['val'] * 3 + ['test'] * 3
    assert both['networks'][3:] == result['networks'] and both['rows'][5:] == result['rows']


def test_a_report_shows_the_evaluation_and_a_file_of_it_alike(workdir, calibrated, tmp_path, count_compiles):
    """By the protocol of `calibrated`, whose programs it uses."""
    flags = [f'--workdir={workdir}', '--bits=w32a32,w4a4', *ARGS]
    flags += ['--bn=calibrated', '--ranges=calibrated', '--calibration_batches=4']
    code, out, err = command('ghn_jax.report', *flags)
    assert code == 0, err
    first = workdir / 'report/index.html'
    assert f'report: {first}' in out
    check_self_contained(first.read_text())
    figures = {'accuracy', 'scatter', 'sqnr', 'weights', 'activations', 'architecture', 'distribution-test'}
    assert {file.stem for file in first.parent.glob('*.png')} == figures
    assert 'the run has no metrics' in first.read_text()

    file, second = tmp_path / 'a.json', tmp_path / 'second'
    code, _, err = command('ghn_jax.evaluate', *flags, '--sqnr', f'--json={file}')
    assert code == 0, err
    from_file = f'--workdir={workdir}', f'--result={file}'
    with count_compiles() as compiles:
        code, _, err = command('ghn_jax.report', *from_file, f'--out={second}')
    assert code == 0, err
    assert compiles.n == 0
    pages = [Page((folder / 'index.html').read_text()) for folder in (first.parent, second)]
    assert pages[0].all('img') == pages[1].all('img')
    for row in json.loads(file.read_text())['rows']:
        cell = f'{row["top1_mean"]:.2f} ± {row["top1_sem"]:.2f}'
        assert all(cell in page.texts['td'] for page in pages)

    changed = json.loads(file.read_text())
    changed['networks'][0]['digest'] = '0' * 16
    file.write_text(json.dumps(changed))
    other = tmp_path / 'other'
    assert is_one_error_line(command('ghn_jax.report', *from_file, f'--out={other}'), 'other networks')
    assert not other.exists()


def test_agreement_is_with_the_network_in_float(run, selection, images, result):
    policies = [parse_bits(b) for b in ('float', 'w4a4')]
    scores = score_in_full(run.ghn, run.params, selection, images, policies)
    for network, (exact, rounded) in zip(result['networks'], scores):
        expected = 100 * np.mean(exact.predicted == rounded.predicted)
        assert network['scores']['w4a4']['agreement'] == pytest.approx(expected)
        assert network['scores']['w32a32']['agreement'] == 100
        right = 100 * np.mean(exact.predicted == images.labels.ravel())
        assert network['scores']['w32a32']['top1'] == pytest.approx(right)
    rows = {row['bits']: row for row in result['rows']}
    assert rows['w2a2']['agreement_mean'] < rows['w8a8']['agreement_mean'] <= 100
    quantized = evaluate_rows(run, images, selection, ['w4a4'])
    assert 'agreement_mean' not in quantized[0]  # with what?


def evaluate_rows(run, images, selection, names):
    policies = [parse_bits(name) for name in names]
    scores = score_in_full(run.ghn, run.params, selection, images, policies)
    return results.make_rows([{'split': 's', **in_percent(names, policies, s)} for s in scores], names)


@pytest.fixture(scope='module')
def calibrated(run, dataset):
    return evaluate(run, EvaluationSpec(**FLAGS | CALIBRATED), dataset=dataset)[0]


def test_calibrated_networks_do_not_depend_on_their_batch(
    run, calibrated, selection, dataset, count_compiles
):
    """Nor does a new order of the images, or anything else that is data, compile anything."""
    images = image_batches(dataset, dataset.test, batch_size=16, num_images=32)
    calibration = image_batches(dataset, dataset.train, batch_size=16, num_images=64)
    order = np.random.default_rng(0).permutation(images.count)
    shuffled = images._replace(
        images=images.images.reshape(-1, SIZE, SIZE, 3)[order].reshape(images.images.shape),
        labels=images.labels.ravel()[order].reshape(images.labels.shape),
    )
    policies = [parse_bits(b) for b in ('w8a8', 'w3a5')]
    score = functools.partial(
        score_in_full, run.ghn, run.params, selection, policies=policies, calibration=calibration
    )
    with count_compiles() as compiles:
        for how in (CALIBRATED['protocol'], INTEGER['protocol']):
            for a, b in zip(score(images=images, protocol=how), score(images=shuffled, protocol=how)):
                for x, y in zip(a, b):
                    np.testing.assert_array_equal(x.predicted[order], y.predicted)
    assert compiles.n < 40  # of the integer convolutions, small and on the CPU; no program
    by_batch = score_in_full(run.ghn, run.params, selection, images, policies)
    assert any(
        np.any(x.predicted != y.predicted)
        for a, b in zip(score(images=images, protocol=CALIBRATED['protocol']), by_batch)
        for x, y in zip(a, b)
    )


def test_a_calibrated_result_says_how_and_what_each_layer_loses(calibrated):
    p = calibrated['protocol']
    assert (p['batch_norm'], p['ranges'], p['range_rule']) == ('calibrated', 'calibrated', 'moving_average')
    assert (p['calibration_images'], p['sqnr_images'], p['integer_images']) == (64, 64, 0)
    rows = {row['bits']: row for row in calibrated['rows']}
    assert 'sqnr_weights_mean' not in rows['w32a32']
    assert rows['w8a8']['sqnr_weights_mean'] > rows['w4a8']['sqnr_weights_mean'] + 15
    assert rows['w4a8']['sqnr_activations_mean'] > rows['w4a4']['sqnr_activations_mean'] + 10
    for network in calibrated['networks']:
        score = network['scores']['w4a4']
        assert len(network['layers']) == len(score['sqnr_weights_by_layer'])
        assert 'classifier.0.weight' in network['layers'] and network['depth'] > 2
    text = tables.text(calibrated)
    assert 'BatchNorm of 64 training images, folded; ranges of these (moving average).' in text
    assert 'dB weights' in text and 'Rank correlation of top-1 with parameters/depth. test: w32a32' in text


def test_integer_arithmetic_agrees_and_is_reported(run, dataset):
    policies = [parse_bits(b) for b in ('float', 'w8a8', 'w4a4')]
    found, _ = evaluate(run, EvaluationSpec(policies=policies, **FLAGS | INTEGER), dataset=dataset)
    exact, *rounded = found['rows']
    assert 'integer_disagreement_mean' not in exact
    assert all(0 <= row['integer_disagreement_mean'] < 10 for row in rounded)
    assert 'integer differs' in tables.text(found)


def test_another_run_is_scored_on_the_same_networks(workdir, run, dataset, tmp_path):
    other = write_run(tmp_path / 'other', seed=1)
    policies = [parse_bits('float'), parse_bits('w4a4')]
    few = FLAGS | {'policies': policies}
    found, theirs = evaluate(run, EvaluationSpec(against=other, workdir='mine', **few), dataset=dataset)
    alone, _ = evaluate(load_run(other), EvaluationSpec(**few), dataset=dataset)
    assert theirs['rows'] == alone['rows'] and theirs['networks'] == alone['networks']
    for row in found['rows']:
        pairs = [[n['scores'][row['bits']]['top1'] for n in r['networks']] for r in (found, theirs)]
        difference = np.subtract(*pairs)
        assert row['difference_top1_mean'] == pytest.approx(difference.mean())
        assert (
            difference.min() <= row['difference_top1_low'] <= row['difference_top1_high'] <= difference.max()
        )
    assert theirs['protocol']['workdir'] == str(other) and found['protocol']['workdir'] == 'mine'
    run_of_16 = load_run(other)
    run_of_16 = dataclasses.replace(run_of_16, config=dataclasses.replace(run_of_16.config, image_size=16))
    with pytest.raises(UserError, match='was trained with image_size=8, this run with image_size=16'):
        evaluate(run_of_16, EvaluationSpec(against=other, **few), dataset=dataset)


def test_runs_are_of_the_same_images_by_their_digests_and_else_by_their_names(run):
    def trained_on(name, digest):
        config = dataclasses.replace(run.config, dataset=name)
        return dataclasses.replace(run, config=config, meta={'dataset': {'digest': digest}})

    before = trained_on('before.npz', 7)
    check_same_images(before, trained_on('now.npz', 7), 'other')
    check_same_images(before, trained_on('before.npz', None), 'other')
    with pytest.raises(UserError, match=r'^against=other was trained on other images .* \(before.npz\)'):
        check_same_images(before, trained_on('before.npz', 8), 'other')
    with pytest.raises(UserError, match='^against=other was trained with dataset=now.npz'):
        check_same_images(before, trained_on('now.npz', None), 'other')


def test_the_result_says_which_images_it_is_of_and_which_the_training_had(run, result, dataset):
    assert result['protocol']['images_digest'] == dataset.digest
    trained_on = dataclasses.replace(run, meta={**run.meta, 'dataset': {'digest': 7}})
    assert about_run(trained_on, '', None)['trained_on_images_digest'] == 7


def test_results_by_other_protocols_are_not_compared(calibrated, result):
    with pytest.raises(UserError, match="batch_norm='batch', this is batch_norm='calibrated'"):
        results.check_comparable(result, 'a.json', calibrated['networks'], ['w4a4'], calibrated['protocol'])


def test_results_of_other_networks_or_images_are_not_compared(result, tmp_path):
    networks, bits, protocol = result['networks'], result['protocol']['bits'], {**result['protocol']}
    results.check_comparable(result, 'a.json', networks, bits, protocol)
    changed = [{**networks[0], 'digest': 'x'}, *networks[1:]]
    with pytest.raises(UserError, match='a.json has other networks, from .*-test-0'):
        results.check_comparable({**result, 'networks': changed}, 'a.json', networks, bits, protocol)
    with pytest.raises(UserError, match='a.json has 2 networks, this has 3'):
        results.check_comparable({**result, 'networks': networks[:2]}, 'a.json', networks, bits, protocol)
    with pytest.raises(UserError, match='images=32, this is images=64'):
        results.check_comparable(result, 'a.json', networks, bits, {**protocol, 'images': 64})
    del protocol['images_digest']  # of results from before there was one
    others = {**protocol, 'note': load('synthetic', image_size=8, seed=1).note}  # images of another seed
    with pytest.raises(UserError, match='of seed 0.*of seed 1'):
        results.check_comparable(result, 'a.json', networks, bits, others)
    with pytest.raises(UserError, match='a.json has no w3a3'):
        results.check_comparable(result, 'a.json', networks, ['w3a3'], protocol)
    for content in ('{', '[]', '{"rows": []}'):
        (tmp_path / 'x.json').write_text(content)
        with pytest.raises(UserError, match="x.json' is no"):
            results.read_result(tmp_path / 'x.json')


def test_an_architecture_file_takes_the_place_of_the_splits(run, dataset, selection, tmp_path, monkeypatch):
    # The program for exactly these networks would be one more compilation: the one that is there will do.
    monkeypatch.setattr(
        'ghn_jax.evaluation.evaluate.select_given',
        lambda specs, image_size: Selection(tuple(map(build_graph, specs)), selection.groups),
    )
    save_networks(tmp_path / 'nets.json', selection.specs)
    given, _ = evaluate(
        run, EvaluationSpec(networks=load_networks(tmp_path / 'nets.json'), **FLAGS), dataset=dataset
    )
    assert {n['split'] for n in given['networks']} == {'archs'}
    assert [n['name'] for n in given['networks']] == [s.name for s in selection.specs]
