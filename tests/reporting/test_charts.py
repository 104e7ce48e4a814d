"""The charts of a report: the numbers of its evaluation are what is drawn."""

import dataclasses

import numpy as np
import pytest

from ghn_jax.evaluation import results
from ghn_jax.reporting import charts, plotting, tables
from ghn_jax.reporting.report_subject import make_subject
from tests.pictures import check_picture, drawn, texts
from tests.reporting.examples import BITS, METRICS, make_layers, make_networks, make_result

SPLITS = ('test', 'val')


@pytest.fixture(scope='module')
def subject():
    return make_subject(make_result(), make_result(seed=1))


def draw(chart, *arguments):
    """The figure that a chart draws; its picture is not blank."""
    with drawn() as figures:
        check_picture(chart(*arguments))
    (figure,) = figures
    return figure


def top1(result, split, bits):
    return [n['scores'][bits]['top1'] for n in result['networks'] if n['split'] == split]


def test_accuracies_are_drawn_as_a_point_for_each_network_about_a_box(subject):
    figure = draw(plotting.accuracy_picture, subject.result, subject.other)
    for split, panel in zip(SPLITS, figure.axes, strict=True):
        points = [line.get_ydata().tolist() for line in panel.lines if line.get_marker() == '.']
        runs = subject.result, subject.other
        assert points == [top1(run, split, bits) for run in runs for bits in BITS]
        drawn_lines = [np.asarray(line.get_ydata(), float) for line in panel.lines]
        for run in runs:
            for bits in BITS:  # the middle of the box
                median = np.median(top1(run, split, bits))
                assert any(y.size == 2 and np.allclose(y, median) for y in drawn_lines)
        assert [tick.get_text() for tick in panel.get_xticklabels()] == ['float', 'W8/A8', 'W4/A4']
    assert 'chance' in texts(figure)


def test_accuracy_against_bits_is_the_mean_of_each_row_for_both_runs(subject):
    (panel,) = draw(charts.accuracy_by_bits, subject).axes
    curves = [line.get_ydata().tolist() for line in panel.lines if len(line.get_ydata()) == len(BITS)]
    rows = results.compare(make_result(), make_result(seed=1))['rows']
    for split in SPLITS:
        for key in ('top1_mean', 'against_top1_mean'):
            assert [row[key] for row in rows if row['split'] == split] in curves


def test_float_is_drawn_against_each_quantized_bit_width(subject):
    figure = draw(charts.float_against_quantized, subject)
    for bits, panel in zip(BITS[1:], figure.axes, strict=True):
        for split, line in zip(SPLITS, panel.lines):
            assert line.get_xdata().tolist() == top1(subject.result, split, 'w32a32')
            assert line.get_ydata().tolist() == top1(subject.result, split, bits)


def test_noise_is_drawn_for_the_layers_of_the_best_and_the_worst(subject):
    specs, networks = make_networks()
    chosen = {which: specs[i] for which, i in subject.extremes.items()}
    figure = draw(charts.noise_by_layer, subject, chosen)
    for (which, spec), panel in zip(chosen.items(), figure.axes, strict=True):
        network = networks[subject.extremes[which]]
        score = network['scores'][subject.closeup]
        for line, values in zip(
            panel.lines, (score['sqnr_weights_by_layer'], score['sqnr_activations_by_layer'])
        ):
            finite = sorted(v for v in line.get_ydata() if np.isfinite(v))
            assert finite == sorted(v for name, v in zip(network['layers'], values) if v is not None)
        assert spec.name in panel.get_title(loc='left')


def test_weights_are_drawn_as_shares_before_and_after_rounding():
    layers = make_layers()
    figure = draw(charts.weight_histograms, layers)
    rounded, exact = figure.axes
    heights = rounded.patches[0].get_data().values
    assert heights.sum() == pytest.approx(100) and len(heights) == 48
    levels, counts = np.unique(layers[0].rounded, return_counts=True)
    (lines,) = rounded.collections
    ends = np.array(lines.get_segments())  # [levels, 2 ends, (x, y)]
    np.testing.assert_allclose(ends[:, 1], np.stack([levels, counts * 100 / 90], 1))
    assert not exact.collections and '4 bits, 20.0 dB' in rounded.get_title()


def test_activations_are_drawn_as_shares_and_their_absence_is_said():
    some, none = draw(charts.activation_histograms, make_layers()).axes
    assert some.patches[0].get_data().values.sum() == pytest.approx(100)
    assert not none.patches and [text.get_text() for text in none.texts] == ['nothing to show']


def test_training_is_drawn_as_curves_of_loss_and_accuracies_in_percent():
    loss, accuracy = draw(charts.training_curves, METRICS).axes
    assert loss.lines[0].get_xydata().tolist() == [[row['step'], row['train/loss']] for row in METRICS]
    assert [line.get_ydata().tolist() for line in accuracy.lines] == [[10.0] * 3, [20.0] * 3]


def test_what_is_not_finite_is_left_out_of_histograms():
    layer = make_layers()[0]
    weights = np.array([1, np.nan, 2, 3], np.float32)
    some = dataclasses.replace(layer, weights=weights, rounded=weights)
    none = dataclasses.replace(layer, weights=weights[1:2], rounded=weights[1:2], edges=layer.edges * np.nan)
    drawn_some, drawn_none = draw(charts.weight_histograms, [some, none]).axes
    assert drawn_some.patches[0].get_data().values.sum() == pytest.approx(75)
    assert [text.get_text() for text in drawn_none.texts] == ['nothing to show']
    _, drawn_none = draw(charts.activation_histograms, [layer, none]).axes
    assert [text.get_text() for text in drawn_none.texts] == ['nothing to show']
    largest = np.array([-1, 1], np.float32) * np.finfo(np.float32).max
    draw(charts.weight_histograms, [dataclasses.replace(layer, weights=largest, rounded=largest)])


@pytest.mark.parametrize(
    ('bits', 'label'),
    [('w32a32', 'float'), ('w4a8', 'W4/A8'), ('wta2', 'WT/A2'), ('layerwise', 'layerwise'),
     ('w4a4 stem.*=w8a8', 'w4a4 stem.*=w8a8')],
)  # fmt: skip
def test_policies_of_files_keep_their_names(bits, label):
    assert tables.bits_label(bits) == label
