"""Networks of DeepNets-1M in PyTorch, on given weights: what the executor's speed is compared with.

Eager, channels first, one network after another, as the published code runs them (arXiv 2110.13100); networks
are quantized by tensor, over all values. Names of parameters, their layouts and what is computed are those of
`cnn.reference`.

Axes: N images | C channels | H, W rows and columns | T tokens | D channels of a head. Images are NCHW.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

# pyright: reportMissingImports=false
# PyTorch is no dependency: it is installed by whoever wants the comparison.
import torch
from torch import Tensor
from torch.nn import functional as F

from ghn_jax.networks.spec import NetworkSpec
from ghn_jax.quant.policy import FLOAT_BITS, NamedWidths

_HEADS = 8


def logits(spec: NetworkSpec, params: Mapping[str, Tensor], images: Tensor, widths: NamedWidths) -> Tensor:
    """Compute the logits [N, num_classes] of a connected network, with the statistics of the batch.

    Args:
      spec: without dropout in its head.
      params: DeepNets-1M's names and layouts.
      images: normalised, float32 [N, 3, H, W].
      widths: bits of each weight and of what enters its layer (`Policy.resolve`); gradients are straight
        through.
    """
    layers = _Layers(params, widths, norms=spec.norm is not None)
    outputs: dict[int, Tensor | None] = dict(zip((-2, -1), _stem(layers, spec, images), strict=True))

    def output(cell: int) -> Tensor | None:  # what nothing reads is not run, and may have no weights
        if cell not in outputs:
            outputs[cell] = _cell(layers, spec, cell, output)
        return outputs[cell]

    x = output(spec.n_cells - 1)
    if x is None:
        raise ValueError(f'network {spec.name!r} is disconnected')
    x = layers.linear('classifier.0', x.mean((2, 3)) if spec.glob_avg else x.flatten(1))
    return x if spec.fc_layers == 1 else layers.linear('classifier.3', F.relu(x))


def fake_quantize(x: Tensor, bits: int) -> Tensor:
    """Round to 2^bits levels over [min(0, min x), max(0, max x)], as `quant.grid`."""
    return x if bits == FLOAT_BITS else _Rounded.apply(x, 2**bits - 1)


class _Rounded(torch.autograd.Function):
    """The gradient is straight-through: 1 where the value is not clipped, 0 elsewhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, n: int) -> Tensor:
        lo, hi = x.min().clamp(max=0), x.max().clamp(min=0)
        scale = ((hi - lo) / n).clamp(min=torch.finfo(x.dtype).tiny)
        zero = torch.round(-lo / scale)
        q = torch.round(x / scale).add_(zero)
        ctx.save_for_backward((q >= 0) & (q <= n))
        return q.clamp_(0, n).sub_(zero).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None


@dataclasses.dataclass(frozen=True)
class _Layers:
    """The layers with parameters, called by name."""

    params: Mapping[str, Tensor]
    widths: NamedWidths
    norms: bool

    def conv(
        self,
        name: str,
        x: Tensor,
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | None = None,
        dilation: int = 1,
        rounded: bool = False,
    ) -> Tensor:
        of_weight, of_activation = self.widths[f'{name}.weight']
        w = self.params[f'{name}.weight']
        padding = (w.shape[2] // 2, w.shape[3] // 2) if padding is None else padding
        x = x if rounded else fake_quantize(x, of_activation)
        groups = x.shape[1] // w.shape[1]
        return F.conv2d(x, fake_quantize(w, of_weight), None, stride, padding, dilation, groups)

    def linear(self, name: str, x: Tensor) -> Tensor:
        of_weight, of_activation = self.widths[f'{name}.weight']
        bias = None if name.endswith('to_qkv') else self.params[f'{name}.bias']
        w = fake_quantize(self.params[f'{name}.weight'], of_weight)
        return F.linear(fake_quantize(x, of_activation), w, bias)

    def norm(self, name: str, x: Tensor) -> Tensor:
        if not self.norms:
            return x
        weight, bias = self.params[f'{name}.weight'], self.params[f'{name}.bias']
        return F.batch_norm(x, None, None, weight, bias, training=True)

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.params[f'{name}.weight'], self.params[f'{name}.bias'])


def _stem(layers: _Layers, spec: NetworkSpec, x: Tensor) -> tuple[Tensor, Tensor]:
    if spec.is_vit:
        x = layers.conv('stem0', x, stride=3, padding=1) + layers.params['pos_enc.weight']
        return x, x
    if spec.stem_type == 0:
        x = layers.norm('stem.1', layers.conv('stem.0', x))
        x = F.max_pool2d(x, 3, 2, 1) if spec.stem_pool else x
        return x, x
    x = F.relu(layers.norm('stem0.1', layers.conv('stem0.0', x)))
    first = F.relu(layers.norm('stem0.4', layers.conv('stem0.3', x)))
    return first, layers.norm('stem1.2', layers.conv('stem1.1', first, stride=2))


