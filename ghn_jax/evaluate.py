"""Scores networks with predicted weights at several bit-widths: a table, the same as JSON, a picture.

python -m ghn_jax.evaluate --workdir=runs/quickstart/float --splits=test,deep --json=float.json
python -m ghn_jax.evaluate --workdir=runs/quickstart/qat --splits=test,deep --against=float.json --plot=b.png

The weights of a network are predicted once and quantized to every bit-width; a hypernetwork that is told the
bits predicts them anew for each. Policies beyond one bit-width for all are read from files: --policy, see
`quant/policy.py` for their format. Accuracies are in percent.
"""

import hashlib
import json
import os
import pathlib
import shlex
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags

import ghn_jax
from ghn_jax import cli, devices, results, runs
from ghn_jax.data import Dataset
from ghn_jax.errors import UserError
from ghn_jax.hypernet.bits import check_policies
from ghn_jax.metrics import Progress
from ghn_jax.networks.size import count_parameters
from ghn_jax.networks.spaces import SPLITS
from ghn_jax.networks.spec import NetworkSpec, load_networks
from ghn_jax.quant.policy import Policy, load_policy, parse_bits
from ghn_jax.quant.strategy import describe_bits, strategy_of
from ghn_jax.results import Result
from ghn_jax.scoring import (
    Selection,
    check_classes,
    check_memory,
    image_batches,
    score_networks,
    select_given,
    select_split,
)

BITS = ('w32a32', 'w8a8', 'w4a8', 'w4a4', 'w2a2')
BATCH_SIZE = 64  # as in training
NUM_NETWORKS = 50
GIVEN = 'archs'  # what rows call the networks of an architecture file


def parse_splits(names: Sequence[str]) -> tuple[str, ...]:
    """The names without repetitions. Raises UserError for an unknown one, and for none."""
    splits = tuple(dict.fromkeys(name.strip() for name in names))
    if not splits:
        raise UserError(f'--splits is empty: choose from {", ".join(SPLITS)}')
    for split in splits:
        if split not in SPLITS:
            raise UserError(f'--splits={split}: choose from {", ".join(SPLITS)}')
    return splits


def parse_policies(names: Sequence[str], files: Sequence[str] = ()) -> tuple[Policy, ...]:
    """Policies from their names and from policy files, without repetitions.

    Raises UserError for impossible bits, bad files, two policies of one name, and for none.
    """
    policies = list(dict.fromkeys(parse_bits(name) for name in names))
    for file in dict.fromkeys(files):
        policy = load_policy(file)
        if str(policy) in map(str, policies):
            raise UserError(f'--policy={file}: another policy is called {str(policy)!r}: rename the file')
        policies.append(policy)
    if not policies:
        raise UserError(f'--bits is empty: expected a list such as {",".join(BITS)}')
    return tuple(policies)


