"""A calibrated model as integers: the levels of its weights and biases, the grids of its activations."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ghn_jax.export.levels import ActivationGrid, ConstantLevels, width_of
from ghn_jax.models.folding import Calibrated
from ghn_jax.models.kept_norms import absorb
from ghn_jax.models.quantizer import FakeQuantizer, range_of
from ghn_jax.quant.grid import Grid, make_grid
from ghn_jax.quant.policy import FLOAT_BITS, TERNARY, Widths
from ghn_jax.quant.scheme import Scheme

_MOST_BIAS = 2**30  # that leaves the sums of products as much room in int32
_FINEST = 16  # bits that a bias is finer than the products that it is added to, at most


@dataclasses.dataclass(frozen=True, eq=False)
class Integers:
    """What of a model is integers.

    Attributes:
      weights, biases: by the layer's name. A layer whose weight or activation stays float has a float bias.
      activations: of what enters a layer, by its name.
      float_activations: whether others stay float.
    """

    weights: Mapping[str, ConstantLevels]
    biases: Mapping[str, ConstantLevels]
    activations: Mapping[str, ActivationGrid]
    float_activations: bool


def to_integers(calibrated: Calibrated, quantizer: FakeQuantizer) -> Integers:
    """Put weights, biases and the grids of activations of a calibrated model into integers.

    A norm that has stayed behind a layer is taken in by the scales of the layer's rounded weights, one for
    each output channel, and by its bias (`kept_norms.absorb`).

    Args:
      calibrated: with the ranges of all activations that are rounded; its weights may be on their grids.
      quantizer: of `calibrated.quantizer`.

    Raises:
      UserError: a range that is missing.
    """
    sites = calibrated.program(calibrated.model.input_shape).sites.values()
    layers = {site.layer.name: site for site in sites}
    bits_of = lambda name: quantizer.widths.get(name, (FLOAT_BITS, FLOAT_BITS))
    widths: dict[str, Widths] = {name: bits_of(site.layer.parameter) for name, site in layers.items()}
    readers = {site.reader for site in layers.values()}
    read = {name: bits_of(name)[1] for name in readers if bits_of(name)[1] < FLOAT_BITS}
    grids = {name: _grid(*range_of(calibrated.ranges, name), bits) for name, bits in read.items()}
    of_integers = {name: w for name, w in calibrated.weights.items() if widths[name][0] < FLOAT_BITS}
    if calibrated.weight_ranges:
        of_layer = lambda name: (*calibrated.weight_ranges[name], widths[name][0])
        found = {name: make_grid(*of_layer(name), jnp.float32) for name in of_integers}
        rounded = of_integers
    else:
        parameters = {name: layers[name].layer.parameter for name in of_integers}
        rounded, found = _rounded(of_integers, parameters, quantizer)
    absorbed, gains = absorb(calibrated)
    weights, biases = {}, {}
    of_2_bits = any(grid.width == 2 for grid in grids.values())
    of_2_bits |= any(_width(widths[name][0]) == 2 for name in found)
    for name, fitted in found.items():
        grid, bias, bits = grids.get(layers[name].reader), absorbed.biases[name], widths[name][0]
        w, own_scale, zero = _multiplied(rounded[name], fitted, bits, gains.get(name))
        scale, unit = own_scale, 0.0
        if grid is not None and bias is not None and grid.scale:
            # With 2-bit integers in a file no layer of it is computed with integers (`runtime.options_for`).
            exact = not of_2_bits and grid.width == _width(bits) == 8
            unit = grid.scale if exact else _fine_unit(bias, grid.scale, scale)
            scale = np.maximum(scale, _least_scale(bias, unit, scale.size))
            w = w if np.all(scale == own_scale) else absorbed.weights[name]
        weights[name] = _weight(w, scale, zero, bits, quantizer.scheme)
        if bias is not None and unit:
            biases[name] = _bias(bias, np.float32(unit) * weights[name].scale.ravel())
    activations = {name: grids[site.reader] for name, site in layers.items() if site.reader in grids}
    return Integers(weights, biases, activations, len(activations) < len(layers))


def _rounded(
    weights: Mapping[str, np.ndarray], parameters: Mapping[str, str], quantizer: FakeQuantizer
) -> tuple[dict[str, np.ndarray], dict[str, Grid]]:
    """Round weights by the code that runs the model: after sums in another order, a weight that is halfway
    between two levels could take the other one.
    """

    @jax.jit
    def each(weights: Mapping[str, Array]) -> dict[str, tuple[Array, Grid]]:
        return {name: quantizer.weight_and_grid(parameters[name], w) for name, w in weights.items()}

    found = jax.device_get(each(dict(weights)))
    return {name: w for name, (w, _) in found.items()}, {name: grid for name, (_, grid) in found.items()}


def _multiplied(
    w: np.ndarray, grid: Grid, bits: int, gain: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a rounded weight, scale and zero of its grid, multiplied by a gain for each output channel."""
    scale, zero = np.asarray(grid.scale), np.asarray(grid.zero, np.int32)
    if gain is None:
        return w, scale, zero
    top = np.asarray(grid.top, np.int32)
    mirrored = top - zero if bits >= 2 else zero  # that of signs is their middle
    w = w * gain.reshape(-1, *[1] * (w.ndim - 1))
    return w, scale * np.abs(gain), np.where(gain < 0, mirrored, zero)


