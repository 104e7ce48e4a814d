"""Networks that together contain everything a space can produce: what a program is built from.

An instruction depends only on its op and on the shapes (size, channels) it reads and writes, and these on the
stem, C_mult and on where the reductions fall. So a few hundred networks, each of one op throughout, hold
every instruction of millions; those of the longest op, with all states in the output, need the most slots.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ghn_jax.base.backends import kernels_are_launches
from ghn_jax.base.errors import UserError
from ghn_jax.cnn.building import build_program
from ghn_jax.cnn.program import Program
from ghn_jax.cnn.stages import stages_of
from ghn_jax.networks.counts import cost
from ghn_jax.networks.drawing import LARGE, WIDE_FACTOR, besides, chain, pools
from ghn_jax.networks.genotype import Entry, Genotype
from ghn_jax.networks.ops import has_attention, plain_ops
from ghn_jax.networks.space_rules import split_rules
from ghn_jax.networks.spaces import Space
from ghn_jax.networks.spec import NetworkSpec

_WIDTH = 16  # at which ops are measured
_LOADER_FC_DIM = {'flat': 256, 'narrow': 512, 'wide': 256}  # the most that DeepNets-1M's loader draws


class Family(NamedTuple):
    """Networks that share a program: those of one width C, with msa (which have 11x11 pixels) or without."""

    width: int
    vit: bool = False


def family(spec: NetworkSpec) -> Family:
    """Return the family of a network."""
    return Family(spec.C, spec.is_vit)


def training_program(space: Space, family: Family, image_size: int) -> Program:
    """Build the program that trains all networks of one family, for the backend of `backends.current`.

    Raises:
      UserError: as `program_for`.
    """
    return program_for(space, 'train', family, image_size, joins_norms=kernels_are_launches())


def program_for(
    space: Space, split: str, family: Family, image_size: int, *, joins_norms: bool = False
) -> Program:
    """Build the program for all networks of a split of one family. joins_norms: see `Program`.

    Raises:
      UserError: the space has no such networks, or the width is not a multiple of 16.
    """
    # Those of the split wide are counted before they are widened; parameters grow with the square at most.
    scale = WIDE_FACTOR**2 if split == 'wide' else 1
    limit = split_rules(space, split).max_params * scale
    networks = covering_networks(space, split, family)
    return build_program(networks, image_size=image_size, max_params=limit, joins_norms=joins_norms)


def widths(space: Space, split: str) -> tuple[int, ...]:
    """Return the values of C that networks of a split can have, rising."""
    if space.channels is not None:
        base = tuple(sorted(space.channels))
    else:
        base = tuple(range(32, 129, 16)) if split == 'train' else (32,)
    return tuple(WIDE_FACTOR * c for c in base) if split == 'wide' else base


def covering_networks(space: Space, split: str, family: Family) -> Iterator[NetworkSpec]:
    """Yield networks (some too large for the space) whose instructions are all those of the split."""
    rules = split_rules(space, split)
    width, vit = family
    ops = [op for op in rules.ops if op != 'none' and (vit or op != 'msa')]
    if not ops or (vit and 'msa' not in ops):
        raise UserError(
            f'space {space.name} has the ops {", ".join(space.ops)}: there are no networks '
            f'{"with" if vit else "without"} msa'
        )
    # Of attention there are networks of their own below.
    repeated = [op for op in ops if not has_attention([op]) and op not in LARGE]
    longest = max(repeated or ops, key=_length)
    longest_once = max((op for op in ops if op in LARGE), key=_length, default=longest)
    largest = max(ops, key=_taps)
    second = max((op for op in ops if op not in LARGE), key=_taps, default=largest)
    norm = 'bnorm' if 'bnorm' in rules.norms else None
    low, high = rules.cells
    any_width = space.channels or split != 'train'  # the loader gives flattened heads 32 channels
    flat_heads = rules.flat_head_share and not vit and (any_width or width == 32)
    stems = [(0, False)] if vit else _stems(rules)  # transformers have one of their own
    for stem, C_mult in itertools.product(stems, rules.C_mults):

        def network(
            n_cells, genotype, ks=rules.ks[0], flat=False, stem=stem, C_mult=C_mult, preproc=True
        ):  # fmt: skip
            genotype = _with_msa(genotype) if vit else genotype
            return NetworkSpec(
                C=width, n_cells=n_cells, ks=ks, stem_type=stem[0], stem_pool=stem[1], norm=norm,
                preproc=preproc, C_mult=C_mult, fc_layers=max(rules.fc_layers),
                fc_dim=_fc_dim(space, split, width, flat),
                glob_avg=not flat, genotype=genotype, num_classes=space.num_classes,
            )  # fmt: skip

        for ks in rules.ks:
            yield network(low, uniform(longest, 1), ks)
        for n_cells in range(low, high + 1):
            shallow = n_cells <= max(rules.deep_cells)
            for steps in range(rules.min_steps, (rules.max_steps if shallow else rules.max_steps_deep) + 1):
                yield network(n_cells, uniform(longest, steps))
                yield network(n_cells, from_inputs(longest, steps))
                yield network(n_cells, uniform(second, steps, (0, largest)))
                yield from _with_one(network, n_cells, steps, longest, longest_once)
                for op in ops:
                    if _values(op, 1) < _values(op, 2) >= _values(longest, 1):  # longest where it is strided
                        reduce = uniform(op, steps).reduce
                        yield network(n_cells, dataclasses.replace(uniform(longest, steps), reduce=reduce))
                if vit:
                    yield network(n_cells, uniform('msa', steps))
                if flat_heads and shallow:
                    yield network(n_cells, uniform(longest, steps), flat=True)
        for n_cells in _depths(low, high):
            for op in ops:
                yield network(n_cells, uniform(second, 1, (0, op)))
                if rules.max_steps > 1:
                    yield network(n_cells, uniform(second, 2, (2, op)))
            if 'none' in rules.ops and rules.max_steps > 1:
                yield network(n_cells, _with_absent_state(longest))
        if rules.plain_share and not vit:
            yield from _plain(network, rules)


def _plain(network: Callable[..., NetworkSpec], rules: Space) -> Iterator[NetworkSpec]:
    """Yield plain networks of one stem. network: (cells, genotype, kernel of the stem, ...) -> a network."""
    low, high = rules.cells
    genotypes = [
        chain(op, beside, halving)
        for op, beside in itertools.product(plain_ops(rules.ops), besides(rules.ops))
        for halving in (op, *pools(rules.ops))
    ]
    narrow = {'preproc': False, 'C_mult': 1}  # as is their stem
    fields = [{}, narrow] if 1 in rules.C_mults else [{}]
    for ks, more in itertools.product(rules.ks, fields):
        yield network(low, genotypes[0], ks, **more)
    for n_cells in _depths(low, high):
        for genotype, more in itertools.product(genotypes, fields):
            yield network(n_cells, genotype, **more)


def _with_one(
    network: Callable[..., NetworkSpec], n_cells: int, steps: int, longest: str, once: str
) -> Iterator[NetworkSpec]:
    """Yield networks with one op a cell that is longer than the one that fills them."""
    if _length(once) > _length(longest):
        entries = (0,) if steps == 1 else (0, 2)  # of the first and of the second intermediate state
        for make, entry in itertools.product((uniform, from_inputs), entries):
            yield network(n_cells, make(longest, steps, (entry, once)))


def _depths(low: int, high: int) -> list[int]:
    """Return numbers of cells: where reductions stand to the stem and to each other repeats after a few."""
    return sorted({*range(low, min(low + 4, high + 1)), high})


def uniform(op: str, steps: int, special: tuple[int, str] | None = None) -> Genotype:
    """Return a genotype of one op, on cell inputs and on inner states, with all states in the output.

    special: (entry, op), the one entry with another op. Entry 0 reads a cell input, entry 2 an inner state.
    """
    sources = [(0, 1), *((step + 1, 0) for step in range(1, steps))]
    return _of_entries([(op, s) for pair in sources for s in pair], special)


def from_inputs(op: str, steps: int, special: tuple[int, str] | None = None) -> Genotype:
    """Return one like `uniform`, but made from the cell's inputs alone: the most gradients live at a time."""
    return _of_entries([(op, 0), (op, 1)] * steps, special)