def _cell(
    layers: _Layers, spec: NetworkSpec, cell: int, output: Callable[[int], Tensor | None]
) -> Tensor | None:
    reduction = spec.is_reduction(cell)
    halves = not spec.is_vit and (spec.is_reduction(cell - 1) or (cell == 0 and spec.stem_type == 1))
    entries, concat = spec.genotype.cell(reduction)

    @functools.cache
    def state(k: int) -> Tensor | None:
        if k < 2:
            x, name = output(cell - 2 + k), f'cells.{cell}.preprocess{k}'
            return None if x is None else _preprocess(layers, spec, name, x, halves and k == 0)
        terms = [x for x in (entry(2 * k - 4), entry(2 * k - 3)) if x is not None]
        return sum(terms[1:], terms[0]) if terms else None

    def entry(j: int) -> Tensor | None:
        op, source = entries[j]
        x = None if op == 'none' else state(source)
        stride = 2 if reduction and source < 2 and not spec.is_vit else 1
        return None if x is None else _op(layers, f'cells.{cell}._ops.{j}', op, x, stride)

    parts = [state(k) for k in concat]
    present = [x for x in parts if x is not None]
    if not present:
        return None
    return torch.cat([torch.zeros_like(present[0]) if x is None else x for x in parts], 1)


def _preprocess(layers: _Layers, spec: NetworkSpec, name: str, x: Tensor, halves: bool) -> Tensor:
    if not spec.preproc:
        return x[:, :, ::2, ::2] if halves else x
    if halves:
        return _factorized_reduce(layers, name, x)
    return layers.norm(f'{name}.op.2', layers.conv(f'{name}.op.1', F.relu(x)))


def _op(layers: _Layers, name: str, op: str, x: Tensor, stride: int) -> Tensor:
    if op == 'max_pool_3x3':
        return F.max_pool2d(x, 3, stride, 1)
    if op == 'avg_pool_3x3':
        return F.avg_pool2d(x, 3, stride, 1, count_include_pad=False)
    if op == 'skip_connect':
        return x if stride == 1 else _factorized_reduce(layers, name, x)
    if op == 'conv_7x1_1x7':
        x = layers.conv(f'{name}.op.1', F.relu(x), stride=(1, stride))
        return layers.norm(f'{name}.op.3', layers.conv(f'{name}.op.2', x, stride=(stride, 1)))
    if op.startswith('conv'):
        return layers.norm(f'{name}.op.2', layers.conv(f'{name}.op.1', F.relu(x), stride=stride))
    if op.startswith('sep_conv'):
        x = layers.conv(f'{name}.op.2', layers.conv(f'{name}.op.1', F.relu(x), stride=stride))
        x = F.relu(layers.norm(f'{name}.op.3', x))
        return layers.norm(f'{name}.op.7', layers.conv(f'{name}.op.6', layers.conv(f'{name}.op.5', x)))
    if op.startswith('dil_conv'):
        x = layers.conv(f'{name}.op.1', F.relu(x), stride=stride, padding=int(op[-1]) - 1, dilation=2)
        return layers.norm(f'{name}.op.3', layers.conv(f'{name}.op.2', x))
    if op == 'mbconv_3x3':
        x = F.relu(layers.norm(f'{name}.op.1', layers.conv(f'{name}.op.0', x)))
        x = F.relu(layers.norm(f'{name}.op.4', layers.conv(f'{name}.op.3', x, stride=stride)))
        return layers.norm(f'{name}.op.7', layers.conv(f'{name}.op.6', x))
    if op == 'cse':
        y = F.relu(layers.linear(f'{name}.fc1', x.mean((2, 3))))
        return (x * F.hardswish(layers.linear(f'{name}.fc2', y))[:, :, None, None])[:, :, ::stride, ::stride]
    if op == 'msa':
        return _attention(layers, name, x)[:, :, ::stride, ::stride]
    raise ValueError(f'op {op!r} is unknown')


def _factorized_reduce(layers: _Layers, name: str, x: Tensor) -> Tensor:
    x = fake_quantize(F.relu(x), layers.widths[f'{name}.conv_1.weight'][1])  # one tensor enters both
    parts = [
        layers.conv(f'{name}.conv_1', x, stride=2, rounded=True),
        layers.conv(f'{name}.conv_2', x[:, :, 1:, 1:], stride=2, rounded=True),
    ]
    return layers.norm(f'{name}.bn', torch.cat(parts, 1))


def _attention(layers: _Layers, name: str, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    x = x.flatten(2).transpose(1, 2)  # [N, T, C]
    qkv = layers.linear(f'{name}.to_qkv', layers.layer_norm(f'{name}.ln1', x))
    q, k, v = qkv.reshape(n, h * w, 3, _HEADS, c // _HEADS).permute(2, 0, 3, 1, 4)  # 3 x [N, heads, T, D]
    y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, h * w, c)
    x = x + layers.linear(f'{name}.to_out.0', y)
    y = layers.linear(f'{name}.ff.net.0', layers.layer_norm(f'{name}.ln2', x))
    y = layers.linear(f'{name}.ff.net.3', F.gelu(y))
    return (x + y).transpose(1, 2).reshape(n, c, h, w)
