"""Spaces: distributions over networks, sampled by index, so that a million architectures need no file.

Network i of a split is a pure function of (space, split, seed, i). The rules are those of DeepNets-1M
(arXiv 2110.13100, its generator and its loader), which draws networks and draws again where one is unfit.
Left out: its second look at the limit of parameters with larger images, which rejects 1 candidate in 1,500.

The spaces are deepnets1m, all of it, and convnets250k, without attention and squeeze-and-excitation: our
reading of GHN-QAT's reduced space (arXiv 2309.13773), whose exact definition is unpublished.

Splits: train, val, test (in-distribution) | wide: the test networks, 4 times the channels |
deep: 10 to 36 cells | dense: up to 10 steps | bnfree: no normalisation.
"""

import collections
import dataclasses
import functools
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ghn_jax.base.errors import FieldError, UserError, shown
from ghn_jax.networks import limits
from ghn_jax.networks.genotype import Genotype, is_int
from ghn_jax.networks.ops import OPERATIONS, OPS, has_attention
from ghn_jax.networks.size import cost, count_parameters
from ghn_jax.networks.spec import NetworkSpec, is_connected

SPLITS = ('train', 'val', 'test', 'wide', 'deep', 'dense', 'bnfree')

_PARAMETER_FREE = tuple(op for op in OPS if not cost(op, 16).parameters)  # where they are not strided
LARGE = tuple(name for name, op in OPERATIONS.items() if op.large)  # at most one of them in a cell
_MAX_CANDIDATES = 5000  # for one network; the two spaces reject 18 % and 43 %, the dense splits 53 % and 76 %
_BASE_WIDTH, _BASE_FC_DIM = 32, 256  # of networks whose width the loader does not draw
_LOADER_WIDTHS, _LOADER_FC_DIMS = tuple(range(32, 129, 16)), tuple(range(64, 513, 64))
_WIDE_FACTOR = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Space:
    """A distribution over networks: the rules, and the choices they leave, each uniform.

    name: part of what a network depends on.   ops: what cells are made of.
    redrawn_ops: drawn like the others, but a network that has one is drawn again (which favours small cells).
    cells: fewest and most cells.   min_steps, max_steps: intermediate states of a cell.
    deep_cells: the threshold, drawn for each network, beyond which it is deep; deep networks have at most
      max_steps_deep steps and always a global average before the head.
    pool_only_share: of reduction cells without trainable op.   flat_head_share: of flattened heads, where
      they may be.
    norms: the choices for networks of the fewest cells or one more, and at most max_steps_deep steps; others
      have 'bnorm' (None if that is no choice).   ks, stem_types, C_mults, fc_layers: choices.
    channels, fc_dims: choices. None is DeepNets-1M's rule: training networks are widened by its loader, small
      ones more (C 32..128, fc_dim 64..512); the other splits have C 32, fc_dim 256.
    max_params: at 32 channels and fc_dim 256 where those are left to the rule, else at the widths drawn. Ten
      times as many in the splits deep and dense; wide networks are measured before they are widened.
    deep_split_cells, dense_split_steps: cells of the split deep, steps of the split dense.
    num_train, num_eval: networks in train and in each other split.   num_classes: of all networks.

    Raises FieldError on construction where a field is of no use.
    """

    name: str
    ops: tuple[str, ...]
    redrawn_ops: tuple[str, ...] = ()
    cells: tuple[int, int] = (4, 18)
    min_steps: int = 1
    max_steps: int = 4
    max_steps_deep: int = 2
    deep_cells: tuple[int, ...] = (7, 8, 9, 10)
    pool_only_share: float = 0.5
    flat_head_share: float = 0.1
    norms: tuple[str | None, ...] = ('bnorm', None)
    ks: tuple[int, ...] = (3, 5, 7)
    stem_types: tuple[int, ...] = (0, 1)
    C_mults: tuple[int, ...] = (1, 2)
    fc_layers: tuple[int, ...] = (1, 2)
    channels: tuple[int, ...] | None = None
    fc_dims: tuple[int, ...] | None = None
    max_params: int = 10**7
    deep_split_cells: tuple[int, int] = (10, 36)
    dense_split_steps: tuple[int, int] = (2, 10)
    num_train: int = 1_000_000
    num_eval: int = 500
    num_classes: int = 10

    def __post_init__(self):
        _check_space(self)

    def size(self, split: str) -> int:
        """Networks in a split. Raises UserError for an unknown split."""
        return self.num_train if _known(split) == 'train' else self.num_eval

    def sample(self, split: str, seed: int, index: int) -> NetworkSpec:
        """Network `index` of a split, the same whenever it is asked for. Its name is space-split-index.

        Raises UserError for an unknown split, a negative seed, an index outside the split, and if the
        rules of the space reject (nearly) everything.
        """
        if not is_int(index) or not 0 <= index < self.size(split):
            raise UserError(
                f'index is {shown(index)}: the split {split} has the networks 0 to {self.size(split) - 1}'
            )
        if not is_int(seed) or seed < 0:
            raise UserError(f'seed is {shown(seed)}: expected an integer from 0')
        stream = 'test' if split == 'wide' else split
        entropy = (seed, zlib.crc32(self.name.encode()), SPLITS.index(stream), index)
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
        rejects = collections.Counter()
        for _ in range(_MAX_CANDIDATES):
            candidate = self.propose(split, rng)
            if isinstance(candidate, NetworkSpec):
                return dataclasses.replace(candidate, name=f'{self.name}-{split}-{index}')
            rejects[candidate] += 1
        reasons = ', '.join(f'{reason} {count}' for reason, count in rejects.most_common())
        raise UserError(
            f'space {self.name} admits no network in {_MAX_CANDIDATES} candidates for {split} ({reasons}): '
            'widen its rules (max_params, ops, cells, channels)'
        )

    def propose(self, split: str, rng: np.random.Generator) -> NetworkSpec | str:
        """One candidate: a network, or why it is rejected."""
        return _propose(split_rules(self, _known(split)), split, rng)