def _of_entries(entries: list[Entry], special: tuple[int, str] | None) -> Genotype:
    if special:
        entries[special[0]] = (special[1], entries[special[0]][1])
    concat = tuple(range(2, len(entries) // 2 + 2))
    return Genotype(normal=tuple(entries), normal_concat=concat, reduce=tuple(entries), reduce_concat=concat)


def _values(op: str, stride: int) -> int:
    """Values an op takes on the tapes."""
    return sum(stage.parts for stage in stages_of(op, stride))


def _length(op: str) -> tuple[int, int, str]:
    """How much room an op takes in a program; of equal ones, the last name counts as longer."""
    return _values(op, 1), cost(op, _WIDTH).depth_tiles, op


def _taps(op: str) -> int:
    """Dense kernel positions of an op: what its weights take in memory, in units of C x C."""
    return cost(op, _WIDTH).dense // _WIDTH**2


def _with_absent_state(op: str) -> Genotype:
    entries = ((op, 0), (op, 1), ('none', 0), ('none', 1))
    return Genotype(normal=entries, normal_concat=(2, 3), reduce=entries, reduce_concat=(2, 3))


def _with_msa(genotype: Genotype) -> Genotype:
    """With one msa, in reduction cells: there are two of these, so it takes little room from other ops."""
    entries = [*genotype.reduce]
    entries[1] = ('msa', entries[1][1])
    return dataclasses.replace(genotype, reduce=tuple(entries))


def _stems(rules: Space) -> list[tuple[int, bool]]:
    return [s for s in ((0, False), (0, True), (1, False)) if s[0] in rules.stem_types]


def _fc_dim(space: Space, split: str, width: int, flat: bool) -> int:
    if space.fc_dims is not None:
        return max(space.fc_dims)
    if split != 'train':
        return 256
    return _LOADER_FC_DIM['flat' if flat else 'narrow' if width <= 64 else 'wide']
