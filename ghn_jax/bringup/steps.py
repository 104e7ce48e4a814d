"""Training steps of a config to be timed, on random images: no data set has to be there.

They are of the narrowest family of the space, so that one program serves them all, and whether a config has
one width or seven makes no difference to what is measured.
"""

import itertools
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from ghn_jax import config as configs
from ghn_jax.aot.programs import families
from ghn_jax.assembly.network_batch import Networks, prepare
from ghn_jax.base.backends import kernels_are_launches
from ghn_jax.benchmarks import timing
from ghn_jax.benchmarks.images import random_dataset
from ghn_jax.benchmarks.profile import OfFamily
from ghn_jax.cnn.building import build_program
from ghn_jax.cnn.program import Program
from ghn_jax.cnn.shared_branches import count_branches
from ghn_jax.config import RunConfig
from ghn_jax.networks.counts import count_parameters
from ghn_jax.quant.strategy import strategy_of
from ghn_jax.runs.task import make_ghn, make_space_of, sizes_of
from ghn_jax.training.optimizer import make_optimizer
from ghn_jax.training.sampling import draw
from ghn_jax.training.state import initial_state
from ghn_jax.training.stepper import Stepper

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    'float': {'quant.mode': 'float', 'train.dtype': 'float32'},
    'w4a4': {'quant.mode': 'qat', 'quant.bits': 'w4a4', 'train.dtype': 'float32'},
    'bfloat16': {'quant.mode': 'qat', 'quant.bits': 'w4a4', 'train.dtype': 'bfloat16'},
}
"""What is set in the config that is measured; bfloat16 is W4/A4 with the networks' values in 16 bits."""
_MOST = 20  # steps that are timed
_DIFFERENT = 4  # networks of a small program; a meta-batch repeats them


def variant(config: RunConfig, name: str) -> RunConfig:
    """Give the config with the changes of `VARIANTS`, and from random weights."""
    for key, value in VARIANTS[name].items():
        config = configs.replace(config, key, value)
    return from_random(config)


def from_random(config: RunConfig) -> RunConfig:
    """Give the config of a run that begins with random weights: no other run has to be there."""
    return configs.replace(config, 'init_from', '')


class Steps:
    """The steps of a run on one device, one after another."""

    def __init__(self, config: RunConfig):
        """Make all that steps need but their program, which the first compiles."""
        self.config = config
        self.space, self.strategy = make_space_of(config), strategy_of(config)
        self.family = families(self.space, 'train')[0]
        optimizer = make_optimizer(config)
        dataset = random_dataset(sizes_of(config), config.image_size)
        ghn = make_ghn(config)
        self.stepper = Stepper(config, ghn, optimizer, dataset)
        self.state = initial_state(config, ghn, optimizer)
        self.losses: list[float | None] = []  # None: not finite

    def small(self) -> tuple[Program, Networks]:
        """Give a program that holds what a few networks need, and a meta-batch of these.

        It compiles in a fraction of the time of the run's own.
        """
        count = self.config.train.meta_batch
        first = OfFamily(self.config, self.space, self.strategy, self.family, 1).steps[0]
        few = draw(self.space, self.config.seed, first, count)[:_DIFFERENT]
        specs = list(itertools.islice(itertools.cycle(few), count))
        program = build_program(
            few,
            image_size=self.config.image_size,
            max_params=max(map(count_parameters, few)),
            joins_norms=kernels_are_launches(),
        )
        policy, nodes = self.strategy.policy, self.config.program.max_nodes
        return program, prepare(program, specs, policy, max_nodes=nodes)[0]

    def own(self, count: int) -> Iterator[tuple[Program, Networks]]:
        """Yield the program of the run and a meta-batch, for `count` steps; threads make them ready."""
        return OfFamily(self.config, self.space, self.strategy, self.family, count).ahead(0, count)

    def run(self, program: Program, networks: Networks) -> float:
        """Do the next step: seconds until its result is there. Its loss is added to `losses`."""
        start = time.perf_counter()
        self.state, values = self.stepper(program, self.state, networks, len(self.losses))
        jax.block_until_ready((self.state, values))
        seconds = time.perf_counter() - start
        loss = float(values['loss'])
        self.losses.append(loss if np.isfinite(loss) else None)
        return seconds

    def first(self, program: Program, networks: Networks) -> dict[str, Any]:
        """Do the first step: what it cost with its program, found or compiled, and the memory that XLA plans.

        `first_step_s` has all of it: loading or compiling, making the workspace, a step.
        """
        first_s = self.run(program, networks)
        executable = self.stepper.compiled[program]
        analysis = getattr(executable, 'memory_analysis', lambda: None)()
        return {
            'branches': count_branches(program.segments),
            'first_step_s': first_s,
            'arguments_bytes': analysis and analysis.argument_size_in_bytes,
            'temporary_bytes': analysis and analysis.temp_size_in_bytes,
        }

    def rates(self, seconds: list[float]) -> dict[str, Any]:
        """Give figures of timed steps, the memory they took at most, and the first losses."""
        median = float(np.median(seconds))
        return {
            'meta_batch': self.config.train.meta_batch,
            'batch_size': self.config.train.batch_size,
            'width': self.family.width,
            'steps': len(seconds),
            'step_s': median,
            'slowest_step_s': max(seconds),
            'steps_per_s': 1 / median,
            'peak_bytes': peak_bytes(),
            'losses': self.losses[:3],
        }


def timed(steps: Steps, seconds: float) -> Iterator[dict[str, Any]]:
    """Time 3 to 20 steps through a small program; yield what is known, first after the step that compiles.

    Args:
      steps: none has been done.
      seconds: after which no more steps are begun.
    """
    program, networks = steps.small()
    found = steps.first(program, networks)
    yield found
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or (len(times) < _MOST and time.perf_counter() < end):
        times.append(steps.run(program, networks))
    yield found | steps.rates(times)


def peak_bytes() -> int:
    """Give the most memory that was taken so far: of the first device, on a CPU of this process."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get('peak_bytes_in_use') or timing.peak_rss()