# --------------------------------------------------------------------------------- one candidate


@functools.lru_cache(maxsize=64)
def split_rules(space: Space, split: str) -> Space:
    """The space with the rules of `split` in place of its own."""
    if split == 'deep':  # networks of up to 18 cells do not count as deep there
        return dataclasses.replace(
            space, cells=space.deep_split_cells, deep_cells=(18,), max_params=10 * space.max_params
        )
    if split == 'dense':
        low, high = space.dense_split_steps
        medium = max(low, 6)
        return dataclasses.replace(
            space, min_steps=low, max_steps_deep=medium, max_steps=high, max_params=10 * space.max_params
        )
    if split == 'bnfree':
        return dataclasses.replace(space, norms=(None,))
    return space


def _propose(space: Space, split: str, rng: np.random.Generator) -> NetworkSpec | str:
    """Draws a network by the (split's) rules; a string says why it is no good."""
    n_cells = int(rng.integers(space.cells[0], space.cells[1] + 1))
    threshold = _choice(rng, space.deep_cells)
    deep = n_cells > threshold
    steps = int(rng.integers(space.min_steps, (space.max_steps_deep if deep else space.max_steps) + 1))
    genotype = _genotype(space, steps, rng)
    trouble = _trouble(space, genotype)
    if trouble:
        return trouble
    vit = has_attention(genotype.ops)

    if not is_connected(genotype, n_cells):
        return 'disconnected'
    C_mult = _choice(rng, space.C_mults)
    stem_type = _choice(rng, space.stem_types)
    shallow = n_cells <= space.cells[0] + 1 and steps <= space.max_steps_deep
    spec = NetworkSpec(
        C=_BASE_WIDTH if space.channels is None else _choice(rng, space.channels),
        n_cells=n_cells,
        ks=_choice(rng, space.ks),
        stem_type=stem_type,
        stem_pool=stem_type == 0 and rng.random() > 0.5,
        norm=_choice(rng, space.norms) if shallow else 'bnorm' if 'bnorm' in space.norms else None,
        # Plain inputs only where shapes allow and attention is there to mix the channels.
        preproc=steps > 1 or C_mult > 1 or not vit or rng.random() > 0.8,
        C_mult=C_mult,
        fc_layers=_choice(rng, space.fc_layers),
        fc_dim=_BASE_FC_DIM if space.fc_dims is None else _choice(rng, space.fc_dims),
        glob_avg=vit or deep or rng.random() >= space.flat_head_share,
        genotype=genotype,
        num_classes=space.num_classes,
    )
    size = count_parameters(spec)
    if size > space.max_params:
        return 'too many parameters'
    if split == 'train':
        return _widened(space, spec, size, rng)
    return dataclasses.replace(spec, C=_WIDE_FACTOR * spec.C) if split == 'wide' else spec


