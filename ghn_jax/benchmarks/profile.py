"""Where the time of a training step goes: each part as a jitted function of its own, on the same data.

Beside the step: what the host does for it, and how long a run really waits for that. Parts that are timed
alone are not fused with their neighbours, so their sum is not the step exactly; `rest` is the difference,
with the sums of gradients over networks.
"""

import itertools
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ghn_jax.assembly.mesh import replicate
from ghn_jax.assembly.network_batch import Networks, prepare
from ghn_jax.assembly.weight_buffer import assemble, assemble_transposed
from ghn_jax.assembly.workspace import make_workspace
from ghn_jax.benchmarks import timing
from ghn_jax.benchmarks.images import random_dataset
from ghn_jax.benchmarks.options import BenchmarkOptions, Row, config_of
from ghn_jax.benchmarks.tasks import policy_of
from ghn_jax.cnn import executor
from ghn_jax.cnn.covering import Family, family
from ghn_jax.cnn.program import Program
from ghn_jax.cnn.tables import RunnableNetwork
from ghn_jax.cnn.weight_quantization import pages, quantize_weights, quantize_weights_backward
from ghn_jax.config import RunConfig
from ghn_jax.datasets.augment import halved_to, normalize
from ghn_jax.hypernet.ghn import GHN, init_params
from ghn_jax.networks.spaces import Space
from ghn_jax.quant.scheme import Scheme
from ghn_jax.quant.strategy import Strategy
from ghn_jax.runs.task import make_ghn, make_space_of, sizes_of
from ghn_jax.training.optimizer import make_optimizer
from ghn_jax.training.sampling import Preparation, draw
from ghn_jax.training.state import make_state
from ghn_jax.training.step import DROPOUT
from ghn_jax.training.stepper import Stepper

STEP = 'training step'
REST = 'rest'
# Beside the step or inside another part: not added to the other parts.
BESIDE = ('of the executor: activation quantization', 'host: preparation', 'host: transfer',
          'host: wait, not hidden', 'step beside preparation')  # fmt: skip


def measure(options: BenchmarkOptions) -> list[Row]:
    """Measure the parts of a training step in each mode.

    The networks are those of the first step of a run of `options.config`; steps of the same family follow.

    Returns:
      A row for each part and mode: mean_s, seconds for each network; step_ms, milliseconds of a step;
      share_percent, of the step.

    Raises:
      UserError: no config.
    """
    config = config_of(options, 'profile')
    seconds: dict[str, dict[str, float]] = {}
    for mode in options.modes:
        print(f'profile, {mode}: {config.train.meta_batch} networks ...', file=sys.stderr, flush=True)
        seconds[mode] = _Profile(config, mode, options.repeats).seconds()
    if 'float' in seconds and 'qat' in seconds:
        by_mode = [
            sum(seconds[m][f'executor {way}'] for way in ('forward', 'backward')) for m in ('float', 'qat')
        ]
        seconds['qat'][BESIDE[0]] = by_mode[1] - by_mode[0]
    about = {'networks': config.train.meta_batch, 'meta_batch': config.train.meta_batch,
             'images_per_step': config.train.batch_size}  # fmt: skip
    return [row for mode, parts in seconds.items() for row in rows_of(parts, mode, about)]


def rows_of(parts: Mapping[str, float], mode: str, about: Mapping[str, Any]) -> list[Row]:
    """Make a row of each part of a step: those that add up to it, the rest, the step, and what is beside it.

    Args:
      parts: seconds of a step (all its networks) by part.
      mode: float or qat.
      about: figures that every row carries; `meta_batch` is the number of networks.
    """
    step = parts[STEP]
    inside = {k: v for k, v in parts.items() if k != STEP and k not in BESIDE}
    ordered = {**inside, REST: step - sum(inside.values()), STEP: step}
    ordered |= {k: parts[k] for k in BESIDE if k in parts}
    return [
        {'what': 'profile', 'mode': mode, 'part': part, **about, 'mean_s': s / about['meta_batch'],
         'step_ms': 1000 * s, 'share_percent': 100 * s / step}
        for part, s in ordered.items()
    ]  # fmt: skip


class OfFamily(Preparation):
    """The preparation of a run, of the steps of one family only: so one program serves all."""

    def __init__(self, config: RunConfig, space: Space, strategy: Strategy, wanted: Family, count: int):
        """Find the first `count` such steps."""
        super().__init__(config, space, strategy)
        drawn = (draw(space, config.seed, step, config.train.meta_batch) for step in itertools.count())
        chosen = (i for i, specs in enumerate(drawn) if family(specs[0]) == wanted)
        self.steps = list(itertools.islice(chosen, count))

    def step(self, step: int) -> tuple[Program, Networks]:
        return super().step(self.steps[step])


