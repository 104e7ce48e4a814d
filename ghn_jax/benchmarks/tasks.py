"""Times prediction, training and evaluation on given networks, after warm-up.

Each family of the networks (a width, with or without attention) has a program of its own, compiled in the
warm-up, which also runs every network once (evaluation: two). Then every network is timed and compilations
are counted: there must be none.
"""

import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from ghn_jax.assembly.memory import check_scoring
from ghn_jax.assembly.mesh import (
    OVER_DEVICES,
    REPLICATED,
    axes_of,
    first,
    make_workspaces,
    mesh_of,
    place_networks,
    replicate,
    spread,
)
from ghn_jax.assembly.network_batch import prepare
from ghn_jax.base import counters
from ghn_jax.base.errors import UserError
from ghn_jax.benchmarks.options import Options, Row
from ghn_jax.cnn.building import build_program
from ghn_jax.cnn.packing import BLOCK
from ghn_jax.cnn.program import Program
from ghn_jax.evaluation import device
from ghn_jax.evaluation.score import score_on, spread_images
from ghn_jax.evaluation.selection import ImageBatches, check_given, group_by_family, room_for
from ghn_jax.hypernet.ghn import GHN, GHNConfig, init_params
from ghn_jax.hypernet.predict import predict_weights
from ghn_jax.networks.counts import count_parameters
from ghn_jax.networks.graph import build_graph
from ghn_jax.networks.spec import IMAGE_SIZE, NetworkSpec
from ghn_jax.quant.policy import Policy, parse_bits
from ghn_jax.quant.scheme import QAT, Scheme
from ghn_jax.training.step import TrainState, train_step


def groups(specs: Sequence[NetworkSpec], batch_size: int) -> Iterator[tuple[Program, list[NetworkSpec]]]:
    """Each family's program, made for its networks, and the networks.

    Raises:
      UserError: the values of a batch take more than the memory there is.
    """
    for _, places in group_by_family(specs):
        members = [specs[i] for i in places]
        size = max(map(count_parameters, members))
        program = build_program(members, image_size=IMAGE_SIZE, max_params=size)
        check_scoring([program], batch_size)
        yield program, members


def check_networks(specs: Sequence[NetworkSpec]) -> None:
    """Raises UserError for networks of a file that cannot be timed, with the name and the field."""
    check_given(specs, IMAGE_SIZE)
    for spec in specs:
        if spec.num_classes != specs[0].num_classes:
            raise UserError(
                f'network {spec.name!r} has {spec.num_classes} classes, network {specs[0].name!r} has '
                f'{specs[0].num_classes}: give networks with one num_classes'
            )


def policy_of(mode: str) -> Policy:
    """The bit-widths that are timed in a mode: W4/A4, or none in float."""
    return parse_bits('float' if mode == 'float' else 'w4a4')


def max_nodes(specs: Sequence[NetworkSpec]) -> int:
    """Room for the graphs of these networks."""
    return room_for(map(build_graph, specs))


def random_images(batch_size: int, image_size: int = IMAGE_SIZE) -> tuple[jax.Array, jax.Array]:
    """A normalised batch [N, H, H, 3] and its labels [N]."""
    images = jax.random.normal(jax.random.key(0), (batch_size, image_size, image_size, 3))
    return images, jnp.arange(batch_size, dtype=jnp.int32) % 10


def measure_predict(options: Options) -> list[Row]:
    """Graph, hypernetwork and decoding to named arrays, network by network."""
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
    figures = counters.row(
        seconds, counters.compilations() - before, graph_median_s=float(np.median(graph_seconds))
    )
    return [{'what': 'predict', 'mode': 'float', **figures}]


def measure_train(options: Options) -> list[Row]:
    """Training steps through the networks, `meta_batch` at a time; fewer where a family has fewer, but at
    least one for each device.

    Raises:
      UserError: fewer devices than asked for, or more than networks in a meta-batch.
    """
    found = jax.local_device_count()
    if not 1 <= options.devices <= min(found, options.meta_batch):
        raise UserError(
            f'--devices={options.devices}: expected at most the {found} devices there are and '
            f'--meta_batch={options.meta_batch}'
        )
    return [_train(options, mode) for mode in options.modes]


