"""The plain way to run one network on given weights: the oracle that the executor is compared with.

Written from the definition of DeepNets-1M's networks (arXiv 2110.13100) with their parameter names, ordinary
lax operations and autodiff. It shares nothing with the executor and costs a compilation for every network.
Outside of `jax.jit` it compiles layer by layer instead, which small networks of the same widths share.

Axes: N images | H, W rows and columns | C channels | T tokens. Images are NHWC. A state that is None is
absent: `none` ops cut it off.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jax import Array

from ghn_jax.base.errors import UserError
from ghn_jax.cnn.reference_layers import (
    EPSILON,
    Layers,
    Pair,
    attended,
    avg_pool,
    gated,
    gelu,
    max_pool,
    relu,
)
from ghn_jax.networks.spec import NetworkSpec
from ghn_jax.quant.policy import Policy, quantizable
from ghn_jax.quant.scheme import QAT, Scheme


def apply_reference(
    spec: NetworkSpec,
    params: Mapping[str, Array],
    images: Array,
    *,
    policy: Policy | None = None,
    scheme: Scheme = QAT,
    dropout_mask: Array | None = None,
    statistics: Mapping[str, Pair] | None = None,
    ranges: Mapping[str, Pair] | None = None,
) -> Array:
    """Compute the logits [N, num_classes] of a network on images [N, H, W, 3], in its parameters' dtype.

    Args:
        params: DeepNets-1M's names and layouts. Those that do not influence the logits may be missing.
        policy: fake quantization of the weight of every convolution and linear layer and of the activation
            entering it (default: none).
        scheme: of the quantization, of mode 'qat'.
        dropout_mask: [N, fc_dim], factors for the hidden layer of a two-layer head: 0 or 1/(1 - rate).
        statistics: norm (`cells.3._ops.1.op.2`) -> mean and variance of each channel, in place of those of
            the batch: every norm is folded into the convolution before it, the folded weights are quantized.
        ranges: weight -> (lo, hi) of the activation entering its layer, in place of what the scheme
            makes of the batch's.

    Raises:
        UserError: a parameter is missing, a rule of the policy matches nothing, or the images do not fit.
    """
    if policy is not None:
        policy.check(quantizable((name, w.shape) for name, w in params.items()))
    layers = Layers(params, policy, scheme, spec)
    if statistics is not None:
        layers = _folded(layers, statistics)
    return _logits(dataclasses.replace(layers, ranges=ranges), spec, images, dropout_mask)


def observe_reference(
    spec: NetworkSpec,
    params: Mapping[str, Array],
    images: Array,
    *,
    policy: Policy | None = None,
    scheme: Scheme = QAT,
) -> tuple[dict[str, Pair], dict[str, Pair]]:
    """Return (statistics, ranges) of one batch, as `apply_reference` takes them."""
    seen: tuple[dict[str, Pair], dict[str, Pair]] = ({}, {})
    _logits(Layers(params, policy, scheme, spec, seen=seen), spec, images, None)
    return seen


def _folded(layers: Layers, statistics: Mapping[str, Pair]) -> Layers:
    """Return layers with parameters in which a norm only adds its bias.

    Names tell which convolution a norm follows: `bn` the two of its FactorizedReduce, which have half of the
    channels each; any other the one numbered before it.
    """
    params = dict(layers.params)
    for norm, (mean, variance) in statistics.items():
        gain = params[f'{norm}.weight'] / jnp.sqrt(variance + EPSILON)
        place, _, last = norm.rpartition('.')
        before = ('conv_1', 'conv_2') if last == 'bn' else (str(int(last) - 1),)
        for conv, part in zip(before, jnp.split(gain, len(before)), strict=True):
            name = f'{place}.{conv}.weight'
            params[name] = params[name] * part[:, None, None, None]
        params[f'{norm}.bias'] = params[f'{norm}.bias'] - mean * gain
    return dataclasses.replace(layers, params=params, folded=True)


def _logits(layers: Layers, spec: NetworkSpec, images: Array, dropout_mask: Array | None) -> Array:
    params = layers.params
    images = jnp.asarray(images, jnp.result_type(*params.values()))
    outputs: dict[int, Array | None] = dict(zip((-2, -1), _stem(layers, spec, images), strict=True))

    def output(cell: int) -> Array | None:
        # Pulled from the logits, not pushed from the image: what nothing reads is not run, needs no weights.
        if cell not in outputs:
            outputs[cell] = _cell(layers, spec, cell, output)
        return outputs[cell]

    x = output(spec.n_cells - 1)
    assert x is not None  # a spec that exists is connected
    return _head(layers, spec, x, dropout_mask)


def _stem(layers: Layers, spec: NetworkSpec, x: Array) -> tuple[Array, Array]:
    if spec.is_vit:
        x = layers.conv('stem0', x, stride=(3, 3), padding=(1, 1))
        position = layers['pos_enc.weight']  # [1, C, 11, 11]
        if position.shape[2:] != x.shape[1:3]:
            raise UserError(
                f'images give {x.shape[1]}x{x.shape[2]} maps, the position encodings of msa networks are '
                f'{position.shape[2]}x{position.shape[3]}: use images of {3 * position.shape[2] - 1} pixels'
            )
        x = x + jnp.transpose(position, (0, 2, 3, 1))
        return x, x
    if spec.stem_type == 0:
        x = layers.norm('stem.1', layers.conv('stem.0', x))
        x = max_pool(x, 2) if spec.stem_pool else x
        return x, x
    x = relu(layers.norm('stem0.1', layers.conv('stem0.0', x)))
    # The relu of the second part acts in place in the published networks, so the first cell sees it too.
    first = relu(layers.norm('stem0.4', layers.conv('stem0.3', x)))
    return first, layers.norm('stem1.2', layers.conv('stem1.1', first, stride=(2, 2)))


def _cell(
    layers: Layers, spec: NetworkSpec, cell: int, output: Callable[[int], Array | None]
) -> Array | None:
    """The cell's output; `output(i)` gives that of cell i, and of the stem for i = -2, -1."""
    reduction = spec.is_reduction(cell)
    # Whether input 0 is twice as large as input 1.
    halves = not spec.is_vit and (spec.is_reduction(cell - 1) or (cell == 0 and spec.stem_type == 1))
    entries, concat = spec.genotype.cell(reduction)
    states: dict[int, Array | None] = {}

    def state(k: int) -> Array | None:
        if k not in states:
            if k < 2:
                x = output(cell - 2 + k)
                states[k] = None if x is None else _preprocess(layers, spec, cell, k, x, halves)
            else:
                terms = [entry(j) for j in (2 * k - 4, 2 * k - 3)]
                present = [x for x in terms if x is not None]
                states[k] = sum(present[1:], present[0]) if present else None
        return states[k]

    def entry(j: int) -> Array | None:
        op, source = entries[j]
        x = None if op == 'none' else state(source)
        if x is None:
            return None
        stride = 2 if reduction and source < 2 and not spec.is_vit else 1
        return _op(layers, f'cells.{cell}._ops.{j}', op, x, stride)

    parts = [state(k) for k in concat]
    present = [x for x in parts if x is not None]
    if not present:
        return None
    return jnp.concatenate([jnp.zeros_like(present[0]) if x is None else x for x in parts], axis=-1)


