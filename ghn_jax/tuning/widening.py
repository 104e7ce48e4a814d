"""Widening: a network and the same with more channels in every layer, as far as a hypernetwork goes.

A network of DeepNets-1M has its width in its description. A model of the user's own has it in its code, so
it comes as a function of the factor.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from ghn_jax.base.errors import FieldError, UserError, shown
from ghn_jax.hypernet.ghn import GHN
from ghn_jax.hypernet.predict import check_head
from ghn_jax.models.loading import load_model
from ghn_jax.models.model import Model
from ghn_jax.models.sources import count_parameters
from ghn_jax.models.tracing import trace
from ghn_jax.networks.counts import check_size
from ghn_jax.networks.spec import NetworkSpec

MOST = 16
"""The largest factor: a slip of the pen should not ask for days."""


class Pair(NamedTuple):
    """A network, and the same with more channels. name: of files.   spec: of the wide one, if it has one."""

    name: str
    original: Model
    wide: Model
    spec: NetworkSpec | None = None


def pairs_of_specs(specs: Sequence[NetworkSpec], factor: float, size: int) -> list[Pair]:
    """Return networks, and each widened, traced for images of `size` pixels.

    Raises:
      UserError: no such factor, a network that becomes too large.
    """
    for spec in specs:
        check_head(spec, size)
    return [pair_of(spec, factor, size) for spec in specs]


def pair_of(spec: NetworkSpec, factor: float, size: int) -> Pair:
    """Return a network and the same widened, traced for images of `size` pixels.

    Raises:
      UserError: another factor, a network that becomes too large.
    """
    wide, shape = widen(spec, factor), (1, size, size, 3)
    check_size(wide)
    return Pair(spec.name, trace(spec, shape), trace(wide, shape), wide)


def pairs_of_model(name: str, factor: float, size: int) -> list[Pair]:
    """Call a function of the factor for a model and for the wide one, and trace both.

    Args:
      name: 'package.module:function'. What it returns for 1 is the original.
      factor: what it is given for the wide model.
      size: of the images, in pixels.

    Raises:
      UserError: no such function (`load_model`), or one whose model is no wider then.
    """
    check_factor(factor)
    original, wide = (load_model(name, (1, size, size, 3), times) for times in (1.0, factor))
    counts = [count_parameters(model.params) for model in (original, wide)]
    if factor > 1 and counts[1] <= counts[0]:
        raise UserError(
            f'model {name!r} has {counts[0]:,} parameters for the factor 1 and {counts[1]:,} for {factor:g}: '
            'give a function that multiplies its channels by its argument'
        )
    return [Pair(original.name, original, wide)]


def check_factor(factor: float) -> None:
    """Raise FieldError for a factor that widens nothing."""
    if not isinstance(factor, int | float) or isinstance(factor, bool) or not 1 <= factor <= MOST:
        raise FieldError('width', f'={shown(factor)}: expected a factor from 1 to {MOST}, as in 2')


def widen(spec: NetworkSpec, factor: float) -> NetworkSpec:
    """Return a network with `factor` times as many channels.

    They are rounded to what the network allows: even numbers, with self-attention multiples of 8. The hidden
    layer of a head of two is widened, too.

    Raises:
      FieldError: a factor below 1 or beyond `MOST`.
    """
    check_factor(factor)
    multiple = 8 if spec.is_vit else 2
    C = multiple * round(factor * spec.C / multiple)
    fc_dim = round(factor * spec.fc_dim) if spec.fc_layers == 2 else spec.fc_dim
    return dataclasses.replace(spec, C=C, fc_dim=fc_dim)


def check_predicted(model: Model, ghn: GHN, factor: float) -> None:
    """Raise UserError where a hypernetwork has fewer different channels than a widened model.

    A hypernetwork repeats its tile for channels beyond it (arXiv 2110.13100). Such copies of a channel stay
    copies in training, so the network has the more channels only on paper.
    """
    most = ghn.config.max_shape[0]
    widest = max(model.layers, key=lambda layer: layer.shape[0])
    if (channels := widest.shape[0]) > most:
        raise UserError(
            f'width={factor:g}: {widest.name!r} has {channels} channels then, of which the hypernetwork '
            f'predicts {most}, the others would be copies: give a smaller factor, a narrower network or '
            'another init'
        )


def beyond_training(pairs: Sequence[Pair], channels: Sequence[int] | None) -> list[str]:
    """Return a note where networks are wider than those that a hypernetwork was trained on.

    Their further channels are predicted by numbers that no training has touched.

    channels: widths `C` of the networks of its space; None: those of DeepNets-1M's loader.
    """
    widths = [pair.spec.C for pair in pairs if pair.spec is not None]
    if not channels or not widths or max(widths) <= max(channels):
        return []
    return [
        f'The hypernetwork was trained on networks of up to {max(channels)} channels (C), these have up to '
        f'{max(widths)}: what it predicts for them is no better than random weights, or worse.'
    ]
