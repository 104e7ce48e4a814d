"""Figures as pictures: bars of seconds, curves over the length of networks, bars of ratios."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ghn_jax.speed import comparison
from ghn_jax.speed.options import Row

_COLOURS = {'float': 'tab:blue', 'qat': 'tab:orange'}
_OTHER = 'tab:green'
_TITLES = {
    'predict': 'prediction: seconds for each network',
    'train': 'training step: seconds for each network',
    'evaluate': 'evaluation: seconds for each network on 10,000 images',
}


def picture(result: Mapping[str, Any], *, suffix: str = '.png') -> bytes:
    """A panel for each thing that was timed."""
    what = list(dict.fromkeys(row['what'] for row in result['rows']))
    panels = []
    for name in what:
        rows = [row for row in result['rows'] if row['what'] == name]
        draw, height = _PANELS.get(name, (_seconds, _bar_height))
        panels.append((lambda panel, draw=draw, rows=rows: draw(panel, rows), height(rows)))
    machine = result['machine']
    title = f'{machine["device"]}, {machine["cpus"]} CPU cores, jax {machine["jax"]}'
    return _drawn(panels, title, suffix)


def picture_of_comparison(result: Mapping[str, Any], *, suffix: str = '.png') -> bytes:
    """A bar for each ratio: as measured, and at equal speed of the machines."""
    rows = [row for row in result['rows'] if row['ratio'] is not None]

    def draw(panel):
        for offset, key, colour, name in (
            (-0.2, 'ratio', 'tab:gray', 'as measured'),
            (0.2, 'scaled_ratio', 'tab:blue', 'at equal speed of the machines'),
        ):
            values = [row[key] for row in rows]
            places = [i + offset for i, v in enumerate(values) if v is not None]
            known = [v for v in values if v is not None]
            bars = panel.barh(places, known, 0.36, color=colour, label=name)
            panel.bar_label(bars, [f'{v:.2f}' for v in known], padding=3, fontsize=8)
        panel.axvline(1, color='black', linewidth=1)
        panel.set_yticks(range(len(rows)), [f'{comparison.label(row)}: {row["figure"]}' for row in rows])
        panel.tick_params(axis='y', labelsize=8)
        panel.invert_yaxis()
        panel.margins(x=0.12)
        panel.set_xlabel('B / A')
        panel.legend(loc='upper center', bbox_to_anchor=(0.3, -0.1), ncols=2, fontsize=8, frameon=False)

    title = f'A: {result["a"]}\nB: {result["b"]}'
    return _drawn([(draw, 0.8 + 0.4 * len(rows))], title, suffix)


def _drawn(panels: Sequence[tuple[Callable, float]], title: str, suffix: str) -> bytes:
    """panels: (draws into its axes, height in inches), one below the other."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    heights = [height for _, height in panels]
    fig, axes = plt.subplots(
        len(panels), 1, figsize=(9, sum(heights) + 0.7), height_ratios=heights, squeeze=False,
        layout='constrained',
    )  # fmt: skip
    for panel, (draw, _) in zip(axes.flat, panels):
        draw(panel)
        panel.grid(axis='x', alpha=0.3)
        panel.set_axisbelow(True)
    fig.suptitle(title, fontsize=10)
    out = io.BytesIO()
    fig.savefig(out, format=suffix.removeprefix('.'), dpi=130)
    plt.close(fig)
    return out.getvalue()


def _bar_height(rows: Sequence[Row]) -> float:
    return 0.8 + 0.35 * len(rows)


def _bars(panel, names: Sequence[str], values: Sequence[float], colours, title: str) -> None:
    bars = panel.barh(range(len(values)), values, 0.65, color=colours)
    panel.bar_label(bars, [f'{v:.3g}' for v in values], padding=3, fontsize=8)
    panel.set_yticks(range(len(values)), names, fontsize=8)
    panel.invert_yaxis()
    panel.margins(x=0.1)
    panel.set_title(title, fontsize=10)


def _seconds(panel, rows: Sequence[Row]) -> None:
    """Mean seconds of each row; scores for 10,000 images."""
    values = [row.get('mean_s_per_10k_images', row['mean_s']) for row in rows]
    names = [comparison.label(row).split(', ', 1)[-1] for row in rows]
    colours = [_COLOURS.get(row.get('mode', ''), _OTHER) for row in rows]
    what = rows[0]['what']
    _bars(panel, names, values, colours, _TITLES.get(what, f'{what}: seconds for each network'))


_PANELS: dict[str, tuple[Callable, Callable]] = {}  # what -> (draws its rows, height in inches); else seconds
