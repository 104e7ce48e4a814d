"""Weak scaling: what devices tell each other in a step, and what that costs, simulated and expected.

Collectives and their bytes are read from the compiled program; times on other machines are computed from
them, not measured. Simulated devices share this machine's cores: the time of a step grows with their number
there, while processor seconds for each network stay flat if nothing is wasted.
"""

import json
import os
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax.aot.hlo import Collective, collectives, read
from ghn_jax.assembly.mesh import OVER_IMAGES, make_workspaces, mesh_of, place_networks, replicate
from ghn_jax.assembly.network_batch import prepare
from ghn_jax.base.errors import FieldError
from ghn_jax.base.start import enable_compilation_cache
from ghn_jax.benchmarks.images import random_dataset
from ghn_jax.benchmarks.options import BenchmarkOptions, Row
from ghn_jax.cnn.covering import family, training_program
from ghn_jax.config import RunConfig
from ghn_jax.datasets.sizes import SIZES
from ghn_jax.hypernet.ghn import GHN, GHNConfig, init_params
from ghn_jax.networks.spaces import make_space
from ghn_jax.quant.policy import parse_bits
from ghn_jax.quant.scheme import QAT
from ghn_jax.training.compiled import StepSettings, make_stream, training_step
from ghn_jax.training.optimizer import make_optimizer
from ghn_jax.training.sampling import draw
from ghn_jax.training.state import make_state

COUNTS = (1, 2, 4, 8)  # of simulated devices
CHIPS = (8, 64, 512)
# (bytes/s that a device sends, seconds of a hop): round figures to compute with, of no particular product.
LINKS = {
    '10 Gbit/s network': (1.25e9, 50e-6),
    '100 Gbit/s network': (12.5e9, 10e-6),
    '50 GB/s chip interconnect': (50e9, 1e-6),
}
_SIZE, _NODES = 8, 96  # pixels, nodes of a graph
_NETWORKS, _BATCH = 2, 8  # of each device, the same networks on all, so that none waits; images
_SPACE = make_space(  # of the networks of the steps
    'convnets250k', ops=('skip_connect', 'conv_1x1', 'sep_conv_3x3'), channels=(16,), cells=(2, 4),
    max_steps=1, max_steps_deep=1, ks=(3,), C_mults=(1,), fc_dims=(64,), flat_head_share=0.0,
)  # fmt: skip


def all_reduce_seconds(size: float, count: int, bandwidth: float, latency: float) -> float:
    """Compute the seconds to sum `size` bytes over `count` devices in a ring.

    2 (n-1)/n bytes/bandwidth + 2 (n-1) latency: a reduce-scatter and an all-gather of n-1 hops each
    (Patarasuk and Yuan, 2009, Bandwidth optimal all-reduce algorithms for clusters of workstations).
    bandwidth: bytes/s that a device sends; latency: seconds of a hop.
    """
    return 2 * (count - 1) / count * size / bandwidth + 2 * (count - 1) * latency


def expected_efficiency(
    step_seconds: float, size: float, count: int, bandwidth: float, latency: float
) -> float:
    """Compute the share of the time that `count` devices work, if each step ends with a sum of `size` bytes.

    Nothing overlaps: the sum needs the last gradient, and the next step the sum. What is left out: devices
    whose networks are small wait for those whose are large.

    Raises:
      UserError: numbers that are not positive.
    """
    positive = {'step_seconds': step_seconds, 'size': size, 'count': count, 'bandwidth': bandwidth}
    for name, value in positive.items():
        if not value > 0:
            raise FieldError(name, f'={value}: expected a positive number')
    return step_seconds / (step_seconds + all_reduce_seconds(size, count, bandwidth, latency))


def measure(options: BenchmarkOptions) -> list[Row]:
    """Measure weak scaling on simulated devices, with rows named 'expected' of what to expect elsewhere.

    devices, mean_s (wall seconds for each network of a device), cpu_s_per_network, all_reduces, bytes; link,
    chips, times_faster (than the step measured here), mean_s, all_reduce_s, efficiency.
    """
    print(f'weak scaling on {", ".join(map(str, COUNTS))} simulated devices ...', file=sys.stderr, flush=True)
    found = weak_scaling(options.repeats)
    measured = [{'mean_s': row['step_s'] / _NETWORKS, **row} for row in found['rows']]
    rows = [
        {'what': 'scaling', 'mode': 'qat', 'networks': _NETWORKS * row['devices'], **row} for row in measured
    ]
    expected = [{'mean_s': (r['step_s'] + r['all_reduce_s']) / _NETWORKS, **r} for r in found['expected']]
    return rows + [{'what': 'expected', 'mode': 'qat', **row} for row in expected]


