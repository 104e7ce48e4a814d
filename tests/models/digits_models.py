"""Models for images of 16 x 16 pixels and 10 classes, for commands: `tests.models.digits_models:vgg`.

Published sizes, with a stem for small images. What a hypernetwork of plain convolutions never met (gates,
layer norms) stays as initialised.
"""

from functools import partial

import ghn_jax
from tests.models import linen_models
from tests.models.linen_models import (
    MODELS,
    BasicBlock,
    Bottleneck,
    Inception,
    MobileNet,
    ResNet,
    ShuffleNet,
    Vgg,
    _row,
)

KEPT = ('mobilenet_v3', 'efficientnet_b0', 'convnext')


def vgg():
    """Without the last pool: 16 pixels are halved four times."""
    return Vgg((64, 'M', 128, 'M', 256, 256, 'M', 512, 512, 'M', 512, 512))


def resnet50():
    return ResNet((3, 4, 6, 3), Bottleneck, imagenet_stem=False)


def small_vgg():
    return Vgg((16, 16, 'M', 32, 32, 'M', 32, 32, 'M'), hidden=32)


def small_resnet():
    """ResNet-18's blocks, one of each width."""
    return ResNet((1, 1, 1), BasicBlock, width=16, imagenet_stem=False)


def small_mobilenet():
    """MobileNetV2's blocks."""
    return MobileNet((_row(1, 16, 1, 1), _row(3, 16, 2, 2), _row(3, 32, 2, 2)), stem=16, head=64)


def small_shufflenet():
    return ShuffleNet()


def small_inception():
    return Inception()


def _published(name: str):
    return ghn_jax.trace(MODELS[name](), (1, 16, 16, 3), unsupported='keep' if name in KEPT else 'raise')


for _name in linen_models.MODELS:
    globals().setdefault(_name, partial(_published, _name))
