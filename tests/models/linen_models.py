"""CNNs as users write them in Flax Linen: images [N, H, W, 3] to logits."""

from collections.abc import Callable, Sequence
from functools import partial

import jax.numpy as jnp
from flax import linen as nn


class Vgg(nn.Module):
    widths: Sequence[int | str] = (64, 'M', 128, 'M', 256, 256, 'M', 512, 512, 'M', 512, 512, 'M')
    hidden: int = 512
    classes: int = 10

    @nn.compact
    def __call__(self, x, train: bool = False):
        for width in self.widths:
            if width == 'M':
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
            else:
                x = nn.relu(nn.Conv(width, (3, 3))(x))
        x = x.reshape((x.shape[0], -1))
        for _ in range(2):
            x = nn.Dropout(0.5, deterministic=not train)(nn.relu(nn.Dense(self.hidden)(x)))
        return nn.Dense(self.classes)(x)


class BasicBlock(nn.Module):
    width: int
    stride: int
    norm: Callable

    @nn.compact
    def __call__(self, x):
        y = nn.Conv(self.width, (3, 3), self.stride, use_bias=False)(x)
        y = nn.relu(self.norm()(y))
        y = self.norm(scale_init=nn.initializers.zeros)(nn.Conv(self.width, (3, 3), use_bias=False)(y))
        if x.shape != y.shape:
            x = nn.Conv(self.width, (1, 1), self.stride, use_bias=False, name='projection')(x)
            x = self.norm(name='projection_norm')(x)
        return nn.relu(x + y)


class Bottleneck(nn.Module):
    width: int
    stride: int
    norm: Callable

    @nn.compact
    def __call__(self, x):
        y = nn.relu(self.norm()(nn.Conv(self.width, (1, 1), use_bias=False)(x)))
        y = nn.relu(self.norm()(nn.Conv(self.width, (3, 3), self.stride, use_bias=False)(y)))
        y = self.norm(scale_init=nn.initializers.zeros)(nn.Conv(4 * self.width, (1, 1), use_bias=False)(y))
        if x.shape != y.shape:
            x = nn.Conv(4 * self.width, (1, 1), self.stride, use_bias=False, name='projection')(x)
            x = self.norm(name='projection_norm')(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    stages: Sequence[int]
    block: type[nn.Module]
    width: int = 64
    classes: int = 10
    imagenet_stem: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool = True):
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype)
        x = x.astype(self.dtype)
        if self.imagenet_stem:
            x = nn.Conv(self.width, (7, 7), (2, 2), padding=[(3, 3), (3, 3)], use_bias=False)(x)
            x = nn.relu(norm(name='stem_norm')(x))
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding='SAME')
        else:
            x = nn.relu(norm(name='stem_norm')(nn.Conv(self.width, (3, 3), use_bias=False)(x)))
        for stage, blocks in enumerate(self.stages):
            for i in range(blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                x = self.block(self.width * 2**stage, stride, norm)(x)
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.classes)(x)


class WideResNet(nn.Module):
    """Pre-activation blocks (arXiv 1605.07146)."""

    blocks: int = 2
    factor: int = 2
    classes: int = 10

    @nn.compact
    def __call__(self, x, train: bool = True):
        norm = partial(nn.BatchNorm, use_running_average=not train)
        x = nn.Conv(16, (3, 3), use_bias=False)(x)
        for stage in range(3):
            for i in range(self.blocks):
                width, stride = 16 * self.factor * 2**stage, 2 if stage and not i else 1
                y = nn.relu(norm()(x))
                shortcut = x if x.shape[-1] == width else nn.Conv(width, (1, 1), stride, use_bias=False)(y)
                y = nn.relu(norm()(nn.Conv(width, (3, 3), stride, use_bias=False)(y)))
                y = nn.Dropout(0.3, deterministic=not train)(y)
                x = shortcut + nn.Conv(width, (3, 3), use_bias=False)(y)
        x = nn.relu(norm()(x))
        x = nn.avg_pool(x, x.shape[1:3]).reshape((x.shape[0], -1))
        return nn.Dense(self.classes)(x)


class SqueezeExcite(nn.Module):
    reduced: int
    gate: Callable = nn.hard_sigmoid
    activation: Callable = nn.relu

    @nn.compact
    def __call__(self, x):
        y = jnp.mean(x, axis=(1, 2), keepdims=True)
        y = self.activation(nn.Conv(self.reduced, (1, 1))(y))
        return x * self.gate(nn.Conv(x.shape[-1], (1, 1))(y))


