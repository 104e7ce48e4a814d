"""Strategies: how a run quantizes the networks that it trains on, as `config.quant` says.

A scheme, which is static, and for every network of every step a policy, which is data: the run's bits;
before that, along a schedule, others (float first, or bits lowered in stages); or bits drawn at random, for
the network or for each of its layers, so that the hypernetwork learns to serve all of them. A draw is a
function of (seed, step, number of the network) alone: a resumed run draws what it would have drawn.
"""

import dataclasses
from typing import Any

import numpy as np

from ghn_jax.base.errors import FieldError, UserError, prefixed, shown
from ghn_jax.networks.graph import NetworkGraph
from ghn_jax.quant.policy import Policy, Widths, edges_of, parse_bits, quantizable
from ghn_jax.quant.scheme import FIELDS, FLOAT, Scheme

DRAWS = ('network', 'layer', 'either')
_STREAM = 0x71  # of random numbers: another than that of the networks themselves


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strategy:
    """How a training quantizes: by which scheme, and in which bits at which step.

    Attributes:
      scheme: of training.
      policy: the bits that training aims at.
      schedule: (until step, policy), ...: what applies before.
      choices: policies to draw from, in place of `policy`.
      per: one draw for a 'network', one for each 'layer', or a toss between the two for 'either'.
      seed: of the draws.
    """

    scheme: Scheme = FLOAT
    policy: Policy = Policy()
    schedule: tuple[tuple[int, Policy], ...] = ()
    choices: tuple[Policy, ...] = ()
    per: str = 'network'
    seed: int = 0

    def policy_of(self, step: int, index: int, graph: NetworkGraph) -> Policy:
        """Return the policy of network `index` of a step, whose graph this is."""
        for until, policy in self.schedule:
            if step < until:
                return policy
        if not self.choices:
            return self.policy
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, step, index, _STREAM))))
        whole = self.choices[rng.integers(len(self.choices))]
        if self.per == 'network' or (self.per == 'either' and rng.random() < 0.5):
            return whole
        names = quantizable((p.name, p.shape) for p in graph.parameters)
        drawn = rng.integers(len(self.choices), size=len(names))
        edges = edges_of(names) if self.policy.edges else ()  # these keep their bits
        choices = zip(names, drawn, strict=True)
        layers = [(n, *self.choices[k].widths(n)) for n, k in choices if n not in edges]
        return dataclasses.replace(whole, layers=tuple(layers))

    def used(self, policy: Policy) -> Policy:
        """Return a policy as this run's networks are scored with it: with the run's edges, if it has none."""
        return dataclasses.replace(policy, edges=policy.edges or self.policy.edges)


def strategy_of(config: Any) -> Strategy:
    """Return the strategy of a run's config (`ghn_jax.config`).

    Raises:
      UserError: what is not possible in `config.quant`, key by key.
    """
    quant = config.quant
    scheme = scheme_of(quant)
    edges = _edges(quant.edge_bits)
    policy = _policy('bits', quant.bits, edges)
    if quant.draw_per not in DRAWS:
        raise FieldError('quant.draw_per', f'={quant.draw_per}: expected one of {", ".join(DRAWS)}')
    if type(quant.draw) is not tuple:
        raise FieldError('quant.draw', f"={shown(quant.draw)}: expected a tuple such as ('w2a2', 'w4a4')")
    choices = tuple(_policy('draw', name, edges) for name in quant.draw)
    schedule = _schedule(quant.schedule, edges)
    if scheme.mode == 'float':
        return Strategy(scheme=scheme, policy=Policy(edges=edges), seed=config.seed)
    return Strategy(
        scheme=scheme, policy=policy, schedule=schedule, choices=choices, per=quant.draw_per, seed=config.seed
    )


def describe_bits(quant: Any) -> str:
    """Say the bits of a training in a few words: `w4a4`, `drawn of w2a2, w4a4 by layer`."""
    if quant.mode == 'float':
        return 'w32a32'
    if not quant.draw:
        return quant.bits
    shown = ', '.join(quant.draw) if len(quant.draw) < 8 else f'{len(quant.draw)} policies'
    return f'drawn of {shown} by {"network or layer" if quant.draw_per == "either" else quant.draw_per}'


def scheme_of(quant: Any) -> Scheme:
    """Return the scheme of `config.quant`. Raises UserError as `Scheme`."""
    with prefixed('quant.'):
        return Scheme(**{field: getattr(quant, field) for field in FIELDS})


def _policy(key: str, name: Any, edges: Widths | None) -> Policy:
    try:
        return dataclasses.replace(parse_bits(name), edges=edges)
    except UserError as e:
        raise FieldError(f'quant.{key}', f': {e}') from None


def _edges(name: str) -> Widths | None:
    if not name:
        return None
    policy = _policy('edge_bits', name, None)
    return policy.weight_bits, policy.activation_bits


def _schedule(schedule: Any, edges: Widths | None) -> tuple[tuple[int, Policy], ...]:
    try:
        pairs = [(until, name) for until, name in schedule]
        steps = [until for until, _ in pairs]
        fits = all(type(s) is int and s > 0 for s in steps) and steps == sorted(set(steps))
    except (TypeError, ValueError):
        pairs, fits = [], False
    if not fits:
        raise FieldError(
            'quant.schedule',
            f'={shown(schedule)}: expected pairs (until step, bits), steps rising, '
            "such as ((1000, 'float'), (2000, 'w8a8'))",
        )
    return tuple((until, _policy('schedule', name, edges)) for until, name in pairs)
