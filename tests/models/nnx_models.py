"""CNNs as users write them in Flax NNX: images [N, H, W, 3] to logits."""

from collections.abc import Callable, Sequence
from functools import partial

import jax.numpy as jnp
from flax import nnx


class ConvNorm(nnx.Module):
    def __init__(self, c_in, c_out, size, stride=1, *, act: Callable | None = nnx.relu, groups=1, rngs):
        self.conv = nnx.Conv(
            c_in, c_out, (size, size) if isinstance(size, int) else size, strides=stride, use_bias=False,
            feature_group_count=groups, rngs=rngs,
        )  # fmt: skip
        self.norm = nnx.BatchNorm(c_out, rngs=rngs)
        self.act = act

    def __call__(self, x):
        x = self.norm(self.conv(x))
        return x if self.act is None else self.act(x)


class Vgg(nnx.Module):
    def __init__(self, *, classes=10, rngs):
        layers, width = [], 3
        for blocks, c in ((1, 64), (1, 128), (2, 256), (2, 512), (2, 512)):
            for _ in range(blocks):
                layers += [nnx.Conv(width, c, (3, 3), rngs=rngs), nnx.relu]
                width = c
            layers.append(partial(nnx.max_pool, window_shape=(2, 2), strides=(2, 2)))
        self.features = nnx.Sequential(*layers)
        self.hidden = nnx.Linear(512, 512, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(512, classes, rngs=rngs)

    def __call__(self, x):
        x = self.features(x)
        x = x.reshape(x.shape[0], -1)
        return self.head(self.dropout(nnx.relu(self.hidden(x))))


class Block(nnx.Module):
    """A basic block, or a bottleneck."""

    def __init__(self, c_in, width, stride, bottleneck, *, rngs):
        c_out = 4 * width if bottleneck else width
        if bottleneck:
            steps = [(c_in, width, 1, 1), (width, width, 3, stride), (width, c_out, 1, 1)]
        else:
            steps = [(c_in, width, 3, stride), (width, width, 3, 1)]
        self.layers = nnx.List(
            ConvNorm(a, b, size, s, act=None if i == len(steps) - 1 else nnx.relu, rngs=rngs)
            for i, (a, b, size, s) in enumerate(steps)
        )
        shape_changes = stride != 1 or c_in != c_out
        self.shortcut = ConvNorm(c_in, c_out, 1, stride, act=None, rngs=rngs) if shape_changes else None

    def __call__(self, x):
        y = x
        for layer in self.layers:
            y = layer(y)
        return nnx.relu((x if self.shortcut is None else self.shortcut(x)) + y)


class ResNet(nnx.Module):
    def __init__(self, stages, bottleneck=False, *, imagenet_stem=False, classes=10, rngs):
        self.stem = ConvNorm(3, 64, 7 if imagenet_stem else 3, 2 if imagenet_stem else 1, rngs=rngs)
        self.pool = imagenet_stem
        blocks, c = [], 64
        for stage, n in enumerate(stages):
            for i in range(n):
                width, stride = 64 * 2**stage, 2 if stage and not i else 1
                blocks.append(Block(c, width, stride, bottleneck, rngs=rngs))
                c = 4 * width if bottleneck else width
        self.blocks = nnx.Sequential(*blocks)
        self.head = nnx.Linear(c, classes, rngs=rngs)

    def __call__(self, x):
        x = self.stem(x)
        if self.pool:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding='SAME')
        return self.head(jnp.mean(self.blocks(x), axis=(1, 2)))


class PreActivation(nnx.Module):
    def __init__(self, c_in, width, stride, *, rngs):
        self.norm1, self.norm2 = nnx.BatchNorm(c_in, rngs=rngs), nnx.BatchNorm(width, rngs=rngs)
        conv = partial(nnx.Conv, use_bias=False, rngs=rngs)
        self.conv1 = conv(c_in, width, (3, 3), strides=stride)
        self.conv2 = conv(width, width, (3, 3))
        self.shortcut = conv(c_in, width, (1, 1), strides=stride) if c_in != width else None

    def __call__(self, x):
        y = nnx.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        return shortcut + self.conv2(nnx.relu(self.norm2(self.conv1(y))))


