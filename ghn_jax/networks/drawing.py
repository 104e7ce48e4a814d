"""Drawing: one candidate for a network of a split, and what speaks against it.

The rules are those of DeepNets-1M (arXiv 2110.13100, its generator and its loader). Left out: its second look
at the limit of parameters with larger images, which rejects 1 candidate in 1,500.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ghn_jax.networks.counts import cost, count_parameters
from ghn_jax.networks.genotype import Genotype
from ghn_jax.networks.ops import OPERATIONS, OPS, has_attention, plain_ops
from ghn_jax.networks.space_rules import SpaceRules
from ghn_jax.networks.spec import NetworkSpec, is_connected

LARGE = tuple(name for name, op in OPERATIONS.items() if op.large)  # at most one of them in a cell
_PARAMETER_FREE = tuple(op for op in OPS if not cost(op, 16).parameters)  # where they are not strided
_BASE_WIDTH, _BASE_FC_DIM = 32, 256  # of networks whose width the loader does not draw
_LOADER_WIDTHS, _LOADER_FC_DIMS = tuple(range(32, 129, 16)), tuple(range(64, 513, 64))
WIDE_FACTOR = 4


def propose(
    rules: SpaceRules, split: str, rng: np.random.Generator, *, is_plain: bool = False
) -> NetworkSpec | str:
    """Draw one candidate by the rules of a split. is_plain: it is a `plain` network.

    Returns:
        The network, or why it is rejected.
    """
    spec = plain(rules, rng) if is_plain else _mixed(rules, rng)
    if isinstance(spec, str):
        return spec
    size = count_parameters(spec)
    if size > rules.max_params:
        return 'too many parameters'
    if split == 'train':
        return widened(rules, spec, size, rng)
    return dataclasses.replace(spec, C=WIDE_FACTOR * spec.C) if split == 'wide' else spec


def plain(rules: SpaceRules, rng: np.random.Generator) -> NetworkSpec:
    """Draw a plain network: each cell is one operation on what the one before has made, maybe residual.

    Such are VGG, ResNet and MobileNet, but for where they widen. Resolution is halved by the operation or by
    pooling. Half have no convolutions of 1x1 before the operations, and so one width throughout. Norms are a
    choice for each, however deep it is.
    """
    op, beside = _choice(rng, plain_ops(rules.ops)), _choice(rng, besides(rules.ops))
    halving = _choice(rng, [op, *pools(rules.ops)])
    preproc = 1 not in rules.C_mults or rng.random() < 0.5
    stem_type = _choice(rng, rules.stem_types)
    return NetworkSpec(
        C=_BASE_WIDTH if rules.channels is None else _choice(rng, rules.channels),
        n_cells=int(rng.integers(rules.cells[0], rules.cells[1] + 1)),
        ks=_choice(rng, rules.ks),
        stem_type=stem_type,
        stem_pool=stem_type == 0 and rng.random() > 0.5,
        norm=_choice(rng, rules.norms),
        preproc=preproc,
        C_mult=_choice(rng, rules.C_mults) if preproc else 1,
        fc_layers=_choice(rng, rules.fc_layers),
        fc_dim=_BASE_FC_DIM if rules.fc_dims is None else _choice(rng, rules.fc_dims),
        glob_avg=True,
        genotype=chain(op, beside, halving),
        num_classes=rules.num_classes,
    )


def besides(ops: Sequence[str]) -> list[tuple[str, int]]:
    """Return what may stand beside the operation in the cells of plain networks: nothing, or their input."""
    return [entry for entry in (('none', 0), ('skip_connect', 1)) if entry[0] in ops]


def pools(ops: Sequence[str]) -> list[str]:
    """Return the operations of pooling among these; plain networks may halve the resolution by one."""
    return [op for op in ops if OPERATIONS[op].pools]


def chain(op: str, beside: tuple[str, int], halving: str) -> Genotype:
    """Return the genotype of a plain network. beside: one of `besides`. halving: in its reduction cells."""
    normal, reduce = (((each, 1), beside) for each in (op, halving))
    return Genotype(normal=normal, normal_concat=(2,), reduce=reduce, reduce_concat=(2,))


def _mixed(rules: SpaceRules, rng: np.random.Generator) -> NetworkSpec | str:
    """Draw a network of DeepNets-1M's kind, or say why a candidate is rejected."""
    n_cells = int(rng.integers(rules.cells[0], rules.cells[1] + 1))
    threshold = _choice(rng, rules.deep_cells)
    deep = n_cells > threshold
    steps = int(rng.integers(rules.min_steps, (rules.max_steps_deep if deep else rules.max_steps) + 1))
    genotype = _genotype(rules, steps, rng)
    objection = _objection(rules, genotype)
    if objection:
        return objection
    vit = has_attention(genotype.ops)

    if not is_connected(genotype, n_cells):
        return 'disconnected'
    C_mult = _choice(rng, rules.C_mults)
    stem_type = _choice(rng, rules.stem_types)
    shallow = n_cells <= rules.cells[0] + 1 and steps <= rules.max_steps_deep
    return NetworkSpec(
        C=_BASE_WIDTH if rules.channels is None else _choice(rng, rules.channels),
        n_cells=n_cells,
        ks=_choice(rng, rules.ks),
        stem_type=stem_type,
        stem_pool=stem_type == 0 and rng.random() > 0.5,
        norm=_choice(rng, rules.norms) if shallow else 'bnorm' if 'bnorm' in rules.norms else None,
        # Plain inputs only where shapes allow and attention is there to mix the channels.
        preproc=steps > 1 or C_mult > 1 or not vit or rng.random() > 0.8,
        C_mult=C_mult,
        fc_layers=_choice(rng, rules.fc_layers),
        fc_dim=_BASE_FC_DIM if rules.fc_dims is None else _choice(rng, rules.fc_dims),
        glob_avg=vit or deep or rng.random() >= rules.flat_head_share,
        genotype=genotype,
        num_classes=rules.num_classes,
    )


