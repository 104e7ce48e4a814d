"""Fixed point: every weight, bias and activation tensor of a folded model on a grid with a power of two.

A tensor has a width b and a point f, the number of bits behind it (arXiv 2102.02147):

    x^ = clip(round(x 2^f), -2^(b-1), 2^(b-1) - 1) / 2^f

Rounding is half to even, as everywhere here and in ONNX. A product of an activation and a weight has
f_a + f_w bits behind the point, and so has the sum of products; a bias has no more, so that adding it takes a
shift to the left. `integer_run` computes the same with integers and shifts.

Widths and points are data: one compiled program serves all of them.

Axes: T tensors, in the order of `tensors_of`.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from ghn_jax.base.errors import UserError
from ghn_jax.models.costs import bit_operations, count_activations, count_macs
from ghn_jax.models.folding import Calibrated
from ghn_jax.quant.policy import FLOAT_BITS, Policy
from ghn_jax.tuning.ranges import sample

LEAST_BITS, MOST_BITS = 2, 8  # products of 8 bits leave int32 room for sums of 2^17 of them
FARTHEST = 30  # of a point, to both sides
_COARSER, _FINER = 1, 4  # points that are tried around the one at which nothing is cut off
NAME = 'fixed_point'


class FormatTensor(NamedTuple):
    """A tensor that has a format.

    Attributes:
      kind: 'activation', 'weight' or 'bias'.
      name: `Site.reader` of an activation, else the layer's name.
      layer: number of the layer that is the first to use it.
      parameter: whose name `Policy` has bits for.
      reader: name of the activation that enters that layer.
    """

    kind: str
    name: str
    layer: int
    parameter: str
    reader: str


def tensors_of(calibrated: Calibrated) -> tuple[FormatTensor, ...]:
    """Return the tensors that get formats, layer by layer: what enters it, its weight, its bias if any."""
    found = dict[tuple[str, str], FormatTensor]()
    for k, site in enumerate(calibrated.program(calibrated.model.input_shape).sites.values()):
        name, parameter = site.layer.name, site.layer.parameter
        activation = FormatTensor('activation', site.reader, k, site.reader, site.reader)
        found.setdefault(('activation', site.reader), activation)
        found['weight', name] = FormatTensor('weight', name, k, parameter, site.reader)
        if calibrated.biases[name] is not None:
            found['bias', name] = FormatTensor('bias', name, k, name, site.reader)
    return tuple(found.values())


def round_to(x: Array, bits: ArrayLike, point: ArrayLike) -> Array:
    """Round to the nearest number with `bits` bits, `point` of them behind the point; as the file says.

    Args:
      x: float32 or float64.
      bits: integers, 2 to 16, or 32 for "leave x as it is"; [] or broadcasting to x.
      point: integers of at most `FARTHEST` in magnitude.

    Returns:
      x^, of the shape and the dtype of x.
    """
    bits, one = jnp.asarray(bits, jnp.int32), jnp.ones((), x.dtype)
    top = (jnp.left_shift(1, jnp.clip(bits, 1, 24) - 1) - 1).astype(x.dtype)
    q = jnp.clip(jnp.round(x * jnp.ldexp(one, point)), -top - 1, top)
    return jnp.where(bits >= FLOAT_BITS, x, q * jnp.ldexp(one, -jnp.asarray(point)))


def best_points(values: np.ndarray, widths: Sequence[int]) -> dict[int, int]:
    """Find, for each width, the point with the least squared error, by trying.

    values: any shape; errors are those of at most `ranges.SAMPLES` of them.
    """
    largest = float(np.max(np.abs(values), initial=0))
    if not largest:
        return dict.fromkeys(widths, 0)
    rows: Any = np.asarray(values, np.float64).reshape(1, -1)
    x = np.ravel(sample(rows))
    exponent = math.frexp(largest)[1]  # the largest is below 2 to this power
    best = {}
    for bits in widths:
        unclipped = bits - 1 - exponent
        tried = np.clip(range(unclipped - _COARSER, unclipped + _FINER + 1), -FARTHEST, FARTHEST).tolist()
        best[bits] = min(tried, key=lambda point: _squared_error(x, bits, point))
    return best


def _squared_error(x: Any, bits: int, point: int) -> float:
    top = 2 ** (bits - 1) - 1
    q = np.clip(np.rint(x * 2.0**point), -top - 1, top)
    return float(np.sum(np.square(q * 2.0**-point - x)))


@dataclasses.dataclass(frozen=True)
class FixedPoint:
    """A quantizer of activations alone. formats: by `Site.reader`, (bits, point), numbers or arrays []."""

    formats: Mapping[str, tuple[Any, Any]]

    def weight(self, name: str, w: Array) -> Array:
        """Return a weight as it is."""
        return w

    def activation(self, name: str, x: Array, whole: Array) -> Array:
        """Round an activation to its format, if it has one."""
        return round_to(x, *self.formats[name]) if name in self.formats else x


def with_rounded(calibrated: Calibrated, tensors: Iterable[FormatTensor], formats: Any) -> Calibrated:
    """Round weights and biases. formats: int32 [T, 2], bits and points; traced, if inside of `jax.jit`."""
    weights, biases = dict(calibrated.weights), dict(calibrated.biases)
    for tensor, (bits, point) in zip(tensors, formats):
        if tensor.kind != 'activation':
            arrays = weights if tensor.kind == 'weight' else biases
            arrays[tensor.name] = round_to(jnp.asarray(arrays[tensor.name]), bits, point)
    return dataclasses.replace(calibrated, weights=weights, biases=biases)


def activation_formats(tensors: Iterable[FormatTensor], formats: Any) -> dict[str, tuple[Any, Any]]:
    """Return (bits, point) of activations, by `Site.reader`. formats: as of `with_rounded`."""
    return {t.name: (row[0], row[1]) for t, row in zip(tensors, formats) if t.kind == 'activation'}


def range_of(bits: int, point: int) -> tuple[np.float32, np.float32]:
    """Return the least and the largest number of a format; `grid.make_grid` over it has the same levels."""
    return np.float32(-(2.0 ** (bits - 1 - point))), np.float32((2 ** (bits - 1) - 1) * 2.0**-point)


def point_of(ends: tuple[Any, Any] | None, bits: int, name: str) -> int:
    """Return the point of a format of so many bits from its least and largest number, [] or [out].

    Raises:
      UserError: they are those of no such format. name: of the tensor, to say so.
    """
    pairs = {(float(lo), float(hi)) for lo, hi in zip(*map(np.ravel, ends))} if ends is not None else set()
    lo, hi = pairs.pop() if len(pairs) == 1 else (0.0, 0.0)
    point = bits - math.frexp(-lo)[1]
    if (lo, hi) != range_of(bits, point):
        raise UserError(
            f'{name!r} has no range of {bits}-bit fixed point: quantize the network with method {NAME}'
        )
    return point


def to_network(
    calibrated: Calibrated, tensors: Sequence[FormatTensor], formats: np.ndarray
) -> tuple[Calibrated, Policy]:
    """Return a model in formats of at most 16 bits, [T, 2], as a quantized network has it, and its bits.

    Raises:
      ValueError: uses of one parameter have several widths.
    """
    rounded = with_rounded(calibrated, tensors, formats)
    weight_ranges, ranges, bits = {}, {}, dict[str, dict[str, int]]()
    for (kind, name, _, parameter, _), (b, point) in zip(tensors, formats.tolist()):
        if kind == 'weight':
            ends = range_of(b, point)
            weight_ranges[name] = tuple(np.full(len(calibrated.weights[name]), end) for end in ends)
        elif kind == 'activation':
            ranges[name] = range_of(b, point)
        if kind != 'bias' and bits.setdefault(parameter, {}).setdefault(kind, b) != b:
            raise ValueError(f'{parameter!r} has a {kind} of {bits[parameter][kind]} bits and one of {b}')
    # What enters a layer that is not the first to read it has its bits at the first.
    layers = tuple((name, b['weight'], b.get('activation', MOST_BITS)) for name, b in bits.items())
    made = dataclasses.replace(
        calibrated,
        weights={name: np.asarray(w) for name, w in rounded.weights.items()},
        biases={name: None if b is None else np.asarray(b) for name, b in rounded.biases.items()},
        weight_ranges=weight_ranges,
        ranges=ranges,
    )
    return made, Policy(MOST_BITS, MOST_BITS, layers=layers, name=NAME)


def by_name(tensors: Sequence[FormatTensor], formats: np.ndarray) -> dict[str, dict[str, list[int]]]:
    """Return formats for JSON: {'weight': {name: [bits, point]}, 'bias': .., 'activation': ..}."""
    named: dict[str, dict[str, list[int]]] = {'weight': {}, 'bias': {}, 'activation': {}}
    for tensor, row in zip(tensors, formats.tolist()):
        named[tensor.kind][tensor.name] = row
    return named


class Costs(NamedTuple):
    """What a network in fixed point takes, in bits and bit operations.

    Attributes:
      parameters: bits of all weights and biases.
      activations: bits of all that enters layers, of one image.
      multiplications: sum over layers of MACs x weight bits x activation bits, for one image.
    """

    parameters: int
    activations: int
    multiplications: int

    @property
    def memory(self) -> int:
        """Bits of parameters and activations."""
        return self.parameters + self.activations


def costs_of(calibrated: Calibrated, tensors: Sequence[FormatTensor], formats: np.ndarray) -> Costs:
    """Return the costs of formats [T, 2]."""
    model, named = calibrated.model, by_name(tensors, formats)
    widths = {kind: {name: bits for name, (bits, _) in rows.items()} for kind, rows in named.items()}
    entering = {t.name: widths['activation'][t.reader] for t in tensors if t.kind == 'weight'}
    parameters = sum(calibrated.weights[name].size * bits for name, bits in widths['weight'].items())
    parameters += sum(calibrated.biases[name].size * bits for name, bits in widths['bias'].items())
    activations = sum(n * widths['activation'][name] for name, n in count_activations(model).items())
    return Costs(parameters, activations, bit_operations(count_macs(model), widths['weight'], entering))
