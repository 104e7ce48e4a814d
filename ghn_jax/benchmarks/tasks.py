"""Times prediction, training and evaluation on given networks, after warm-up.

Each family of the networks (a width, with or without attention) has a program of its own, compiled in the
warm-up, which also runs every network once (evaluation: two). Then every network is timed and compilations
are counted: there must be none.
"""

import functools
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax.assembly.memory import check_scoring
from ghn_jax.assembly.mesh import OVER_IMAGES, local_mesh, make_workspaces, mesh_of, place_networks, replicate
from ghn_jax.assembly.network_batch import prepare
from ghn_jax.base import counters
from ghn_jax.base.errors import FieldError, UserError
from ghn_jax.benchmarks import timing
from ghn_jax.benchmarks.images import random_batches, random_dataset
from ghn_jax.benchmarks.options import BenchmarkOptions, Row
from ghn_jax.cnn.building import build_program
from ghn_jax.cnn.packing import BLOCK
from ghn_jax.cnn.program import Program
from ghn_jax.cnn.tables import RunnableNetwork
from ghn_jax.config import RunConfig
from ghn_jax.datasets.load import batch_indices
from ghn_jax.datasets.sizes import SIZES
from ghn_jax.evaluation.compiled import predict, score
from ghn_jax.evaluation.selection import check_given, group_by_family, room_for, spread_images
from ghn_jax.hypernet.ghn import GHN, GHNConfig, init_params
from ghn_jax.hypernet.predict import predict_weights
from ghn_jax.networks.counts import count_parameters
from ghn_jax.networks.files import load_networks
from ghn_jax.networks.graph import build_graph
from ghn_jax.networks.spaces import make_space
from ghn_jax.networks.spec import IMAGE_SIZE, NetworkSpec
from ghn_jax.quant.policy import Policy, parse_bits
from ghn_jax.quant.scheme import QAT, Scheme
from ghn_jax.training.compiled import StepSettings, make_stream, training_step
from ghn_jax.training.optimizer import make_optimizer
from ghn_jax.training.state import make_state

NUM_NETWORKS = 24  # that are timed where no architecture file is given


def groups(specs: Sequence[NetworkSpec], batch_size: int) -> Iterator[tuple[Program, list[NetworkSpec]]]:
    """Group networks by family: a program made for them, and the networks.

    Raises:
      UserError: the values of a batch take more than the memory there is.
    """
    for _, places in group_by_family(specs):
        members = [specs[i] for i in places]
        size = max(map(count_parameters, members))
        program = build_program(members, image_size=IMAGE_SIZE, max_params=size)
        check_scoring([program], batch_size)
        yield program, members


def read_networks(path: str | None) -> tuple[NetworkSpec, ...]:
    """Read the networks of an architecture file; without one, give NUM_NETWORKS of a space.

    Raises UserError for networks that cannot be timed, with the name and the field.
    """
    if not path:
        space = make_space('convnets250k')
        return tuple(space.sample('test', 0, i) for i in range(NUM_NETWORKS))
    specs = load_networks(path)
    check_networks(specs)
    return tuple(specs)


def check_networks(specs: Sequence[NetworkSpec]) -> None:
    """Raise UserError for networks of a file that cannot be timed, with the name and the field."""
    check_given(specs, IMAGE_SIZE)
    for spec in specs:
        if spec.num_classes != specs[0].num_classes:
            raise UserError(
                f'network {spec.name!r} has {spec.num_classes} classes, network {specs[0].name!r} has '
                f'{specs[0].num_classes}: give networks with one num_classes'
            )


def policy_of(mode: str) -> Policy:
    """Give the bit-widths that are timed in a mode: W4/A4, or none in float."""
    return parse_bits('float' if mode == 'float' else 'w4a4')


def random_images(batch_size: int, image_size: int = IMAGE_SIZE) -> tuple[jax.Array, jax.Array]:
    """Make a normalised batch float32 [N, H, H, 3] and its labels int32 [N]."""
    images = jax.random.normal(jax.random.key(0), (batch_size, image_size, image_size, 3))
    return images, jnp.arange(batch_size, dtype=jnp.int32) % 10


def measure_predict(options: BenchmarkOptions) -> list[Row]:
    """Time prediction network by network: graph, hypernetwork, and decoding to named arrays."""
    ghn, params = _hypernetwork(options)
    _announce('predict', 'float', options)
    for spec in options.specs:
        predict_weights(ghn, params, spec)
    before, seconds, graph_seconds = counters.compilations(), [], []
    for spec in options.specs:
        start = time.perf_counter()
        build_graph(spec)
        graph_seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
        predict_weights(ghn, params, spec)
        seconds.append(time.perf_counter() - start)
    figures = timing.row(
        seconds, counters.compilations() - before, graph_median_s=float(np.median(graph_seconds))
    )
    return [{'what': 'predict', 'mode': 'float', **figures}]


def measure_train(options: BenchmarkOptions) -> list[Row]:
    """Time training steps through the networks, `meta_batch` at a time.

    A family with fewer networks has fewer in a step, but at least one for each device. The step is the one
    that `train` runs, on as many images as CIFAR-10 has.

    Raises:
      UserError: fewer devices than asked for, or more than networks in a meta-batch.
    """
    found = jax.local_device_count()
    if not 1 <= options.devices <= min(found, options.meta_batch):
        raise FieldError(
            'devices',
            f'={options.devices}: expected at most the {found} devices there are and '
            f'meta_batch={options.meta_batch}',
        )
    return [_train(options, mode) for mode in options.modes]


