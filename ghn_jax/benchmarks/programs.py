"""The programs that a config needs, compiled for the device at hand or another: seconds and memory of each.

`ghn_jax.compile` says more of them. They are compiled from shapes: no workspace is allocated and nothing
runs. Where the target's speed is known, a training step is modelled (`launches`).
"""

import sys
from collections.abc import Iterator

import jax

from ghn_jax.aot import programs, report, targets
from ghn_jax.aot.compiling import compiled_figures, made_for
from ghn_jax.aot.programs import Job
from ghn_jax.aot.targets import Target
from ghn_jax.base import backends
from ghn_jax.benchmarks import launches
from ghn_jax.benchmarks.options import BenchmarkOptions, Row, config_of
from ghn_jax.config import RunConfig
from ghn_jax.evaluation.evaluation_spec import EvaluationSpec
from ghn_jax.runs.task import make_space_of


def measure(options: BenchmarkOptions) -> list[Row]:
    """Compile what `options.config` needs for `options.split`: a row for each program and function.

    Figures: those of `report.about_program` and `compiled_figures`; rows of `launches` after them.

    Raises:
      UserError: no config, widths that the split does not have, a target whose compiler is not here.
    """
    config = config_of(options, 'compile')
    target = targets.load(options.target) if options.target else None
    jobs = _jobs(config, options, target)
    if target is not None:
        jobs = made_for(target, jobs)
    return [row for job in jobs for row in _compiled(config, job, target)]


def _jobs(config: RunConfig, options: BenchmarkOptions, target: Target | None) -> Iterator[Job]:
    devices = (target.devices() if target else jax.local_devices())[:1]
    if options.split == 'train':
        return programs.training_jobs(config, devices, options.widths)
    return programs.evaluation_jobs(config, devices, options.split, EvaluationSpec(), options.widths)


def _compiled(config: RunConfig, job: Job, target: Target | None) -> list[Row]:
    about = report.about_program(job)
    print(f'compile, {report.title(about)} ...', file=sys.stderr, flush=True)
    if target is None:
        figures = compiled_figures(job.trace)[1]
        return [{'what': 'compile', 'mode': config.quant.mode, **about, **figures}]
    with backends.built_for(target.backend):
        compiled, figures = compiled_figures(job.trace, (target.platform,))
    rows = [{'what': 'compile', 'mode': config.quant.mode, **about, **figures}]
    if target.speed and job.split == 'train':
        networks = launches.drawn(config, make_space_of(config), job.program, job.family)
        mix = launches.mixes(job.program, launches.tables_of(networks))
        others = launches.turns_of(networks)
        parts = launches.model(compiled.as_text() or '', mix, config.train.meta_batch, others)
        rows += launches.rows_of(parts, target.speed, config.train.dtype, about)
    return rows