def _grid(lo: np.ndarray, hi: np.ndarray, bits: int) -> ActivationGrid:
    """Return the grid that `quant.grid.fake_quantize` rounds to, over a range."""
    signs = bits == 1 and bool(lo < 0 < hi)
    made = make_grid(lo, hi, bits, jnp.float32)
    scale = float(made.scale)
    if bits > 1:
        return ActivationGrid(scale, int(made.zero), int(made.top))
    # Of one bit on one side of 0: 0 and the farthest value.
    return ActivationGrid(scale, 1, 2, signs) if signs else ActivationGrid(scale, int(lo < 0), 1)


def _width(bits: int) -> int:
    return width_of(2 ** max(bits, 2) - 1)


def _fine_unit(bias: np.ndarray, unit: float, scale: np.ndarray) -> float:
    """Return what scales of a weight are multiplied by for those of a bias that no kernel sums with products.

    Products of few bits are too coarse a unit for it: that is divided by a power of two, if int32 has room.
    """
    products = np.broadcast_to(unit * scale, bias.shape)
    largest = np.max(np.abs(bias) / np.where(products > 0, products, np.inf), initial=1)
    room = int(np.log2(max(_MOST_BIAS / largest, 1)))
    return unit / 2 ** min(room, _FINEST)


def _least_scale(bias: np.ndarray, unit: float, scales: int) -> np.ndarray:
    """Return the least scales of a weight at which the integers of its bias do not overflow."""
    least = np.abs(bias) / np.float32(unit * _MOST_BIAS)
    return least if scales > 1 else least.max(keepdims=True)


def _weight(w: np.ndarray, scale: np.ndarray, zero: np.ndarray, bits: int, scheme: Scheme) -> ConstantLevels:
    """Return the levels of a rounded weight; of signs, -1, 0 and 1 are 0, 1 and 2."""
    signs = bits in (TERNARY, 1)
    along = (-1, *[1] * (w.ndim - 1))
    scale, zero = scale.reshape(along), zero.reshape(along) + int(signs)
    top = 2 if signs else 2**bits - (2 if scheme.symmetric else 1)
    quotient = np.divide(w, scale, out=np.zeros(w.shape), where=scale > 0, dtype=np.float64)
    codes = np.clip(np.rint(quotient).astype(np.int32) + zero, 0, top)
    return ConstantLevels(codes, np.where(scale > 0, scale, 1).astype(np.float32), zero, width_of(top))


def _bias(bias: np.ndarray, scale: np.ndarray) -> ConstantLevels:
    scale = np.broadcast_to(scale, bias.shape).astype(np.float32)
    codes = np.rint(bias.astype(np.float64) / scale).astype(np.int32)
    return ConstantLevels(codes, scale, np.zeros(bias.shape, np.int32), 32)
