"""All that can be timed, by name: rows of figures after warm-up, and tables of them."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from ghn_jax.base import counters
from ghn_jax.base.errors import FieldError
from ghn_jax.benchmarks import cells, profile, programs, pytorch, scaling, tasks, timing, traced_models
from ghn_jax.benchmarks.options import MODES, BenchmarkOptions, Row, config_of

WHAT: Mapping[str, Callable[[BenchmarkOptions], list[Row]]] = {
    # Each returns rows with 'what', 'mode', 'mean_s' and figures of its own; see `timing.row`.
    'predict': tasks.measure_predict,
    'train': tasks.measure_train,
    'evaluate': tasks.measure_evaluate,
    'pytorch': pytorch.measure,
    'compile': programs.measure,
    'cells': cells.measure,
    'profile': profile.measure,
    'scaling': scaling.measure,
    'models': traced_models.measure,
}
DEFAULT = ('predict', 'train', 'evaluate')


def benchmark(what: Sequence[str], options: BenchmarkOptions) -> dict[str, Any]:
    """Measure all that is asked for.

    Args:
      what: names of `WHAT`.
      options: of all of them.

    Returns:
      {'machine': ..., 'rows': [{'what', 'mode', 'mean_s', ...}, ...]}, as JSON.

    Raises:
      UserError: an unknown thing to time or mode, or a network that the executor does not run.
    """
    _check('what', what, WHAT)
    _check('modes', options.modes, MODES)
    for name in sorted({'compile', 'profile'} & set(what)):
        config_of(options, name)
    if 'pytorch' in what:
        pytorch.check()
    if 'models' in what:
        traced_models.check(options)
    counters.start_counting()
    probes = [timing.probe()]
    rows = [row for name in what for row in WHAT[name](options)]
    probes.append(timing.probe())
    return {'machine': timing.machine(probes), 'rows': rows}


def _check(field: str, names: Sequence[str], known: Sequence[str] | Mapping[str, Any]) -> None:
    for name in names:
        if name not in known:
            raise FieldError(field, f'={name}: choose from {", ".join(known)}')
    if not names:
        raise FieldError(field, f' is empty: choose from {", ".join(known)}')


_TIMES = (
    'what', 'mode', 'networks', 'mean_s', 'median_s', 'p95_s', 'compilations_after_warmup', 'peak_rss_gib',
)  # fmt: skip
_OF_FILES = 'top1', 'top1_onnxruntime', 'agreement', 'agreement_with_biases'
_COLUMNS = {  # of the tables; other rows are shown with all they have
    **dict.fromkeys((*DEFAULT, 'pytorch_train', 'pytorch_evaluate'), _TIMES),
    'compile': (
        'function', 'mode', 'split', 'width', 'msa', 'instructions', 'branches', 'trace_s',
        'lower_s', 'compile_s', 'load_s', 'load_cpu_s', 'cached', 'temp_bytes', 'argument_bytes',
        'workspace_bytes', 'executable_bytes',
    ),
    'launches': (
        'function', 'width', 'part', 'launches', 'trips', 'gb', 'gflop', 'launches_ms', 'host_ms', 'bytes_ms',
        'flops_ms', 'ms', 'rules',
    ),
    'cells': (
        'what', 'mode', 'cells', 'room', 'instructions', 'median_s', 'us_per_instruction',
        'workspace_bytes', 'used_bytes', 'temp_bytes', 'compile_s',
    ),
    'profile': ('what', 'mode', 'part', 'networks', 'step_ms', 'share_percent'),
    'models': (
        'model', 'parameters', 'nodes', 'layers', 'trace_s', 'trace_cpu_s', 'first_predict_s', 'median_s',
        'predict_cpu_s',
        'compilations_after_warmup', 'float_kb', *(f'{bits}_kb' for bits in traced_models.PACKED), 'epochs',
        'images',
        *(f'{bits}_{what}' for bits in traced_models.COMPARED for what in _OF_FILES),
    ),
    'scaling': ('what', 'devices', 'networks', 'step_s', 'cpu_s_per_network', 'all_reduces', 'bytes'),
    'expected': ('what', 'link', 'times_faster', 'step_s', 'chips', 'all_reduce_s', 'efficiency'),
}  # fmt: skip


def text(result: Mapping[str, Any]) -> str:
    """Write the figures: a table for each kind of row (bytes as MiB), the machine under them."""
    tables: dict[tuple[str, ...], list[Row]] = {}
    for row in result['rows']:
        tables.setdefault(_COLUMNS.get(row['what'], tuple(row)), []).append(row)
    lines = []
    for columns, rows in tables.items():
        shown = [[_shown(column, row.get(column)) for column in columns] for row in rows]
        headers = [column.replace('_bytes', '_mib') for column in columns]
        lines += [tabulate(shown, headers=headers, floatfmt='.4f'), '']
    return '\n'.join([*lines, json.dumps(result['machine'])])


def _shown(column: str, value: Any) -> Any:
    return round(value / 2**20, 1) if column.endswith('_bytes') and value is not None else value
