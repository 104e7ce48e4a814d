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

from typing import Any

import jax
from absl import flags

from ghn_jax import config_file
from ghn_jax.base import bounds, cli, files, screen
from ghn_jax.base.errors import UserError
from ghn_jax.base.start import start
from ghn_jax.benchmarks import comparison, picture, tasks
from ghn_jax.benchmarks.benchmark import DEFAULT, WHAT, _integers, _parts_of_cpu, benchmark, text
from ghn_jax.benchmarks.options import MODES, Options
from ghn_jax.networks.files import load_networks
from ghn_jax.networks.spaces import SPLITS, make_space
from ghn_jax.reporting import plotting

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
    _CONFIG = config_file.define_config(
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
        plot = cli.check_output(_PLOT.value, 'plot', plotting.PICTURES) if _PLOT.value else None
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
        start(_DEVICES.value or _parts_of_cpu())
        num_devices = _DEVICES.value or min(jax.local_device_count(), _META_BATCH.value)
        options = Options(
            specs=tuple(specs), modes=tuple(_MODE.value), meta_batch=_META_BATCH.value, devices=num_devices,
            batch_size=_BATCH_SIZE.value, num_images=_NUM_IMAGES.value,
            config=_CONFIG.value, split=_SPLIT.value, widths=_integers('widths', 'width', _WIDTHS.value),
            cells=_integers('cells', 'cells', _CELLS.value), width=_WIDTH.value, repeats=_REPEATS.value,
        )  # fmt: skip
        return benchmark(_WHAT.value, options)

    cli.run(_main)
