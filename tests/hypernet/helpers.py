"""Graphs for the tests of the hypernetwork: random ones, small real networks, and the golden ones."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax.hypernet.ghn import GHNConfig, init_params
from ghn_jax.networks.graph import NetworkGraph, Node, Parameter, build_graph
from ghn_jax.networks.graph_batch import batch_graphs, to_graphs_tuple
from ghn_jax.networks.layers import PRIMITIVES
from ghn_jax.networks.spec import NetworkSpec

SMALL = GHNConfig(hid=8, max_shape=(8, 8, 11, 11))  # a hypernetwork that compiles quickly

_BASE = {
    'C': 8,
    'n_cells': 3,
    'ks': 3,
    'stem_type': 0,
    'stem_pool': False,
    'norm': 'bnorm',
    'preproc': True,
    'C_mult': 2,
    'fc_layers': 2,
    'fc_dim': 12,
    'glob_avg': True,
}


def small_spec(*ops: str, **changes) -> NetworkSpec:
    """A spec whose cells hold these ops (an even number) one step after the other."""
    entries = [[op, i % 2] for i, op in enumerate(ops)]
    concat = list(range(2, 2 + len(ops) // 2))
    genotype = {'normal': entries, 'normal_concat': concat, 'reduce': entries, 'reduce_concat': concat}
    return NetworkSpec.from_dict({**_BASE, 'genotype': genotype, **changes})


def small_graphs() -> list[NetworkGraph]:
    """Networks that together have every kind of parameter, with widths below, at and above a tile of 8."""
    return [
        build_graph(
            small_spec(
                'sep_conv_3x3', 'dil_conv_5x5', 'conv_7x1_1x7', 'max_pool_3x3', n_cells=2, C=4, name='conv'
            )
        ),
        build_graph(small_spec('msa', 'cse', n_cells=1, name='vit')),
        build_graph(
            small_spec('conv_3x3', 'skip_connect', norm=None, stem_type=1, fc_layers=1, C=4, name='bnfree')
        ),
    ]


def random_distance(rng: np.random.Generator, n: int, p: float = 0.25) -> np.ndarray:
    """Shortest-path lengths uint8 [n, n] of a random graph whose edges go up; at most 50."""
    edges = np.triu(rng.random((n, n)) < p, 1)
    distance = np.zeros((n, n), np.uint8)
    reached = np.eye(n, dtype=bool)
    for length in range(1, min(n, 51)):
        reached = reached @ edges
        distance[(distance == 0) & reached] = length
    return distance


def random_graph(rng: np.random.Generator, n: int, distance: np.ndarray | None = None) -> NetworkGraph:
    """Nodes with random primitives and sizes joined by random edges; no network, but all the GNN reads."""
    distance = random_distance(rng, n) if distance is None else distance
    nodes = []
    for _ in range(n):
        shape = tuple(int(s) for s in rng.integers(1, 90, 4)) if rng.random() < 0.7 else None
        nodes.append(Node(str(rng.choice(PRIMITIVES)), 'x', shape, 0))
    return NetworkGraph(spec=None, nodes=tuple(nodes), distance=distance, parameters=())


def batch(graphs: list[NetworkGraph], max_nodes: int, wave_size: int = 4):
    graphs = [to_graphs_tuple(graph) for graph in graphs]
    return jax.tree.map(jnp.asarray, batch_graphs(graphs, max_nodes=max_nodes, wave_size=wave_size))


def random_params(config: GHNConfig, seed: int = 0):
    """Parameters for tests, float32: small normal numbers of the right shapes, without compiling the
    generator."""
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray(0.3 * rng.normal(size=s.shape), jnp.float32), shapes)


def to_float64(tree):
    """Floats as float64; to be called where 64-bit JAX is on."""
    floats = lambda x: (
        jnp.asarray(x, jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else jnp.asarray(x)
    )
    return jax.tree.map(floats, tree)


def relative(a, b) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-300))


class Golden:
    """The golden architectures as graphs in their published node order, and the reference evaluations."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.archs = {arch['id']: arch for arch in json.loads((folder / 'open/archs.json').read_text())}
        self.refs = {ref['id']: ref for ref in json.loads((folder / 'open/refs.json').read_text())}
        self.distances = np.load(folder / 'open/graphs.npz')

    def arrays(self, name: str):
        return np.load(self.folder / 'open/refs' / f'{name}.npz')

    def graph(self, name: str) -> NetworkGraph:
        arch = self.archs[name]
        nodes = tuple(Node(p, n, None if s is None else tuple(s), cell) for p, _, cell, n, s in arch['nodes'])
        place = {node.name: i for i, node in enumerate(nodes)}
        parameters = []
        for parameter, shape in arch['params']:
            owner = (
                parameter if parameter in place else parameter.removesuffix('bias') + 'weight'
            )  # norm biases
            row = int(parameter.endswith('bias'))
            parameters.append(Parameter(parameter, tuple(shape), place[owner], row))
        return NetworkGraph(
            spec=NetworkSpec.from_dict({**arch['args'], 'name': name}),
            nodes=nodes,
            distance=self.distances[name],
            parameters=tuple(parameters),
        )
