"""The programs that a config needs, compiled for the device at hand: seconds and memory of each.

`ghn_jax.compile` says more of them, for other devices too. They are compiled from shapes: no workspace is
allocated and nothing runs.
"""

import sys

import jax

from ghn_jax.aot import programs, report
from ghn_jax.aot.compiling import compiled_figures
from ghn_jax.benchmarks.options import Options, Row, config_of
from ghn_jax.evaluation.evaluation_spec import EvaluationSpec


def measure(options: Options) -> list[Row]:
    """Compile what `options.config` needs for `options.split`: a row for each program and function.

    Figures: those of `report.about_program` and `compiled_figures`.

    Raises:
      UserError: no config, widths that the split does not have.
    """
    config, split = config_of(options, 'compile'), options.split
    devices = jax.local_devices()[:1]
    if split == 'train':
        jobs = programs.training_jobs(config, devices, options.widths)
    else:
        jobs = programs.evaluation_jobs(config, devices, split, EvaluationSpec(), options.widths)
    rows = []
    for job in jobs:
        row = {'what': 'compile', 'mode': config.quant.mode, **report.about_program(job)}
        print(f'compile, {report.title(row)} ...', file=sys.stderr, flush=True)
        rows.append(row | compiled_figures(lambda j=job: j.trace())[1])
    return rows
