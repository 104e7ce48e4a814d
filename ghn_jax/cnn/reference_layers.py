"""The layers of the plain reference, called by name: ordinary lax operations, fake-quantized by the oracle.

Axes: N images | H, W rows and columns | C channels | T tokens | D channels of a head. Images are NHWC,
convolution weights OIHW, linear weights (out, in).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array, lax

from ghn_jax.base.errors import UserError
from ghn_jax.networks.spec import NetworkSpec
from ghn_jax.quant import oracle
from ghn_jax.quant.policy import FLOAT_BITS, Policy
from ghn_jax.quant.scheme import Scheme

Pair = tuple[Array, Array]
EPSILON = 1e-5
_HEADS = 8


@dataclasses.dataclass(frozen=True)
class Layers:
    """The layers with parameters, called by name, fake-quantized where the policy says.

    Attributes:
      folded: norms only add their bias.
      ranges: of activations, in place of the batch's.
      seen: statistics and ranges, filled as layers are called.
    """

    params: Mapping[str, Array]
    policy: Policy | None
    scheme: Scheme
    spec: NetworkSpec
    folded: bool = False
    ranges: Mapping[str, Pair] | None = None
    seen: tuple[dict[str, Pair], dict[str, Pair]] | None = None

    def __getitem__(self, name: str) -> Array:
        if name not in self.params:
            raise UserError(f'parameter {name!r} is missing: give all parameters of the network')
        return jnp.asarray(self.params[name])

    def quantize_activation(self, name: str, x: Array) -> Array:
        """Quantize what enters the layer `name`, x of any shape."""
        weight = f'{name}.weight'
        if self.seen is not None:
            self.seen[1][weight] = jnp.minimum(0, jnp.min(x)), jnp.maximum(0, jnp.max(x))
        bits = self._widths(name)[1]
        if bits == FLOAT_BITS:  # where nothing is to do, there is nothing to compile
            return x
        ends = None if self.ranges is None else self.ranges[weight]
        return oracle.quantize_activation(x, bits, self.scheme, ends)

    def quantize_weight(self, name: str) -> Array:
        """Return the weight of the layer `name` as the network runs with it."""
        w, bits = self[f'{name}.weight'], self._widths(name)[0]
        return w if bits == FLOAT_BITS else oracle.quantize_weight(w, bits, self.scheme)

    def _widths(self, name: str) -> tuple[int, int]:
        if self.policy is None:
            return FLOAT_BITS, FLOAT_BITS
        first = 'stem0' if self.spec.is_vit else 'stem.0' if self.spec.stem_type == 0 else 'stem0.0'
        last = 'classifier.0' if self.spec.fc_layers == 1 else 'classifier.3'
        return self.policy.widths(f'{name}.weight', edge=name in (first, last))

    def conv(
        self,
        name: str,
        x: Array,
        *,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] | None = None,
        dilation: int = 1,
        quantized: bool = False,
    ) -> Array:
        """Convolve without bias, depthwise if the weight says so. quantized: x already is."""
        w = self.quantize_weight(name)
        kh, kw = w.shape[2:]
        ph, pw = padding or (kh // 2, kw // 2)
        return _convolve(x if quantized else self.quantize_activation(name, x), w, stride, (ph, pw), dilation)

    def linear(self, name: str, x: Array) -> Array:
        """Apply a linear layer to the last axis; without bias where it has none."""
        w = self.quantize_weight(name)
        x = self.quantize_activation(name, x)
        if x.shape[-1] != w.shape[1]:
            raise UserError(
                f'{x.shape[-1]} features enter {name!r}, whose weight takes {w.shape[1]}: '
                'a network with a flattened head takes images of one size only'
            )
        y = _project(x, w)
        return y if name.endswith('to_qkv') else y + self[f'{name}.bias']

    def norm(self, name: str, x: Array) -> Array:
        """Normalise by the statistics of this batch; nothing in a network without."""
        if self.spec.norm is None:
            return x
        if self.folded:
            return x + self[f'{name}.bias']
        if self.seen is not None:
            self.seen[0][name] = jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))
        return _standardise(x, self[f'{name}.weight'], self[f'{name}.bias'], (0, 1, 2))

    def layer_norm(self, name: str, x: Array) -> Array:
        """Normalise every token (or pixel) over its channels."""
        return _standardise(x, self[f'{name}.weight'], self[f'{name}.bias'], (-1,))


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _convolve(x: Array, w: Array, stride: tuple[int, int], padding: tuple[int, int], dilation: int) -> Array:
    return lax.conv_general_dilated(
        x,
        w,
        window_strides=stride,
        padding=[(p, p) for p in padding],
        rhs_dilation=(dilation, dilation),
        dimension_numbers=('NHWC', 'OIHW', 'NHWC'),
        feature_group_count=x.shape[-1] // w.shape[1],
    )


@functools.partial(jax.jit, static_argnums=3)
def _standardise(x: Array, scale: Array, shift: Array, axes: tuple[int, ...]) -> Array:
    centred = x - jnp.mean(x, axis=axes, keepdims=True)
    variance = jnp.mean(centred**2, axis=axes, keepdims=True)
    return centred / jnp.sqrt(variance + EPSILON) * scale + shift


@jax.jit
def _project(x: Array, w: Array) -> Array:
    return jnp.einsum('...i,oi->...o', x, w)


@jax.jit
def gated(x: Array, y: Array) -> Array:
    """Scale the channels of x [N, H, W, C] by the hard swish of y [N, C]."""
    return x * (y * jnp.clip(y + 3, 0, 6) / 6)[:, None, None]  # hardswish


@jax.jit
def attended(qkv: Array) -> Array:
    """Attend: queries, keys and values [N, T, 3C] to [N, T, C]."""
    n, t, d = *qkv.shape[:2], qkv.shape[2] // (3 * _HEADS)
    q, k, v = jnp.moveaxis(qkv.reshape(n, t, 3, _HEADS, d), 2, 0)  # 3 x [N, T, heads, D]
    logits = jnp.einsum('nqhd,nkhd->nhqk', q, k) * d**-0.5
    return jnp.einsum('nhqk,nkhd->nqhd', jax.nn.softmax(logits, axis=-1), v).reshape(n, t, _HEADS * d)


@jax.jit
def gelu(x: Array) -> Array:
    """Return GELU of x, exact."""
    return jax.nn.gelu(x, approximate=False)


@jax.jit
def relu(x: Array) -> Array:
    """Return max(x, 0); what is no number stays none."""
    return jnp.where(x <= 0, 0, x)  # gradient 0 at 0


@functools.partial(jax.jit, static_argnums=1)
def max_pool(x: Array, stride: int) -> Array:
    """Return the maximum of 3x3 pixels, [N, H, W, C] to [N, H/stride, W/stride, C].

    A tie gives all the gradient to the first pixel, by rows.
    """
    return _windows(x, -jnp.inf, lax.max, stride)


@functools.partial(jax.jit, static_argnums=1)
def avg_pool(x: Array, stride: int) -> Array:
    """Return the mean of 3x3 pixels, those beyond the border not counted."""
    counts = _windows(jnp.ones((1, *x.shape[1:3], 1), x.dtype), 0.0, lax.add, stride)
    return _windows(x, 0.0, lax.add, stride) / counts


def _windows(x: Array, start: float, combine: Callable, stride: int) -> Array:
    """Combine the pixels under each position of a 3x3 window, around every `stride`-th pixel."""
    padding = ((0, 0), (1, 1), (1, 1), (0, 0))
    return lax.reduce_window(x, start, combine, (1, 3, 3, 1), (1, stride, stride, 1), padding)
