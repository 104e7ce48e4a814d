"""What a result says: of the images, of the networks and their scores, and of the run."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

import ghn_jax
from ghn_jax.datasets.load import Dataset
from ghn_jax.evaluation.evaluation_spec import EvaluationSpec
from ghn_jax.evaluation.score import Score
from ghn_jax.evaluation.selection import ImageBatches
from ghn_jax.networks.counts import count_parameters
from ghn_jax.networks.graph import NetworkGraph, count_depth
from ghn_jax.quant.policy import Policy
from ghn_jax.quant.strategy import describe_bits
from ghn_jax.runs.run import Run


def about_images(
    dataset: Dataset, images: ImageBatches, calibration: ImageBatches | None, spec: EvaluationSpec
) -> dict[str, Any]:
    """Return what the result says of the images, and of how networks are scored on them."""
    how = spec.protocol
    return {
        'units': 'percent',
        'dataset': dataset.name,
        'images_digest': dataset.digest,
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
        'images_dropped': (spec.num_images or len(dataset.test.labels)) - images.count,  # of a partial batch
    }


def about_networks(
    config: Any, spec: EvaluationSpec, counts: Mapping[str, int], space: str | None, devices: int = 1
) -> dict[str, Any]:
    """Return what the result says of the networks and their bits.

    Args:
      config: of the run.
      spec: what is scored.
      counts: how many networks each split has.
      space: what the networks are drawn from; None: they are given.
      devices: how many score them.
    """
    return {
        'image_size': config.image_size,
        'bits': [str(policy) for policy in spec.policies],
        'policies': {str(policy): policy.to_dict() for policy in spec.policies},
        'num_networks': dict(counts),
        'seed': spec.seed,
        'space': space,
        'device': f'{devices} x {jax.devices()[0].device_kind}',
    }


def in_percent(bits: Sequence[str], policies: Sequence[Policy], scores: Sequence[Score]) -> dict[str, Any]:
    """Return what the result says of one network: `scores` by bits, and the `layers` that their lists go by.

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


def about_run(run: Run, workdir: str, predicted_for: Policy | None) -> dict[str, Any]:
    """Return what the protocol says of a run.

    predicted_for: the policy that all weights are predicted for; None: each for its own.
    """
    config: Any = run.config
    return {
        'workdir': workdir,
        'step': run.step,
        'trained_on_images_digest': run.images_digest,
        'training': _training(run),
        'training_mode': config.quant.mode,
        'training_bits': describe_bits(config.quant),
        'predicted_for': str(predicted_for or 'each') if run.ghn.config.bits else 'any',
        'quantization': {
            k: v for k, v in sorted(dataclasses.asdict(config.quant).items()) if k not in ('mode', 'bits')
        },
    }


def about_network(split: str, index: int, graph: NetworkGraph) -> dict[str, Any]:
    """Return what the result says of a network, whoever predicts its weights."""
    spec = graph.spec
    return {
        'split': split,
        'name': spec.name or f'network-{index}',
        'C': spec.C,
        'n_cells': spec.n_cells,
        'parameters': count_parameters(spec),
        'depth': count_depth(graph),
        'digest': spec.digest,
    }


def _training(run: Run) -> str:
    if run.meta.get('kind') == 'converted':
        return 'converted'
    if run.params is None:
        return 'no hypernetwork'
    config: Any = run.config
    mode = 'float' if config.quant.mode == 'float' else f'{config.quant.mode} {describe_bits(config.quant)}'
    return f'{mode}, told the bits' if run.ghn.config.bits else mode
