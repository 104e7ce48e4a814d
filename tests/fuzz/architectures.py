"""Networks at random: any that the format allows, from tiny ones to those that no machine holds."""

import random
from typing import Any

from ghn_jax.networks.genotype import OPS

_SIZES = (2, 4, 8, 16, 24, 32, 48, 64, 128, 256, 1024, 4096)


def cell(rng: random.Random, steps: int, ops: tuple[str, ...]) -> tuple[list, list]:
    """(entries, concat) of a cell."""
    entries = [[rng.choice(ops), rng.randrange(2 + i // 2)] for i in range(2 * steps)]
    states = [i for i in range(2, steps + 2) if rng.random() < 0.6] or [steps + 1]
    return entries, states


def network(rng: random.Random, *, small: bool = False, runnable: bool = False) -> dict[str, Any]:
    """A network in JSON's types; most are valid. small: of few cells. runnable: of widths that can be run."""
    ops = tuple(rng.sample(OPS, rng.randrange(1, len(OPS) + 1)))
    steps = rng.choice((1, 1, 2, 3, 4)) if small or rng.random() < 0.9 else rng.randrange(1, 70)
    normal, normal_concat = cell(rng, steps, ops)
    reduce, reduce_concat = cell(rng, steps, ops)
    cells = rng.randrange(1, 7) if small or rng.random() < 0.8 else rng.choice((20, 60, 200, 512))
    stem_type = rng.randrange(2)
    if runnable:
        width, fc_dim = rng.choice((16, 32)), rng.choice((8, 64))
    else:
        width, fc_dim = rng.choice(_SIZES[:7] if small else _SIZES), rng.choice((1, 7, 64, 512, 65536))
    return {
        'C': width,
        'n_cells': cells,
        'ks': rng.choice((3, 5, 7)),
        'stem_type': stem_type,
        'stem_pool': stem_type == 0 and rng.random() < 0.5,
        'norm': rng.choice(('bnorm', None)),
        'preproc': rng.random() < 0.8,
        'C_mult': rng.choice((1, 2)),
        'fc_layers': rng.choice((1, 2)),
        'fc_dim': fc_dim,
        'glob_avg': rng.random() < 0.8,
        'name': f'net-{rng.randrange(100)}',
        'num_classes': 10 if small or runnable or rng.random() < 0.9 else rng.choice((1, 100, 65536)),
        'genotype': {
            'normal': normal,
            'normal_concat': normal_concat,
            'reduce': reduce,
            'reduce_concat': reduce_concat,
        },
    }


def file(rng: random.Random) -> Any:
    """An architecture file's value: a network, a list of some, or entries with args."""
    networks = [network(rng) for _ in range(rng.choice((1, 1, 1, 2, 5)))]
    what = rng.randrange(3)
    if what == 0:
        return networks[0]
    return networks if what == 1 else [{'id': f'x-{i}', 'args': n} for i, n in enumerate(networks)]
