"""What scoring unseen networks would take: timed on a few, extrapolated to a whole evaluation."""

import itertools
import time
from collections.abc import Sequence
from typing import Any

import jax

from ghn_jax.aot.programs import families
from ghn_jax.benchmarks.images import random_batches
from ghn_jax.cnn.covering import family, program_for
from ghn_jax.config import RunConfig
from ghn_jax.evaluation.score import score_networks
from ghn_jax.evaluation.selection import Selection
from ghn_jax.hypernet.ghn import init_params
from ghn_jax.networks.graph import build_graph
from ghn_jax.quant.policy import parse_bits
from ghn_jax.runs.task import make_ghn, make_space_of

BITS = ('float', 'w8a8', 'w4a8', 'w4a4', 'w2a2')
WHOLE = {'networks': 500, 'images': 10_000}
"""The evaluation that is extrapolated to, at each of `BITS`."""
_SPLIT = 'test'
_MOST_IMAGES = 1024


class Scoring:
    """The first networks of the test split that are of its narrowest family, on random images."""

    def __init__(self, config: RunConfig, count: int):
        space = make_space_of(config)
        wanted = families(space, _SPLIT)[0]
        drawn = (space.sample(_SPLIT, config.seed, i) for i in range(space.size(_SPLIT)))
        specs = list(itertools.islice((s for s in drawn if family(s) == wanted), count))
        program = program_for(space, _SPLIT, wanted, config.image_size)
        self.selection = Selection(tuple(map(build_graph, specs)), ((program, tuple(range(len(specs)))),))
        self.ghn = make_ghn(config)
        self.params = init_params(self.ghn.config, jax.random.key(config.seed))
        N = config.train.batch_size
        K = max(1, min(_MOST_IMAGES, config.eval.num_images or _MOST_IMAGES) // N)
        self.images = random_batches(K, N, config.image_size)

    def seconds(self, bits: Sequence[str] = BITS) -> float:
        """Predict and score all networks at these bit-widths: seconds, host work included.

        Bits are data: scoring at some has compiled all.
        """
        start = time.perf_counter()
        score_networks(self.ghn, self.params, self.selection, self.images, [*map(parse_bits, bits)])
        return time.perf_counter() - start

    def figures(self, seconds: float) -> dict[str, Any]:
        """Give what scoring all networks took, and what a whole evaluation would.

        All time is taken to grow with the images. That is a little too much: predicting weights does not.
        """
        networks = len(self.selection.graphs)
        whole = seconds * WHOLE['networks'] / networks * WHOLE['images'] / self.images.count
        return {
            'networks': networks,
            'images': self.images.count,
            'bits': len(BITS),
            'seconds': seconds,
            'of': WHOLE,
            'extrapolated_s': whole,
        }
