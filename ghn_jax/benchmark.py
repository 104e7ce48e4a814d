"""Times prediction, training and evaluation on given networks, after warm-up.

python -m ghn_jax.benchmark --archs=nets.json --what=predict,train,evaluate --mode=qat --meta_batch=8
--json=FILE

Each family of the networks (a width, with or without attention) has a program of its own, compiled in the
warm-up, which also runs every network once.
Then every network is timed and compilations are counted: there must be none. Times are wall clock, of the
steps that training and evaluation really run, host work that is not hidden included. `probe` is a 2048 x 2048
float32 numpy product (median of 12): divide by it to compare machines, or the same machine at another hour.
"""

import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from tabulate import tabulate

from ghn_jax import cli, predict, runs, steps
from ghn_jax.batches import prepare
from ghn_jax.cnn.coverage import family
from ghn_jax.cnn.lowering import round_up
from ghn_jax.cnn.program import Program, build_program
from ghn_jax.errors import UserError
from ghn_jax.hypernet.ghn import GHN, GHNConfig, init_params
from ghn_jax.networks.graph import build_graph
from ghn_jax.networks.size import IMAGE_SIZE, count_parameters
from ghn_jax.networks.spaces import make_space
from ghn_jax.networks.spec import NetworkSpec, load_networks
from ghn_jax.quant.policy import parse_bits

WHAT = ('predict', 'train', 'evaluate')
MODES = ('float', 'qat')
_COMPILE_EVENT = '/jax/core/compile/backend_compile_duration'
_compilations = [0]


def _count(event: str, seconds: float, **kwargs: Any) -> None:
    _compilations[0] += event == _COMPILE_EVENT


def groups(specs: Sequence[NetworkSpec]) -> Iterator[tuple[Program, list[NetworkSpec]]]:
    """Each family's program, made for its networks, and the networks."""
    for each in sorted(set(map(family, specs))):
        members = [spec for spec in specs if family(spec) == each]
        size = max(map(count_parameters, members))
        yield build_program(members, image_size=IMAGE_SIZE, max_params=size), members


def time_predict(ghn: GHN, params: Any, specs: Sequence[NetworkSpec], **_: Any) -> dict[str, Any]:
    """Graph, hypernetwork and decoding to named arrays, network by network."""
    for spec in specs:
        predict.predict_weights(ghn, params, spec)
    before, seconds, graph_seconds = _compilations[0], [], []
    for spec in specs:
        start = time.perf_counter()
        build_graph(spec)
        graph_seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
        predict.predict_weights(ghn, params, spec)
        seconds.append(time.perf_counter() - start)
    return _row(seconds, before, graph_median_s=float(np.median(graph_seconds)))


def time_train(
    ghn: GHN,
    params: Any,
    specs: Sequence[NetworkSpec],
    *,
    mode: str,
    meta_batch: int,
    batch_size: int,
    **_: Any,
) -> dict[str, Any]:
    """Training steps that walk through the networks `meta_batch` at a time (fewer where a family has
    fewer).
    """
    optimizer = optax.chain(optax.clip_by_global_norm(5.0), optax.adam(1e-3))
    step = jax.jit(steps.train_step, static_argnums=(0, 1, 2), static_argnames='mode', donate_argnums=(3, 7))
    params = jax.tree.map(jnp.copy, params)  # steps overwrite theirs
    state = steps.TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
    images, labels = _images(batch_size)
    policy = parse_bits('w4a4' if mode == 'qat' else 'float')
    seconds: list[float] = []
    compiled = 0
    for program, members in groups(specs):
        workspace = steps.make_workspace(program, batch_size)
        count = min(meta_batch, len(members))
        # The last step is filled up with networks from the beginning.
        chunks = [
            [members[(i + k) % len(members)] for k in range(count)] for i in range(0, len(members), count)
        ]
        for timed in (False, True):
            before = _compilations[0]
            for k, chunk in enumerate(chunks):
                networks, _ = prepare(program, chunk, policy, max_nodes=_max_nodes(specs))
                start = time.perf_counter()
                state, metrics, workspace = step(
                    program,
                    ghn,
                    optimizer,
                    state,
                    networks,
                    images,
                    labels,
                    workspace,
                    jax.random.key(k),
                    mode=mode,
                )
                jax.block_until_ready(metrics)
                if timed:
                    seconds += [(time.perf_counter() - start) / count] * count
            compiled += (_compilations[0] - before) if timed else 0
        del workspace
    return _row(seconds, _compilations[0] - compiled, images_per_step=batch_size, meta_batch=meta_batch)


