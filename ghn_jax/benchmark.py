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
from ghn_jax.benchmarks import comparison, model_flags, picture, tasks
from ghn_jax.benchmarks.benchmark import DEFAULT, WHAT, benchmark, text
from ghn_jax.benchmarks.options import MODES, USED_BY, Options, check_used, parts_of_cpu
from ghn_jax.networks.spaces import SPLITS
from ghn_jax.reporting import plotting

_ARCHS = flags.DEFINE_string(
    'archs', None, f'Architecture file; default: {tasks.NUM_NETWORKS} networks of convnets250k, test split.'
)
_WHAT = flags.DEFINE_list('what', list(DEFAULT), f'What to time, of {", ".join(WHAT)}.')
_MODE = flags.DEFINE_list('mode', list(MODES), 'float, qat (W4/A4) or both; compile: the config says.')
_META_BATCH = bounds.define_integer('meta_batch', 8, 'Networks in a training step, for train.')
_DEVICES = bounds.define_integer(
    'devices', 0, 'That train and evaluate use; a CPU is divided into so many. 0: all, two of a CPU.'
)
_BATCH_SIZE = bounds.define_integer('batch_size', 64, 'Images in a batch; compile, profile: the config says.')
_CONFIG = config_file.define_config(
    'Config file, or the name of one of ghn_jax, then --config.key=value: the run that compile and profile '
    'are about.'
)
_SPLIT = flags.DEFINE_enum('split', 'train', SPLITS, 'Networks whose programs `compile` is about.')
_TARGET = flags.DEFINE_string(
    'target', '', 'What `compile` compiles for, as ghn_jax.compile has it, and models a step of (GPUs).'
)
_WIDTHS = flags.DEFINE_list('widths', [], 'Only programs of these widths, as in 32,48.')
_CELLS = flags.DEFINE_list('cells', ['4', '12', '20', '28', '36'], 'Lengths of networks, for `cells`.')
_WIDTH = bounds.define_integer('width', 16, 'Channels of the networks of `cells`.')
_REPEATS = bounds.define_integer('repeats', 5, 'Times `cells`, `profile` and `models` time each thing.')
_OF_MODELS = model_flags.define_flags()
_NUM_IMAGES = bounds.define_integer('num_images', 1024, 'Images to score each network on.')
_COMPARE = flags.DEFINE_list('compare', None, 'Two --json files, A.json,B.json: ratios B / A; times nothing.')
_OUTPUTS = outputs.define_flags(plotting.PICTURES)


def main() -> None:
    """Run the command."""
    written = _OUTPUTS()
    what = _WHAT.value if _COMPARE.value is None else ()
    check_used((flag for flag in USED_BY if flags.FLAGS[flag].present), what)
    if _COMPARE.value is not None:
        written.write(_compare(_COMPARE.value), table=comparison.text, picture=picture.picture_of_comparison)
    else:
        about = {'command': cli.command_line('benchmark'), 'date': datetime.date.today().isoformat()}
        written.write(_measure() | about, table=text, picture=picture.picture)


def _compare(names: list[str]) -> dict[str, Any]:
    if flags.FLAGS['what'].present:
        raise UserError('--what with --compare: comparing times nothing; leave --what out')
    if len(names) != 2:
        raise UserError(f'--compare={",".join(names)}: expected two files, as in A.json,B.json')
    with of_field('compare'):
        a, b = map(comparison.read_figures, names)
        return comparison.compare(a, b, names)


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
    options = Options(
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
