"""Policies drawn at random, for training a hypernetwork on many bit-widths."""

from collections.abc import Sequence

import numpy as np

from ghn_jax.quant.policy import Policy

_STREAM = 1  # apart from other draws by (seed, step): a key that no zero-padding of these can equal


def draw_policy(
    seed: int,
    step: int,
    index: int,
    names: Sequence[str],
    *,
    fixed: Policy,
    uniform_share: float,
    mixed_share: float,
    widths: Sequence[int],
) -> Policy:
    """The policy of network `index` of a training step: a pure function of its arguments.

    With probability uniform_share one width for all weights and one for all activations, with probability
    mixed_share both anew for each of `names` (the network's weights), else `fixed`. Widths are drawn from
    `widths`, each as often as another, those of weights and of activations independently.
    """
    entropy = np.random.SeedSequence((seed, step, index), spawn_key=(_STREAM,))
    rng = np.random.Generator(np.random.Philox(entropy))
    kind = rng.random()
    if kind < uniform_share:
        weights, activations = rng.choice(widths, 2).tolist()
        return Policy(weights, activations)
    if kind < uniform_share + mixed_share:
        bits = rng.choice(widths, (len(names), 2)).tolist()
        return Policy(layers=tuple((name, w, a) for name, (w, a) in zip(names, bits)))
    return fixed


def describe_bits(bits: str, *, uniform_share: float, mixed_share: float, widths: Sequence[int]) -> str:
    """The bits of a training in a few words: `w4a4`, or `50% uniform, 50% mixed of 2,4,8 bits`."""
    shares = {'uniform': uniform_share, 'mixed': mixed_share}
    drawn = ', '.join(f'{share:.0%} {kind}' for kind, share in shares.items() if share)
    rest = f'{bits}, ' if uniform_share + mixed_share < 1 else ''
    return f'{rest}{drawn} of {",".join(map(str, widths))} bits' if drawn else bits
