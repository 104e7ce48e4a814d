"""How long a training step would take on a GPU that is not here, by a walk over the tables of real networks.

`aot.gpu_time` says what each part of the compiled step costs; the tables of networks as a run draws them say
how often each part runs. A network's instructions are told from the rest of the step by the names that the
executor gives its loops. A loop whose length neither the program nor its name tells counts as one turn.
"""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from ghn_jax.aot import hlo
from ghn_jax.aot.gpu_time import Work, work
from ghn_jax.assembly.network_batch import Networks, prepare
from ghn_jax.benchmarks.options import Row
from ghn_jax.cnn.covering import Family, family
from ghn_jax.cnn.program import Program
from ghn_jax.cnn.tables import ACCUMULATE, OP, Tables
from ghn_jax.config import RunConfig
from ghn_jax.hypernet.gnn import WAVES_A_TURN
from ghn_jax.hypernet.tiles import DENSE_CHUNK, DEPTH_CHUNK
from ghn_jax.networks.spaces import Space
from ghn_jax.quant.policy import Policy
from ghn_jax.training.sampling import draw

NETWORKS = 40  # whose tables are walked
_MOST_STEPS = 1000  # that are looked through for them
_LOOP = re.compile(r'/(?P<way>forward|backward)_(?P<segment>\d+)/while(?P<inside>/.*)?$')
_NAMED = re.compile(r'/(?P<name>\w+)/while$')


class Mix(NamedTuple):
    """What networks ask of a segment, in the mean.

    Attributes:
      instructions: of a network.
      ops: the share of each op in these.
      accumulates: the share whose result is added to what is there.
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


def drawn(config: RunConfig, space: Space, program: Program, wanted: Family) -> list[Networks]:
    """Return the first meta-batches of a family that a run draws, NETWORKS networks."""
    found: list[Networks] = []
    for step in range(_MOST_STEPS):
        specs = draw(space, config.seed, step, config.train.meta_batch)
        if family(specs[0]) == wanted:
            found.append(prepare(program, specs, Policy(), max_nodes=config.program.max_nodes)[0])
        if len(found) * len(specs) >= NETWORKS:
            break
    return found


def tables_of(batches: Sequence[Networks]) -> list[Tables]:
    """Return the tables of all networks, one by one."""
    return [
        jax.tree.map(lambda a, i=i: a[i], batch.tables)
        for batch in batches
        for i in range(len(batch.tables.n_blocks))
    ]


def turns_of(batches: Sequence[Networks]) -> dict[str, float]:
    """Return how often the loops outside of the instructions turn in the mean, by the names of their scopes.

    They are in `hypernet.gnn` (WAVES_A_TURN waves to a turn), `hypernet.chunks` and `cnn.head`.
    """
    chunks = lambda count, rows: -(-np.asarray(count) // rows)
    mean = lambda of: float(np.mean(np.concatenate([np.atleast_1d(of(batch)) for batch in batches])))
    dense, depth = (lambda b: b.decoder.n_small), (lambda b: b.decoder.n_depth)
    rest = lambda count, first, rows: chunks(count, rows) - chunks(first, rows)
    return {
        'waves': mean(lambda b: chunks(b.graphs.n_waves, WAVES_A_TURN)),
        f'chunks_of_{DENSE_CHUNK}_0': mean(lambda b: chunks(dense(b), DENSE_CHUNK)),
        f'chunks_of_{DENSE_CHUNK}_1': mean(lambda b: rest(b.decoder.n_dense, dense(b), DENSE_CHUNK)),
        f'chunks_of_{DEPTH_CHUNK}_0': mean(lambda b: chunks(depth(b), DEPTH_CHUNK)),
        f'chunks_of_{DEPTH_CHUNK}_1': mean(lambda b: rest(b.decoder.n_position, depth(b), DEPTH_CHUNK)),
        'hidden': mean(lambda b: b.tables.head.hidden_cols),
        'panels': mean(lambda b: b.tables.head.final_rows),
    }


def model(
    text: str, mix: Sequence[Mix], networks: int, others: Mapping[str, float] = MappingProxyType({})
) -> dict[str, Work]:
    """Return the work of a step, of its networks' instructions, and of one instruction each way.

    Args:
      text: of the optimised step.
      mix: of each segment.
      networks: of the step.
      others: turns of the loops outside of the instructions (`turns_of`).
    """
    module = hlo.read(text)
    instructions = sum(m.instructions for m in mix)

    def count(ways: Sequence[str]) -> Work:
        def turns(scope: str) -> float | None:
            if not (loop := _LOOP.search(scope)):
                named = _NAMED.search(scope)
                return others.get(named['name']) if named else None
            if loop['inside']:
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
