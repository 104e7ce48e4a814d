"""Time for each instruction and memory, as functions of the length of a network.

Networks of one genotype and width differ in their number of cells only. Each runs in a program with room for
itself, so that a tape copied for every instruction would show as time growing with the room, and in the
program of the longest, where all share one room. What is timed is the executor's loss and gradients: the part
of a training step that walks the tape.
"""

import collections
import sys
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax.aot.compiling import compiled_figures
from ghn_jax.assembly.memory import tree_bytes
from ghn_jax.base import counters
from ghn_jax.base.errors import FieldError
from ghn_jax.benchmarks import timing
from ghn_jax.benchmarks.options import BenchmarkOptions, Row
from ghn_jax.benchmarks.tasks import policy_of, random_images
from ghn_jax.cnn import executor
from ghn_jax.cnn.building import build_program
from ghn_jax.cnn.gradient_slots import place_gradients
from ghn_jax.cnn.lowering import IMAGE, lower
from ghn_jax.cnn.packing import BLOCK
from ghn_jax.cnn.program import Layout
from ghn_jax.cnn.tables import RunnableNetwork
from ghn_jax.networks.counts import count_parameters
from ghn_jax.networks.genotype import Genotype
from ghn_jax.networks.spec import IMAGE_SIZE, NetworkSpec
from ghn_jax.quant.scheme import Scheme

_ENTRIES = (('conv_3x3', 0), ('max_pool_3x3', 1), ('conv_1x1', 2), ('skip_connect', 0))
_GENOTYPE = Genotype(normal=_ENTRIES, normal_concat=(2, 3), reduce=_ENTRIES, reduce_concat=(2, 3))


def network(n_cells: int, width: int) -> NetworkSpec:
    """Make the network of that many cells and channels."""
    return NetworkSpec(
        C=width, n_cells=n_cells, ks=3, stem_type=0, stem_pool=False, norm='bnorm', preproc=True, C_mult=1,
        fc_layers=1, fc_dim=64, glob_avg=True, genotype=_GENOTYPE, name=f'{n_cells} cells',
    )  # fmt: skip


def used_bytes(spec: NetworkSpec, layout: Layout, batch: int) -> int:
    """Count what a network fills of the executor's workspace: values, their gradients, weight gradients.

    Args:
      spec: the network.
      layout: of it, in a program.
      batch: images.
    """
    lowered = lower(spec, IMAGE_SIZE)
    slots = collections.Counter(c for value, c in lowered.shapes.items() if value != IMAGE)
    slots.update(place_gradients(layout.instructions, lowered)[1])
    floats = sum(n * batch * h * h * c for (h, c), n in slots.items())
    return 4 * (floats + int(layout.tables.n_blocks) * BLOCK)


def measure(options: BenchmarkOptions) -> list[Row]:
    """Time networks by number of cells, mode and room (cells of the longest network of the program).

    mean_s, median_s: of loss and gradients of a batch. us_per_instruction: median microseconds. Bytes:
    workspace_bytes (allocated), used_bytes (of it, by the network), temp_bytes (besides, by XLA).

    Raises:
      UserError: no cells, or networks that cannot be.
    """
    if not options.cells:
        raise FieldError('cells', ' is empty: expected numbers of cells, as in 4,12,36')
    longest = max(options.cells)
    rows = []
    for mode in options.modes:
        for room in options.cells:
            members = options.cells if room == longest else (room,)
            rows += _measure(options, mode, room, members)
    return sorted(rows, key=lambda row: (row['mode'], row['room'] == longest, row['cells']))


def _measure(options: BenchmarkOptions, mode: str, room: int, members: Sequence[int]) -> list[Row]:
    print(f'cells, {mode}: program of {room} cells ...', file=sys.stderr, flush=True)
    specs = [network(n, options.width) for n in members]
    size = max(map(count_parameters, specs))
    program = build_program(specs, image_size=IMAGE_SIZE, max_params=size)
    images, labels = random_images(options.batch_size)
    weights = 0.05 * jax.random.normal(jax.random.key(0), (program.capacity.blocks * BLOCK,))
    workspace = executor.make_tapes(program, options.batch_size)
    layouts = [program.layout(spec) for spec in specs]
    networks = [
        RunnableNetwork(weights, *jax.tree.map(jnp.asarray, (x.tables, program.bits(x, policy_of(mode)))))
        for x in layouts
    ]
    step = jax.jit(
        executor.loss_and_gradients,
        static_argnums=0,
        static_argnames=('scheme', 'dropout'),
        donate_argnames='tapes',
    )
    compiled, figures = compiled_figures(
        lambda: step.trace(program, networks[0], images, labels, workspace, scheme=Scheme(mode))
    )
    rows = []
    for n, spec, layout, runnable in zip(members, specs, layouts, networks):
        seconds, compiled_before = [], 0
        for repeat in range(options.repeats + 1):
            start = time.perf_counter()
            loss, _, _, workspace = compiled(runnable, images, labels, workspace)
            jax.block_until_ready((loss, workspace))
            if repeat:  # the first is the warm-up
                seconds.append(time.perf_counter() - start)
            else:
                compiled_before = counters.compilations()
        instructions = len(layout.instructions)
        row = timing.row(seconds, counters.compilations() - compiled_before) | {'networks': 1}
        rows.append({
            'what': 'cells', 'mode': mode, 'cells': n, 'room': room, 'width': options.width,
            'batch_size': options.batch_size, 'instructions': instructions,
            'us_per_instruction': float(np.median(seconds)) / instructions * 1e6,
            'workspace_bytes': tree_bytes(workspace),
            'used_bytes': used_bytes(spec, layout, options.batch_size),
            'temp_bytes': figures['temp_bytes'], 'compile_s': figures['compile_s'], **row,
        })  # fmt: skip
    return rows