def _train(options: BenchmarkOptions, mode: str) -> Row:
    ghn, params = _hypernetwork(options)
    _announce('train', mode, options)
    mesh = mesh_of(jax.local_devices()[: options.devices], 1)
    optimizer, dataset = make_optimizer(RunConfig()), random_dataset(SIZES['cifar10'], IMAGE_SIZE)
    settings = StepSettings(
        ghn=ghn, optimizer=optimizer, scheme=Scheme(mode), augment=True, flip=dataset.flip, mesh=mesh
    )
    stream, key = make_stream(dataset, mesh), replicate(mesh, jax.random.key(0))
    state = replicate(mesh, make_state(jax.tree.map(jnp.copy, params), optimizer))  # steps overwrite theirs
    policy, nodes = policy_of(mode), room_for(map(build_graph, options.specs))
    seconds: list[float] = []
    compiled = 0
    for program, members in groups(options.specs, options.batch_size):
        step = functools.partial(training_step, program=program, settings=settings)
        workspace = make_workspaces(mesh, program, options.batch_size)
        for timed in (False, True):
            before = counters.compilations()
            for k, chunk in enumerate(_chunks(members, options)):
                networks, _ = prepare(program, chunk, policy, max_nodes=nodes)
                start = time.perf_counter()
                indices = batch_indices(0, k, options.batch_size, len(dataset.train.labels))
                indices = replicate(mesh, indices, OVER_IMAGES) if mesh else indices
                networks = place_networks(mesh, networks, len(chunk))
                state, metrics, workspace = step(state, networks, stream, indices, key, workspace)
                jax.block_until_ready(metrics)
                if timed:
                    seconds += [(time.perf_counter() - start) / len(chunk)] * len(chunk)
            compiled += (counters.compilations() - before) if timed else 0
        del workspace
    more = {'images_per_step': options.batch_size, 'meta_batch': options.meta_batch,
            'devices': options.devices}  # fmt: skip
    return {'what': 'train', 'mode': mode, **timing.row(seconds, compiled, **more)}


def _chunks(members: Sequence[NetworkSpec], options: BenchmarkOptions) -> list[list[NetworkSpec]]:
    """The meta-batches of a family; the last is filled up with networks from the beginning."""
    each = -(-min(options.meta_batch, len(members)) // options.devices)  # of a device
    count = each * options.devices
    return [[members[(i + k) % len(members)] for k in range(count)] for i in range(0, len(members), count)]


def measure_evaluate(options: BenchmarkOptions) -> list[Row]:
    """Time scoring each network on num_images images, and for 10,000; its weights are predicted before."""
    return [_evaluate(options, mode) for mode in options.modes]


def _evaluate(options: BenchmarkOptions, mode: str) -> Row:
    ghn, params = _hypernetwork(options)
    _announce('evaluate', mode, options)
    mesh = local_mesh(options.devices)
    N, K = options.batch_size, max(1, options.num_images // options.batch_size)
    data = spread_images(mesh, random_batches(K, N, IMAGE_SIZE))
    policy, nodes = policy_of(mode), room_for(map(build_graph, options.specs))
    seconds: list[float] = []
    compiled = 0
    for program, members in groups(options.specs, options.batch_size):
        workspace = make_workspaces(mesh, program, N, train=False)
        weights = jnp.zeros(program.capacity.blocks * BLOCK)
        for timed in (False, True):
            before = counters.compilations()
            for spec in members if timed else members[:2]:
                networks, _ = prepare(program, [spec], policy, max_nodes=nodes)
                weights = predict(params, networks, weights, ghn=ghn)
                tables, bits = (jax.tree.map(lambda a: a[0], t) for t in (networks.tables, networks.bits))
                placed = replicate(mesh, weights) if mesh else weights
                jax.block_until_ready(placed)
                network = RunnableNetwork(placed, tables, bits)
                start = time.perf_counter()
                top1, *_, workspace = score(network, data, workspace, program=program, scheme=QAT, mesh=mesh)
                jax.block_until_ready(top1)
                if timed:
                    seconds.append(time.perf_counter() - start)
            compiled += (counters.compilations() - before) if timed else 0
        del workspace, weights
    count = K * N
    more = {
        'images': count,
        'devices': options.devices,
        'images_per_s': count / np.mean(seconds),
        'mean_s_per_10k_images': float(np.mean(seconds)) / count * 10_000,
    }
    return {'what': 'evaluate', 'mode': mode, **timing.row(seconds, compiled, **more)}


def _hypernetwork(options: BenchmarkOptions) -> tuple[GHN, Any]:
    ghn = GHN(GHNConfig(num_classes=options.specs[0].num_classes))
    return ghn, init_params(ghn.config, jax.random.key(0))


def _announce(what: str, mode: str, options: BenchmarkOptions) -> None:
    print(f'{what}, {mode}: {len(options.specs)} networks ...', file=sys.stderr, flush=True)
