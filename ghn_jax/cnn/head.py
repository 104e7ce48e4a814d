"""The classifier of a network inside the executor: features of a group of slots -> [hidden ->] logits.

Axes: N images | K parts of a group | H size, C channels | D features, padded to whole blocks | L classes.

Linear weights are walked in panels of BLOCK inputs (hidden layer: x BLOCK outputs), so one small loop serves
a pooled head with 32 features and a flattened one with thousands, and no gradient is padded to the larger.
The loops' lengths are data, so their backward is written out.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ghn_jax.base import collectives
from ghn_jax.cnn import ops
from ghn_jax.cnn.head_pieces import padded_classes
from ghn_jax.cnn.packing import BLOCK, TapeShape
from ghn_jax.cnn.program import Program
from ghn_jax.cnn.tables import HeadTable
from ghn_jax.cnn.tape_layout import TapeLayout, layout_of
from ghn_jax.quant.activations import quantize_activation
from ghn_jax.quant.scheme import Scheme

_KEYS = 1 << 20  # random keys of the head, beyond those of the instructions


class Residuals(NamedTuple):
    """What the backward pass needs: features [N, D], hidden pre-activations [N, D'], dropout mask [N, D']."""

    features: Array
    hidden: Array
    mask: Array


class HeadQuantization(NamedTuple):
    """How one run of a network quantizes what enters the first and the second layer of its head.

    Attributes:
      bits: int32 [2].
      key: for noise, and for dropout.
      axis: as in `Quantization`.
      ranges: [2, 2], in place of those of this batch, or None.
    """

    scheme: Scheme
    bits: Array | np.ndarray
    key: Array | None = None
    axis: str | None = None
    ranges: Array | np.ndarray | None = None

    def quantize(self, x: Array, which: int) -> Array:
        """Quantize the input of a layer. Padding does not widen its range, which includes 0."""
        if self.scheme.mode == 'float':
            return x
        bits = self.bits[which]
        key = None if self.key is None else jax.random.fold_in(self.key, _KEYS + which)
        key = None if key is None else collectives.own_key(key, self.axis)
        ends = None if self.ranges is None else self.ranges[which]
        return quantize_activation(x, bits, self.scheme, ends=ends, key=key, across=self.axis)


# ---- features


def _extract(program: Program, layout: TapeLayout, pooled: bool, parts: Array, used: Array) -> Array:
    """parts, K slots of a tape, of which the first `used` count -> [N, D], in PyTorch's (C, H, W) order."""
    parts = layout.as_images(parts)  # [K, N, H, W, C]
    parts = jnp.where((jnp.arange(parts.shape[0]) < used)[:, None, None, None, None], ops.wide(parts), 0)
    if pooled:
        x = jnp.moveaxis(jnp.mean(parts, (2, 3)), 0, 1)  # [N, K, C]
    else:
        x = jnp.transpose(parts, (1, 0, 4, 2, 3))  # [N, K, C, H, W]
    x = x.reshape(x.shape[0], -1)
    return jnp.pad(x, ((0, 0), (0, program.features - x.shape[1])))


def features(program: Program, table: HeadTable, values: dict[TapeShape, Array], batch: int) -> Array:
    """Return the classifier's input [N, D], zero beyond the network's own features; batch: N."""
    parts = program.capacity.parts
    layouts = {c: layout_of(c, batch) for c, _ in program.heads}
    operands = {c: layout.operand(values[c], table.slot, parts) for c, layout in layouts.items()}

    def branch(variant):
        c, pooled = variant
        layout = layouts[c]
        return lambda operands, table: _extract(
            program, layout, pooled, layout.read(operands[c], table.slot, parts), table.parts
        )

    return lax.switch(table.variant, [branch(v) for v in program.heads], operands, table)


def features_vjp(program: Program, table: HeadTable, values: dict[TapeShape, Array], batch: int):
    """Return `features`, and (g [N, D], gradient tapes) -> gradient tapes with the group's slots set.

    The group's gradients have the first slots of their tape. The first slots of every tape that a head may
    read are written, which does no harm: the first real gradient of a slot overwrites what is there.
    """

    def to_slots(g: Array, gradients: dict[TapeShape, Array]) -> dict[TapeShape, Array]:
        out = dict(gradients)
        for c in sorted({c for c, _ in program.heads}):
            # One update per tape, outside the switch: networks that end on another tape write zeros.
            tape = gradients[c]
            shape = (program.capacity.parts, *tape.shape[1:])

            def branch(variant, c=c, shape=shape, dtype=tape.dtype):
                if variant[0] != c:
                    return lambda g, table: jnp.zeros(shape, dtype)

                def pull(g, table):
                    zeros = jnp.zeros(shape, dtype)  # the features are linear in the parts
                    extract = lambda p: _extract(program, layout_of(c, batch), variant[1], p, table.parts)
                    return jax.linear_transpose(extract, zeros)(g)[0]

                return pull

            g_parts = lax.switch(table.variant, [branch(v) for v in program.heads], g, table)
            out[c] = lax.dynamic_update_slice_in_dim(tape, lax.optimization_barrier(g_parts), 0, 0)
        return out

    return features(program, table, values, batch), to_slots


# ---- linear layers


def _rows(x: Array, p: Array) -> Array:
    return lax.dynamic_slice_in_dim(x, p * BLOCK, BLOCK, 1)


def _panel(flat: Array, block: Array, cols: int) -> Array:
    return lax.dynamic_slice(flat, (block * BLOCK,), (BLOCK * cols,)).reshape(BLOCK, cols)


class _Weight(NamedTuple):
    """The weight of a linear layer: so many panels [BLOCK, cols] of the buffer, from block `first` on."""

    first: Array
    panels: Array
    cols: int


