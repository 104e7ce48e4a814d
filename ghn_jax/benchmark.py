"""Answers questions of speed: times what is asked for after warm-up; compares and draws the figures.

python -m ghn_jax.benchmark --archs=nets.json --what=predict,train,evaluate --mode=qat --meta_batch=8
--json=FILE --plot=FILE.png
python -m ghn_jax.benchmark --archs=nets.json --what=train,evaluate,pytorch
python -m ghn_jax.benchmark --what=compile --config=configs/ghn_qat_cifar10.py --widths=32 --target=h100
python -m ghn_jax.benchmark --what=cells --cells=4,12,20,28,36 --width=16 --mode=float --plot=FILE.png
python -m ghn_jax.benchmark --what=profile --config=configs/ghn_qat_cifar10.py --mode=float,qat
python -m ghn_jax.benchmark --what=models --models=nets:net --agreement=float,w8a8 --epochs=5
python -m ghn_jax.benchmark --compare=before.json,after.json --plot=FILE.png

`predict`, `train` and `evaluate` time networks of an architecture file, `pytorch` the same in PyTorch, on the
CPU; `compile` and `profile` are about the run of a config, with its meta-batch, batch and space; `cells` and
`scaling` have networks of their own; `models` times tracing and prediction of models of your own
(`ghn_jax.predict` says what a function returns).
Compiled programs come from the persistent cache where it has them; GHN_JAX_CACHE= (empty) compiles all anew.

Times are wall clock, of the steps that training and evaluation really run, host work that is not hidden
included. `probe` is a 2048 x 2048 float32 numpy product (median of 12): divide by it to compare machines, or
the same machine at another hour.
"""

import datetime
from typing import Any

import jax
from absl import flags

from ghn_jax import config_file
from ghn_jax.aot import targets
from ghn_jax.base import bounds, cli, outputs
from ghn_jax.base.errors import UserError, of_field
from ghn_jax.base.start import start
from ghn_jax.benchmarks import model_flags, picture, ratios, tasks
from ghn_jax.benchmarks.benchmark import DEFAULT, WHAT, benchmark, text
from ghn_jax.benchmarks.options import MODES, USED_BY, BenchmarkOptions, check_used, parts_of_cpu
from ghn_jax.networks.spaces import SPLITS
from ghn_jax.reporting import plotting

_ARCHS = flags.DEFINE_string(
    'archs', None, f'Time this architecture file; default: {tasks.NUM_NETWORKS} of convnets250k, split test.'
)
_WHAT = flags.DEFINE_list('what', list(DEFAULT), f'What to time, a list of {", ".join(WHAT)}.')
_MODE = flags.DEFINE_list(
    'mode', list(MODES), 'Time in float, in qat (W4/A4) or in both; for `compile` the config says.'
)
_META_BATCH = bounds.define_integer('meta_batch', 8, 'How many networks a training step of `train` has.')
_DEVICES = bounds.define_integer(
    'devices', 0, 'How many devices `train` and `evaluate` use, or parts of a CPU. 0: all, or two of a CPU.'
)
_BATCH_SIZE = bounds.define_integer('batch_size', 64, 'Images of a batch; compile, profile: the config says.')
_CONFIG = config_file.define_config(
    'Run that `compile` and `profile` are about: a config file, or a name such as quickstart, then '
    '--config.KEY=VALUE.'
)
_SPLIT = flags.DEFINE_enum('split', 'train', SPLITS, 'Compile the programs of this split.')
_TARGET = flags.DEFINE_string(
    'target', '', 'Device that `compile` compiles for, such as h100. Empty: the one here.'
)
_WIDTHS = flags.DEFINE_list(
    'widths', [], 'Compile only programs of these numbers of channels, as in 32,48. Empty: all.'
)
_CELLS = flags.DEFINE_list('cells', ['4', '12', '20', '28', '36'], 'Cells of each network of `cells`.')
_WIDTH = bounds.define_integer('width', 16, 'How many channels the networks of `cells` have.')
_REPEATS = bounds.define_integer('repeats', 5, 'How often `cells`, `profile` and `models` time each thing.')
_OF_MODELS = model_flags.define_flags()
_NUM_IMAGES = bounds.define_integer('num_images', 1024, 'How many images each network is scored on.')
_COMPARE = flags.DEFINE_list(
    'compare', None, 'Time nothing; show the ratios B / A of two --json files, A.json,B.json.'
)
_OUTPUTS = outputs.define_flags(plotting.PICTURES)


def main() -> None:
    """Run the command."""
    written = _OUTPUTS()
    what = _WHAT.value if _COMPARE.value is None else ()
    check_used((flag for flag in USED_BY if flags.FLAGS[flag].present), what)
    if _COMPARE.value is not None:
        written.write(_compare(_COMPARE.value), table=ratios.text, picture=picture.picture_of_comparison)
    else:
        about = {'command': cli.command_line('benchmark'), 'date': datetime.date.today().isoformat()}
        written.write(_measure() | about, table=text, picture=picture.picture)


def _compare(names: list[str]) -> dict[str, Any]:
    if flags.FLAGS['what'].present:
        raise UserError('--what with --compare: comparing times nothing; leave --what out')
    if len(names) != 2:
        raise UserError(f'--compare={",".join(names)}: expected two files, as in A.json,B.json')
    with of_field('compare'):
        a, b = map(ratios.read_figures, names)
        return ratios.compare(a, b, names)


def _measure() -> dict[str, Any]:
    widths, lengths = (
        bounds.integers('widths', _WIDTHS.value, 'width') if _WIDTHS.value else (),
        bounds.integers('cells', _CELLS.value, 'cells'),
    )
    if _TARGET.value:
        targets.prepare_process()
        targets.check_plugin(targets.load(_TARGET.value))
    specs = tasks.read_networks(_ARCHS.value)
    start(_DEVICES.value or parts_of_cpu())
    options = BenchmarkOptions(
        specs=specs, modes=tuple(_MODE.value), meta_batch=_META_BATCH.value,
        devices=_DEVICES.value or min(jax.local_device_count(), _META_BATCH.value),
        batch_size=_BATCH_SIZE.value, num_images=_NUM_IMAGES.value, config=_CONFIG.value,
        split=_SPLIT.value, widths=widths, target=_TARGET.value, cells=lengths, width=_WIDTH.value,
        repeats=_REPEATS.value, **_OF_MODELS(),
    )  # fmt: skip
    with config_file.named_by_flags():
        return benchmark(_WHAT.value, options)


if __name__ == '__main__':
    cli.run(main, {'modes': 'mode'})
