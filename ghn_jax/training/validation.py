"""Validation of a run: unseen networks, with predicted weights, on validation images.

Axes: S networks | P policies.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from ghn_jax.config import RunConfig
from ghn_jax.datasets.load import Dataset
from ghn_jax.evaluation.score import score_networks
from ghn_jax.evaluation.selection import image_batches, select_split
from ghn_jax.hypernet.ghn import GHN
from ghn_jax.networks.spaces import Space
from ghn_jax.quant.policy import parse_bits
from ghn_jax.quant.strategy import strategy_of
from ghn_jax.runs.run import VALIDATION


def make_validation(
    config: RunConfig, ghn: GHN, space: Space, dataset: Dataset
) -> Callable[[Any], dict[str, float]]:
    """Make the validation of a run, in float and at the bits of the config.

    Networks and images are drawn and made ready at its first call.

    Args:
      config: of the run: `eval` says how many networks and images, and at which bits.
      ghn: the hypernetwork whose parameters are validated.
      space: whose split `val` the networks are of.
      dataset: whose validation images they are scored on.

    Returns:
      parameters of the GHN -> {'val/top1_<bits>': mean top-1 over the networks}.

    Raises:
      UserError: bits that are none.
    """
    bits = ('float', *(config.eval.bits or (config.quant.bits,)))
    names = list(dict.fromkeys(str(parse_bits(name)) for name in bits))
    strategy = strategy_of(config)
    policies = [strategy.used(parse_bits(name)) for name in names]

    @functools.cache
    def prepared():
        selection = select_split(
            space, 'val', seed=config.seed, count=config.eval.num_networks, image_size=config.image_size
        )
        images = image_batches(
            dataset, dataset.val, batch_size=config.train.batch_size,
            num_images=min(config.eval.num_images, len(dataset.val.labels)),
        )  # fmt: skip
        return selection, images

    def validate(params: Any) -> dict[str, float]:
        scheme = strategy.scheme.when_used()
        shares = score_networks(ghn, params, *prepared(), policies, scheme=scheme)  # [S, P, 2]
        return {f'{VALIDATION}{name}': float(np.mean(shares[:, p, 0])) for p, name in enumerate(names)}

    return validate