def _genotype(space: Space, steps: int, rng: np.random.Generator) -> Genotype:
    """Two cells, as DARTS reads them off a softmax of tiny random weights [edges, ops].

    DARTS keeps each state's two heaviest edges and each edge's heaviest op. As rows are independent and ops
    exchangeable, that is: two sources, all ordered pairs alike, and for each any op, all alike.
    """
    ops = tuple(op for op in OPS if op in space.ops + space.redrawn_ops and (steps > 1 or op != 'none'))
    free = tuple(op for op in ops if op in _PARAMETER_FREE)
    pool_only = rng.random() < space.pool_only_share and any(op != 'none' for op in free)
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


def _trouble(space: Space, genotype: Genotype) -> str | None:
    """What speaks against a genotype: hard to train, heavy on memory, or nothing to train."""
    normal, reduce = ([op for op, _ in cell] for cell in (genotype.normal, genotype.reduce))
    both = normal + reduce
    redrawn = next((op for op in space.redrawn_ops if op in both), None)
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


def _widened(space: Space, spec: NetworkSpec, size: int, rng: np.random.Generator) -> NetworkSpec:
    """The widths of a training network where the space leaves them to DeepNets-1M's loader.

    The larger a network is (size: its parameters before), the fewer widths it may have.
    """
    C, fc_dim = spec.C, spec.fc_dim
    if space.fc_dims is None:
        fc_dim = _choice(rng, _LOADER_FC_DIMS[:4])
    if space.channels is None:
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
        if space.fc_dims is None and choices is _LOADER_WIDTHS and C <= 64:
            fc_dim = _choice(rng, _LOADER_FC_DIMS)
    return dataclasses.replace(spec, C=C, fc_dim=fc_dim)


def _choice(rng: np.random.Generator, choices: Sequence[Any]) -> Any:
    return choices[0] if len(choices) == 1 else choices[rng.integers(len(choices))]


def _known(split: str) -> str:
    if split not in SPLITS:
        raise UserError(f'split {shown(split)} is unknown: choose one of {", ".join(SPLITS)}')
    return split


# --------------------------------------------------------------------------------- validation

_INTEGERS = {'min_steps': (1, 64), 'max_steps': (1, 64), 'max_steps_deep': (1, 64), 'max_params': (1, 10**12),
             'num_train': (1, 10**12), 'num_eval': (1, 10**12), 'num_classes': (1, 65536)}  # fmt: skip
_RANGES = {'cells': (1, 512), 'deep_split_cells': (1, 512), 'dense_split_steps': (1, 64)}
_CHOICES = {'ops': OPS, 'redrawn_ops': OPS, 'norms': ('bnorm', None), 'ks': (3, 5, 7), 'stem_types': (0, 1),
            'C_mults': (1, 2), 'fc_layers': (1, 2)}  # fmt: skip
_LISTS = {'deep_cells': (0, 512), 'channels': (2, 1024), 'fc_dims': (1, 65536)}


