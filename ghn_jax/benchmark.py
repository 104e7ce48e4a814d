"""Answers questions of speed: times what is asked for after warm-up; compares and draws the figures.

python -m ghn_jax.benchmark --archs=nets.json --what=predict,train,evaluate --mode=qat --meta_batch=8
--json=FILE --plot=FILE.png
python -m ghn_jax.benchmark --what=compile --config=configs/ghn_qat_cifar10.py --split=train --widths=32
python -m ghn_jax.benchmark --what=cells --cells=4,12,20,28,36 --width=16 --mode=float --plot=FILE.png
python -m ghn_jax.benchmark --what=profile --config=configs/ghn_qat_cifar10.py --mode=float,qat
python -m ghn_jax.benchmark --what=scaling
python -m ghn_jax.benchmark --compare=before.json,after.json --plot=FILE.png

`predict`, `train` and `evaluate` time networks of an architecture file; `compile` and `profile` are about the
run of a config, with its meta-batch, batch and space; `cells` and `scaling` have networks of their own.
Compiled programs come from the persistent cache where it has them; GHN_JAX_CACHE= (empty) compiles all anew.

Times are wall clock, of the steps that training and evaluation really run, host work that is not hidden
included. `probe` is a 2048 x 2048 float32 numpy product (median of 12): divide by it to compare machines, or
the same machine at another hour.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from absl import flags
from tabulate import tabulate

from ghn_jax import bounds, cli, files, results, runs, screen
from ghn_jax.errors import UserError, shown
from ghn_jax.networks.spaces import SPLITS, make_space
from ghn_jax.networks.spec import load_networks
from ghn_jax.speed import cells, clock, comparison, picture, profile, programs, scaling, tasks
from ghn_jax.speed.options import MODES, Options, Row, config_of

WHAT: Mapping[str, Callable[[Options], list[Row]]] = {
    # Each returns rows with 'what', 'mode', 'mean_s' and figures of its own; see `clock.row`.
    'predict': tasks.measure_predict,
    'train': tasks.measure_train,
    'evaluate': tasks.measure_evaluate,
    'compile': programs.measure,
    'cells': cells.measure,
    'profile': profile.measure,
    'scaling': scaling.measure,
}
DEFAULT = ('predict', 'train', 'evaluate')


def benchmark(what: Sequence[str], options: Options) -> dict[str, Any]:
    """All that is asked for, as JSON: {'machine': ..., 'rows': [{'what', 'mode', 'mean_s', ...}, ...]}.

    Raises:
      UserError: an unknown thing to time or mode, or a network that the executor does not run.
    """
    numbers = ('meta_batch', 'devices', 'batch_size', 'num_images', 'width', 'repeats')
    bounds.check(**{name: getattr(options, name) for name in numbers})
    _check('what', what, WHAT)
    _check('mode', options.modes, MODES)
    for name in sorted({'compile', 'profile'} & set(what)):
        config_of(options, name)
    clock.start_counting()
    probes = [clock.probe()]
    rows = [row for name in what for row in WHAT[name](options)]
    probes.append(clock.probe())
    return {'machine': clock.machine(probes), 'rows': rows}


def _parts_of_cpu() -> int:
    """Two where it has the cores and the memory: the workspaces of large networks take 5 GiB each."""
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    forced = 'xla_force_host_platform_device_count' in os.environ.get('XLA_FLAGS', '')
    return 2 if (os.cpu_count() or 1) > 1 and memory >= 20 * 2**30 and not forced else 1


def _integers(flag: str, bounded: str, values: Sequence[str]) -> tuple[int, ...]:
    """The numbers of a flag, each within the bounds called `bounded`."""
    least, most = bounds.BOUNDS[bounded]
    fits = (v.strip().isdecimal() and len(v) <= 10 and least <= int(v) <= most for v in values)
    if not all(fits):
        given = shown(','.join(values))
        raise UserError(f'--{flag}={given}: expected integers from {least} to {most:,}, as in 16,32')
    return tuple(sorted(set(map(int, values))))


def _check(flag: str, names: Sequence[str], known: Sequence[str] | Mapping[str, Any]) -> None:
    for name in names:
        if name not in known:
            raise UserError(f'--{flag}={name}: choose from {", ".join(known)}')
    if not names:
        raise UserError(f'--{flag} is empty: choose from {", ".join(known)}')


_TIMES = (
    'what', 'mode', 'networks', 'mean_s', 'median_s', 'p95_s', 'compilations_after_warmup', 'peak_rss_gib',
)  # fmt: skip
_COLUMNS = {  # of the tables; other rows are shown with all they have
    **dict.fromkeys(DEFAULT, _TIMES),
    'compile': (
        'function', 'mode', 'split', 'programs', 'width', 'msa', 'instructions', 'branches', 'trace_s',
        'lower_s', 'compile_s', 'load_s', 'load_cpu_s', 'cached', 'temp_bytes', 'argument_bytes',
        'workspace_bytes', 'executable_bytes',
    ),
    'cells': (
        'what', 'mode', 'cells', 'room', 'instructions', 'median_s', 'us_per_instruction',
        'workspace_bytes', 'used_bytes', 'temp_bytes', 'compile_s',
    ),
    'profile': ('what', 'mode', 'part', 'networks', 'step_ms', 'share_percent'),
    'scaling': ('what', 'devices', 'networks', 'step_s', 'cpu_s_per_network', 'all_reduces', 'bytes'),
    'expected': ('what', 'link', 'times_faster', 'step_s', 'chips', 'all_reduce_s', 'efficiency'),
}  # fmt: skip


def text(result: Mapping[str, Any]) -> str:
    """The figures, a table for each kind of row (bytes as MiB), the machine under them."""
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


if __name__ == '__main__':
    _ARCHS = flags.DEFINE_string(
        'archs', None, 'Architecture file; default: 24 networks of convnets250k, test split.'
    )
    _WHAT = flags.DEFINE_list('what', list(DEFAULT), f'What to time, of {", ".join(WHAT)}.')
    _MODE = flags.DEFINE_list('mode', list(MODES), 'float, qat (W4/A4) or both; compile: the config says.')
    _META_BATCH = bounds.define_integer('meta_batch', 8, 'Networks in a training step, for train.')
    _DEVICES = bounds.define_integer(
        'devices', 0, 'That train and evaluate use; a CPU is divided into so many. 0: all, two of a CPU.'
    )
    _BATCH_SIZE = bounds.define_integer(
        'batch_size', 64, 'Images in a batch; compile, profile: the config says.'
    )
    _CONFIG = cli.define_config(
        'Config file, or the name of one of ghn_jax, then --config.key=value: the run that compile and '
        'profile are about.'
    )
    _SPLIT = flags.DEFINE_enum('split', 'train', SPLITS, 'Networks whose programs `compile` is about.')
    _WIDTHS = flags.DEFINE_list('widths', [], 'Only programs of these widths, as in 32,48.')
    _CELLS = flags.DEFINE_list('cells', ['4', '12', '20', '28', '36'], 'Lengths of networks, for `cells`.')
    _WIDTH = bounds.define_integer('width', 16, 'Channels of the networks of `cells`.')
    _REPEATS = bounds.define_integer('repeats', 5, 'Times `cells` and `profile` time each thing.')
    _NUM_IMAGES = bounds.define_integer('num_images', 1024, 'Images to score each network on.')
    _JSON = flags.DEFINE_string('json', None, 'File to write the figures to, or the comparison.')
    _COMPARE = flags.DEFINE_list(
        'compare', None, 'Two --json files, A.json,B.json: ratios B / A; times nothing.'
    )
    _PLOT = flags.DEFINE_string('plot', None, 'Picture to write (.png, .pdf, .svg).')

    def _main() -> None:
        out = cli.check_output(_JSON.value, 'json') if _JSON.value else None
        plot = cli.check_output(_PLOT.value, 'plot', results.PICTURES) if _PLOT.value else None
        if _COMPARE.value is not None:
            result, shown, drawn = _compare(), comparison.text, picture.picture_of_comparison
        else:
            result, shown, drawn = _measure(), text, picture.picture
        try:  # the files first; the table also where they cannot be written
            if out:
                files.write_json(out, result)
            if plot:
                files.write(plot, drawn(result, suffix=plot.suffix))
        finally:
            screen.show(shown(result), kept=bool(out))
        if plot:
            print(f'picture: {_PLOT.value}')

    def _compare() -> dict[str, Any]:
        if flags.FLAGS['what'].present:
            raise UserError('--what with --compare: comparing times nothing; leave --what out')
        if len(_COMPARE.value) != 2:
            raise UserError(f'--compare={",".join(_COMPARE.value)}: expected two files, as in A.json,B.json')
        a, b = map(comparison.read_figures, _COMPARE.value)
        return comparison.compare(a, b, _COMPARE.value)

    def _measure() -> dict[str, Any]:
        if _ARCHS.value:
            specs = load_networks(_ARCHS.value)
            tasks.check_networks(specs)
        else:
            specs = [make_space('convnets250k').sample('test', 0, i) for i in range(24)]
        runs.start(_DEVICES.value or _parts_of_cpu())
        num_devices = _DEVICES.value or min(jax.local_device_count(), _META_BATCH.value)
        options = Options(
            specs=tuple(specs), modes=tuple(_MODE.value), meta_batch=_META_BATCH.value, devices=num_devices,
            batch_size=_BATCH_SIZE.value, num_images=_NUM_IMAGES.value,
            config=_CONFIG.value, split=_SPLIT.value, widths=_integers('widths', 'width', _WIDTHS.value),
            cells=_integers('cells', 'cells', _CELLS.value), width=_WIDTH.value, repeats=_REPEATS.value,
        )  # fmt: skip
        return benchmark(_WHAT.value, options)

    cli.run(_main)
