"""Scales and shifts of norms that have stayed behind layers, taken in by these.

`folding.correct` leaves weights as they are trained and norms as a scale and a shift for each channel. To be
trained, weights take in a power of two of the scales; to be written as integers, weights that are rounded
already take in all of them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ghn_jax.models.folding import Calibrated


def balance(calibrated: Calibrated) -> Calibrated:
    """Move powers of two from scales of norms into the layers before them, to be trained.

    A scale is as large as what it reads is small, and steps of one size are too long for weights that are
    multiplied by a thousand. Rounding commutes with powers of two: the logits stay the same, to the bit.

    calibrated: of `correct`.
    """
    weights, biases, norms = dict(calibrated.weights), dict(calibrated.biases), list(calibrated.norms)
    for behind in _behind_layers(calibrated):
        scale, shift = behind.affine
        size = np.sqrt(np.mean(np.square(scale)))
        factor = np.exp2(np.round(np.log2(size))).astype(scale.dtype) if size > 0 else scale.dtype.type(1)
        norms[behind.norm] = scale / factor, shift
        for name, _, _ in behind.layers:
            weights[name] = weights[name] * factor
            biases[name] = None if biases[name] is None else biases[name] * factor
    return dataclasses.replace(calibrated, weights=weights, biases=biases, norms=tuple(norms))


def absorb(calibrated: Calibrated) -> tuple[Calibrated, dict[str, np.ndarray]]:
    """Fold the norms of `correct` into the layers before them, whose weights are then on other grids.

    Returns:
      The network with other weights and biases, and what each channel of a weight is multiplied by, by the
      layer's name, [out].
    """
    weights, biases, norms, gains = dict(calibrated.weights), dict(calibrated.biases), [*calibrated.norms], {}
    for behind in _behind_layers(calibrated):
        norms[behind.norm] = None
        for name, scale, shift in behind.layers:
            gains[name], bias = scale, biases[name]
            weights[name] = weights[name] * scale.reshape(-1, *[1] * (np.ndim(weights[name]) - 1))
            biases[name] = shift if bias is None else scale * bias + shift
    return dataclasses.replace(calibrated, weights=weights, biases=biases, norms=tuple(norms)), gains


def with_biases(calibrated: Calibrated, wanted: Mapping[str, np.ndarray]) -> Calibrated:
    """Return the network with other biases, by the layer's name, [out], of the layers that `absorb` makes."""
    biases, norms, left = dict(calibrated.biases), [*calibrated.norms], dict(wanted)
    for behind in _behind_layers(calibrated):
        shifts = []
        for name, scale, shift in behind.layers:
            own = 0 if biases[name] is None else scale * biases[name]
            shifts.append(left.pop(name) - own if name in left else shift)
        scale, shift = behind.affine
        norms[behind.norm] = scale, np.concatenate(shifts).reshape(np.shape(shift)).astype(shift.dtype)
    biases |= {name: bias.astype(biases[name].dtype) for name, bias in left.items()}
    return dataclasses.replace(calibrated, biases=biases, norms=tuple(norms))


class _Behind(NamedTuple):
    """A norm that has stayed behind layers and could be folded into them.

    Attributes:
      norm: its number.
      affine: its scale and shift.
      layers: (name, scale [out], shift [out]) of each.
    """

    norm: int
    affine: tuple[Any, Any]
    layers: list[tuple[str, np.ndarray, np.ndarray]]


def _behind_layers(calibrated: Calibrated) -> list[_Behind]:
    traced = calibrated.model.traced((2, *calibrated.model.input_shape[1:]), jnp.dtype(jnp.float32))
    found = []
    for i, (layers, norm) in enumerate(zip(traced.structure.folds, calibrated.norms, strict=True)):
        if layers is not None and isinstance(norm, tuple):
            names = [traced.recorder.sites[k].layer.name for k in layers]
            ends = np.cumsum([len(calibrated.weights[name]) for name in names])[:-1]
            parts = (np.split(np.ravel(part), ends) for part in norm)
            found.append(_Behind(i, norm, list(zip(names, *parts))))
    return found