def _preprocess(layers: Layers, spec: NetworkSpec, cell: int, k: int, x: Array, halves: bool) -> Array:
    name = f'cells.{cell}.preprocess{k}'
    halves = halves and k == 0
    if not spec.preproc:
        return x[:, ::2, ::2] if halves else x
    if halves:
        return _factorized_reduce(layers, name, x)
    return layers.norm(f'{name}.op.2', layers.conv(f'{name}.op.1', relu(x)))


def _op(layers: Layers, name: str, op: str, x: Array, stride: int) -> Array:
    kind, _, size = op.partition('_')
    both = (stride, stride)
    if op == 'max_pool_3x3':
        return max_pool(x, stride)
    if op == 'avg_pool_3x3':
        return avg_pool(x, stride)
    if op == 'skip_connect':
        return x if stride == 1 else _factorized_reduce(layers, name, x)
    if op == 'conv_7x1_1x7':
        x = layers.conv(f'{name}.op.1', relu(x), stride=(1, stride))
        return layers.norm(f'{name}.op.3', layers.conv(f'{name}.op.2', x, stride=(stride, 1)))
    if kind == 'conv':
        return layers.norm(f'{name}.op.2', layers.conv(f'{name}.op.1', relu(x), stride=both))
    if op in ('sep_conv_3x3', 'sep_conv_5x5'):
        x = layers.conv(f'{name}.op.2', layers.conv(f'{name}.op.1', relu(x), stride=both))
        x = relu(layers.norm(f'{name}.op.3', x))
        return layers.norm(f'{name}.op.7', layers.conv(f'{name}.op.6', layers.conv(f'{name}.op.5', x)))
    if op in ('dil_conv_3x3', 'dil_conv_5x5'):
        k = int(size[-1])
        x = layers.conv(f'{name}.op.1', relu(x), stride=both, padding=(k - 1, k - 1), dilation=2)
        return layers.norm(f'{name}.op.3', layers.conv(f'{name}.op.2', x))
    if op == 'mbconv_3x3':
        x = relu(layers.norm(f'{name}.op.1', layers.conv(f'{name}.op.0', x)))
        x = relu(layers.norm(f'{name}.op.4', layers.conv(f'{name}.op.3', x, stride=both)))
        return layers.norm(f'{name}.op.7', layers.conv(f'{name}.op.6', x))
    if op == 'msa':
        return _attention(layers, name, x)[:, ::stride, ::stride]
    if op == 'cse':
        return _squeeze_excite(layers, name, x)[:, ::stride, ::stride]
    raise UserError(f'op {op!r} cannot be run')