def _check_space(space: Space) -> None:
    """Normalises lists to tuples; raises FieldError for the first field of no use."""
    if not isinstance(space.name, str) or not space.name:
        raise FieldError('name', f'={shown(space.name)}: expected a non-empty string')
    for field, (low, high) in _INTEGERS.items():
        value = getattr(space, field)
        if not is_int(value) or not low <= value <= high:
            raise FieldError(field, f'={shown(value)}: expected an integer from {low} to {high}')
    for field in ('pool_only_share', 'flat_head_share'):
        value = getattr(space, field)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise FieldError(field, f'={shown(value)}: expected a number from 0 to 1')
    for field, (low, high) in (_RANGES | _LISTS).items():
        value = getattr(space, field)
        if value is None and field in ('channels', 'fc_dims'):
            continue
        pair = field in _RANGES
        good = (
            isinstance(value, (tuple, list))
            and len(value) >= 1
            and all(is_int(v) and low <= v <= high for v in value)
        )
        if not good or (pair and (len(value) != 2 or value[0] > value[1])):
            form = (
                f'(least, most) within {low} and {high}'
                if pair
                else f'a tuple of integers from {low} to {high}'
            )
            raise FieldError(field, f'={shown(value)}: expected {form}')
        object.__setattr__(space, field, tuple(map(int, value)))
    for field, choices in _CHOICES.items():
        value = getattr(space, field)
        good = isinstance(value, (tuple, list)) and (value or field == 'redrawn_ops')
        for v in value if good else ():
            if isinstance(v, bool) or v not in choices:
                raise FieldError(field, f' has {shown(v)}: choose from {", ".join(map(str, choices))}')
        if not good or len(set(value)) < len(value):
            raise FieldError(
                field, f'={shown(value)}: expected different values of {", ".join(map(str, choices))}'
            )
        object.__setattr__(space, field, tuple(value))
    object.__setattr__(space, 'max_steps_deep', min(space.max_steps, space.max_steps_deep))
    if space.min_steps > space.max_steps_deep:
        raise FieldError(
            'min_steps',
            f'={space.min_steps}: expected at most max_steps ({space.max_steps}) and '
            f'max_steps_deep ({space.max_steps_deep})',
        )
    if all(op == 'none' for op in space.ops):
        raise FieldError('ops', f'={shown(space.ops)}: expected at least one besides none')
    shallow = min(space.cells[1], max(space.deep_cells))
    operations = max(
        cells * limits.operations_of_cell(steps)
        for cells, steps in ((shallow, space.max_steps), (space.cells[1], space.max_steps_deep))
    )
    if operations > limits.MAX_OPERATIONS:
        raise FieldError(
            'cells',
            f'={space.cells}: the space has networks of up to {operations:,} operations, more than '
            f'{limits.MAX_OPERATIONS:,}: give fewer cells ({space.cells[1]}) or steps ({space.max_steps}, '
            f'{space.max_steps_deep} in deep networks)',
        )
    if (widths := len(set(space.channels or ()))) > limits.MAX_FAMILIES:
        raise FieldError(
            'channels',
            f' has {widths} widths, and each takes minutes to compile: give at most {limits.MAX_FAMILIES}',
        )
    multiple = 8 if has_attention(space.ops) else 2
    for width in space.channels or ():
        if width % multiple:
            raise FieldError('channels', f' has {width}: expected multiples of {multiple}')


# --------------------------------------------------------------------------------- the named spaces


def _ops_of(space: str) -> tuple[str, ...]:
    return tuple(name for name, op in OPERATIONS.items() if space in op.spaces)


SPACES = {
    # DeepNets-1M, the space GHN-2 was trained on, with attention (msa) and squeeze-and-excitation (cse).
    'deepnets1m': Space(name='deepnets1m', ops=_ops_of('deepnets1m')),
    # cse is drawn all the same and networks that have it are drawn again: the published generator's networks,
    # less those, which is what its statistics were taken from.
    'convnets250k': Space(
        name='convnets250k', ops=_ops_of('convnets250k'), redrawn_ops=('cse',), num_train=250_000
    ),
}


def make_space(base: str, /, **overrides: Any) -> Space:
    """A named space with other rules, e.g. make_space('convnets250k', cells=(4, 6), channels=(16,)).

    Lists do for tuples. Ops given anew are all there is: nothing is redrawn unless redrawn_ops says so.

    Raises FieldError for an unknown space or field, or a value of no use.
    """
    if not isinstance(base, str) or base not in SPACES:
        raise FieldError('name', f'={shown(base)} is unknown: choose one of {", ".join(SPACES)}')
    fields = {field.name for field in dataclasses.fields(Space)}
    for key in overrides:
        if key not in fields:
            raise FieldError(key, f' is no field of a space: the fields are {", ".join(sorted(fields))}')
    if 'ops' in overrides:
        overrides.setdefault('redrawn_ops', ())
    return dataclasses.replace(SPACES[base], **overrides)
