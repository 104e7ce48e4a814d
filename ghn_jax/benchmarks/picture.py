"""Figures as pictures: bars of seconds, curves over the length of networks, bars of ratios."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ghn_jax.benchmarks import ratios
from ghn_jax.benchmarks.options import Row
from ghn_jax.reporting import plotting

_COLOURS = {'float': 'tab:blue', 'qat': 'tab:orange'}
_OTHER = 'tab:green'
MAX_BARS = 100  # of a comparison: the first ones; a picture has at most 65,000 pixels on a side
_TITLES = {
    'predict': 'prediction: seconds for each network',
    'train': 'training step: seconds for each network',
    'evaluate': 'evaluation: seconds for each network on 10,000 images',
}


def picture(result: Mapping[str, Any], *, suffix: str = '.png') -> bytes:
    """Draw a panel for each thing that was timed.

    Args:
      result: of `benchmark.benchmark`.
      suffix: of the file, which says what kind of picture it is.
    """
    what = list(dict.fromkeys(row['what'] for row in result['rows']))
    panels = []
    for name in what:
        rows = [row for row in result['rows'] if row['what'] == name]
        for draw, height in _PANELS.get(name, [(_seconds, _bar_height)]):
            panels.append((functools.partial(draw, rows=rows), height(rows)))
    machine = result['machine']
    title = f'{machine["device"]}, {machine["cpus"]} CPU cores, jax {machine["jax"]}'
    return _drawn(panels, title, suffix)


def picture_of_comparison(result: Mapping[str, Any], *, suffix: str = '.png') -> bytes:
    """Draw a bar for each ratio of `ratios.compare`: as measured, and at equal speed of the machines."""
    rows = [row for row in result['rows'] if row['ratio'] is not None][:MAX_BARS]

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
        panel.set_yticks(range(len(rows)), [f'{ratios.label(row)}: {row["figure"]}' for row in rows])
        panel.tick_params(axis='y', labelsize=8)
        panel.invert_yaxis()
        panel.margins(x=0.12)
        panel.set_xlabel('B / A')
        panel.legend(loc='upper center', bbox_to_anchor=(0.3, -0.1), ncols=2, fontsize=8, frameon=False)

    title = f'A: {result["a"]}\nB: {result["b"]}'
    return _drawn([(draw, 0.8 + 0.4 * len(rows))], title, suffix)


def _drawn(panels: Sequence[tuple[Callable, float]], title: str, suffix: str) -> bytes:
    """panels: (draws into its axes, height in inches), one below the other."""
    heights = [height for _, height in panels]
    fig, axes = plotting.pyplot().subplots(
        len(panels), 1, figsize=(9, sum(heights) + 0.7), height_ratios=heights, squeeze=False,
        layout='constrained',
    )  # fmt: skip
    for panel, (draw, _) in zip(axes.flat, panels):
        draw(panel)
        panel.grid(axis='x', alpha=0.3)
        panel.set_axisbelow(True)
    fig.suptitle(title, fontsize=10)
    return plotting.encoded(fig, suffix)


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
    names = [ratios.label(row).split(', ', 1)[-1] for row in rows]
    colours = [_COLOURS.get(row.get('mode', ''), _OTHER) for row in rows]
    what = rows[0]['what']
    _bars(panel, names, values, colours, _TITLES.get(what, f'{what}: seconds for each network'))


def _compile(panel, rows: Sequence[Row]) -> None:
    names = [f'{r["split"]}, {r["function"]}, width {r["width"]}' + ', msa' * r['msa'] for r in rows]
    _bars(panel, names, [row['compile_s'] for row in rows], _OTHER, 'seconds to compile each program')


def _profile(panel, rows: Sequence[Row]) -> None:
    parts = list(dict.fromkeys(row['part'] for row in rows))
    modes = list(dict.fromkeys(row['mode'] for row in rows))
    for k, mode in enumerate(modes):
        shown = [row for row in rows if row['mode'] == mode]
        values = [row['step_ms'] for row in shown]
        places = [parts.index(row['part']) + (k - (len(modes) - 1) / 2) * 0.38 for row in shown]
        bars = panel.barh(places, values, 0.34, color=_COLOURS.get(mode, _OTHER), label=mode)
        panel.bar_label(
            bars, [f'{v:.3g} ms, {row["share_percent"]:.1f} %' for v, row in zip(values, shown)],
            padding=3, fontsize=7,
        )  # fmt: skip
    panel.set_yticks(range(len(parts)), parts, fontsize=8)
    panel.invert_yaxis()
    panel.margins(x=0.22, y=0.02)
    panel.set_xlabel('milliseconds for each step')
    panel.legend(loc='upper right', fontsize=8)
    title = f'parts of a training step: {rows[0]["networks"]} networks, {rows[0]["images_per_step"]} images'
    panel.set_title(title, fontsize=10)


def _cells_time(panel, rows: Sequence[Row]) -> None:
    longest = max(row['room'] for row in rows)
    for mode in dict.fromkeys(row['mode'] for row in rows):
        alone = [r for r in rows if r['mode'] == mode and r['room'] == r['cells']]
        shared = [r for r in rows if r['mode'] == mode and r['room'] == longest]
        for chosen, style, name in (
            (alone, 'o-', 'program of its own'),
            (shared, 's--', 'program of the longest'),
        ):
            points = [r['us_per_instruction'] for r in chosen]
            label = f'{mode}, {name}'
            panel.plot(
                [r['cells'] for r in chosen], points, style, color=_COLOURS.get(mode, _OTHER), label=label
            )
    panel.set_xticks(sorted({row['cells'] for row in rows}))
    panel.set_ylim(bottom=0)
    panel.set_ylabel('microseconds per instruction')
    panel.set_xlabel('cells')
    panel.legend(fontsize=8)
    title = f'loss and gradients: width {rows[0]["width"]}, {rows[0]["batch_size"]} images'
    panel.set_title(title, fontsize=10)


def _cells_memory(panel, rows: Sequence[Row]) -> None:
    mode = rows[0]['mode']  # the workspace is that of any mode
    alone = [r for r in rows if r['mode'] == mode and r['room'] == r['cells']]
    for key, style, name in (
        ('workspace_bytes', 'o-', 'workspace, allocated'),
        ('used_bytes', 's--', 'used by the network'),
        ('temp_bytes', '^:', f'besides, temporary ({mode})'),
    ):
        values = [(r['cells'], r[key] / 2**20) for r in alone if r[key] is not None]
        if values:
            panel.plot(*zip(*values), style, label=name)
    panel.set_xticks([row['cells'] for row in alone])
    panel.set_ylim(bottom=0)
    panel.set_ylabel('MiB, program of its own')
    panel.set_xlabel('cells')
    panel.legend(fontsize=8)


# what -> (draws its rows, height in inches) of each of its panels; others are bars of seconds
_PANELS: dict[str, list[tuple[Callable, Callable]]] = {
    'compile': [(_compile, _bar_height)],
    'cells': [(_cells_time, lambda rows: 3.4), (_cells_memory, lambda rows: 3.2)],
    'profile': [(_profile, lambda rows: 1.2 + 0.26 * len(rows))],
    'expected': [],  # computed, not measured: the table says it
}
