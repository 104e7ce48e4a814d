"""The evaluation of a loaded hypernetwork from Python: `ghn_jax.evaluate`."""

from collections.abc import Sequence
from typing import Any

import jax

from ghn_jax.base.errors import UserError, shown
from ghn_jax.evaluation import evaluate as evaluation
from ghn_jax.evaluation.evaluation_spec import BATCH_SIZE, BITS, NUM_NETWORKS, EvaluationSpec
from ghn_jax.networks.spec import NetworkSpec
from ghn_jax.quant.policy import Policy, parse_bits
from ghn_jax.runs.hypernetwork import Hypernetwork


def evaluate(
    hypernetwork: Hypernetwork,
    networks: Sequence[NetworkSpec] | None = None,
    *,
    splits: Sequence[str] = ('test',),
    bits: Sequence[str | Policy] = BITS,
    num_networks: int = NUM_NETWORKS,
    num_images: int = 0,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> dict[str, Any]:
    """Score networks with predicted weights on test images, with BatchNorm and ranges of each batch.

    The command `ghn_jax.evaluate` has further protocols: calibrated statistics, integer arithmetic, noise by
    layer, comparison with another run.

    Args:
      hypernetwork: predicts the weights; its run's data set and space are taken.
      networks: score these, and no split.
      splits: of the run's space: 'test', 'wide', 'deep', 'dense', 'bnfree', 'val', 'train'.
      bits: bit-widths such as 'w4a8' or 'float', or policies.
      num_networks: the first ones of each split; 0: all.
      num_images: the first ones of the test images, in whole batches; 0: all.
      batch_size: images of a batch.
      seed: which networks the splits have.

    Returns:
      What `evaluate --json` writes. `rows`: for each split and bit-width `n` networks and `top1_mean`,
      `top1_sem`, `top1_median`, `top1_max` and others, in percent. `networks`: the scores of each.
      `protocol`: how they were taken.

    Raises:
      UserError: no hypernetwork, unknown splits or bits, numbers out of range, networks that cannot be run or
        predicted.
    """
    if not isinstance(hypernetwork, Hypernetwork):
        raise UserError(f'the hypernetwork is {shown(hypernetwork)}: expected what ghn_jax.load gives')
    for name, value in (('networks', networks), ('splits', splits), ('bits', bits)):
        if value is not None and (isinstance(value, str) or not isinstance(value, Sequence) or not value):
            raise UserError(f'{name} is {shown(value)}: expected a list with something in it')
    for network in networks or ():
        if not isinstance(network, NetworkSpec):
            raise UserError(
                f'a network is {shown(network)}: expected a NetworkSpec; score a traced model with the '
                'command ghn_jax.evaluate'
            )
    spec = EvaluationSpec(
        networks=None if networks is None else tuple(networks),
        splits=tuple(splits),
        policies=tuple(parse_bits(b) if isinstance(b, str) else b for b in bits),
        num_networks=num_networks,
        num_images=num_images,
        batch_size=batch_size,
        seed=seed,
    )
    with jax.enable_x64(False):  # as in training
        result, _ = evaluation.evaluate(hypernetwork.run, spec)
    return result
