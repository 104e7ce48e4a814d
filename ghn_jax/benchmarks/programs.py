"""The programs that a config needs: what compiling each costs, and the memory it takes.

Training needs one program for each family of the split `train` (a training step), any other split two
functions of each (predicting weights, scoring). They are compiled ahead of time, from shapes: no workspace is
allocated and nothing runs.
"""

import functools
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from ghn_jax.assembly.memory import tree_bytes
from ghn_jax.assembly.network_batch import prepare
from ghn_jax.assembly.workspace import make_workspace
from ghn_jax.base import counters
from ghn_jax.base.errors import FieldError
from ghn_jax.benchmarks.images import NUM_CLASSES, flips, stream_shapes
from ghn_jax.benchmarks.options import Options, Row, config_of
from ghn_jax.cnn.covering import Family, covering_networks, program_for, widths
from ghn_jax.cnn.program import Program
from ghn_jax.config import RunConfig
from ghn_jax.evaluation.device import RunnableNetwork, predict_weights
from ghn_jax.evaluation.score import score_on
from ghn_jax.evaluation.selection import ImageBatches
from ghn_jax.hypernet.ghn import init_params
from ghn_jax.networks.rules import split_rules
from ghn_jax.networks.spaces import Space
from ghn_jax.quant.bit_schedule import scheme_of
from ghn_jax.quant.policy import Policy
from ghn_jax.quant.scheme import QAT
from ghn_jax.runs.task import make_ghn, make_space_of
from ghn_jax.training.compiled import StepSettings, training_step
from ghn_jax.training.optimizer import make_optimizer
from ghn_jax.training.step import TrainState

_EVALUATED = 64, 10_000  # images of a batch, images: as `evaluate` has them


def families(space: Space, split: str) -> tuple[Family, ...]:
    """List the families that networks of a split can have: each has a program of its own."""
    ops = set(split_rules(space, split).ops) - {'none'}
    attention = [vit for vit in (False, True) if ('msa' in ops if vit else ops - {'msa'})]
    return tuple(itertools.starmap(Family, itertools.product(widths(space, split), attention)))


def measure(options: Options) -> list[Row]:
    """Compile what `options.config` needs for `options.split`: a row for each program and function.

    Seconds: build_s (what the program holds, on the host), trace_s, lower_s, load_s (of the compiler, or the
    persistent cache), load_cpu_s (the same of all cores: others who use the machine change it little),
    compile_s (load_s; where the cache has it what compiling it took then, in whole seconds). Bytes:
    temp_bytes, argument_bytes, executable_bytes (machine code and constants), workspace_bytes.

    Raises:
      UserError: no config, widths that the split does not have.
    """
    config = config_of(options, 'compile')
    space = make_space_of(config)
    all_of_split = families(space, options.split)
    chosen = [f for f in all_of_split if not options.widths or f.width in options.widths]
    known = sorted({f.width for f in all_of_split})
    if unknown := sorted(set(options.widths) - set(known)):
        raise FieldError('widths', f'={unknown[0]}: {options.split} has {", ".join(map(str, known))}')
    print(f'{options.split}: {len(all_of_split)} programs', file=sys.stderr)
    rows = []
    for each in chosen:
        print(f'compile, {options.split}, {_name(each)} ...', file=sys.stderr, flush=True)
        start = time.perf_counter()
        program = program_for(space, options.split, each, config.image_size)
        build_s = time.perf_counter() - start
        about = {
            'split': options.split,
            'width': each.width,
            'msa': each.vit,
            'programs': len(all_of_split),
            'instructions': program.capacity.rows,
            'branches': sum(len(s.ops) for s in program.segments),
            'segments': len(program.segments),
        }
        example = next(iter(covering_networks(space, options.split, each)))
        for name, lower, workspace in _functions(config, program, example, options.split):
            row = {'what': 'compile', 'mode': config.quant.mode, 'function': name}
            rows.append(row | about | {'build_s': build_s} | compiled_figures(lower)[1] | {
                'workspace_bytes': tree_bytes(workspace)
            })  # fmt: skip
    return rows