class InvertedResidual(nn.Module):
    width: int
    expansion: float
    stride: int = 1
    kernel: int = 3
    squeeze: int = 0
    activation: Callable = nn.relu6
    gate: Callable = nn.hard_sigmoid
    train: bool = True

    @nn.compact
    def __call__(self, x):
        norm = partial(nn.BatchNorm, use_running_average=not self.train)
        hidden, y, size = int(self.expansion * x.shape[-1]), x, (self.kernel, self.kernel)
        if self.expansion != 1:
            y = self.activation(norm()(nn.Conv(hidden, (1, 1), use_bias=False)(y)))
        y = nn.Conv(hidden, size, self.stride, feature_group_count=hidden, use_bias=False)(y)
        y = self.activation(norm()(y))
        if self.squeeze:
            y = SqueezeExcite(max(1, hidden // self.squeeze), self.gate)(y)
        y = norm()(nn.Conv(self.width, (1, 1), use_bias=False)(y))
        return x + y if x.shape == y.shape else y


class MobileNet(nn.Module):
    """V2, V3 and EfficientNet: rows (expansion, width, blocks, stride, kernel, squeeze, activation)."""

    rows: Sequence[tuple]
    stem: int = 32
    head: int = 1280
    activation: Callable = nn.relu6
    gate: Callable = nn.hard_sigmoid
    classes: int = 10

    @nn.compact
    def __call__(self, x, *, training: bool):
        norm = partial(nn.BatchNorm, use_running_average=not training)
        x = self.activation(norm()(nn.Conv(self.stem, (3, 3), (2, 2), use_bias=False)(x)))
        for expansion, width, blocks, stride, kernel, squeeze, activation in self.rows:
            for i in range(blocks):
                x = InvertedResidual(
                    width,
                    expansion,
                    stride if i == 0 else 1,
                    kernel,
                    squeeze,
                    activation,
                    self.gate,
                    training,
                )(x)
        x = self.activation(norm()(nn.Conv(self.head, (1, 1), use_bias=False)(x)))
        x = x.mean((1, 2))
        x = nn.Dropout(0.2, deterministic=not training)(x)
        return nn.Dense(self.classes)(x)


def _row(expansion, width, blocks, stride, kernel=3, squeeze=0, activation=nn.relu6):
    return expansion, width, blocks, stride, kernel, squeeze, activation


MobileNetV2 = partial(
    MobileNet,
    (
        _row(1, 16, 1, 1), _row(6, 24, 2, 2), _row(6, 32, 3, 2), _row(6, 64, 4, 2), _row(6, 96, 3, 1),
        _row(6, 160, 3, 2), _row(6, 320, 1, 1),
    ),
)  # fmt: skip
MobileNetV3 = partial(
    MobileNet,
    (
        _row(1, 16, 1, 2, 3, 4, nn.relu), _row(4.5, 24, 1, 2, 3, 0, nn.relu),
        _row(3.67, 24, 1, 1, 3, 0, nn.relu),
        _row(4, 40, 1, 2, 5, 4, nn.hard_swish), _row(6, 40, 2, 1, 5, 4, nn.hard_swish),
        _row(3, 48, 2, 1, 5, 4, nn.hard_swish), _row(6, 96, 3, 2, 5, 4, nn.hard_swish),
    ),
    stem=16, head=576, activation=nn.hard_swish,
)  # fmt: skip
EfficientNetB0 = partial(
    MobileNet,
    (
        _row(1, 16, 1, 1, 3, 4, nn.silu), _row(6, 24, 2, 2, 3, 24, nn.silu),
        _row(6, 40, 2, 2, 5, 24, nn.silu),
        _row(6, 80, 3, 2, 3, 24, nn.silu), _row(6, 112, 3, 1, 5, 24, nn.silu),
        _row(6, 192, 4, 2, 5, 24, nn.silu),
        _row(6, 320, 1, 1, 3, 24, nn.silu),
    ),
    activation=nn.silu, gate=nn.sigmoid,
)  # fmt: skip


class DenseNet(nn.Module):
    blocks: Sequence[int] = (3, 4)
    growth: int = 12
    classes: int = 10

    @nn.compact
    def __call__(self, x, train: bool = True):
        norm = partial(nn.BatchNorm, use_running_average=not train)
        x = nn.Conv(2 * self.growth, (3, 3), use_bias=False)(x)
        for b, layers in enumerate(self.blocks):
            for _ in range(layers):
                y = nn.Conv(4 * self.growth, (1, 1), use_bias=False)(nn.relu(norm()(x)))
                y = nn.Conv(self.growth, (3, 3), use_bias=False)(nn.relu(norm()(y)))
                x = jnp.concatenate([x, y], axis=-1)
            if b < len(self.blocks) - 1:
                x = nn.Conv(x.shape[-1] // 2, (1, 1), use_bias=False)(nn.relu(norm()(x)))
                x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(norm()(x)).mean(axis=(1, 2))
        return nn.Dense(self.classes)(x)


class ShuffleNet(nn.Module):
    """V2 (arXiv 1807.11164) with a stem for small images: half of the channels pass, and all are shuffled."""

    widths: Sequence[int] = (32, 64)
    blocks: int = 2
    stem: int = 32
    classes: int = 10

    @nn.compact
    def __call__(self, x, train: bool = True):
        norm = partial(nn.BatchNorm, use_running_average=not train)

        def pointwise(x, width):
            return nn.relu(norm()(nn.Conv(width, (1, 1), use_bias=False)(x)))

        def depthwise(x, stride=1):
            C = x.shape[-1]
            return norm()(nn.Conv(C, (3, 3), stride, feature_group_count=C, use_bias=False)(x))

        def shuffled(a, b):
            x = jnp.stack([a, b], axis=-1)
            return x.reshape((*x.shape[:3], -1))

        x = nn.relu(norm()(nn.Conv(self.stem, (3, 3), use_bias=False)(x)))
        for width in self.widths:
            a = pointwise(depthwise(x, 2), width // 2)
            b = pointwise(depthwise(pointwise(x, width // 2), 2), width // 2)
            for _ in range(self.blocks):
                a, b = jnp.split(shuffled(a, b), 2, axis=-1)
                b = pointwise(depthwise(pointwise(b, width // 2)), width // 2)
            x = shuffled(a, b)
        return nn.Dense(self.classes)(pointwise(x, 128).mean(axis=(1, 2)))


class SqueezeNet(nn.Module):
    """Fire modules; a convolution makes the logits, and a mean follows it."""

    classes: int = 10

    @nn.compact
    def __call__(self, x, train: bool = True):
        x = nn.relu(nn.Conv(64, (3, 3), (2, 2))(x))
        for squeeze, expand in ((16, 64), (16, 64), (32, 128)):
            s = nn.relu(nn.Conv(squeeze, (1, 1))(x))
            x = jnp.concatenate(
                [nn.relu(nn.Conv(expand, (1, 1))(s)), nn.relu(nn.Conv(expand, (3, 3))(s))], axis=-1
            )
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return jnp.mean(nn.relu(nn.Conv(self.classes, (1, 1))(x)), axis=(1, 2))


class Inception(nn.Module):
    classes: int = 10

    @nn.compact
    def __call__(self, x, train: bool = True):
        def conv(x, width, size, stride=1):
            x = nn.Conv(width, size, stride, use_bias=False)(x)
            return nn.relu(nn.BatchNorm(use_running_average=not train, use_scale=False)(x))

        x = conv(x, 32, (3, 3), 2)
        for width in (16, 32):
            pooled = nn.avg_pool(x, (3, 3), strides=(1, 1), padding='SAME', count_include_pad=False)
            branches = [
                conv(x, width, (1, 1)),
                conv(conv(x, width, (1, 1)), width, (5, 5)),
                conv(conv(conv(x, width, (1, 1)), width, (1, 7)), width, (7, 1)),
                conv(pooled, width, (1, 1)),
            ]
            x = jnp.concatenate(branches, axis=-1)
            x = jnp.concatenate([conv(x, width, (3, 3), 2), nn.max_pool(x, (3, 3), (2, 2), 'SAME')], axis=-1)
        return nn.Dense(self.classes)(x.mean((1, 2)))


class ConvNeXt(nn.Module):
    depths: Sequence[int] = (1, 2)
    widths: Sequence[int] = (32, 64)
    classes: int = 10

    @nn.compact
    def __call__(self, x, deterministic: bool):
        x = nn.LayerNorm()(nn.Conv(self.widths[0], (4, 4), (4, 4), padding='VALID')(x))
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths)):
            if stage:
                x = nn.Conv(width, (2, 2), (2, 2), padding='VALID')(nn.LayerNorm()(x))
            for i in range(depth):
                y = nn.Conv(width, (7, 7), feature_group_count=width)(x)
                y = nn.gelu(nn.Dense(4 * width)(nn.LayerNorm(epsilon=1e-6)(y)))
                gamma = self.param(f'gamma_{stage}_{i}', nn.initializers.constant(1e-6), (width,))
                x = x + gamma * nn.Dense(width)(y)
        x = nn.LayerNorm()(x.mean((1, 2)))
        return nn.Dense(self.classes)(x)


MODELS = {
    'vgg': Vgg,
    'resnet18': partial(ResNet, (2, 2, 2, 2), BasicBlock, imagenet_stem=False),
    'resnet50': partial(ResNet, (3, 4, 6, 3), Bottleneck),
    'wide_resnet': WideResNet,
    'mobilenet_v2': MobileNetV2,
    'mobilenet_v3': MobileNetV3,
    'efficientnet_b0': EfficientNetB0,
    'densenet': DenseNet,
    'squeezenet': SqueezeNet,
    'inception': Inception,
    'convnext': ConvNeXt,
}
