"""Spaces: distributions over networks, sampled by index, so that a million architectures need no file.

Network i of a split is a pure function of (space, split, seed, i): networks are drawn by the rules of the
split (`space_rules`, `drawing`), and drawn again where one is unfit.

The spaces are deepnets1m, all of it, and convnets250k, without attention and squeeze-and-excitation: our
reading of GHN-QAT's reduced space (arXiv 2309.13773), whose exact definition is unpublished.
"""

import collections
import dataclasses
import zlib
from typing import Any

import numpy as np

from ghn_jax.base.errors import FieldError, UserError, shown
from ghn_jax.base.whole_numbers import is_int
from ghn_jax.networks import drawing
from ghn_jax.networks.ops import OPERATIONS
from ghn_jax.networks.space_rules import SPLITS, SpaceRules, known_split, split_rules
from ghn_jax.networks.spec import NetworkSpec

_MAX_CANDIDATES = 5000  # for one network; the two spaces reject 18 % and 43 %, the dense splits 53 % and 76 %


class Space(SpaceRules):
    """A distribution over networks: rules (its fields, see `rules.SpaceRules`) that are drawn by."""

    def sample(self, split: str, seed: int, index: int) -> NetworkSpec:
        """Return network `index` of a split, always the same one. Its name is space-split-index.

        Args:
          split: one of SPLITS.
          seed: of the split's networks, 0 or more.
          index: of the network, below `size(split)`.

        Raises:
          UserError: an unknown split, a negative seed, an index outside the split; rules that reject (nearly)
            every network.
        """
        self.check_place(split, seed, index)
        stream = 'test' if split == 'wide' else split
        entropy = (seed, zlib.crc32(self.name.encode()), SPLITS.index(stream), index)
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
        is_plain = self.plain_share > 0 and rng.random() < self.plain_share
        rejects = collections.Counter()
        for _ in range(_MAX_CANDIDATES):
            candidate = self.propose(split, rng, is_plain=is_plain)
            if isinstance(candidate, NetworkSpec):
                return dataclasses.replace(candidate, name=f'{self.name}-{split}-{index}')
            rejects[candidate] += 1
        reasons = ', '.join(f'{reason} {count}' for reason, count in rejects.most_common())
        raise UserError(
            f'space {self.name} admits no network in {_MAX_CANDIDATES} candidates for {split} ({reasons}): '
            'widen its rules (max_params, ops, cells, channels)'
        )

    def check_place(self, split: str, seed: int, index: int) -> None:
        """Raise UserError for an unknown split, a negative seed, or an index outside the split."""
        size = self.size(split)
        if not is_int(index) or not 0 <= index < size:
            raise UserError(f'index is {shown(index)}: the split {split} has the networks 0 to {size - 1}')
        if not is_int(seed) or seed < 0:
            raise UserError(f'seed is {shown(seed)}: expected an integer from 0')

    def propose(self, split: str, rng: np.random.Generator, *, is_plain: bool = False) -> NetworkSpec | str:
        """Draw one candidate, plain (`drawing.plain`) or not: a network, or why it is rejected."""
        return drawing.propose(split_rules(self, known_split(split)), split, rng, is_plain=is_plain)


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
    """Return a named space, with other rules where they are given.

    Args:
      base: the name of the space.
      **overrides: fields of `Space`; lists do for tuples. Where `ops` are given, networks have no others:
        nothing is redrawn unless `redrawn_ops` says so.

    Raises:
      FieldError: an unknown space or field, or a value of no use.

    Example:
      >>> space = make_space('convnets250k', cells=(4, 6), channels=(16,))
      >>> space.sample('test', 0, 3).C
      16
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