def _factorized_reduce(layers: Layers, name: str, x: Array) -> Array:
    """Half the resolution: two strided 1x1 convolutions, one a pixel off, give half of the channels each."""
    if x.shape[1] % 2:
        raise UserError(
            f'{x.shape[1]}x{x.shape[2]} maps enter {name!r}, which halves them: use images whose size is a '
            'multiple of 8'
        )
    x = layers.quantize_activation(f'{name}.conv_1', relu(x))  # one tensor enters both
    parts = [
        layers.conv(f'{name}.{conv}', part, stride=(2, 2), quantized=True)
        for conv, part in (('conv_1', x), ('conv_2', x[:, 1:, 1:]))
    ]
    return layers.norm(f'{name}.bn', jnp.concatenate(parts, axis=-1))


def _squeeze_excite(layers: Layers, name: str, x: Array) -> Array:
    y = relu(layers.linear(f'{name}.fc1', jnp.mean(x, axis=(1, 2))))
    return gated(x, layers.linear(f'{name}.fc2', y))


def _attention(layers: Layers, name: str, x: Array) -> Array:
    n, h, w, c = x.shape
    x = x.reshape(n, h * w, c)  # [N, T, C]
    qkv = layers.linear(f'{name}.to_qkv', layers.layer_norm(f'{name}.ln1', x))
    x = x + layers.linear(f'{name}.to_out.0', attended(qkv))
    y = layers.linear(f'{name}.ff.net.0', layers.layer_norm(f'{name}.ln2', x))
    y = layers.linear(f'{name}.ff.net.3', gelu(y))
    return (x + y).reshape(n, h, w, c)


def _head(layers: Layers, spec: NetworkSpec, x: Array, dropout_mask: Array | None) -> Array:
    if spec.glob_avg:
        x = jnp.mean(x, axis=(1, 2))
    else:
        x = jnp.transpose(x, (0, 3, 1, 2)).reshape(x.shape[0], -1)  # channel, row, column
    x = layers.linear('classifier.0', x)
    if spec.fc_layers == 1:
        return x
    x = relu(x)
    if dropout_mask is not None:
        x = x * jnp.asarray(dropout_mask, x.dtype)
    return layers.linear('classifier.3', x)
