"""Scores networks with predicted weights at several bit-widths: a table, the same as JSON, a picture.

python -m ghn_jax.evaluate --workdir=runs/quickstart/float --splits=test,deep --json=float.json
python -m ghn_jax.evaluate --workdir=runs/quickstart/qat --splits=test,deep --against=float.json --plot=b.png

The weights of a network are predicted once and quantized to every bit-width; a hypernetwork that is told the
bits predicts them anew for each. Policies beyond one bit-width for all are read from files: --policy, see
`quant/policy.py` for their format. Accuracies are in percent.
"""

import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

import ghn_jax
from ghn_jax.assembly.memory import check_scoring
from ghn_jax.assembly.mesh import first
from ghn_jax.base import bounds, paths
from ghn_jax.base.errors import UserError
from ghn_jax.cnn.deploy import integer
from ghn_jax.datasets.load import Dataset
from ghn_jax.evaluation import results
from ghn_jax.evaluation.evaluation_flags import BATCH_SIZE, BITS, NUM_NETWORKS
from ghn_jax.evaluation.protocol import CALIBRATION_BATCHES, PAPERS, Protocol
from ghn_jax.evaluation.results import Result
from ghn_jax.evaluation.score import (
    Images,
    Score,
    Selection,
    check_classes,
    image_batches,
    score_in_full,
    select_given,
    select_split,
)
from ghn_jax.hypernet.policy_features import check_policies
from ghn_jax.networks.graph import build_graph, count_depth
from ghn_jax.networks.size import count_parameters
from ghn_jax.networks.spec import NetworkSpec
from ghn_jax.quant.bit_schedule import describe_bits, strategy_of
from ghn_jax.quant.policy import Policy, parse_bits
from ghn_jax.runs.metrics import Progress
from ghn_jax.runs.run import Run, load_data, load_run, make_space_of

GIVEN = 'archs'  # what rows call the networks of an architecture file


