"""The picture of the study of initialisation: what is lost, by layer, and over training."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ghn_jax.reporting import plotting
from ghn_jax.reporting.charts import COLOURS
from ghn_jax.reporting.tables import bits_label
from ghn_jax.studies.block_kinds import role_of
from ghn_jax.studies.initialization_tables import (
    TENSORS,
    Record,
    last,
    learned,
    marks_of,
    mean_of_layers,
    norm_of,
)

WIDTH = 7.4  # inches
_DPI = 80
_NORMS = {'bn': 'batch norm', 'none': 'no norm'}
_STYLES = ('-', '--')
_LAYERS_OF = 'residual'  # the block whose layers are shown one by one


def picture(runs: Sequence[Record]) -> bytes:
    """Return the picture as a PNG: three parts, one below the other.

    runs: records of trainings, as `initialization_tables` has them.
    """
    fig = plotting.pyplot().figure(figsize=(WIDTH, 11), layout='constrained')
    accuracy, layers, training = fig.subfigures(3, 1, height_ratios=(4.2, 4.4, 2.4))
    _accuracy(accuracy, runs)
    _layers(layers, runs)
    _training(training, runs)
    return plotting.encoded(fig, dpi=_DPI)


def _accuracy(fig: Any, runs: Sequence[Record]) -> None:
    """Top-1 of each block and initialisation, a map for W8/A8 and one for W4/A4."""
    fig.suptitle('Top-1 in percent after training, mean over seeds', fontsize=9)
    kinds, starts = (list(dict.fromkeys(run[key] for run in runs)) for key in ('kind', 'init'))
    for panel, bits in zip(fig.subplots(1, 2, sharey=True), ('w8a8', 'w4a4'), strict=True):
        top1 = np.full((len(kinds), len(starts)), np.nan)
        for i, kind in enumerate(kinds):
            for j, start in enumerate(starts):
                members = [run for run in runs if (run['kind'], run['init']) == (kind, start)]
                if members:
                    top1[i, j] = np.mean([last(run)['top1'][bits] for run in members])
                    colour = 'white' if top1[i, j] < 60 else 'black'
                    panel.text(j, i, f'{top1[i, j]:.0f}', ha='center', va='center', fontsize=6, color=colour)
        panel.imshow(top1, vmin=0, vmax=100, cmap='viridis', aspect='auto')
        panel.set_title(bits_label(bits), fontsize=8)
        panel.set_xticks(range(len(starts)), starts, rotation=60, ha='right', rotation_mode='anchor')
        panel.set_yticks(range(len(kinds)), kinds)
        panel.tick_params(labelsize=7)


def _layers(fig: Any, runs: Sequence[Record]) -> None:
    """Noise of rounding to 8 bits by layer, a panel for each kind of residual block: mean, least and most."""
    fig.suptitle(
        f'SQNR at 8 bits by layer of {_LAYERS_OF} blocks, dB: mean and span of the trainings that learned',
        fontsize=9,
    )
    for panel, (convolution, norm) in zip(
        fig.subplots(2, 2, sharey=True).flat,
        [(c, n) for c in ('regular', 'separable') for n in _NORMS],
        strict=True,
    ):
        kind = f'{convolution}-{norm}-{_LAYERS_OF}'
        good = [last(run) for run in runs if run['kind'] == kind and learned(run)]
        names = list(good[0]['weights']) if good else []
        for k, tensor in enumerate(TENSORS):
            columns = [_present([scores[tensor][name]['sqnr8'] for scores in good]) for name in names]
            places = [i for i, column in enumerate(columns) if column]
            spans = [(min(columns[i]), float(np.mean(columns[i])), max(columns[i])) for i in places]
            if spans:
                low, mean, high = zip(*spans, strict=True)
                panel.plot(places, mean, marker='os'[k], color=COLOURS[k], label=tensor, markersize=4)
                panel.fill_between(places, low, high, color=COLOURS[k], alpha=0.15, linewidth=0)
        panel.set_title(f'{convolution}, {_NORMS[norm]}', fontsize=8)
        panel.set_xticks(range(len(names)), [role_of(n) for n in names], rotation=60, ha='right')
        panel.tick_params(labelsize=7)
        panel.grid(alpha=0.3)
        if panel.lines:
            panel.legend(fontsize=7, frameon=False)


def _training(fig: Any, runs: Sequence[Record]) -> None:
    """Ratio of ranges of weights over training, with batch norms and without, a line for each start."""
    fig.suptitle('Range of a weight to the mean range of its channels, over training', fontsize=9)
    starts, marks = list(dict.fromkeys(run['init'] for run in runs)), marks_of(runs)
    panels = fig.subplots(1, 2, sharey=True)
    for panel, norm in zip(panels, _NORMS, strict=True):
        for k, start in enumerate(starts):
            good = [run for run in runs if run['init'] == start and norm_of(run) == norm and learned(run)]
            ratios = [
                mean_of_layers([run['scores'][mark] for run in good], 'weights', 'ratio') for mark in marks
            ]
            if _present(ratios):
                style = _STYLES[k // len(COLOURS)]
                panel.plot(marks, ratios, style, color=COLOURS[k % len(COLOURS)], label=start, linewidth=1.2)
        panel.set_title(_NORMS[norm], fontsize=8)
        panel.set_xlabel('passes over the training images', fontsize=7)
        panel.tick_params(labelsize=7)
        panel.grid(alpha=0.3)
    entries: Mapping[str, Any] = {
        label: handle
        for panel in panels
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    if entries:
        fig.legend(entries.values(), entries, loc='outside right', fontsize=6, frameon=False)


def _present(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]