def time_evaluate(
    ghn: GHN,
    params: Any,
    specs: Sequence[NetworkSpec],
    *,
    mode: str,
    batch_size: int,
    num_images: int,
    **_: Any,
) -> dict[str, Any]:
    """Scoring each network on num_images images; weights predicted before. Reported for 10,000 images,
    too.
    """
    score = jax.jit(steps.score, static_argnums=0, donate_argnums=8)
    predict_buffer = jax.jit(steps.predict_weights, static_argnums=0, donate_argnums=3)
    K = max(1, num_images // batch_size)
    images = np.random.default_rng(0).integers(0, 256, (K, batch_size, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    data = (jnp.asarray(images), jnp.zeros((K, batch_size), jnp.int32), jnp.full(3, 0.5), jnp.full(3, 0.25))
    policy = parse_bits('w4a4' if mode == 'qat' else 'float')
    seconds: list[float] = []
    compiled = 0
    for program, members in groups(specs):
        workspace = steps.make_workspace(program, batch_size, train=False)
        weights, workspace = workspace.weights, workspace._replace(weights=jnp.zeros(0))
        for timed in (False, True):
            before = _compilations[0]
            for spec in members if timed else members[:2]:
                networks, layouts = prepare(program, [spec], policy, max_nodes=_max_nodes(specs))
                weights = predict_buffer(ghn, params, networks, weights)
                tables, bits = (jax.tree.map(lambda a: a[0], t) for t in (networks.tables, networks.bits))
                jax.block_until_ready(weights)
                start = time.perf_counter()
                top1, _, workspace = score(program, weights, tables, bits, *data, workspace)
                jax.block_until_ready(top1)
                if timed:
                    seconds.append(time.perf_counter() - start)
            compiled += (_compilations[0] - before) if timed else 0
        del workspace, weights
    count = K * batch_size
    return _row(
        seconds, _compilations[0] - compiled, images=count, images_per_s=count / np.mean(seconds),
        mean_s_per_10k_images=float(np.mean(seconds)) / count * 10_000,
    )  # fmt: skip


def probe() -> float:
    """Median seconds of a float32 2048 x 2048 numpy product: how fast this machine is just now."""
    a = np.ones((2048, 2048), np.float32)
    times = []
    for _ in range(12):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def _max_nodes(specs: Sequence[NetworkSpec]) -> int:
    return round_up(max(len(build_graph(spec).nodes) for spec in specs), 64)


def _images(batch_size: int) -> tuple[jax.Array, jax.Array]:
    images = jax.random.normal(jax.random.key(0), (batch_size, IMAGE_SIZE, IMAGE_SIZE, 3))
    return images, jnp.arange(batch_size, dtype=jnp.int32) % 10


def _row(seconds: Sequence[float], compilations_before: int, **more: Any) -> dict[str, Any]:
    return {
        'networks': len(seconds),
        'mean_s': float(np.mean(seconds)),
        'median_s': float(np.median(seconds)),
        'p95_s': float(np.percentile(seconds, 95)),
        'compilations_after_warmup': _compilations[0] - compilations_before,
        'peak_rss_gib': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        **more,
    }


TIMERS: dict[str, Callable[..., dict[str, Any]]] = {
    'predict': time_predict,
    'train': time_train,
    'evaluate': time_evaluate,
}


def benchmark(
    specs: Sequence[NetworkSpec], what: Sequence[str], *, modes: Sequence[str], meta_batch: int,
    batch_size: int, num_images: int,
) -> dict[str, Any]:  # fmt: skip
    """All that is asked for, as JSON: {'machine': ..., 'rows': [{'what', 'mode', 'mean_s', ...}, ...]}.

    Raises:
      UserError: an unknown thing to time, or a network that the executor does not run.
    """
    for name in what:
        if name not in TIMERS:
            raise UserError(f'--what={name}: choose from {", ".join(WHAT)}')
    ghn = GHN(GHNConfig(num_classes=specs[0].num_classes))
    params = init_params(ghn.config, jax.random.key(0))
    rows, probes = [], [probe()]
    for name in what:
        for mode in modes if name != 'predict' else ['float']:
            print(f'{name}, {mode}: {len(specs)} networks ...', file=sys.stderr, flush=True)
            row = TIMERS[name](
                ghn,
                params,
                specs,
                mode=mode,
                meta_batch=meta_batch,
                batch_size=batch_size,
                num_images=num_images,
            )
            rows.append({'what': name, 'mode': mode, **row})
    probes.append(probe())
    machine = {
        'device': jax.devices()[0].device_kind,
        'platform': jax.default_backend(),
        'cpus': os.cpu_count(),
        'python': platform.python_version(),
        'jax': jax.__version__,
        'probe_matmul2048_f32_s': probes,
    }
    return {'machine': machine, 'rows': rows}


if __name__ == '__main__':
    _ARCHS = flags.DEFINE_string(
        'archs', None, 'Architecture file; default: 24 networks of convnets250k, test split.'
    )
    _WHAT = flags.DEFINE_list('what', list(WHAT), f'What to time, of {", ".join(WHAT)}.')
    _MODE = flags.DEFINE_list('mode', list(MODES), 'float, qat (W4/A4) or both, for train and evaluate.')
    _META_BATCH = flags.DEFINE_integer('meta_batch', 8, 'Networks in a training step.', lower_bound=1)
    _BATCH_SIZE = flags.DEFINE_integer('batch_size', 64, 'Images in a batch.', lower_bound=1)
    _NUM_IMAGES = flags.DEFINE_integer('num_images', 1024, 'Images to score each network on.', lower_bound=1)
    _JSON = flags.DEFINE_string('json', None, 'File to write the figures to.')

    def _main() -> None:
        for mode in _MODE.value:
            if mode not in MODES:
                raise UserError(f'--mode={mode}: choose from {", ".join(MODES)}')
        out = cli.check_output(_JSON.value, 'json') if _JSON.value else None
        if _ARCHS.value:
            specs = load_networks(_ARCHS.value)
        else:
            specs = [make_space('convnets250k').sample('test', 0, i) for i in range(24)]
        runs.enable_compilation_cache()
        jax.monitoring.register_event_duration_secs_listener(_count)
        result = benchmark(
            specs, _WHAT.value, modes=_MODE.value, meta_batch=_META_BATCH.value, batch_size=_BATCH_SIZE.value,
            num_images=_NUM_IMAGES.value,
        )  # fmt: skip
        columns = (
            'what',
            'mode',
            'networks',
            'mean_s',
            'median_s',
            'p95_s',
            'compilations_after_warmup',
            'peak_rss_gib',
        )
        print(
            tabulate([[row[c] for c in columns] for row in result['rows']], headers=columns, floatfmt='.4f')
        )
        print(json.dumps(result['machine']))
        if out:
            cli.write_atomic(out, json.dumps(result, indent=1))

    cli.run(_main)