def _hidden_weight(table: HeadTable, c: Array) -> _Weight:
    """Return the weight of part c of the hidden layer, BLOCK units."""
    return _Weight(table.hidden_weights + c * table.hidden_rows * BLOCK, table.hidden_rows, BLOCK)


def _final_weight(program: Program, table: HeadTable) -> _Weight:
    return _Weight(table.final_weights, table.final_rows, padded_classes(program.num_classes))


def _linear(x: Array, flat: Array, weight: _Weight) -> Array:
    """x [N, D] times the weight -> [N, cols]."""
    first, panels, cols = weight

    def step(p, y):
        return y + _rows(x, p) @ _panel(flat, first + p * cols, cols)

    with jax.named_scope('panels'):
        return lax.fori_loop(0, panels, step, jnp.zeros((x.shape[0], cols), x.dtype))


def _linear_backward(
    x: Array, flat: Array, weight: _Weight, g: Array, g_x: Array, g_flat: Array
) -> tuple[Array, Array]:
    """Add to g_x [N, D] and set the panels in g_flat, from g [N, cols]."""
    first, panels, cols = weight

    def step(p, carry):
        g_x, g_flat = carry
        panel = first + p * cols
        g_panel = (_rows(x, p).T @ g).ravel()
        g_rows = _rows(g_x, p) + g @ _panel(flat, panel, cols).T
        g_x = lax.dynamic_update_slice_in_dim(g_x, g_rows, p * BLOCK, 1)
        return g_x, lax.dynamic_update_slice(g_flat, g_panel, (panel * BLOCK,))

    with jax.named_scope('panels'):
        return lax.fori_loop(0, panels, step, (g_x, g_flat))


def _bias(flat: Array, block: Array, cols: int) -> Array:
    return lax.dynamic_slice(flat, (block * BLOCK,), (cols,))


def _hidden_size(program: Program) -> int:
    return program.capacity.hidden_panels * BLOCK


def activate(residuals: Residuals) -> Array:
    """Return the hidden layer's activations [N, D'], what enters the second layer."""
    return ops.relu(residuals.hidden) * residuals.mask


def _final_input(
    program: Program, table: HeadTable, residuals: Residuals, quantization: HeadQuantization
) -> Array:
    """What enters the last linear layer, [N, max(D, D')]: hidden activations or the features themselves."""
    width = max(program.features, _hidden_size(program))
    widen = lambda x: jnp.pad(x, ((0, 0), (0, width - x.shape[1])))
    hidden = quantization.quantize(activate(residuals), 1)
    features = quantization.quantize(residuals.features, 0)
    return jnp.where(table.two_layers > 0, widen(hidden), widen(features))


def logits(
    program: Program,
    flat: Array,
    table: HeadTable,
    features: Array,
    quantization: HeadQuantization,
    *,
    dropout: float = 0.0,
) -> tuple[Array, Residuals]:
    """Compute logits [N, L], and residuals."""
    n, width = features.shape[0], _hidden_size(program)
    key, axis = quantization.key, quantization.axis
    x = quantization.quantize(features, 0)

    def panel(c, hidden):
        y = _linear(x, flat, _hidden_weight(table, c)) + _bias(flat, table.hidden_bias + c, BLOCK)
        return lax.dynamic_update_slice_in_dim(hidden, y, c * BLOCK, 1)

    with jax.named_scope('hidden'):
        hidden = lax.fori_loop(0, table.hidden_cols, panel, jnp.zeros((n, width), features.dtype))
    mask = jnp.ones((n, width), features.dtype)
    if dropout:
        shape = (n * collectives.size(axis), width)  # of the whole batch
        assert key is not None  # dropout draws
        keep = jax.random.bernoulli(jax.random.fold_in(key, _KEYS + 2), 1 - dropout, shape)
        mask = collectives.own_rows(keep, axis).astype(features.dtype) / (1 - dropout)
    residuals = Residuals(features, hidden, mask)
    x = _final_input(program, table, residuals, quantization)
    weight = _final_weight(program, table)
    out = _linear(x, flat, weight) + _bias(flat, table.final_bias, weight.cols)
    return out[:, : program.num_classes], residuals


def logits_backward(
    program: Program,
    flat: Array,
    table: HeadTable,
    residuals: Residuals,
    quantization: HeadQuantization,
    g: Array,
    g_flat: Array,
) -> tuple[Array, Array]:
    """Return the gradient to the features [N, D], and g_flat with the head's weights set, from g [N, L]."""
    weight = _final_weight(program, table)
    g = jnp.pad(g, ((0, 0), (0, weight.cols - g.shape[1])))
    x, to_residuals = jax.vjp(lambda r: _final_input(program, table, r, quantization), residuals)
    g_flat = lax.dynamic_update_slice(g_flat, jnp.sum(g, 0), (table.final_bias * BLOCK,))
    g_x, g_flat = _linear_backward(x, flat, weight, g, jnp.zeros_like(x), g_flat)
    (g_residuals,) = to_residuals(g_x)

    x, to_features = jax.vjp(lambda x: quantization.quantize(x, 0), residuals.features)

    def panel(c, carry):
        g_x, g_flat = carry
        g = lax.dynamic_slice_in_dim(g_residuals.hidden, c * BLOCK, BLOCK, 1)
        weight = _hidden_weight(table, c)
        g_flat = lax.dynamic_update_slice(g_flat, jnp.sum(g, 0), ((table.hidden_bias + c) * BLOCK,))
        return _linear_backward(x, flat, weight, g, g_x, g_flat)

    with jax.named_scope('hidden'):
        g_x, g_flat = lax.fori_loop(0, table.hidden_cols, panel, (jnp.zeros_like(x), g_flat))
    return g_residuals.features + to_features(g_x)[0], g_flat
