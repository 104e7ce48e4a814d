"""Networks of the two spaces are distributed as the published ones, and as often rejected."""

import collections
import dataclasses
import json

import numpy as np
import pytest

from ghn_jax.networks.counts import count_parameters
from ghn_jax.networks.genotype import OPS
from ghn_jax.networks.graph import build_graph
from ghn_jax.networks.spaces import SPACES, make_space

BOTH = pytest.mark.parametrize('space', SPACES.values(), ids=SPACES)


def sample(space, n):
    return [space.sample('train', 0, i) for i in range(n)]


_FIELDS = (
    'C', 'ks', 'stem_type', 'stem_pool', 'norm', 'preproc', 'C_mult', 'fc_layers', 'fc_dim', 'glob_avg',
    'n_cells',
)  # fmt: skip


def deviations(specs, stats):
    """How far networks are from published statistics: {what: standard deviations of a chance difference}."""
    n, N, far = len(specs), stats['n'], {}
    values = {field: [getattr(s, field) for s in specs] for field in _FIELDS}
    values['steps'] = [s.genotype.steps for s in specs]
    values['n_concat'] = [len(s.genotype.normal_concat) for s in specs]
    values['none'] = ['none' in s.genotype.ops for s in specs]
    for field, drawn in values.items():
        ours, theirs = collections.Counter(map(str, drawn)), stats['shares'][field]
        chi2, kinds = 0.0, sorted(set(ours) | set(theirs))
        for kind in kinds:  # both counts are samples
            a, b = ours[kind], theirs.get(kind, 0) * N
            chi2 += (a * np.sqrt(N / n) - b * np.sqrt(n / N)) ** 2 / (a + b)
        freedom = len(kinds) - 1
        far[field] = (chi2 - freedom) / np.sqrt(2 * max(freedom, 1))
    for cell in ('normal', 'reduce'):
        counts = [collections.Counter(op for op, _ in getattr(s.genotype, cell)) for s in specs]
        total = np.array([sum(c.values()) for c in counts])
        for op, share in stats[f'genotype_op_frequency_{cell}'].items():
            count = np.array([c[op] for c in counts])
            ratio = count.sum() / total.sum()
            error = np.std(count - ratio * total) / total.mean()  # ops of one network are not independent
            far[f'{cell} {op}'] = abs(share - ratio) / (error * np.sqrt(1 / n + 1 / N) + 1e-9)
    sizes = {
        'n_params': [count_parameters(s) for s in specs],
        'n_params_C32': [count_parameters(dataclasses.replace(s, C=32, fc_dim=256)) for s in specs],
    }
    return far | quantile_deviations(sizes, stats, n)


def quantile_deviations(values, stats, n):
    far = {}
    for name, drawn in values.items():
        for quantile, p in {'p5': 0.05, 'p25': 0.25, 'median': 0.5, 'p75': 0.75, 'p95': 0.95}.items():
            below = np.mean(np.array(drawn) <= stats['quantiles'][name][quantile])
            far[f'{name} {quantile}'] = abs(below - p) / np.sqrt(p * (1 - p) * (1 / n + 1 / stats['n']))
    return far


LIMIT = 4.0  # about a hundred numbers are compared: chance alone gives 3 somewhere


@pytest.fixture(scope='module')
def statistics(shared):
    files = {'convnets250k': 'space_stats.json', 'deepnets1m': 'space_stats_deepnets.json'}
    return {name: json.loads((shared / 'peer' / file).read_text()) for name, file in files.items()}


@BOTH
def test_networks_are_distributed_as_published(space, statistics):
    far = deviations(sample(space, 2500), statistics[space.name])
    assert not {what: round(z, 1) for what, z in far.items() if z > LIMIT}


@pytest.mark.parametrize(
    ('field', 'change'),
    [
        ('steps', {'max_steps_deep': 3}),
        ('n_cells', {'cells': (4, 16)}),
        ('reduce max_pool_3x3', {'pool_only_share': 0.25}),
        ('glob_avg', {'flat_head_share': 0.4}),
        ('norm', {'norms': ('bnorm',)}),
        ('C', {'channels': (32,)}),
        ('n_params median', {'C_mults': (1,)}),
        ('n_params_C32 p95', {'max_params': 2_000_000}),
        ('normal conv_7x7', {'ops': tuple(op for op in OPS if op not in ('msa', 'cse', 'conv_7x7'))}),
    ],
)
def test_a_wrong_rule_would_be_noticed(field, change, statistics):
    wrong = make_space('convnets250k', **change)
    assert deviations(sample(wrong, 1000), statistics['convnets250k'])[field] > LIMIT


@BOTH
def test_candidates_are_rejected_as_often_as_published(space, statistics):
    stats, rng, n = statistics[space.name], np.random.default_rng(0), 4000
    ours = collections.Counter(
        c if isinstance(c, str) else 'ok' for c in (space.propose('train', rng) for _ in range(n))
    )
    same = {
        'has cse': 'cse_in_convnets_style',
        'cse without convolutions or twice in a cell': 'cse',
        'two or more large convolutions in a cell': 'two_or_more_large_convs_in_a_cell',
        'no trainable op': 'no_learnable_ops',
        'disconnected': 'disconnected',
        'too many parameters': 'too_many_params',
    }
    assert set(ours) <= {*same, 'ok'}
    for reason, theirs in same.items():
        share = stats['reject_share_of_candidates'].get(theirs, 0)
        error = np.sqrt(max(share, ours[reason] / n, 1e-3) * (1 / n + 1 / stats['candidates']))
        assert abs(ours[reason] / n - share) < 4 * error, reason


@BOTH
def test_graphs_are_distributed_as_published(space, statistics):
    stats, n = statistics[space.name], 400
    drawn, primitives = collections.defaultdict(list), []
    for spec in sample(space, n):
        graph = build_graph(spec)
        drawn['n_nodes'].append(len(graph.nodes))
        drawn['n_edges_1hop'].append(np.count_nonzero(graph.distance == 1))
        drawn['n_edges_all'].append(np.count_nonzero(graph.distance))
        primitives.append(collections.Counter(node.primitive for node in graph.nodes))
    far = quantile_deviations(drawn, stats, n)
    total = np.array(drawn['n_nodes'])
    for primitive, share in stats['node_primitive_frequency'].items():
        count = np.array([c[primitive] for c in primitives])
        ratio = count.sum() / total.sum()
        error = np.std(count - ratio * total) / total.mean() * np.sqrt(1 / n + 1 / stats['n'])
        far[primitive] = abs(share - ratio) / (error + 1e-4)
    assert not {what: round(z, 1) for what, z in far.items() if z > LIMIT}