def waits(ahead: Iterator, run_step: Callable[[Any], object]) -> tuple[list[float], list[float]]:
    """Measure a run's waiting for its next item, and its steps; the first is left out: nothing precedes it.

    Args:
      ahead: the items of the steps.
      run_step: does the step of an item and blocks: what is ready when it ends was hidden behind it.

    Returns:
      seconds of waiting, and seconds of stepping, of every other step.
    """
    waited, stepped = [], []
    while True:
        start = time.perf_counter()
        item = next(ahead, None)
        if item is None:
            return waited[1:], stepped[1:]
        ready = time.perf_counter()
        run_step(item)
        waited.append(ready - start)
        stepped.append(time.perf_counter() - ready)


class _Profile:
    """The data of one step, and the parts that run on it."""

    def __init__(self, config: RunConfig, mode: str, repeats: int):
        self.config, self.mode, self.repeats = config, mode, repeats
        self.policy, self.space = policy_of(mode), make_space_of(config)
        dataset = random_dataset(sizes_of(config), config.image_size)
        self.ghn: GHN = make_ghn(config)
        self.optimizer = make_optimizer(config)
        self.params = init_params(self.ghn.config, jax.random.key(config.seed))
        self.stepper = Stepper(config, self.ghn, self.optimizer, dataset, scheme=Scheme(mode))
        batch, stream = slice(config.train.batch_size), self.stepper.stream
        self.labels = stream.labels[batch]
        self.specs = draw(self.space, config.seed, 0, config.train.meta_batch)
        strategy = Strategy(scheme=Scheme(mode), policy=self.policy)
        self.ahead = OfFamily(config, self.space, strategy, family(self.specs[0]), repeats + 2)
        self.program = self.ahead.program(family(self.specs[0]), 0)
        images = normalize(stream.images[batch], stream.mean, stream.std)
        self.images = halved_to(self.program.image_size, images)
        self.key = jax.random.key(0)

    def seconds(self) -> dict[str, float]:
        """Return the seconds of a step by part, of all its networks."""
        parts = self.device_parts()
        host, networks = self.host_parts()
        run = self.steps()
        return parts | {STEP: self.median(lambda: run(networks))} | host | self.hidden(run)

    def median(self, run: Callable[[], Any]) -> float:
        """Median seconds of `run`, after a call that compiles."""
        return timing.median(run, self.repeats)

    def prepare(self) -> Networks:
        return prepare(self.program, self.specs, self.policy, max_nodes=self.config.program.max_nodes)[0]

    def host_parts(self) -> tuple[dict[str, float], Networks]:
        networks = self.prepare()
        return {
            'host: preparation': self.median(self.prepare),
            'host: transfer': self.median(lambda: jax.device_put(networks)),
        }, networks

    def device_parts(self) -> dict[str, float]:
        networks = jax.device_put(self.prepare())
        each = [jax.tree.map(lambda a, i=i: a[i], networks[1:]) for i in range(len(self.specs))]
        # Networks share buffers, as in a step.
        buffers = make_workspace(self.program, self.config.train.batch_size, self.config.train.dtype)
        hypernetwork, tiles = self.hypernetwork_parts(networks, each)
        assembly, weights = self.assembly_parts(each, tiles, buffers.weights)
        parts = hypernetwork | assembly
        if self.mode != 'float':
            quantization, weights = self.quantization_parts(each, weights, buffers.quantized)
            parts |= quantization
        parts |= self.executor_parts(each, weights, buffers.executor)
        update, opt_state = jax.jit(self.update), self.optimizer.init(self.params)
        return parts | {'optimizer': self.median(lambda: update(self.params, opt_state))}

    def hypernetwork_parts(self, networks: Networks, each: list) -> tuple[dict[str, float], list]:
        """Embedding and decoding, and the tiles. Of each function: forward, then with its backward pass; the
        difference is the latter.
        """
        params, parts = self.params, {}
        apply = lambda method: lambda p, *xs: self.ghn.apply({'params': p}, *xs, method=method)
        embed = jax.jit(apply('embed'))
        x = embed(params, networks.graphs)
        xs = list(x)
        pull = jax.jit(lambda p, g, x: jax.vjp(lambda p: apply('embed')(p, g), p)[1](x))
        parts['embedding forward'] = forward = self.median(lambda: embed(params, networks.graphs))
        parts['embedding backward'] = self.median(lambda: pull(params, networks.graphs, x)) - forward

        decode = jax.jit(apply('decode'))
        tiles = [decode(params, x, d) for x, (d, *_) in zip(xs, each)]
        pull = jax.jit(lambda p, x, d, t: jax.vjp(lambda p, x: apply('decode')(p, x, d), p, x)[1](t))
        parts['decoding forward'] = forward = self.median(
            lambda: [decode(params, x, d) for x, (d, *_) in zip(xs, each)]
        )
        parts['decoding backward'] = (
            self.median(lambda: [pull(params, x, d, t) for x, t, (d, *_) in zip(xs, tiles, each)]) - forward
        )
        return parts, tiles

    def assembly_parts(self, each: list, tiles: list, out: jax.Array) -> tuple[dict[str, float], list]:
        """Assembly, and the weights. out: a weight buffer, taken."""
        fill = jax.jit(lambda t, s, tables, out: assemble(t, s, pages(tables), out), donate_argnums=3)
        weights = [fill(t, s, tables, jnp.zeros_like(out)) for t, (_, s, tables, _) in zip(tiles, each)]

        def assembly():
            nonlocal out
            for t, (_, sources, tables, _) in zip(tiles, each):
                out = fill(t, sources, tables, out)
            return out

        transposed = jax.jit(assemble_transposed)
        return {
            'assembly forward': self.median(assembly),
            'assembly backward': self.median(
                lambda: [transposed(w, s, t) for w, t, (_, s, _, _) in zip(weights, tiles, each)]
            ),
        }, weights

    def quantization_parts(self, each: list, weights: list, out: jax.Array) -> tuple[dict[str, float], list]:
        """Quantization of weights, and the rounded ones. out: a weight buffer, taken."""
        scheme, key, grids = Scheme(self.mode), self.key, []
        quantize = jax.jit(quantize_weights, static_argnames='scheme', donate_argnums=3)
        backward = jax.jit(quantize_weights_backward, static_argnames='scheme', donate_argnums=3)

        def quantization():
            nonlocal out
            grids.clear()
            for w, (_, _, tables, bits) in zip(weights, each):
                out, grid = quantize(w, tables, bits.weights, out, scheme=scheme, key=key)
                grids.append(grid)
            return out

        def quantization_backward():
            nonlocal out
            for w, grid, (_, _, tables, bits) in zip(weights, grids, each):
                out = backward(w, tables, bits.weights, out, grid, scheme=scheme, key=key)
            return out

        parts = {
            'weight quantization forward': self.median(quantization),
            'weight quantization backward': self.median(quantization_backward),
        }
        return parts, [
            quantize(w, t, b.weights, w + 0, scheme=scheme, key=key)[0]
            for w, (_, _, t, b) in zip(weights, each)
        ]

    def executor_parts(self, each: list, weights: list, workspace: executor.Tapes) -> dict[str, float]:
        """Time the networks on the images. workspace: taken."""
        program, scheme, key = self.program, Scheme(self.mode), self.key
        run = jax.jit(executor.forward, static_argnums=0, static_argnames='scheme', donate_argnames='tapes')
        gradients = jax.jit(
            executor.loss_and_gradients,
            static_argnums=0,
            static_argnames=('scheme', 'dropout'),
            donate_argnames='tapes',
        )
        networks = [RunnableNetwork(w, tables, bits) for w, (_, _, tables, bits) in zip(weights, each)]

        def forward_pass():
            nonlocal workspace
            for network in networks:
                logits, workspace = run(program, network, self.images, workspace, scheme=scheme, key=key)
            return logits, workspace

        def both_passes():
            nonlocal workspace
            for network in networks:
                loss, _, g, workspace = gradients(
                    program, network, self.images, self.labels, workspace, scheme=scheme, key=key,
                    dropout=DROPOUT,
                )  # fmt: skip
                workspace = workspace._replace(weights=g)
            return loss, workspace

        forward = self.median(forward_pass)
        return {'executor forward': forward, 'executor backward': self.median(both_passes) - forward}

    def update(self, params, opt_state):
        updates, opt_state = self.optimizer.update(params, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def steps(self) -> Callable[[Networks], Any]:
        """Make a function that does one step after another, as a run: networks come from the host."""
        numbers = itertools.count()
        state = replicate(None, make_state(jax.tree.map(jnp.copy, self.params), self.optimizer))

        def run(networks: Networks):
            nonlocal state
            state, metrics = self.stepper(self.program, state, networks, next(numbers))
            return jax.block_until_ready((metrics, state))[0]

        return run

    def hidden(self, run: Callable[[Networks], Any]) -> dict[str, float]:
        ahead = self.ahead.ahead(0, len(self.ahead.steps))
        waited, stepped = waits(ahead, lambda item: run(item[1]))
        return {
            'host: wait, not hidden': float(np.mean(waited)),
            'step beside preparation': float(np.mean(stepped)),
        }