def _train(options: Options, mode: str) -> Row:
    ghn, params = _hypernetwork(options)
    _announce('train', mode, options)
    optimizer = optax.chain(optax.clip_by_global_norm(5.0), optax.adam(1e-3))
    mesh = mesh_of(jax.local_devices()[: options.devices], 1)
    params = jax.tree.map(jnp.copy, params)  # steps overwrite theirs
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
    state, data = (replicate(mesh, t) for t in (state, random_images(options.batch_size)))
    policy, nodes = policy_of(mode), max_nodes(options.specs)
    seconds: list[float] = []
    compiled = 0
    for program, members in groups(options.specs, options.batch_size):
        step = compiled_step(program, ghn, optimizer, mesh, Scheme(mode))
        workspace = make_workspaces(mesh, program, options.batch_size)
        each = -(-min(options.meta_batch, len(members)) // options.devices)  # of a device
        count = each * options.devices
        # The last step is filled up with networks from the beginning.
        chunks = [
            [members[(i + k) % len(members)] for k in range(count)] for i in range(0, len(members), count)
        ]
        for timed in (False, True):
            before = counters.compilations()
            for k, chunk in enumerate(chunks):
                networks, _ = prepare(program, chunk, policy, max_nodes=nodes)
                key = replicate(mesh, jax.random.key(k))
                start = time.perf_counter()
                networks = place_networks(mesh, networks, count)
                state, metrics, workspace = step(state, networks, *data, workspace, key)
                jax.block_until_ready(metrics)
                if timed:
                    seconds += [(time.perf_counter() - start) / count] * count
            compiled += (counters.compilations() - before) if timed else 0
        del workspace
    more = {'images_per_step': options.batch_size, 'meta_batch': options.meta_batch,
            'devices': options.devices}  # fmt: skip
    return {'what': 'train', 'mode': mode, **counters.row(seconds, compiled, **more)}


def compiled_step(
    program: Program, ghn: GHN, optimizer: optax.GradientTransformation, mesh: Mesh | None, scheme: Scheme
) -> Callable:
    """`train_step`, jitted, as a function of its arrays; on every device of the mesh."""
    axes = axes_of(mesh)
    step = functools.partial(train_step, program, ghn, optimizer, scheme=scheme, axes=axes)
    layout = (REPLICATED, REPLICATED, OVER_DEVICES, REPLICATED)
    return jax.jit(spread(step, mesh, layout), donate_argnums=(0, 4))


def measure_evaluate(options: Options) -> list[Row]:
    """Scoring each network on num_images images, its weights predicted before; for 10,000 images, too."""
    return [_evaluate(options, mode) for mode in options.modes]


def _evaluate(options: Options, mode: str) -> Row:
    ghn, params = _hypernetwork(options)
    _announce('evaluate', mode, options)
    mesh = first(options.devices)
    score = score_on(mesh, QAT)
    predict_buffer = jax.jit(device.predict_weights, static_argnums=0, donate_argnums=3)
    N, K = options.batch_size, max(1, options.num_images // options.batch_size)
    images = np.random.default_rng(0).integers(0, 256, (K, N, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    data = ImageBatches(
        images, np.zeros((K, N), np.int32), np.full(3, 0.5, np.float32), np.full(3, 0.25, np.float32)
    )
    data = spread_images(mesh, data)
    policy, nodes = policy_of(mode), max_nodes(options.specs)
    seconds: list[float] = []
    compiled = 0
    for program, members in groups(options.specs, options.batch_size):
        workspace = make_workspaces(mesh, program, N, train=False)
        weights = jnp.zeros(program.capacity.blocks * BLOCK)
        for timed in (False, True):
            before = counters.compilations()
            for spec in members if timed else members[:2]:
                networks, _ = prepare(program, [spec], policy, max_nodes=nodes)
                weights = predict_buffer(ghn, params, networks, weights)
                tables, bits = (jax.tree.map(lambda a: a[0], t) for t in (networks.tables, networks.bits))
                own = replicate(mesh, weights) if mesh else weights
                jax.block_until_ready(own)
                network = device.RunnableNetwork(own, tables, bits)
                start = time.perf_counter()
                top1, *_, workspace = score(program, network, data, workspace)
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
    return {'what': 'evaluate', 'mode': mode, **counters.row(seconds, compiled, **more)}


def _hypernetwork(options: Options) -> tuple[GHN, Any]:
    ghn = GHN(GHNConfig(num_classes=options.specs[0].num_classes))
    return ghn, init_params(ghn.config, jax.random.key(0))


def _announce(what: str, mode: str, options: Options) -> None:
    print(f'{what}, {mode}: {len(options.specs)} networks ...', file=sys.stderr, flush=True)
