"""Small networks of one kind of block each: what a study of initialisation is about (arXiv 2011.14578).

A kind is a type of convolution, with or without batch norm, in a type of block. All twelve combinations are
meaningful: an inverted bottleneck of regular convolutions is the fused one of EfficientNetV2.
"""

import dataclasses
import itertools

from flax import linen as nn
from jax import Array

CONVOLUTIONS, BLOCKS = ('regular', 'separable'), ('plain', 'residual', 'inverted')
ROLES = ('stem', 'regular', 'depthwise', 'pointwise', 'expand', 'project', 'linear')
"""What a layer of such a network may be; its name ends in it."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of block.

    Attributes:
      convolution: 'regular', 3x3; or 'separable', 3x3 of each channel by itself (depthwise), then 1x1
        (pointwise).
      norm: a batch norm after every convolution; without, a bias.
      block: 'plain', two convolutions; 'residual', two and a sum (arXiv 1512.03385); 'inverted', an inverted
        bottleneck, from few channels to many and back (arXiv 1801.04381), of regular convolutions the fused
        one (arXiv 2104.00298).
    """

    convolution: str
    norm: bool
    block: str

    @property
    def name(self) -> str:
        """What tables and files call it: 'separable-bn-residual'."""
        return f'{self.convolution}-{"bn" if self.norm else "none"}-{self.block}'


KINDS = {
    kind.name: kind
    for kind in itertools.starmap(Kind, itertools.product(CONVOLUTIONS, (True, False), BLOCKS))
}
"""All kinds by name."""


class BlockNet(nn.Module):
    """A 3x3 convolution, stages of blocks, a mean over all pixels, a linear layer.

    The first convolution halves the resolution, and so does the one between two stages.

    Every activation is a relu, and so no range is clipped before it is measured. The last convolution of an
    inverted bottleneck has none, that of a residual block has it after the sum.

    Attributes:
      kind: of the blocks, and of what is between two stages.
      channels: of each stage.
      blocks: of each stage.
      expansion: of inverted bottlenecks.
      classes: outputs.
    """

    kind: Kind
    channels: tuple[int, ...] = (16, 32)
    blocks: int = 1
    expansion: int = 4
    classes: int = 10

    @nn.compact
    def __call__(self, x: Array, train: bool = True) -> Array:
        """Compute logits [N, classes] of images [N, H, H, 3]."""
        x = self._layer(x, 'stem', self.channels[0], 3, train, stride=2)
        for i, width in enumerate(self.channels):
            if i > 0:
                x = self._convolution(x, f'stage{i}_down', width, train, stride=2)
            for j in range(self.blocks):
                x = self._block(x, f'stage{i}_block{j}', train)
        return nn.Dense(self.classes, name='linear')(x.mean((1, 2)))

    def _block(self, x: Array, name: str, train: bool) -> Array:
        width = x.shape[-1]
        if self.kind.block == 'inverted':
            return x + self._inverted(x, name, train)
        y = self._convolution(x, f'{name}_first', width, train)
        if self.kind.block == 'plain':
            return self._convolution(y, f'{name}_second', width, train)
        return nn.relu(x + self._convolution(y, f'{name}_second', width, train, active=False))

    def _inverted(self, x: Array, name: str, train: bool) -> Array:
        width, wide = x.shape[-1], self.expansion * x.shape[-1]
        if self.kind.convolution == 'regular':
            y = self._layer(x, f'{name}_regular', wide, 3, train)
        else:
            y = self._layer(x, f'{name}_expand', wide, 1, train)
            y = self._layer(y, f'{name}_depthwise', wide, 3, train, groups=wide)
        return self._layer(y, f'{name}_project', width, 1, train, active=False)

    def _convolution(
        self, x: Array, name: str, width: int, train: bool, *, stride: int = 1, active: bool = True
    ) -> Array:
        if self.kind.convolution == 'regular':
            return self._layer(x, f'{name}_regular', width, 3, train, stride=stride, active=active)
        channels = x.shape[-1]
        x = self._layer(x, f'{name}_depthwise', channels, 3, train, groups=channels, stride=stride)
        return self._layer(x, f'{name}_pointwise', width, 1, train, active=active)

    def _layer(
        self, x: Array, name: str, width: int, size: int, train: bool,
        *, groups: int = 1, stride: int = 1, active: bool = True,
    ) -> Array:  # fmt: skip
        """A convolution, its norm or bias, and a relu where it is active."""
        x = nn.Conv(
            width, (size, size), stride, feature_group_count=groups, use_bias=not self.kind.norm, name=name
        )(x)
        if self.kind.norm:
            x = nn.BatchNorm(use_running_average=not train, name=f'{name}_norm')(x)
        return nn.relu(x) if active else x


def role_of(layer: str) -> str:
    """Return what a layer is, one of `ROLES`, by the name of its weight ('stage0_down_depthwise.kernel')."""
    return layer.removesuffix('.kernel').rsplit('_', 1)[-1]