def evaluate(
    run: runs.Run,
    *,
    dataset: Dataset | None = None,
    splits: Sequence[str] = ('test',),
    policies: Sequence[Policy] = tuple(map(parse_bits, BITS)),
    num_networks: int = NUM_NETWORKS,
    num_images: int = 0,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    specs: Sequence[NetworkSpec] | None = None,
    against: str | os.PathLike | None = None,
    workdir: str = '',
    num_devices: int = 1,
    told: Policy | None = None,
) -> tuple[Result, Result | None]:
    """(result, the other result) of scoring the run's GHN on test images; see `results` for what a result is.

    Args:
      run: from `runs.load_run`.   dataset: the run's; read if None.
      splits: of the run's space, the first num_networks of each (0: all).   policies: bit-widths.
      num_images: the first ones of the test images (0: all), in whole batches of batch_size.
      seed: which networks the splits have; the same for every run that is to be compared.
      specs: score these networks and no split.   against: JSON file of an evaluation of the same networks.
      workdir: what to call the run in the result.   num_devices: that share the images; 0: all.
      told: what a GHN that is told the bits is told, in place of what is run.

    Raises:
      UserError: bad values, networks that cannot be run, a file to compare with that does not fit.
    """
    other = results.read_result(against) if against else None
    if told and not run.ghn.config.bits:
        raise UserError(f'told={told}: the GHN of this run is told no bits (config.ghn.bits): leave it out')
    mesh = devices.first(num_devices)
    config: Any = run.config
    size = config.image_size
    selections: dict[str, Selection] = {}
    if specs is None:
        space = runs.make_space_of(config)
        for split in splits:
            selections[split] = select_split(space, split, seed=seed, count=num_networks, image_size=size)
    else:
        selections[GIVEN] = select_given(specs, image_size=size)
        check_memory((program for program, _ in selections[GIVEN].groups), batch_size)
    # Networks are checked before the data are read, which may take half a minute.
    dataset = dataset or runs.load_data(config)
    images = image_batches(dataset, dataset.test, batch_size=batch_size, num_images=num_images)
    networks = []
    for split, selection in selections.items():
        check_classes(run.ghn, selection.specs, dataset)
        check_policies(selection.specs, [*policies, *([told] if told else [])])
        networks += [_describe(split, i, spec) for i, spec in enumerate(selection.specs)]
    bits, strategy = [str(policy) for policy in policies], strategy_of(config)
    protocol = {
        'units': 'percent',
        'dataset': dataset.name,
        'note': dataset.note,
        'image_split': 'test',
        'images': images.count,
        'images_dropped': (num_images or len(dataset.test.labels)) - images.count,  # of a last, partial batch
        'image_size': size,
        'num_classes': dataset.num_classes,
        'batch_size': batch_size,
        'batch_norm': 'batch',
        'ranges': 'batch',
        'bits': bits,
        'policies': {str(policy): policy.to_dict() for policy in policies},
        'predicted_for': (str(told or 'each') if run.ghn.config.bits else 'any'),  # of the policies
        'quantization': {k: v for k, v in config.quant.items() if k not in ('mode', 'bits')},
        'num_networks': {split: len(s.specs) for split, s in selections.items()},
        'seed': seed,
        'space': config.space.name if specs is None else None,
        'workdir': workdir,
        'step': run.step,
        'training': _training(run),
        'training_mode': config.quant.mode,
        'training_bits': _training_bits(config),
        'device': f'{mesh.size if mesh else 1} x {jax.devices()[0].device_kind}',
        'jax': jax.__version__,
        'ghn_jax': ghn_jax.__version__,
    }
    if other is not None:
        results.check_comparable(other, str(against), networks, bits, protocol)

    start, described = time.perf_counter(), iter(networks)
    for split, selection in selections.items():
        total = len(selection.specs) * len(policies)
        compiled = f'programs to compile, unless cached: {len(selection.groups)}'
        print(f'{split}: {len(selection.specs)} networks; {compiled}', file=sys.stderr)
        with Progress(total, desc=split, unit='score') as progress:

            def done(network: int, policy: int, progress=progress) -> None:
                progress.update(networks=int(policy == len(policies) - 1), images=images.count)

            shares = score_networks(
                run.ghn, run.params, selection, images, list(map(strategy.used, policies)),
                told=told and strategy.used(told), scheme=strategy.scheme.when_used(), mesh=mesh, done=done,
            )  # fmt: skip
        for network, per_policy in zip(described, 100 * shares):
            pairs = zip(bits, per_policy.tolist())
            network['scores'] = {b: {'top1': top1, 'top5': top5} for b, (top1, top5) in pairs}
    protocol['seconds'] = round(time.perf_counter() - start, 1)
    result = {'rows': results.make_rows(networks, bits), 'networks': networks, 'protocol': protocol}
    return (result if other is None else results.compare(result, other)), other


def _describe(split: str, index: int, spec: NetworkSpec) -> dict[str, Any]:
    fields = {k: v for k, v in spec.to_dict().items() if k != 'name'}
    return {
        'split': split,
        'name': spec.name or f'network-{index}',
        'C': spec.C,
        'n_cells': spec.n_cells,
        'parameters': count_parameters(spec),
        'digest': hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16],
    }


def _training(run: runs.Run) -> str:
    if run.meta.get('kind') == 'converted':
        return 'converted'
    config: Any = run.config
    mode = 'float' if config.quant.mode == 'float' else f'{config.quant.mode} {_training_bits(config)}'
    return f'{mode}, told the bits' if run.ghn.config.bits else mode


def _training_bits(config: Any) -> str:
    return describe_bits(config.quant)


