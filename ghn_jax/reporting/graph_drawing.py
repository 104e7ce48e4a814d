"""The graph of a network as a picture: every node below those that it reads, layer under layer.

The layout is K. Sugiyama's (1981): layers by longest paths, edges cut into pieces from layer to layer, nodes
ordered by the means of their neighbours.

Axes: N nodes | V vertices: nodes, then the bends of edges that cross layers.
"""

import dataclasses
import re
from typing import Any

import numpy as np
from sklearn.isotonic import isotonic_regression

from ghn_jax.networks.graph import NetworkGraph
from ghn_jax.networks.graph_batch import levels
from ghn_jax.reporting import plotting

_SWEEPS = 12
_LEAST_WIDTH = 5.0  # of a picture, in distances of nodes: chains are not drawn larger
# Primitive -> (what the legend calls it, colour, marker). Colours are Okabe and Ito's, which the colour-blind
# tell apart; shapes differ, too.
_KINDS = {
    'input': ('input', 'black', 'o'),
    'conv': ('convolution, linear', '#0072B2', 's'),
    'sep_conv': ('depthwise convolution', '#56B4E9', 's'),
    'dil_conv': ('dilated convolution', '#009E73', 's'),
    'bn': ('batch norm', '#E69F00', 'o'),
    'ln': ('layer norm', '#F0E442', 'o'),
    'bias': ('bias', '#999999', 'o'),
    'sum': ('sum', '#D55E00', 'D'),
    'concat': ('concatenation', '#CC79A7', 'D'),
    'max_pool': ('max pooling', '#D55E00', 'v'),
    'avg_pool': ('average pooling', '#F0E442', 'v'),
    'glob_avg': ('global average', '#009E73', 'v'),
    'msa': ('attention', '#CC79A7', '*'),
    'cse': ('squeeze and excitation', '#E69F00', '*'),
    'pos_enc': ('positions', '#56B4E9', '*'),
}


@dataclasses.dataclass(frozen=True)
class Drawing:
    """Where the nodes of a graph are drawn, and the edges between them.

    Attributes:
      layer: int [N], from 0, the first at the top; every edge goes to a later one.
      x: float [N], the place in its layer.
      paths: edge (sender, receiver) -> points (x, layer) [L, 2] from the one to the other, in every layer.
    """

    layer: np.ndarray
    x: np.ndarray
    paths: dict[tuple[int, int], np.ndarray]


def place(name: str) -> str:
    """Return where in its network a parameter is: 'stem', '0' (the number of a cell) or 'head'."""
    if match := re.match(r'cells\.(\d+)\.', name):
        return match[1]
    return 'head' if name.startswith('classifier') else 'stem'


def count_kinds(graph: NetworkGraph) -> dict[str, int]:
    """Count the nodes by what the legend calls them."""
    primitives = [node.primitive for node in graph.nodes]
    return {label: primitives.count(p) for p, (label, *_) in _KINDS.items() if p in primitives}


def lay_out(graph: NetworkGraph) -> Drawing:
    """Place the nodes: as late as what reads them allows, so that cells follow one another."""
    edges = graph.distance == 1
    behind = levels(edges[::-1, ::-1].T)[::-1]  # edges on the longest path to the end
    layer = behind.max() - behind
    height, n = list(layer), len(layer)
    senders, receivers = (ends.tolist() for ends in np.nonzero(edges))
    chains = {}
    for sender, receiver in zip(senders, receivers):
        bends = range(layer[sender] + 1, layer[receiver])
        chains[sender, receiver] = [sender, *range(len(height), len(height) + len(bends)), receiver]
        height += bends
    x = _spread(np.array(height), n, [pair for c in chains.values() for pair in zip(c, c[1:])])
    points = np.stack([x, height], 1)
    return Drawing(layer, x[:n], {edge: points[chain] for edge, chain in chains.items()})


