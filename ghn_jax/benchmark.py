"""Times prediction, training and evaluation on given networks, after warm-up; compares and draws the figures.

python -m ghn_jax.benchmark --archs=nets.json --what=predict,train,evaluate --mode=qat --meta_batch=8
--json=FILE
python -m ghn_jax.benchmark --compare=before.json,after.json

Times are wall clock, of the steps that training and evaluation really run, host work that is not hidden
included. `probe` is a 2048 x 2048 float32 numpy product (median of 12): divide by it to compare machines, or
the same machine at another hour.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags
from tabulate import tabulate

from ghn_jax import cli, runs
from ghn_jax.errors import UserError
from ghn_jax.networks.spaces import make_space
from ghn_jax.networks.spec import load_networks
from ghn_jax.speed import clock, comparison, tasks
from ghn_jax.speed.options import MODES, Options, Row

WHAT: Mapping[str, Callable[[Options], list[Row]]] = {
    'predict': tasks.measure_predict,
    'train': tasks.measure_train,
    'evaluate': tasks.measure_evaluate,
}
DEFAULT = ('predict', 'train', 'evaluate')


def benchmark(what: Sequence[str], options: Options) -> dict[str, Any]:
    """All that is asked for, as JSON: {'machine': ..., 'rows': [{'what', 'mode', 'mean_s', ...}, ...]}.

    Raises:
      UserError: an unknown thing to time or mode, or a network that the executor does not run.
    """
    _check('what', what, WHAT)
    _check('mode', options.modes, MODES)
    clock.start_counting()
    probes = [clock.probe()]
    rows = [row for name in what for row in WHAT[name](options)]
    probes.append(clock.probe())
    return {'machine': clock.machine(probes), 'rows': rows}


def _check(flag: str, names: Sequence[str], known: Sequence[str] | Mapping[str, Any]) -> None:
    for name in names:
        if name not in known:
            raise UserError(f'--{flag}={name}: choose from {", ".join(known)}')
    if not names:
        raise UserError(f'--{flag} is empty: choose from {", ".join(known)}')


_COLUMNS = (
    'what', 'mode', 'networks', 'mean_s', 'median_s', 'p95_s', 'compilations_after_warmup', 'peak_rss_gib',
)  # fmt: skip


def text(result: Mapping[str, Any]) -> str:
    """The figures as a table, the machine under it."""
    rows = [[row[c] for c in _COLUMNS] for row in result['rows']]
    return '\n'.join([tabulate(rows, headers=_COLUMNS, floatfmt='.4f'), json.dumps(result['machine'])])


if __name__ == '__main__':
    _ARCHS = flags.DEFINE_string(
        'archs', None, 'Architecture file; default: 24 networks of convnets250k, test split.'
    )
    _WHAT = flags.DEFINE_list('what', list(DEFAULT), f'What to time, of {", ".join(WHAT)}.')
    _MODE = flags.DEFINE_list('mode', list(MODES), 'float, qat (W4/A4) or both, for train and evaluate.')
    _META_BATCH = flags.DEFINE_integer('meta_batch', 8, 'Networks in a training step.', lower_bound=1)
    _BATCH_SIZE = flags.DEFINE_integer('batch_size', 64, 'Images in a batch.', lower_bound=1)
    _NUM_IMAGES = flags.DEFINE_integer('num_images', 1024, 'Images to score each network on.', lower_bound=1)
    _JSON = flags.DEFINE_string('json', None, 'File to write the figures to, or the comparison.')
    _COMPARE = flags.DEFINE_list(
        'compare', None, 'Two --json files, A.json,B.json: ratios B / A; times nothing.'
    )

    def _main() -> None:
        out = cli.check_output(_JSON.value, 'json') if _JSON.value else None
        if _COMPARE.value is not None:
            result = _compare()
            print(comparison.text(result))
        else:
            result = _measure()
            print(text(result))
        if out:
            cli.write_atomic(out, json.dumps(result, indent=1))

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
        else:
            specs = [make_space('convnets250k').sample('test', 0, i) for i in range(24)]
        runs.enable_compilation_cache()
        options = Options(
            specs=tuple(specs), modes=tuple(_MODE.value), meta_batch=_META_BATCH.value,
            batch_size=_BATCH_SIZE.value, num_images=_NUM_IMAGES.value,
        )  # fmt: skip
        return benchmark(_WHAT.value, options)

    cli.run(_main)
