"""What fails first when bits are few: networks scored with one part of them quantized, or all but one.

Only policies: nothing is compiled for it that an evaluation does not compile.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ghn_jax.evaluation.score import score_networks
from ghn_jax.evaluation.selection import ImageBatches, Selection
from ghn_jax.hypernet.ghn import GHN
from ghn_jax.hypernet.policy_features import weight_names
from ghn_jax.quant.policy import FLOAT_BITS, Policy
from ghn_jax.quant.scheme import QAT, Scheme

STEM, HEAD = r'stem\d?\..*', r'classifier\..*'  # of every network; all else are cells


def group_policies(policy: Policy) -> dict[str, Policy]:
    """Return by the name of a part of networks a policy with the bits of `policy` there, float elsewhere."""
    bits = policy.weight_bits, policy.activation_bits
    keep = lambda *parts: tuple((part, FLOAT_BITS, FLOAT_BITS) for part in parts)
    return {
        'nothing': Policy(),
        'everything': Policy(*bits),
        'weights': Policy(bits[0], FLOAT_BITS),
        'activations': Policy(FLOAT_BITS, bits[1]),
        'stem': Policy(rules=((STEM, *bits),)),
        'cells': Policy(*bits, rules=keep(STEM, HEAD)),
        'head': Policy(rules=((HEAD, *bits),)),
        'all but the stem': Policy(*bits, rules=keep(STEM)),
        'all but the head': Policy(*bits, rules=keep(HEAD)),
    }


def score_policies(
    ghn: GHN, params: Any, selection: Selection, images: ImageBatches, policies: Mapping[str, Policy],
    *, scheme: Scheme = QAT,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Return top-1 in percent, [M networks], for each policy."""
    shares = score_networks(ghn, params, selection, images, list(policies.values()), scheme=scheme)
    return {name: 100 * shares[:, p, 0] for p, name in enumerate(policies)}


def score_layers(
    ghn: GHN, params: Any, selection: Selection, images: ImageBatches, policy: Policy, scheme: Scheme
) -> list[dict[str, float]]:
    """Return for each network the change of top-1, in percentage points, when one layer alone is quantized.

    By the name of the layer's weight; a layer is its weight and the activation entering it.
    """
    bits = policy.weight_bits, policy.activation_bits
    changes: list[dict[str, float]] = [{} for _ in selection.specs]
    for program, members in selection.groups:
        for i in members:
            graph = selection.graphs[i]
            names = weight_names(graph)
            policies = {'': Policy()} | {n: Policy(layers=((n, *bits),)) for n in names}
            one = Selection((graph,), ((program, (0,)),))
            scores = score_policies(ghn, params, one, images, policies, scheme=scheme)
            changes[i] = {n: float(scores[n][0] - scores[''][0]) for n in names}
    return changes


def place_of(name: str, n_cells: int) -> str:
    """Return where a layer lies, for means over networks: in the stem, a third of the cells, or the head."""
    part, _, rest = name.partition('.')
    if part != 'cells':
        return 'head' if part == 'classifier' else 'stem'
    third = 3 * int(rest.partition('.')[0]) // n_cells
    return ('first third of the cells', 'second third of the cells', 'last third of the cells')[third]
