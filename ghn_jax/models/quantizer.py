"""What weights and activations pass through on their way into a layer of a traced model."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ghn_jax.base.errors import UserError
from ghn_jax.quant.activations import clip_range
from ghn_jax.quant.grid import Grid, fake_quantize, quantize
from ghn_jax.quant.policy import FLOAT_BITS, NamedWidths, Widths
from ghn_jax.quant.ranges import min_max, power
from ghn_jax.quant.scheme import Scheme
from ghn_jax.quant.weight_grids import fit


@runtime_checkable
class Quantizer(Protocol):
    """What a model calls for every convolution and linear layer, by the name of its weight."""

    def weight(self, name: str, w: Array) -> Array:
        """Return a weight, output channels first, as the layer is to use it."""
        ...

    def activation(self, name: str, x: Array, whole: Array) -> Array:
        """Return an activation as the layer is to read it. whole: the tensor that x is a cut of."""
        ...


@dataclasses.dataclass(frozen=True)
class FakeQuantizer:
    """Rounds to the bits of a policy, on the grids of a scheme, with straight-through gradients.

    A pytree: as an argument of a compiled function its bits and ranges are data, and one program serves all.

    Attributes:
      widths: bits by the name of the weight (`Policy.resolve`); other layers stay float.
      ranges: (lo, hi) of activations by the name of the weight, in place of those of the batch.
      rounded: weights have these bits already, on grids that they came with, and stay as they are.
    """

    widths: NamedWidths
    scheme: Scheme
    ranges: Mapping[str, tuple[Array, Array]] | None = None
    rounded: bool = False

    def weight(self, name: str, w: Array) -> Array:
        """Round a weight, on one grid or on one for each output channel."""
        bits, _ = self._widths(name)
        return w if self.rounded or stays_float(bits) else self.weight_and_grid(name, w)[0]

    def weight_and_grid(self, name: str, w: Array) -> tuple[Array, Grid]:
        """Return a rounded weight, and the grid, [1] or [out], that it is on."""
        bits, _ = self._widths(name)
        rows = w.reshape(len(w) if self.scheme.granularity == 'channel' else 1, -1)
        rows = rows.astype(jnp.promote_types(w.dtype, jnp.float32))
        grid = fit(_Rows(lax.stop_gradient(rows)), jnp.int32(bits), self.scheme)
        of_rows = Grid(*(part[:, None] for part in grid))
        return quantize(rows, of_rows, bits, mode='qat').reshape(w.shape).astype(w.dtype), grid

    def activation(self, name: str, x: Array, whole: Array) -> Array:
        """Round an activation, over the range of the whole tensor or over the one that is given."""
        _, bits = self._widths(name)
        if stays_float(bits):
            return x
        wide = jnp.promote_types(x.dtype, jnp.float32)
        if self.ranges is not None:
            lo, hi = range_of(self.ranges, name)
        else:
            whole = whole.astype(wide)
            size = power(whole) if self.scheme.activation_range == 'sigma' else None
            lo, hi = clip_range(*min_max(whole), size, jnp.int32(bits), self.scheme)
        return fake_quantize(x.astype(wide), lo, hi, bits).astype(x.dtype)

    def with_ranges(self, ranges: Mapping[str, tuple[Any, Any]]) -> 'FakeQuantizer':
        """Return the same over ranges that are given, of all activations that are rounded.

        Bits that are data do not tell which these are: the others have a range, too, which has no effect.
        """
        zero = np.float32(0)
        unread = {name: (zero, zero) for name, (_, bits) in self.widths.items() if bits == FLOAT_BITS}
        return dataclasses.replace(self, ranges=unread | dict(ranges))

    @property
    def rounds(self) -> bool:
        """Whether anything is rounded at all. Bits are numbers here, not traced ones."""
        return any(min(bits) < FLOAT_BITS for bits in self.widths.values())

    def _widths(self, name: str) -> Widths:
        return self.widths.get(name, (FLOAT_BITS, FLOAT_BITS))


jax.tree_util.register_dataclass(
    FakeQuantizer, data_fields=['widths', 'ranges'], meta_fields=['scheme', 'rounded']
)


def range_of(ranges: Mapping[str, tuple[Any, Any]], name: str) -> tuple[Any, Any]:
    """Return the range of the activation that enters a layer. Raises UserError where it is not calibrated."""
    if name not in ranges:
        raise UserError(
            f'the range of the activation that enters {name!r} is not calibrated: calibrate with a '
            'policy that rounds it'
        )
    return ranges[name]


def stays_float(bits: int | Array) -> bool:
    """Return whether bits are known to be float before a program runs; those that are data are not known."""
    return isinstance(bits, int) and bits == FLOAT_BITS


class _Rows(NamedTuple):
    """Weights [G, n], a grid for each row, as `weight_grids.GridWeights`."""

    rows: Array

    def extremes(self) -> tuple[Array, Array]:
        return min_max(self.rows, axis=1)

    def sums(self, measure: Callable, *of_grids: Array, when: Array | bool = True) -> tuple[Array, Array]:
        first, second = measure(self.rows, *(x[:, None] for x in of_grids))
        total = lambda x: x.astype(self.rows.dtype).sum(1)
        return total(first), total(second)