def weak_scaling(repeats: int, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run training steps on simulated CPU devices, in another process, and compute what to expect.

    repeats: steps timed, the median counts. options: compiler options.

    Returns (as JSON): {'rows': [{'devices', 'step_s' (wall), 'cpu_s_per_network', 'all_reduces', 'bytes'}],
      'parameters', 'collectives' (of the largest count), 'expected': [{'link', 'times_faster', 'chips',
      'step_s', 'all_reduce_s', 'efficiency'}]}. `expected` is for the step measured on one device, and for
      steps a hundred and a thousand times as fast.
    """
    job = json.dumps({'repeats': repeats, 'options': options or {}})
    flags = f'--xla_force_host_platform_device_count={max(COUNTS)}'
    # Simulated devices wait for each other on few cores: give them the time.
    flags += ' --xla_cpu_collective_call_terminate_timeout_seconds=600'
    done = subprocess.run(
        [sys.executable, '-m', 'ghn_jax.benchmarks.scaling', job],
        env=os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'}, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f'the measuring process failed: {done.stderr[-2000:]}')
    return json.loads(done.stdout.splitlines()[-1])


def _measure(repeats: int, options: dict[str, Any]) -> dict[str, Any]:
    """What the measuring process does; see `weak_scaling`."""
    ghn = GHN(GHNConfig())
    params = init_params(ghn.config, jax.random.key(0))
    rows, found = [], []
    for count in COUNTS:
        row, found = _measure_steps(count, ghn, params, repeats, options)
        rows.append(row)
    size = rows[-1]['bytes'] or sum(x.nbytes for x in jax.tree.leaves(params))
    return {
        'rows': rows,
        'parameters': sum(x.size for x in jax.tree.leaves(params)),
        'collectives': [c._asdict() for c in found],
        'expected': _expected(rows[0]['step_s'], size),
    }


def _measure_steps(
    count: int, ghn: GHN, params: Any, repeats: int, options: dict[str, Any]
) -> tuple[Row, list[Collective]]:
    """The row of so many devices, and the collectives of their program."""
    mesh = mesh_of(jax.devices()[:count], 1)
    specs = draw(_SPACE, 0, 0, _NETWORKS)
    program = training_program(_SPACE, family(specs[0]), _SIZE)
    networks, _ = prepare(program, specs * count, parse_bits('w4a4'), max_nodes=_NODES)
    networks = place_networks(mesh, networks, _NETWORKS * count)
    optimizer, dataset = make_optimizer(RunConfig()), random_dataset(SIZES['synthetic'], _SIZE)
    settings = StepSettings(
        ghn=ghn, optimizer=optimizer, scheme=QAT, augment=True, flip=dataset.flip, mesh=mesh
    )
    stream, key = make_stream(dataset, mesh), replicate(mesh, jax.random.key(0))
    indices = replicate(mesh, np.arange(_BATCH, dtype=np.int32), OVER_IMAGES)
    state = replicate(mesh, make_state(jax.tree.map(jnp.copy, params), optimizer))
    workspace = make_workspaces(mesh, program, _BATCH)
    lowered = training_step.lower(
        state, networks, stream, indices, key, workspace, program=program, settings=settings
    )
    compiled = lowered.compile(options)
    wall, cpu = [], []
    for _ in range(repeats + 1):  # the first warms up
        start, cpu_start = time.perf_counter(), time.process_time()
        state, metrics, workspace = compiled(state, networks, stream, indices, key, workspace)
        jax.block_until_ready((state, metrics))
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - cpu_start)
    found = collectives(read(compiled.as_text() or ''))
    row = {
        'devices': count,
        'step_s': float(np.median(wall[1:])),
        'cpu_s_per_network': float(np.median(cpu[1:])) / (_NETWORKS * count),
        'all_reduces': sum(c.op == 'all-reduce' for c in found),
        'bytes': sum(c.bytes for c in found),
    }
    return row, found


def _expected(step_seconds: float, size: int) -> list[Row]:
    """Steps as measured and faster, on every link and number of chips, that sum `size` bytes."""
    return [
        {
            'link': link,
            'times_faster': times,
            'chips': chips,
            'step_s': step_seconds / times,
            'all_reduce_s': all_reduce_seconds(size, chips, *LINKS[link]),
            'efficiency': expected_efficiency(step_seconds / times, size, chips, *LINKS[link]),
        }
        for link in LINKS
        for times in (1, 100, 1000)
        for chips in CHIPS
    ]


if __name__ == '__main__':  # `weak_scaling` calls it
    enable_compilation_cache()
    print(json.dumps(_measure(**json.loads(sys.argv[1]))))
