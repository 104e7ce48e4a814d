"""What a report says: the sections of its page, from an evaluation and the closer look."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ghn_jax.networks.graph import build_graph
from ghn_jax.networks.spaces import SPLITS
from ghn_jax.networks.spec import NetworkSpec
from ghn_jax.reporting import charts, graph_drawing, tables
from ghn_jax.reporting.closeup import RoundedLayer
from ghn_jax.reporting.page import Figure, Section, Table
from ghn_jax.reporting.report_subject import GIVEN, ReportSubject

NAMES = frozenset(
    ['accuracy', 'scatter', 'sqnr', 'weights', 'activations', 'architecture', 'training']
    + [f'distribution-{split}' for split in (*SPLITS, GIVEN)]
)
"""Of all figures that a report may have."""


def lead(subject: ReportSubject) -> str:
    """One sentence on the whole."""
    p, row = subject.result['protocol'], subject.result['rows'][0]
    count = len(subject.result['networks'])
    return (
        f'{count} networks with predicted weights on {p["images"]} images of {p["dataset"]}. A hypernetwork '
        f'trained in {p["training"]} for {p["step"]} steps; split {row["split"]} at '
        f'{tables.bits_label(row["bits"])}: mean top-1 {row["top1_mean"]:.2f} %.'
    )


def sections(
    subject: ReportSubject,
    specs: Mapping[str, NetworkSpec],
    layers: Sequence[RoundedLayer],
    metrics: Sequence[Mapping[str, Any]] | None,
    about: Mapping[str, Any],
) -> list[Section]:
    """Return all sections of the page.

    specs: 'best' and, of several networks, 'worst'. layers: of the best. metrics: rows of metrics.jsonl, None
    where there is no such file. about: facts on how the report was made, of which 'command' is shown as
    code.
    """
    return [
        _table(subject),
        _distributions(subject),
        _bits(subject),
        _scatter(subject),
        _noise(subject, specs),
        _histograms(subject, specs['best'], layers),
        _architecture(specs['best']),
        _training(metrics),
        _protocol(subject, about),
    ]


def _table(subject: ReportSubject) -> Section:
    headers, lines = tables.table(subject.result, subject.other)
    table = Table(caption='Accuracy by split and bit-width', headers=headers, lines=lines)
    return Section(title='Results', paragraphs=tables.notes(subject.result, subject.other), tables=[table])


def _distributions(subject: ReportSubject) -> Section:
    figures = []
    for split in subject.splits:
        rows = [row for row in subject.result['rows'] if row['split'] == split]
        medians = ', '.join(f'{tables.bits_label(r["bits"])} {r["top1_median"]:.1f} %' for r in rows)
        figures.append(
            Figure(
                name=f'distribution-{split}',
                png=charts.distributions(subject, split),
                alt=f'Box plots of the top-1 accuracy of networks of split {split}. Medians: {medians}.',
                caption=f'Split {split}: a point for each network, beside boxes of median and quartiles. '
                'Dotted: chance.',
            )
        )
    return Section(title='Distribution of accuracy', figures=figures)


def _bits(subject: ReportSubject) -> Section:
    means = '; '.join(
        f'{row["split"]} {tables.bits_label(row["bits"])} {row["top1_mean"]:.1f} %'
        for row in subject.result['rows']
    )
    figure = Figure(
        name='accuracy',
        png=charts.accuracy_by_bits(subject),
        alt=f'Lines of mean top-1 accuracy against bit-width. {means}.',
        caption='Mean top-1 over the networks of a split; bars are standard errors.'
        + (' Dashed: the other run on the same networks.' if subject.other else ''),
    )
    return Section(title='Accuracy against bits', figures=[figure])


def _scatter(subject: ReportSubject) -> Section:
    title = 'Float against quantized'
    if subject.float_bits is None or all(policy.is_float for policy in subject.policies.values()):
        return Section(title=title, paragraphs=['Not shown: needs networks scored in float and quantized.'])
    figure = Figure(
        name='scatter',
        png=charts.float_against_quantized(subject),
        alt='Scatter plots of the top-1 accuracy of each network quantized against that in float, '
        'a panel for each bit-width.',
        caption='A point for each network; what lies under the dotted diagonal is lost by rounding.',
    )
    return Section(title=title, figures=[figure])


def _noise(subject: ReportSubject, specs: Mapping[str, NetworkSpec]) -> Section:
    at = tables.bits_label(subject.closeup)
    paragraphs = [f'The extremes of split {subject.splits[0]} by top-1 at {at}.']
    png = charts.noise_by_layer(subject, specs)
    if png is None:
        paragraphs.append(
            f'Rounding noise is not shown: nothing is rounded at {at}, or it was not measured (--sqnr).'
        )
    figure = png and Figure(
        name='sqnr',
        png=png,
        alt=f'Signal-to-quantization-noise ratio of the weight and the input of every layer at {at}, '
        f'for the {" and the ".join(specs)} network.',
        caption=f'Signal-to-quantization-noise ratio at {at}: of the weight of a layer and of the activation '
        'that enters it. 6 dB are a bit. Vertical lines are borders of cells.',
    )
    bits = subject.result['protocol']['bits']
    headers = ['', 'network', 'cells', 'C', 'parameters', 'depth', *map(tables.bits_label, bits)]
    lines = []
    for which, place in subject.extremes.items():
        n = subject.networks(subject.splits[0])[place]
        top1 = [f'{n["scores"][b]["top1"]:.2f}' for b in bits]
        lines.append([which, n['name'], n['n_cells'], n['C'], f'{n["parameters"]:,}', n['depth'], *top1])
    table = Table(caption='Top-1 in percent', headers=headers, lines=lines)
    return Section(
        title='Best and worst network',
        paragraphs=paragraphs,
        tables=[table],
        figures=[figure] if figure else [],
    )


def _histograms(subject: ReportSubject, spec: NetworkSpec, layers: Sequence[RoundedLayer]) -> Section:
    at, names = tables.bits_label(subject.closeup), ', '.join(layer.name for layer in layers)
    is_folded = subject.protocol.batch_norm == 'calibrated'
    folded = ' with the normalisations folded into them' if is_folded else ''
    weights = Figure(
        name='weights',
        png=charts.weight_histograms(layers),
        alt=f'Histograms of predicted weights and of the values they are rounded to, of the layers {names}.',
        caption=f'Predicted weights{folded}, and the levels that they are rounded to at {at}. Beside the '
        'bits: the signal-to-quantization-noise ratio.',
    )
    activations = Figure(
        name='activations',
        png=charts.activation_histograms(layers),
        alt=f'Histograms of the activations that enter the layers {names}.',
        caption='Activations that enter these layers in the quantized network, before they are rounded, on '
        'training images; logarithmic, zeros left out.',
    )
    text = f'{len(layers)} layers of the best network, {spec.name}, as it was scored at {at}.'
    return Section(title='Weights and activations', paragraphs=[text], figures=[weights, activations])


def _architecture(spec: NetworkSpec) -> Section:
    graph = build_graph(spec)
    kinds = ', '.join(f'{count} {label}' for label, count in graph_drawing.count_kinds(graph).items())
    edges = int((graph.distance == 1).sum())
    figure = Figure(
        name='architecture',
        png=graph_drawing.draw(graph),
        alt=f'Graph of {len(graph.nodes)} nodes and {edges} edges, from the image at the top to the logits: '
        f'{kinds}.',
        caption='What the hypernetwork reads: a node for each parameter and each operation without, from the '
        'image (top) to the logits. Bars on the left: the layers of each cell.',
    )
    return Section(
        title='Architecture', paragraphs=[f'The graph of the best network, {spec.name}.'], figures=[figure]
    )


def _training(metrics: Sequence[Mapping[str, Any]] | None) -> Section:
    title = 'Training'
    if metrics is None:
        return Section(title=title, paragraphs=['Not shown: the run has no metrics (it was converted).'])
    png = charts.training_curves(metrics)
    if png is None:
        return Section(title=title, paragraphs=['Not shown: the metrics of the run have no values yet.'])
    figure = Figure(
        name='training',
        png=png,
        alt=f'Loss and accuracy of the hypernetwork against the step, until step {metrics[-1]["step"]}.',
        caption='Means since the row before, over the networks of the steps; validation: mean top-1 of '
        'networks of split val.',
    )
    return Section(title=title, figures=[figure])


def _protocol(subject: ReportSubject, about: Mapping[str, Any]) -> Section:
    shown = {'Protocol': subject.result['protocol']}
    if subject.other:
        shown['Protocol of the other run'] = subject.other['protocol']
    shown['This report'] = about
    tables = [
        Table(
            caption=caption,
            headers=['what', 'value'],
            lines=[(key, _plain(value)) for key, value in values.items() if key != 'command'],
        )
        for caption, values in shown.items()
    ]
    commands = [_plain(values['command']) for values in shown.values() if 'command' in values]
    return Section(title='Protocol and command', tables=tables, code=['\n'.join(commands)])


def _plain(value: Any) -> str:
    """A value of a protocol as text."""
    return value if isinstance(value, str) else json.dumps(value)
