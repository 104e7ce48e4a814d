"""The charts of a report, each a PNG narrow enough to be read on a phone. Accuracies are in percent."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ghn_jax.networks.graph import build_graph
from ghn_jax.networks.spec import NetworkSpec
from ghn_jax.quant.policy import quantizable
from ghn_jax.reporting import plotting, tables
from ghn_jax.reporting.closeup import RoundedLayer
from ghn_jax.reporting.graph_drawing import place
from ghn_jax.reporting.report_subject import ReportSubject
from ghn_jax.runs.run import VALIDATION

Row = Mapping[str, Any]
WIDTH = 5.6  # inches
# M. Okabe and K. Ito's, which the colour-blind tell apart; marks and lines differ in shape as well.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
_MARKERS = 'osD^vPX'
_MANY_LEVELS = 32  # of a rounded weight: more are drawn as a histogram


def _subplots(rows: int, columns: int, height: float, **options: Any) -> tuple[Any, np.ndarray]:
    """(figure, panels [rows, columns]); height: of a row in inches."""
    return plotting.pyplot().subplots(
        rows, columns, figsize=(WIDTH, height * rows), squeeze=False, layout='constrained', **options
    )


def _encoded(fig: Any) -> bytes:
    return plotting.encoded(fig, dpi=160)


def _chance(panel: Any, subject: ReportSubject) -> None:
    chance = 100 / subject.result['protocol']['num_classes']
    panel.axhline(chance, color='gray', linestyle=':', linewidth=1.2, label='chance')


def distributions(subject: ReportSubject, split: str) -> bytes:
    """Top-1 of every network of a split at every bit-width, with boxes; both runs, if there are two."""
    return plotting.accuracy_picture(subject.result, subject.other, splits=[split])


def accuracy_by_bits(subject: ReportSubject) -> bytes:
    """Mean top-1 with its standard error against the bit-width, a line for each split and run."""
    fig, ((panel,),) = _subplots(1, 1, 3.8)
    bits = subject.result['protocol']['bits']
    names = tables.labels(subject.result, subject.other)
    keys = (('top1', '-', names[0]), *([('against_top1', '--', names[1])] if subject.other else []))
    for k, split in enumerate(subject.splits):
        rows = [row for row in subject.result['rows'] if row['split'] == split]
        for key, style, name in keys:
            panel.errorbar(
                range(len(bits)), [row[f'{key}_mean'] for row in rows],
                [row[f'{key}_sem'] or 0 for row in rows],
                label=f'{split}: {name}', color=COLOURS[k % len(COLOURS)], marker=_MARKERS[k % len(_MARKERS)],
                linestyle=style, markersize=5, capsize=3,
            )  # fmt: skip
    _chance(panel, subject)
    panel.set_xticks(range(len(bits)), [tables.bits_label(b) for b in bits])
    panel.set_ylabel('mean top-1 accuracy, %')
    panel.grid(axis='y', alpha=0.3)
    chance, *lines = zip(*panel.get_legend_handles_labels())
    entries = zip(*lines, chance)
    fig.legend(*entries, loc='outside lower center', ncols=2, fontsize=9, frameon=False)
    return _encoded(fig)


def float_against_quantized(subject: ReportSubject) -> bytes:
    """Top-1 of every network in float and quantized, a panel for each bit-width. There must be both."""
    exact = subject.float_bits
    others = [name for name, policy in subject.policies.items() if not policy.is_float]
    columns = min(2, len(others))
    fig, panels = _subplots(-(-len(others) // columns), columns, 2.9, sharex=True, sharey=True)
    for panel, bits in zip(panels.flat, others):
        for k, split in enumerate(subject.splits):
            scores = [network['scores'] for network in subject.networks(split)]
            panel.plot(
                [s[exact]['top1'] for s in scores], [s[bits]['top1'] for s in scores],
                _MARKERS[k % len(_MARKERS)], color=COLOURS[k % len(COLOURS)], label=split, alpha=0.6,
                markersize=4, markeredgewidth=0,
            )  # fmt: skip
        panel.axline((0, 0), slope=1, color='gray', linestyle=':', linewidth=1.2, label='equal')
        panel.set_title(tables.bits_label(bits), fontsize=10)
        panel.grid(alpha=0.3)
    for panel in panels.flat[len(others) :]:
        panel.set_axis_off()
    _limit_to_data(panels.flat[0], subject, [exact, *others])
    fig.supxlabel('top-1 in float, %', fontsize=10)
    fig.supylabel('top-1 quantized, %', fontsize=10)
    entries = panels.flat[0].get_legend_handles_labels()
    fig.legend(*entries, loc='outside upper center', ncols=4, fontsize=9, frameon=False)
    return _encoded(fig)


def _limit_to_data(panel: Any, subject: ReportSubject, bits: Sequence[str | None]) -> None:
    """One range for both axes, so that the line of equal accuracy is the diagonal."""
    values = [network['scores'][b]['top1'] for network in subject.result['networks'] for b in bits]
    margin = max(1.0, 0.05 * (max(values) - min(values)))
    limits = min(values) - margin, max(values) + margin
    panel.set_xlim(limits)
    panel.set_ylim(limits)


def noise_by_layer(subject: ReportSubject, specs: Mapping[str, NetworkSpec]) -> bytes | None:
    """SQNR of weights and activations in every layer at the bit-width of the closer look, a panel for each of
    `specs` ('best', 'worst'). None where it was not measured.
    """
    measured = {}
    for which, spec in specs.items():
        network = subject.networks(subject.splits[0])[subject.extremes[which]]
        score = network['scores'][subject.closeup]
        if 'sqnr_weights_by_layer' in score and 'sqnr_activations_by_layer' in score:
            values = zip(score['sqnr_weights_by_layer'], score['sqnr_activations_by_layer'])
            measured[which] = spec, dict(zip(network['layers'], values))
    if not measured:
        return None
    fig, panels = _subplots(len(measured), 1, 2.8, sharey=True)
    for panel, (which, (spec, decibels)) in zip(panels.flat, measured.items()):
        names = [name for name in _layers(spec) if name in decibels]
        for k, label in enumerate(('weight', 'activation')):
            values = [math.nan if (v := decibels[name][k]) is None else v for name in names]
            panel.plot(values, _MARKERS[k], color=COLOURS[k], label=label, markersize=4.5)
        _mark_places(panel, [place(name) for name in names])
        panel.set_title(f'{which}: {spec.name}', fontsize=10, loc='left')
        panel.set_ylabel('SQNR, dB')
        panel.grid(axis='y', alpha=0.3)
    panels.flat[-1].set_xlabel('layer, in the order of the forward pass: stem, cells, head')
    entries = panels.flat[0].get_legend_handles_labels()
    fig.legend(*entries, loc='outside upper center', ncols=2, fontsize=9, frameon=False)
    return _encoded(fig)


def _layers(spec: NetworkSpec) -> tuple[str, ...]:
    return quantizable((p.name, p.shape) for p in build_graph(spec).parameters)


def _mark_places(panel: Any, places: Sequence[str]) -> None:
    """Ticks in the middle of the stem, each cell and the head, lines between them."""
    ticks: dict[str, list[int]] = {}
    for i, name in enumerate(places):
        ticks.setdefault(name, []).append(i)
    for own in list(ticks.values())[1:]:
        panel.axvline(min(own) - 0.5, color='black', alpha=0.15, linewidth=0.8)
    middles = [sum(own) / len(own) for own in ticks.values()]
    crowded = len(middles) > 14
    panel.set_xticks(middles, list(ticks), fontsize=8, rotation=90 if crowded else 0)
    panel.set_xlim(-0.5, len(places) - 0.5)


def weight_histograms(layers: Sequence[RoundedLayer]) -> bytes:
    """Draw weights before and after rounding: shares of a layer's weights, a panel for each layer.

    Those that are not finite are left out.
    """
    finite = lambda values: values[np.isfinite(values)].astype(np.float64)

    def draw(panel: Any, layer: RoundedLayer) -> None:
        weights, rounded, n = finite(layer.weights), finite(layer.rounded), len(layer.weights)
        if not weights.size:
            return _say_nothing(panel)
        bins = np.histogram_bin_edges(weights, 48)
        width = bins[1] - bins[0]
        share = lambda values: np.histogram(values, bins)[0] * 100 / n
        panel.stairs(share(weights), bins, fill=True, color=COLOURS[5], alpha=0.7, label='predicted')
        levels, counts = np.unique(rounded, return_counts=True)
        if layer.bits[0] == 32 or not levels.size:
            return
        if len(levels) > _MANY_LEVELS:
            panel.stairs(share(rounded), bins, color=COLOURS[1], label='rounded')
        else:
            panel.vlines(levels, 0, counts * 100 / n, color=COLOURS[1], linewidth=2, label='rounded')
        panel.set_xlim(min(bins[0], levels[0]) - width, max(bins[-1], levels[-1]) + width)

    return _by_layer(layers, 0, draw, 'value of a weight', '% of the weights')


def activation_histograms(layers: Sequence[RoundedLayer]) -> bytes:
    """Draw activations that enter layers, before they are rounded, zeros left out: a panel for each."""

    def draw(panel: Any, layer: RoundedLayer) -> None:
        total = layer.counts.sum()
        if total and np.isfinite(layer.edges).all():
            panel.stairs(layer.counts * 100 / total, layer.edges, fill=True, color=COLOURS[2], alpha=0.8)
            panel.set_yscale('log')
            panel.yaxis.set_major_formatter('{x:g}')  # the usual one writes mathematics
            panel.minorticks_off()
        else:
            _say_nothing(panel)

    return _by_layer(layers, 1, draw, 'value of an activation', '% of the values')


def _say_nothing(panel: Any) -> None:
    panel.text(0.5, 0.5, 'nothing to show', ha='center', transform=panel.transAxes, fontsize=9)


def _by_layer(layers: Sequence[RoundedLayer], which: int, draw: Any, x: str, y: str) -> bytes:
    """which: 0 for weights, 1 for activations."""
    from matplotlib.ticker import MaxNLocator

    fig, panels = _subplots(-(-len(layers) // 2), 2, 2.3)
    for panel, layer in zip(panels.flat, layers):
        draw(panel, layer)
        noise = layer.decibels[which]
        bits = 'float' if layer.bits[which] == 32 else f'{layer.bits[which] or "ternary"} bits'
        said = bits + (f', {noise:.1f} dB' if math.isfinite(noise) else '')
        panel.set_title(f'{layer.name.removesuffix(".weight")}\n{said}', fontsize=8.5)
        panel.tick_params(labelsize=8)
        panel.xaxis.set_major_locator(MaxNLocator(5))
        panel.grid(axis='y', alpha=0.3)
    for panel in panels.flat[len(layers) :]:
        panel.set_axis_off()
    fig.supxlabel(x, fontsize=10)
    fig.supylabel(y, fontsize=10)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    if handles:
        fig.legend(handles, labels, loc='outside upper center', ncols=2, fontsize=9, frameon=False)
    return _encoded(fig)


def training_curves(rows: Iterable[Row]) -> bytes | None:
    """Draw loss and accuracy of training and top-1 of validation by the step; None without any of them.

    rows: of metrics.jsonl. What is no finite number is left out.
    """
    rows = list(rows)
    validations = [
        name for name in dict.fromkeys(k for row in rows for k in row) if name.startswith(VALIDATION)
    ]
    accuracies = {'training': 'train/accuracy'} | {
        f'validation {tables.bits_label(name.removeprefix(VALIDATION))}': name for name in validations
    }
    curves = {
        'loss': {'training': _curve(rows, 'train/loss')},
        'accuracy, %': {label: _curve(rows, name, 100) for label, name in accuracies.items()},
    }
    curves = {
        y: {label: curve for label, curve in lines.items() if len(curve)} for y, lines in curves.items()
    }
    curves = {y: lines for y, lines in curves.items() if lines}
    if not curves:
        return None
    fig, panels = _subplots(len(curves), 1, 2.4, sharex=True)
    for panel, (y, lines) in zip(panels.flat, curves.items()):
        for k, (label, curve) in enumerate(lines.items()):
            marker = _MARKERS[k % len(_MARKERS)] if len(curve) < 30 else None
            colour = COLOURS[k % len(COLOURS)]
            panel.plot(*curve.T, color=colour, label=label, linewidth=1.3, marker=marker, markersize=4)
        panel.set_ylabel(y)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8, frameon=False)
    panels.flat[-1].set_xlabel('step')
    return _encoded(fig)


def _curve(rows: Iterable[Row], name: str, factor: float = 1) -> np.ndarray:
    """Points (step, factor * value), [n, 2]."""
    points = [
        (row['step'], factor * value)
        for row in rows
        if isinstance(value := row.get(name), float) and math.isfinite(value)
    ]
    return np.array(points, np.float64).reshape(-1, 2)
