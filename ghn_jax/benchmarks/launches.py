"""How long a training step would take on a GPU that is not here, by a walk over the tables of real networks.

`aot.launches` says what each part of the compiled step costs; the tables of networks as a run draws them say
how often each part runs. A network's instructions are told from the rest of the step by the names that the
executor gives its loops.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ghn_jax.aot import hlo
from ghn_jax.aot.launches import Work, work
from ghn_jax.benchmarks.options import Row
from ghn_jax.cnn.covering import Family, family
from ghn_jax.cnn.program import Program
from ghn_jax.cnn.tables import ACCUMULATE, OP, Tables
from ghn_jax.config import RunConfig
from ghn_jax.networks.spaces import Space
from ghn_jax.training.sampling import draw

NETWORKS = 40  # whose tables are walked
_MOST_STEPS = 1000  # that are looked through for them
_LOOP = re.compile(r'/(?P<way>forward|backward)_(?P<segment>\d+)/while(?P<inside>/.*)?$')


class Mix(NamedTuple):
    """What networks ask of a segment: instructions a network, how often each op is meant, how often a result
    is added to what is there.
    """

    instructions: float
    ops: tuple[float, ...]
    accumulates: float


def mixes(program: Program, tables: Sequence[Tables]) -> list[Mix]:
    """Return the mix of each segment, over networks given by their tables."""
    found = []
    for k, segment in enumerate(program.segments):
        rows = np.concatenate([t.rows[t.bounds[k] : t.bounds[k + 1]] for t in tables])
        count = max(1, len(rows))
        ops = np.bincount(rows[:, OP], minlength=len(segment.ops)) / count
        found.append(
            Mix(len(rows) / len(tables), tuple(ops), float(rows[:, ACCUMULATE].mean() if len(rows) else 0))
        )
    return found


def tables_of(config: RunConfig, space: Space, program: Program, wanted: Family) -> list[Tables]:
    """Return the tables of the first NETWORKS networks of a family that a run draws."""
    found: list[Tables] = []
    for step in range(_MOST_STEPS):
        specs = draw(space, config.seed, step, config.train.meta_batch)
        if family(specs[0]) == wanted:
            found += [program.layout(spec).tables for spec in specs]
        if len(found) >= NETWORKS:
            break
    return found[:NETWORKS]


def model(text: str, mix: Sequence[Mix], networks: int) -> dict[str, Work]:
    """Return the work of a step, of its networks' instructions, and of one instruction each way.

    Args:
      text: of the optimised step.
      mix: of each segment.
      networks: of the step.
    """
    module = hlo.read(text)
    instructions = sum(m.instructions for m in mix)

    def count(ways: Sequence[str]) -> Work:
        def turns(scope: str) -> float | None:
            if not (loop := _LOOP.search(scope)) or loop['inside']:
                return None
            return mix[int(loop['segment'])].instructions if loop['way'] in ways else 0.0

        def shares(scope: str, branches: int) -> Sequence[float] | None:
            if not (loop := _LOOP.search(scope)):
                return None
            found = mix[int(loop['segment'])]
            if scope.endswith('/switch/cond'):
                return [*found.ops, 0.0][:branches]
            return (1 - found.accumulates, found.accumulates) if scope.endswith('/sum/cond') else None

        return work(module, turns, shares)

    all_of_it, nothing = count(('forward', 'backward')), count(())
    each = lambda way: (count((way,)) + nothing * -1) * (1 / (networks * instructions))
    return {
        'step': all_of_it, 'instructions': all_of_it + nothing * -1,
        'instruction forward': each('forward'), 'instruction backward': each('backward'),
    }  # fmt: skip


def rows_of(parts: Mapping[str, Work], speed: Mapping[str, float], peak: str, about: Row) -> list[Row]:
    """Make a row of each part: what it does, the milliseconds of each term, and the term that rules."""
    rows = []
    for part, each in parts.items():
        ms: dict[str, Any] = {f'{term}_ms': 1000 * s for term, s in each.seconds(speed, peak).items()}
        rows.append(about | {
            'what': 'launches', 'part': part, 'launches': each.launches, 'trips': each.trips,
            'gb': each.bytes / 1e9, 'gflop': each.flops / 1e9, **ms, 'ms': sum(ms.values()),
            'rules': max(ms, key=ms.__getitem__).removesuffix('_ms'),
        })  # fmt: skip
    return rows