def _name(each: Family) -> str:
    return f'width {each.width}' + (' with msa' if each.vit else '')


def compiled_figures(trace: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """Compile a function.

    Args:
      trace: gives `jax.jit(function).trace(arguments)`.

    Returns:
      the executable, and its figures.
    """
    start = time.perf_counter()
    traced = trace()
    traced_at = time.perf_counter()
    lowered = traced.lower()
    lowered_at = time.perf_counter()
    counters.start_counting()
    hits, original = counters.cache_hits(), counters.original_compile_seconds()
    cpu = time.process_time()
    compiled = lowered.compile()
    cpu = time.process_time() - cpu
    load_s = time.perf_counter() - lowered_at
    cached = counters.cache_hits() > hits
    memory = compiled.memory_analysis()  # None where the backend does not say
    return compiled, {
        'trace_s': traced_at - start,
        'lower_s': lowered_at - traced_at,
        'compile_s': counters.original_compile_seconds() - original if cached else load_s,
        'load_s': load_s,
        'load_cpu_s': cpu,
        'cached': cached,
        'temp_bytes': memory and memory.temp_size_in_bytes,
        'argument_bytes': memory and memory.argument_size_in_bytes,
        'executable_bytes': _executable_bytes(compiled),
    }


def _executable_bytes(compiled: Any) -> int | None:
    try:
        return len(compiled.runtime_executable().serialize())
    except Exception:  # not every backend can serialise; each says so in its own way
        return None


def _functions(
    config: RunConfig, program: Program, example: Any, split: str
) -> Iterator[tuple[str, Callable[[], Any], Any]]:
    """(name, traces it, its workspace as shapes) of each function that a split needs of a program."""
    ghn = make_ghn(config, NUM_CLASSES)
    params = jax.eval_shape(lambda: init_params(ghn.config, jax.random.key(0)))
    M = config.train.meta_batch if split == 'train' else 1
    networks, _ = prepare(program, [example] * M, Policy(), max_nodes=config.program.max_nodes)
    H, key = config.image_size, jax.eval_shape(lambda: jax.random.key(0))
    int32 = jnp.int32
    if split == 'train':
        N = config.train.batch_size
        optimizer = make_optimizer(config)
        state = jax.eval_shape(lambda p: TrainState(jnp.zeros((), int32), p, optimizer.init(p)), params)
        workspace = jax.eval_shape(lambda: make_workspace(program, N, config.train.dtype))
        settings = StepSettings(
            ghn=ghn, optimizer=optimizer, scheme=scheme_of(config.quant), augment=config.train.augment,
            flip=flips(config.dataset),
        )  # fmt: skip
        stream, indices = stream_shapes(config.dataset, H), _shape((N,), int32)
        arguments = (state, networks, stream, indices, key, workspace)
        trace = functools.partial(training_step.trace, *arguments, program=program, settings=settings)
        yield 'train_step', trace, workspace
        return
    N, count = _EVALUATED
    K = count // N
    workspace = jax.eval_shape(lambda: make_workspace(program, N, train=False))
    out = workspace.quantized
    predict = jax.jit(predict_weights, static_argnums=0, donate_argnums=3)
    yield 'predict_weights', lambda: predict.trace(ghn, params, networks, out), out
    score = score_on(None, QAT)
    tables, bits = (jax.tree.map(lambda a: a[0], t) for t in (networks.tables, networks.bits))
    images, labels = _shape((K, N, H, H, 3), jnp.uint8), _shape((K, N), int32)
    mean = _shape((3,), jnp.float32)
    batches = ImageBatches(images, labels, mean, mean)
    arguments = (program, RunnableNetwork(out, tables, bits), batches, workspace)
    yield 'score', lambda: score.trace(*arguments), workspace


def _shape(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)
