"""Compiling from shapes: one function with figures of what that cost, or all that a config needs."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from ghn_jax.aot import programs, report
from ghn_jax.aot.programs import Job
from ghn_jax.aot.report import Row
from ghn_jax.aot.targets import Target
from ghn_jax.assembly.memory import is_out_of_memory
from ghn_jax.base import backends, counters, executables, recipes
from ghn_jax.base.errors import one_line
from ghn_jax.base.paths import Place
from ghn_jax.config import RunConfig
from ghn_jax.evaluation.evaluation_spec import EvaluationSpec


def compile_programs(
    config: RunConfig,
    target: Target,
    spec: EvaluationSpec,
    *,
    widths: Sequence[int],
    out: Place | None,
) -> dict[str, Any]:
    """Compile what a config needs for a target, ahead of time.

    Args:
      config: of the run.
      target: what it is compiled for.
      spec: of the evaluation that the run is for. Of its splits, `train` stands for the training step and
        `val` for the run's own validations; networks of the others are scored as it says.
      widths: only programs of these; () is all.
      out: folder that the compiled programs are written to, for `executables.read_from`.

    Returns:
      what the programs are for, and 'rows': a row of figures for each function of each program (`report`), as
      JSON.

    Raises:
      UserError: a config that is of no use, a target whose compiler is not here, a folder that cannot be
        written.
    """
    devices = target.devices()
    jobs = made_for(target, _jobs(config, devices, spec, widths))
    rows = [compile_job(job, target, out) for job in jobs]
    facts = recipes.platform_facts(devices)
    return {
        'target': target.name,
        'about': target.about,
        'device': facts['device'],
        'jax': jax.__version__,
        'compiler': facts['plugin'],
        'out': str(out or ''),
        'rows': rows,
    }


def made_for(target: Target, jobs: Iterator[Job]) -> Iterator[Job]:
    """Yield the jobs, each made for the target's backend: their tapes have its order."""
    while True:
        with backends.built_for(target.backend):
            job = next(jobs, None)
        if job is None:
            return
        yield job


def _jobs(
    config: RunConfig, devices: Sequence[Any], spec: EvaluationSpec, widths: Sequence[int]
) -> Iterator[Job]:
    for split in spec.splits:
        if split == 'train':
            yield from programs.training_jobs(config, devices, widths)
        elif split == 'val':
            yield from programs.validation_jobs(config, devices, widths)
        else:
            yield from programs.evaluation_jobs(config, devices, split, spec, widths)


def compile_job(job: Job, target: Target, out: Place | None = None) -> Row:
    """Compile one function for a target, write it to the folder `out`, and return its figures.

    A program that the compiler finds too large for the device has the row 'error'.

    Raises:
      UserError: the folder cannot be written.
    """
    with backends.built_for(target.backend):
        row = report.about_program(job)
        print(f'{report.title(row)}, for {target.name} ...', file=sys.stderr, flush=True)
        try:
            compiled, figures = compiled_figures(job.trace, (target.platform,))
        except jax.errors.JaxRuntimeError as e:
            if not is_out_of_memory(e):
                raise
            error = f'does not fit: {one_line(e)}'
            return row | report.about_memory(None, target) | {'fits': False, 'error': error}
    row |= figures | report.about_memory(figures['needed_bytes'], target)
    row |= report.about_text(compiled.as_text() or '', report.tapes_of(job))
    if out is not None:
        start = time.perf_counter()
        name, size = executables.write(out, job.recipe, job.arguments, compiled)
        row |= {'file': name, 'file_bytes': size, 'write_s': time.perf_counter() - start}
    return row


def compiled_figures(
    trace: Callable[[], Any], platforms: Sequence[str] | None = None
) -> tuple[Any, dict[str, Any]]:
    """Compile a function.

    Args:
      trace: gives `jax.jit(function).trace(arguments)`.
      platforms: that it is lowered for; None: those of the arguments' devices.

    Returns:
      the executable, and its figures. Seconds: trace_s, lower_s, load_s (of the compiler, or the persistent
      cache), load_cpu_s (the same of all cores: others who use the machine change it little), compile_s
      (load_s; where the cache has it what compiling it took then, in whole seconds). Bytes on a device:
      argument_bytes, temp_bytes, needed_bytes (all that it takes at once), executable_bytes (machine code and
      constants). None where the backend does not say.
    """
    start = time.perf_counter()
    traced = trace()
    traced_at = time.perf_counter()
    lowered = traced.lower(lowering_platforms=tuple(platforms)) if platforms else traced.lower()
    lowered_at = time.perf_counter()
    counters.start_counting()
    hits, original = counters.cache_hits(), counters.original_compile_seconds()
    cpu = time.process_time()
    compiled = lowered.compile()
    cpu = time.process_time() - cpu
    load_s = time.perf_counter() - lowered_at
    cached = counters.cache_hits() > hits
    memory = compiled.memory_analysis()
    return compiled, {
        'trace_s': traced_at - start,
        'lower_s': lowered_at - traced_at,
        'compile_s': counters.original_compile_seconds() - original if cached else load_s,
        'load_s': load_s,
        'load_cpu_s': cpu,
        'cached': cached,
        'temp_bytes': memory and memory.temp_size_in_bytes,
        'argument_bytes': memory and memory.argument_size_in_bytes,
        'needed_bytes': memory and _needed(memory),
        'executable_bytes': _executable_bytes(compiled),
    }


def _needed(memory: Any) -> int:
    """Arguments, results in places of their own, what lies in between, and the code."""
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    code = memory.generated_code_size_in_bytes
    return memory.argument_size_in_bytes + results + memory.temp_size_in_bytes + code


def _executable_bytes(compiled: Any) -> int | None:
    try:
        return len(compiled.runtime_executable().serialize())
    except Exception:  # not every backend can serialise; each says so in its own way
        return None