if __name__ == '__main__':
    _WORKDIR = flags.DEFINE_string('workdir', None, 'Run directory, of ghn_jax.train or ghn_jax.convert.')
    _STEP = flags.DEFINE_string('step', 'latest', 'Checkpoint: latest, best (in validation), or a number.')
    _SPLITS = flags.DEFINE_list('splits', ['test'], f'Networks to score: of {", ".join(SPLITS)}.')
    _BITS = flags.DEFINE_list(
        'bits',
        None,
        'Bit-widths: w<bits>a<bits>, of weights and activations; 32 is float. '
        f'Default: {",".join(BITS)}, or none where --policy is given.',
    )
    _POLICY = flags.DEFINE_list('policy', [], 'Policy files, beside --bits: JSON, bits by tensor.')
    _TOLD = flags.DEFINE_string(
        'told', None, 'Bits, as in w8a8, that a GHN that is told the bits is told in place of those run.'
    )
    _NUM_NETWORKS = flags.DEFINE_integer('num_networks', NUM_NETWORKS, 'Networks of each split; 0 takes all.')
    _NUM_IMAGES = flags.DEFINE_integer('num_images', 0, 'Test images; 0 takes all.')
    _BATCH_SIZE = flags.DEFINE_integer(
        'batch_size', BATCH_SIZE, 'Images of a batch, whose statistics BatchNorm uses.'
    )
    _BN = flags.DEFINE_enum(
        'bn', 'batch', ['batch', 'calibrated'], 'BatchNorm statistics: of each batch, or calibrated.'
    )
    _SEED = flags.DEFINE_integer('seed', 0, 'Which networks the splits have.')
    _ARCHS = flags.DEFINE_string(
        'archs', None, 'Architecture file: score exactly its networks, and no split.'
    )
    _DEVICES = flags.DEFINE_integer(
        'devices', 0, 'Devices that share the images, 0: all; a CPU is divided into so many.', lower_bound=0
    )
    _DATA_DIR = flags.DEFINE_string('data_dir', None, 'Where TFDS data lie, if not where the run had them.')
    _JSON = flags.DEFINE_string('json', None, 'File to write the result to.')
    _PLOT = flags.DEFINE_string('plot', None, 'Picture to write (.png, .pdf, .svg).')
    _AGAINST = flags.DEFINE_string(
        'against', None, 'The --json file of another run on the same networks, to compare with.'
    )

    def _main() -> None:
        workdir = cli.check_workdir(_WORKDIR.value, must_exist=True)
        if _BN.value == 'calibrated':
            raise UserError('--bn=calibrated is not there yet: use --bn=batch, the statistics of each batch')
        bits = _BITS.value if _BITS.value is not None else () if _POLICY.value else BITS
        splits, policies = parse_splits(_SPLITS.value), parse_policies(bits, _POLICY.value)
        told = None if _TOLD.value is None else parse_bits(_TOLD.value)
        if _SEED.value < 0:
            raise UserError(f'--seed={_SEED.value}: expected at least 0')
        json_file = cli.check_output(_JSON.value, 'json') if _JSON.value else None
        plot_file = cli.check_output(_PLOT.value, 'plot', results.PICTURES) if _PLOT.value else None
        specs = load_networks(_ARCHS.value) if _ARCHS.value else None
        runs.enable_compilation_cache()
        runs.divide_cpu(_DEVICES.value or 1)
        run = runs.load_run(workdir, _STEP.value)
        if _DATA_DIR.value is not None:
            run.config.data_dir = _DATA_DIR.value
        result, other = evaluate(
            run,
            splits=splits,
            policies=policies,
            num_networks=_NUM_NETWORKS.value,
            num_images=_NUM_IMAGES.value,
            batch_size=_BATCH_SIZE.value,
            seed=_SEED.value,
            specs=specs,
            against=_AGAINST.value,
            workdir=_WORKDIR.value or '',
            num_devices=_DEVICES.value,
            told=told,
        )
        result['protocol']['command'] = shlex.join(['python', '-m', 'ghn_jax.evaluate', *sys.argv[1:]])
        print(results.text(result, other))
        if json_file:
            cli.write_atomic(json_file, json.dumps(result, indent=1, allow_nan=False) + '\n')
        if plot_file:
            cli.write_atomic(plot_file, results.picture(result, other, suffix=pathlib.Path(plot_file).suffix))
            print(f'picture: {_PLOT.value}')

    cli.run(_main)
