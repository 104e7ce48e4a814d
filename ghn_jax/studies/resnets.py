"""Residual networks for small images (arXiv 1512.03385, section 4.2), as Flax models.

Three stages of n blocks of two 3x3 convolutions make 6n + 2 layers. A stage halves the image and doubles the
channels; its first block has a 1x1 convolution for a shortcut (their option B).
"""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jax import Array


class ResNet(nn.Module):
    """A residual network. blocks: n.   channels: of the first stage.   classes: outputs."""

    blocks: int
    channels: int = 16
    classes: int = 10

    @nn.compact
    def __call__(self, x: Array, train: bool = True) -> Array:
        """Compute the logits [N, classes] of images [N, H, H, 3]."""
        norm = partial(nn.BatchNorm, use_running_average=not train)
        conv = partial(nn.Conv, use_bias=False)
        x = nn.relu(norm()(conv(self.channels, (3, 3))(x)))
        for block in range(3 * self.blocks):
            channels = self.channels * 2 ** (block // self.blocks)
            stride = 1 if channels == x.shape[-1] else 2
            y = nn.relu(norm()(conv(channels, (3, 3), stride)(x)))
            y = norm()(conv(channels, (3, 3))(y))
            x = x if stride == 1 else norm()(conv(channels, (1, 1), stride)(x))
            x = nn.relu(x + y)
        return nn.Dense(self.classes)(jnp.mean(x, (1, 2)))


def resnet8() -> ResNet:
    """Make one of 8 layers and 8 channels."""
    return ResNet(1, channels=8)


def resnet20() -> ResNet:
    """Make the published one of 20 layers and 16 channels."""
    return ResNet(3)


def narrow_resnet20() -> ResNet:
    """Make one of 20 layers and 8 channels, for two cores."""
    return ResNet(3, channels=8)