def evaluate(
    run: Run,
    *,
    dataset: Dataset | None = None,
    splits: Sequence[str] = ('test',),
    policies: Sequence[Policy] = tuple(map(parse_bits, BITS)),
    num_networks: int = NUM_NETWORKS,
    num_images: int = 0,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    specs: Sequence[NetworkSpec] | None = None,
    how: Protocol = PAPERS,
    calibration_batches: int = CALIBRATION_BATCHES,
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
      specs: score these networks and no split.
      how: what BatchNorm and ranges go by; as in the papers.
      calibration_batches: of training images, the first ones.
      against: JSON file of an evaluation of the same networks, or another run's directory: it is scored too.
      workdir: what to call the run in the result.   num_devices: that share the images; 0: all.
      told: what a GHN that is told the bits is told, in place of what is run.

    Raises:
      UserError: bad values, networks that cannot be run, a file or run to compare with that does not fit.
    """
    bounds.check(
        num_networks=num_networks, num_images=num_images, batch_size=batch_size, seed=seed,
        calibration_batches=calibration_batches, devices=num_devices, integer=how.integer,
    )  # fmt: skip
    against = paths.local(against, '--against') if against else None
    rival = load_run(against) if against and os.path.isdir(against) else None
    other = results.read_result(against) if against and not rival else None
    if rival:
        _check_same_task(run, rival, str(against))
    if told and not run.ghn.config.bits:
        raise UserError(f'told={told}: the GHN of this run is told no bits (config.ghn.bits): leave it out')
    both = [each for each in (run, rival) if each]
    config: Any = run.config
    mesh = first(num_devices)
    # Networks are checked before the data are read, which may take half a minute.
    selections = _select(config, splits, specs, seed, num_networks)
    programs = (program for selection in selections.values() for program, _ in selection.groups)
    check_scoring(programs, batch_size, mesh)
    every = [spec for selection in selections.values() for spec in selection.specs]
    if how.integer:
        integer.check(every, [strategy_of(each.config).used(p) for each in both for p in policies])
    check_policies(every, [*policies, *([told] if told else [])])
    dataset = dataset or load_data(config)
    for each in both:
        check_classes(each.ghn, every, dataset)
    images = image_batches(dataset, dataset.test, batch_size=batch_size, num_images=num_images)
    if how.integer > images.count:
        raise UserError(f'integer={how.integer}: there are {images.count} test images in whole batches')
    calibration = _calibration_images(dataset, calibration_batches, batch_size) if how.measures else None
    networks = [_describe(name, i, spec) for name, s in selections.items() for i, spec in enumerate(s.specs)]
    bits = [str(policy) for policy in policies]
    protocol = _protocol(dataset, images, calibration, how) | {
        'images_dropped': (num_images or len(dataset.test.labels)) - images.count,  # of a last, partial batch
        'image_size': config.image_size,
        'bits': bits,
        'policies': {str(policy): policy.to_dict() for policy in policies},
        'num_networks': {split: len(s.specs) for split, s in selections.items()},
        'seed': seed,
        'space': config.space.name if specs is None else None,
        'device': f'{mesh.size if mesh else 1} x {jax.devices()[0].device_kind}',
    }
    if other is not None:
        results.check_comparable(other, str(against), networks, bits, protocol)

    def result_of(run: Run, workdir: str) -> Result:
        start, scored = time.perf_counter(), []
        for split, selection in selections.items():
            scores = _score_split(run, split, selection, images, policies, told, how, calibration, mesh)
            scored += [_in_percent(bits, policies, per_policy) for per_policy in scores]
        about = protocol | _about(run, workdir, told) | {'seconds': round(time.perf_counter() - start, 1)}
        scored = [network | own for network, own in zip(networks, scored, strict=True)]
        return {'rows': results.make_rows(scored, bits), 'networks': scored, 'protocol': about}

    result = result_of(run, workdir)
    other = result_of(rival, str(against)) if rival else other
    return (result if other is None else results.compare(result, other)), other


def _select(
    config: Any, splits: Sequence[str], specs: Sequence[NetworkSpec] | None, seed: int, count: int
) -> dict[str, Selection]:
    """The networks to score, by the name of their split."""
    size = config.image_size
    if specs is not None:
        return {GIVEN: select_given(specs, image_size=size)}
    space = make_space_of(config)
    return {split: select_split(space, split, seed=seed, count=count, image_size=size) for split in splits}


def _score_split(
    run: Run, split: str, selection: Selection, images: Images, policies: Sequence[Policy],
    told: Policy | None, how: Protocol, calibration: Images | None, mesh: Mesh | None,
) -> list[list[Score]]:  # fmt: skip
    """Scores of the networks at the policies, with a progress bar."""
    strategy = strategy_of(run.config)
    compiled = f'programs to compile, unless cached: {len(selection.groups)}'
    print(f'{split}: {len(selection.specs)} networks; {compiled}', file=sys.stderr)
    with Progress(len(selection.specs) * len(policies), desc=split, unit='score') as progress:
        return score_in_full(
            run.ghn, run.params, selection, images, list(map(strategy.used, policies)),
            told=told and strategy.used(told), scheme=strategy.scheme.when_used(),
            how=how, calibration=calibration, mesh=mesh,
            done=lambda _, p: progress.update(networks=int(p == len(policies) - 1), images=images.count),
        )  # fmt: skip


def _protocol(dataset: Dataset, images: Images, calibration: Images | None, how: Protocol) -> dict[str, Any]:
    """What the result says of the images, and of how they were scored."""
    return {
        'units': 'percent',
        'dataset': dataset.name,
        'note': dataset.note,
        'image_split': 'test',
        'images': images.count,
        'num_classes': dataset.num_classes,
        'batch_size': images.labels.shape[1],
        'batch_norm': how.batch_norm,
        'ranges': how.ranges,
        'range_rule': how.range_rule if how.ranges == 'calibrated' else None,
        'calibration_images': calibration.count if calibration and how.calibrates else None,
        'sqnr_images': calibration.count if calibration and how.sqnr else None,
        'integer_images': how.integer,
        'jax': jax.__version__,
        'ghn_jax': ghn_jax.__version__,
    }


def _check_same_task(run: Run, rival: Run, against: str) -> None:
    for key in ('dataset', 'image_size', *(['seed'] if run.config.dataset == 'synthetic' else [])):
        ours, theirs = getattr(run.config, key), getattr(rival.config, key)
        if ours != theirs:
            raise UserError(
                f'--against={against} was trained with {key}={theirs}, this run with {key}={ours}: '
                'the two cannot be scored on the same images'
            )


def _calibration_images(dataset: Dataset, batches: int, batch_size: int) -> Images:
    if batches * batch_size > (available := len(dataset.train.labels)):
        raise UserError(
            f'calibration_batches={batches} of {batch_size} images are more than the {available} training '
            f'images of {dataset.name}: give at most {available // batch_size}'
        )
    return image_batches(dataset, dataset.train, batch_size=batch_size, num_images=batches * batch_size)


def _in_percent(bits: Sequence[str], policies: Sequence[Policy], scores: Sequence[Score]) -> dict[str, Any]:
    """What the result says of one network: `scores` by bit-width, and the `layers` that their lists go by.

    agreement: with the network in float, where that is scored. sqnr_*: means over layers; *_by_layer: dB.
    """
    baseline = next((s for policy, s in zip(policies, scores) if policy.is_float), None)
    out: dict[str, Any] = {'scores': {}}
    for b, score in zip(bits, scores):
        entry: dict[str, Any] = {'top1': 100 * score.top1, 'top5': 100 * score.top5}
        if baseline is not None:
            entry['agreement'] = 100 * float((score.predicted == baseline.predicted).mean())
        if score.integer is not None:
            entry['integer_disagreement'] = 100 * score.integer
        if score.sqnr is not None:
            out['layers'] = list(score.sqnr)
            for what, values in zip(('weights', 'activations'), zip(*score.sqnr.values())):
                known = [v for v in values if v is not None]
                entry[f'sqnr_{what}'] = sum(known) / len(known) if known else None
                entry[f'sqnr_{what}_by_layer'] = list(values)
        out['scores'][b] = entry
    return out


def _about(run: Run, workdir: str, told: Policy | None) -> dict[str, Any]:
    """What the protocol says of a run. predicted_for: the policies that its weights are predicted for."""
    config: Any = run.config
    return {
        'workdir': workdir,
        'step': run.step,
        'training': _training(run),
        'training_mode': config.quant.mode,
        'training_bits': describe_bits(config.quant),
        'predicted_for': str(told or 'each') if run.ghn.config.bits else 'any',
        'quantization': {
            k: v for k, v in sorted(dataclasses.asdict(config.quant).items()) if k not in ('mode', 'bits')
        },
    }


def _describe(split: str, index: int, spec: NetworkSpec) -> dict[str, Any]:
    return {
        'split': split,
        'name': spec.name or f'network-{index}',
        'C': spec.C,
        'n_cells': spec.n_cells,
        'parameters': count_parameters(spec),
        'depth': count_depth(build_graph(spec)),
        'digest': spec.digest,
    }


def _training(run: Run) -> str:
    if run.meta.get('kind') == 'converted':
        return 'converted'
    config: Any = run.config
    mode = 'float' if config.quant.mode == 'float' else f'{config.quant.mode} {describe_bits(config.quant)}'
    return f'{mode}, told the bits' if run.ghn.config.bits else mode
