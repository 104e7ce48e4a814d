"""A small model and small data, for tests of its training."""

from collections.abc import Callable
from typing import Any

import numpy as np
from flax import linen as nn

from ghn_jax.datasets.cifar10 import Split
from ghn_jax.datasets.load import Dataset
from ghn_jax.models.model import Model
from ghn_jax.models.tracing import trace

SIZE = 8


class Net(nn.Module):
    classes: int = 10
    width: int = 6
    act: Callable[[Any], Any] = nn.relu

    @nn.compact
    def __call__(self, x, train: bool = True):
        x = nn.Conv(self.width, (3, 3), strides=(2, 2), use_bias=False)(x)
        x = self.act(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.relu(nn.Conv(self.width, (3, 3), feature_group_count=self.width)(x))
        return nn.Dense(self.classes)(x.mean((1, 2)))


def net() -> Net:
    return Net()


def net_of_four_classes() -> Net:
    return Net(4)


def with_silu() -> Net:
    return Net(act=nn.silu)


def wider(factor: float) -> Net:
    return Net(width=round(6 * factor))


class NormedHead(nn.Module):
    """A batch norm of one value for each image and channel."""

    @nn.compact
    def __call__(self, x, train: bool = True):
        x = nn.Dense(8)(nn.Conv(4, (3, 3))(x).mean((1, 2)))
        return nn.Dense(10)(nn.relu(nn.BatchNorm(use_running_average=not train)(x)))


def normed_head() -> NormedHead:
    return NormedHead()


def twice_as_wide() -> Net:
    return wider(2)


def never_wider(factor: float) -> Net:
    return Net()


def traced() -> Model:
    return trace(Net(), (1, SIZE, SIZE, 3))


def small_data(n: int = 40) -> Dataset:
    """Random images whose brightness says a little about their class."""
    rng = np.random.default_rng(0)
    labels = np.arange(n, dtype=np.int32) % 10
    images = rng.integers(0, 100, (n, SIZE, SIZE, 3)) + 15 * labels[:, None, None, None]
    split = Split(images.astype(np.uint8), labels)
    return Dataset(
        name='small', train=split, val=split, test=split, num_classes=10, flip=False,
        mean=np.float32([0.4, 0.5, 0.5]), std=np.float32([0.2, 0.2, 0.3]),
    )  # fmt: skip