def _genotype(rules: SpaceRules, steps: int, rng: np.random.Generator) -> Genotype:
    """Draw two cells, as DARTS reads them off a softmax of tiny random weights [edges, ops].

    DARTS keeps each state's two heaviest edges and each edge's heaviest op. Rows are independent and ops
    exchangeable, so this draws two sources, every ordered pair with the same chance, and for each of them an
    op, every op with the same chance.
    """
    ops = tuple(op for op in OPS if op in rules.ops + rules.redrawn_ops and (steps > 1 or op != 'none'))
    free = tuple(op for op in ops if op in _PARAMETER_FREE)
    pool_only = rng.random() < rules.pool_only_share and any(op != 'none' for op in free)
    drop = steps > 1 and rng.random() > 0.5  # some states are left out of the cell's output, never the last
    concat = tuple(i for i in range(2, steps + 2) if i == steps + 1 or not drop or rng.random() > 0.5)

    def cell(choices):
        entries = []
        for state in range(2, steps + 2):
            first, second = int(rng.integers(state)), int(rng.integers(state - 1))
            second += second >= first
            entries += [(choices[rng.integers(len(choices))], source) for source in (first, second)]
        return tuple(entries)

    return Genotype(
        normal=cell(ops), normal_concat=concat, reduce=cell(free if pool_only else ops), reduce_concat=concat
    )


def _objection(rules: SpaceRules, genotype: Genotype) -> str | None:
    """Say what speaks against a genotype: hard to train, heavy on memory, or nothing to train."""
    normal, reduce = ([op for op, _ in cell] for cell in (genotype.normal, genotype.reduce))
    both = normal + reduce
    redrawn = next((op for op in rules.redrawn_ops if op in both), None)
    if redrawn:
        return f'has {redrawn}'
    has_conv = any(OPERATIONS[op].convolves for op in both)
    if ('cse' in both and not has_conv) or normal.count('cse') > 1 or reduce.count('cse') > 1:
        return 'cse without convolutions or twice in a cell'
    if any(sum(op in LARGE for op in cell) > 1 for cell in (normal, reduce)):
        return 'two or more large convolutions in a cell'
    if not has_conv and not has_attention(both):
        return 'no trainable op'
    return None


def widened(rules: SpaceRules, spec: NetworkSpec, size: int, rng: np.random.Generator) -> NetworkSpec:
    """Draw the widths of a training network where the space leaves them to DeepNets-1M's loader.

    The larger a network is (size: its parameters before), the fewer widths it may have.
    """
    C, fc_dim = spec.C, spec.fc_dim
    if rules.fc_dims is None:
        fc_dim = _choice(rng, _LOADER_FC_DIMS[:4])
    if rules.channels is None:
        if (
            size > 800_000
            or not spec.glob_avg
            or not spec.genotype.ops.isdisjoint(LARGE)
            or spec.n_cells > 12
        ):
            choices = _LOADER_WIDTHS[:1]
        elif size > 400_000 or spec.n_cells > 10:
            choices = _LOADER_WIDTHS[:2]
        elif size > 200_000 or spec.n_cells > 8:
            choices = _LOADER_WIDTHS[:3]
        else:
            choices = _LOADER_WIDTHS
        C = _choice(rng, choices)
        if rules.fc_dims is None and choices is _LOADER_WIDTHS and C <= 64:
            fc_dim = _choice(rng, _LOADER_FC_DIMS)
    return dataclasses.replace(spec, C=C, fc_dim=fc_dim)


def _choice(rng: np.random.Generator, choices: Sequence[Any]) -> Any:
    return choices[0] if len(choices) == 1 else choices[int(rng.integers(len(choices)))]