class WideResNet(nnx.Module):
    def __init__(self, *, blocks=2, factor=2, classes=10, rngs):
        self.stem = nnx.Conv(3, 16, (3, 3), use_bias=False, rngs=rngs)
        c, layers = 16, []
        for stage in range(3):
            for i in range(blocks):
                width = 16 * factor * 2**stage
                layers.append(PreActivation(c, width, 2 if stage and not i else 1, rngs=rngs))
                c = width
        self.layers = nnx.List(layers)
        self.norm = nnx.BatchNorm(c, rngs=rngs)
        self.head = nnx.Linear(c, classes, rngs=rngs)

    def __call__(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(nnx.relu(self.norm(x)).mean((1, 2)))


class SqueezeExcite(nnx.Module):
    def __init__(self, channels, reduced, *, act, gate, rngs):
        self.fc1, self.fc2 = (
            nnx.Linear(channels, reduced, rngs=rngs),
            nnx.Linear(reduced, channels, rngs=rngs),
        )
        self.act, self.gate = act, gate

    def __call__(self, x):
        y = self.gate(self.fc2(self.act(self.fc1(x.mean((1, 2))))))
        return x * y[:, None, None, :]


class InvertedResidual(nnx.Module):
    def __init__(self, c_in, c_out, expansion, stride, size, squeeze, act, gate, *, rngs):
        hidden = int(expansion * c_in)
        self.expand = ConvNorm(c_in, hidden, 1, act=act, rngs=rngs) if expansion != 1 else None
        self.depthwise = ConvNorm(hidden, hidden, size, stride, act=act, groups=hidden, rngs=rngs)
        reduced = max(1, hidden // squeeze) if squeeze else 0
        self.squeeze = SqueezeExcite(hidden, reduced, act=act, gate=gate, rngs=rngs) if squeeze else None
        self.project = ConvNorm(hidden, c_out, 1, act=None, rngs=rngs)

    def __call__(self, x):
        y = x if self.expand is None else self.expand(x)
        y = self.depthwise(y)
        y = self.project(y if self.squeeze is None else self.squeeze(y))
        return x + y if x.shape == y.shape else y


class MobileNet(nnx.Module):
    """Rows: (expansion, width, blocks, stride, kernel, squeeze)."""

    def __init__(self, rows, *, stem=32, head=1280, act=nnx.relu6, gate=nnx.hard_sigmoid, classes=10, rngs):
        self.stem, c, blocks = ConvNorm(3, stem, 3, 2, act=act, rngs=rngs), stem, []
        for expansion, width, n, stride, size, squeeze in rows:
            for i in range(n):
                s = stride if i == 0 else 1
                blocks.append(InvertedResidual(c, width, expansion, s, size, squeeze, act, gate, rngs=rngs))
                c = width
        self.blocks = nnx.List(blocks)
        self.last = ConvNorm(c, head, 1, act=act, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Linear(head, classes, rngs=rngs)

    def __call__(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.dropout(self.last(x).mean((1, 2))))


class DenseNet(nnx.Module):
    def __init__(self, *, layers=4, growth=12, classes=10, rngs):
        c = 2 * growth
        self.stem = nnx.Conv(3, c, (3, 3), use_bias=False, rngs=rngs)
        norms, convs = [], []
        for _ in range(layers):
            norms.append(nnx.BatchNorm(c, rngs=rngs))
            convs.append(nnx.Conv(c, growth, (3, 3), use_bias=False, rngs=rngs))
            c += growth
        self.norms, self.convs = nnx.List(norms), nnx.List(convs)
        self.transition = nnx.Conv(c, c // 2, (1, 1), rngs=rngs)
        self.head = nnx.Linear(c // 2, classes, rngs=rngs)

    def __call__(self, x):
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs):
            x = jnp.concatenate([x, conv(nnx.relu(norm(x)))], axis=-1)
        x = nnx.avg_pool(self.transition(x), (2, 2), strides=(2, 2))
        return self.head(x.mean((1, 2)))


class SqueezeNet(nnx.Module):
    def __init__(self, *, classes=10, rngs):
        conv = partial(nnx.Conv, rngs=rngs)
        self.stem, c, fires = conv(3, 64, (3, 3), strides=2), 64, []
        for squeeze, expand in ((16, 64), (32, 128)):
            convs = conv(c, squeeze, (1, 1)), conv(squeeze, expand, (1, 1)), conv(squeeze, expand, (3, 3))
            fires.append(nnx.List(convs))
            c = 2 * expand
        self.fires = nnx.List(fires)
        self.head = conv(c, classes, (1, 1))

    def __call__(self, x):
        x = nnx.relu(self.stem(x))
        for squeeze, left, right in self.fires:
            x = nnx.relu(squeeze(x))
            x = jnp.concatenate([nnx.relu(left(x)), nnx.relu(right(x))], axis=-1)
        return self.head(x).mean((1, 2))


class Inception(nnx.Module):
    def __init__(self, *, width=16, classes=10, rngs):
        conv = partial(ConvNorm, rngs=rngs)
        self.stem = conv(3, 32, 3, 2)
        self.one, self.pooled = conv(32, width, 1), conv(32, width, 1)
        self.five = nnx.Sequential(conv(32, width, 1), conv(width, width, 5))
        self.seven = nnx.Sequential(
            conv(32, width, 1), conv(width, width, (1, 7)), conv(width, width, (7, 1))
        )
        self.head = nnx.Linear(4 * width, classes, rngs=rngs)

    def __call__(self, x):
        x = self.stem(x)
        pooled = nnx.max_pool(x, (3, 3), strides=(1, 1), padding='SAME')
        branches = [self.one(x), self.five(x), self.seven(x), self.pooled(pooled)]
        return self.head(jnp.concatenate(branches, axis=-1).mean((1, 2)))


class ConvNeXtBlock(nnx.Module):
    def __init__(self, width, *, rngs):
        self.depthwise = nnx.Conv(width, width, (7, 7), feature_group_count=width, rngs=rngs)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.up, self.down = nnx.Linear(width, 4 * width, rngs=rngs), nnx.Linear(4 * width, width, rngs=rngs)
        self.gamma = nnx.Param(jnp.full((width,), 1e-6))

    def __call__(self, x):
        return x + self.gamma * self.down(nnx.gelu(self.up(self.norm(self.depthwise(x)))))


class ConvNeXt(nnx.Module):
    def __init__(self, *, widths: Sequence[int] = (32, 64), classes=10, rngs):
        steps, c = [], 3
        for i, width in enumerate(widths):
            size = 2 if i else 4
            steps.append(nnx.Conv(c, width, (size, size), strides=size, padding='VALID', rngs=rngs))
            steps.append(nnx.LayerNorm(width, rngs=rngs))
            steps.append(ConvNeXtBlock(width, rngs=rngs))
            c = width
        self.steps = nnx.Sequential(*steps)
        self.norm, self.head = nnx.LayerNorm(c, rngs=rngs), nnx.Linear(c, classes, rngs=rngs)

    def __call__(self, x):
        return self.head(self.norm(self.steps(x).mean((1, 2))))


_V2 = [
    (1, 16, 1, 1, 3, 0),
    (6, 24, 2, 2, 3, 0),
    (6, 32, 3, 2, 3, 0),
    (6, 64, 2, 2, 3, 0),
    (6, 96, 2, 1, 3, 0),
]
_V3 = [(1, 16, 1, 2, 3, 4), (4.5, 24, 2, 2, 3, 0), (4, 40, 2, 2, 5, 4), (6, 96, 2, 2, 5, 4)]
_B0 = [(1, 16, 1, 1, 3, 4), (6, 24, 2, 2, 3, 24), (6, 40, 2, 2, 5, 24), (6, 80, 3, 2, 3, 24)]

MODELS = {
    'vgg': Vgg,
    'resnet18': partial(ResNet, (2, 2, 2, 2)),
    'resnet50': partial(ResNet, (3, 4, 6, 3), True, imagenet_stem=True),
    'wide_resnet': WideResNet,
    'mobilenet_v2': partial(MobileNet, _V2),
    'mobilenet_v3': partial(MobileNet, _V3, act=nnx.hard_swish),
    'efficientnet_b0': partial(MobileNet, _B0, act=nnx.silu, gate=nnx.sigmoid),
    'densenet': DenseNet,
    'squeezenet': SqueezeNet,
    'inception': Inception,
    'convnext': ConvNeXt,
}


def abstract(name: str) -> nnx.Module:
    """A model without numbers."""
    return nnx.eval_shape(lambda: MODELS[name](rngs=nnx.Rngs(0)))
