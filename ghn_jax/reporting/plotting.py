"""Figures drawn by matplotlib, which takes a second to import: it is imported where a figure is drawn."""

import io
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from ghn_jax.evaluation.results import Result
from ghn_jax.reporting.tables import bits_label, labels

PICTURES = ('.png', '.pdf', '.svg')
"""What the name of a picture may end in."""


def pyplot() -> Any:
    """matplotlib.pyplot, for files and no screen; text is shown as it is, for names may have dollars."""
    import matplotlib

    matplotlib.use('Agg')
    matplotlib.rcParams['text.parse_math'] = False
    from matplotlib import pyplot as plt

    return plt


def encoded(fig: Any, suffix: str = '.png', *, dpi: int = 130) -> bytes:
    """Return a figure as the content of a file with this suffix; the figure is closed."""
    out = io.BytesIO()
    try:
        fig.savefig(out, format=suffix.removeprefix('.'), dpi=dpi)
    finally:
        pyplot().close(fig)
    return out.getvalue()


def accuracy_picture(
    result: Result, other: Result | None, *, splits: Sequence[str] = (), suffix: str = '.png'
) -> bytes:
    """Draw the networks' top-1 at every bit-width, as points and boxes, a panel for each split.

    splits: those that are shown; (): all.
    """
    protocol = result['protocol']
    splits, bits = splits or list(dict.fromkeys(r['split'] for r in result['rows'])), protocol['bits']
    runs = [r for r in (result, other) if r is not None]
    columns = min(len(splits), 3 if other is None else 2)
    rows = -(-len(splits) // columns)
    width = max(5.5, (1.0 + 0.55 * len(bits) * len(runs)) * columns)
    fig, axes = pyplot().subplots(
        rows, columns, figsize=(width, 3.6 * rows + 0.9), sharey=True, squeeze=False, layout='constrained'
    )
    handles = []
    for panel, split in zip(axes.flat, splits):
        for r, (run, colour) in enumerate(zip(runs, ('tab:blue', 'tab:orange'))):
            offset = (r - (len(runs) - 1) / 2) * 0.38
            networks = [n for n in run['networks'] if n['split'] == split]
            top1 = [[n['scores'][b]['top1'] for n in networks] for b in bits]
            places = np.arange(len(bits)) + offset
            boxes = panel.boxplot(
                top1, positions=places, widths=0.3, showfliers=False, manage_ticks=False,
                medianprops={'color': colour, 'linewidth': 2}, boxprops={'color': colour},
                whiskerprops={'color': colour}, capprops={'color': colour},
            )  # fmt: skip
            jitter = np.random.default_rng(0).uniform(-0.1, 0.1, len(networks))
            for place, values in zip(places, top1):
                panel.plot(
                    place + jitter, values, '.', color=colour, alpha=0.4, markersize=5, markeredgewidth=0
                )
            handles.append(boxes['medians'][0])
        panel.axhline(100 / protocol['num_classes'], color='gray', linestyle=':', linewidth=1)
        panel.set_xticks(range(len(bits)), [bits_label(b) for b in bits])
        panel.set_xlim(-0.6, len(bits) - 0.4)
        panel.set_title(
            f'{split} ({sum(n["split"] == split for n in result["networks"])} networks)', fontsize=10
        )
        panel.grid(axis='y', alpha=0.3)
    for panel in axes.flat[len(splits) :]:
        panel.set_axis_off()
    for row in axes:
        row[0].set_ylabel('top-1 accuracy, %')
    names = [
        f'trained: {label}, step {r["protocol"]["step"]}' for label, r in zip(labels(result, other), runs)
    ]
    chance = axes.flat[0].lines[-1]
    on = f'{protocol["images"]} {protocol["image_split"]} images of {protocol["dataset"]}'
    title = f'Networks with predicted weights, {on}'
    fig.suptitle('\n'.join([title, *textwrap.wrap(protocol['note'], 16 * int(width))]), fontsize=10)
    entries = [*handles[: len(runs)], chance], [*names, 'chance']
    fig.legend(*entries, loc='outside lower center', ncols=3, fontsize=9, frameon=False)
    return encoded(fig, suffix)
