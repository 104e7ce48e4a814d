"""The networks that a run trains on: which they are, and making those of the coming steps ready.

Axes: M networks of a meta-batch, all of one family (width C, with or without attention).
"""

import collections
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jax.sharding import Mesh

from ghn_jax.assembly.mesh import own_networks
from ghn_jax.assembly.network_batch import Networks, make_networks, place
from ghn_jax.cnn.covering import Family, family, training_program
from ghn_jax.cnn.program import Program
from ghn_jax.config import RunConfig, image_sizes
from ghn_jax.hypernet.policy_features import resolve
from ghn_jax.networks.graph import build_graph
from ghn_jax.networks.spaces import Space
from ghn_jax.networks.spec import NetworkSpec
from ghn_jax.quant.policy import Policy
from ghn_jax.quant.strategy import Strategy

_AHEAD = 4  # steps whose networks are made ready while the device works


def draw(space: Space, seed: int, step: int, count: int) -> list[NetworkSpec]:
    """Draw the training networks of a step: a pure function of its arguments.

    They are of one family. The first is any network of the space, the others any of the same family, so
    families come up with the frequencies they have in the space.
    """
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, step))))
    specs: list[NetworkSpec] = []
    while len(specs) < count:
        spec = space.sample('train', seed, int(rng.integers(space.size('train'))))
        if not specs or family(spec) == family(specs[0]):
            specs.append(spec)
    return specs


def networks_of(config: RunConfig, space: Space, step: int) -> list[NetworkSpec]:
    """Draw the training networks of a step of a run, those with the fewest cells first while it is young.

    Until `train.small_first_steps` a step draws up to 4 times as many networks, fewer and fewer, and trains
    on those with the fewest cells (a curriculum, as Y. Bengio et al. 2009). After it, as `draw`.
    """
    count, until = config.train.meta_batch, config.train.small_first_steps
    if step >= until:
        return draw(space, config.seed, step, count)
    drawn = count + int(3 * count * (1 - step / until))
    return sorted(draw(space, config.seed, step, drawn), key=lambda spec: spec.n_cells)[:count]


def image_size_of(config: RunConfig, step: int) -> int:
    """Give the size in pixels of the images of a step."""
    return image_sizes(config)[step < config.train.small_images_steps]


class Preparation:
    """Networks of the coming steps, made ready by threads (JAX leaves Python free while a step runs).

    Every process draws the same ones, and makes those of its own devices ready.
    """

    def __init__(self, config: RunConfig, space: Space, strategy: Strategy, mesh: Mesh | None = None):
        self.config, self.space, self.strategy = config, space, strategy
        self.own = own_networks(mesh, config.train.meta_batch)
        self._programs: dict[tuple[Family, int], Program] = {}

    def program(self, family: Family, step: int) -> Program:
        """Give the program of all training networks of one family, on images of the step's size."""
        size = image_size_of(self.config, step)
        if (family, size) not in self._programs:
            self._programs[family, size] = training_program(self.space, family, size)
        return self._programs[family, size]

    def step(self, step: int) -> tuple[Program, Networks]:
        """Prepare the networks of one step that are this process's, as numpy arrays.

        Raises:
          UserError: as `network_batch.place` and `policy_features.resolve`.
        """
        specs = networks_of(self.config, self.space, step)
        program = self.program(family(specs[0]), step)
        placed = [place(program, build_graph(spec)) for spec in specs[self.own]]
        policies = (self.strategy.policy_of(step, self.own.start + i, n.graph) for i, n in enumerate(placed))
        widths = [resolve(policy, network.graph) for policy, network in zip(policies, placed, strict=True)]
        return program, make_networks(program, placed, widths, max_nodes=self.config.program.max_nodes)

    def policies(self, step: int, specs: Sequence[NetworkSpec]) -> list[Policy]:
        """Give the bit-widths that each of the step's M networks trains with."""
        return [self.strategy.policy_of(step, i, build_graph(spec)) for i, spec in enumerate(specs)]

    def ahead(self, start: int, stop: int) -> Generator[tuple[Program, Networks], None, None]:
        """Yield the networks of steps start .. stop - 1, in order; an error appears at its step."""
        with ThreadPoolExecutor(2) as pool:
            queue = collections.deque()
            try:
                for step in range(start, stop):
                    queue.append(pool.submit(self.step, step))
                    if len(queue) > _AHEAD:
                        yield queue.popleft().result()
                while queue:
                    yield queue.popleft().result()
            finally:
                for future in queue:
                    future.cancel()