def _spread(height: np.ndarray, n: int, links: list[tuple[int, int]]) -> np.ndarray:
    """x of every vertex, [V]: near its neighbours' mean, and apart from the others of its layer."""
    members = [np.flatnonzero(height == h) for h in range(height.max() + 1)]
    above: list[list[int]] = [[] for _ in height]
    below: list[list[int]] = [[] for _ in height]
    for upper, lower in links:
        above[lower].append(upper)
        below[upper].append(lower)
    x = np.zeros(len(height))
    for own in members:
        x[own] = np.arange(len(own)) - (len(own) - 1) / 2
    room = np.where(np.arange(len(height)) < n, 1.0, 0.5)  # a line needs less than a node
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        for own in members if down else members[::-1]:
            read = above if down else below
            wanted = np.array([np.mean(x[read[v]]) if read[v] else x[v] for v in own])
            order = np.argsort(wanted, kind='stable')
            # The least squares under the constraint of distances: they are taken off, and x may not fall.
            widths = room[own[order]]
            offset = np.cumsum(np.concatenate([[0], (widths[1:] + widths[:-1]) / 2]))
            x[own[order]] = isotonic_regression(wanted[order] - offset) + offset
    return x


def draw(graph: NetworkGraph) -> bytes:
    """Draw a PNG of the graph, with the cells along the left side."""
    from matplotlib.collections import LineCollection

    drawing, plt = lay_out(graph), plotting.pyplot()
    height = int(drawing.layer.max()) + 1
    fig, panel = plt.subplots(figsize=(5.6, 1.2 + 0.19 * height), layout='constrained')
    lines = LineCollection(list(drawing.paths.values()), colors='#888888', linewidths=0.9, zorder=1)
    panel.add_collection(lines)
    for primitive, (label, colour, marker) in _KINDS.items():
        own = [i for i, node in enumerate(graph.nodes) if node.primitive == primitive]
        if own:
            size = 60 if marker == '*' else 34
            panel.scatter(
                drawing.x[own], drawing.layer[own], size, colour, marker=marker, zorder=2,
                label=f'{label} ({len(own)})', edgecolors='black', linewidths=0.5,
            )  # fmt: skip
    ends = np.concatenate(list(drawing.paths.values()))[:, 0]
    width = max(np.ptp(ends), _LEAST_WIDTH)
    middle = (ends.min() + ends.max()) / 2
    _mark_cells(panel, graph, drawing)
    panel.set_xlim(middle - 0.85 * width, middle + 0.6 * width)  # the left fifth is for the cells
    panel.set_ylim(height - 0.4, -0.6)
    panel.set_axis_off()
    fig.legend(loc='outside lower center', ncols=3, fontsize=8, frameon=False, handletextpad=0.2)
    return plotting.encoded(fig, dpi=160)


def _mark_cells(panel: Any, graph: NetworkGraph, drawing: Drawing) -> None:
    """A bar from the first to the last parameter of each cell; those that share layers lie side by side."""
    own: dict[str, list[int]] = {}
    for node, layer in zip(graph.nodes, drawing.layer.tolist()):
        if node.name != node.primitive:  # it has a parameter
            own.setdefault(place(node.name), []).append(layer)
    lanes: list[int] = []  # the last layer of each
    across = panel.get_yaxis_transform()  # x in shares of the panel
    for part, layers in sorted(own.items(), key=lambda item: min(item[1])):
        first, last = min(layers), max(layers)
        lane = next((k for k, end in enumerate(lanes) if end < first), len(lanes))
        lanes[lane : lane + 1] = [last]
        x, y = 0.02 + 0.09 * lane, [first - 0.3, last + 0.3]
        panel.plot([x, x], y, color='black', linewidth=2.5, solid_capstyle='butt', transform=across)
        text = part if part in ('stem', 'head') else f'cell {part}'
        panel.text(
            x + 0.01, sum(y) / 2, text, rotation=90 if last - first > 3 else 0, va='center', fontsize=8,
            transform=across,
        )  # fmt: skip
