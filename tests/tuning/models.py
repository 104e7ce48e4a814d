"""Small models for the tests of tuning, with parameters and images."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ghn_jax.models.folding import calibrate
from ghn_jax.models.tracing import trace


class Residual(nn.Module):
    """A convolution, two residual blocks, the second with a norm that does not fold, and a linear layer."""

    @nn.compact
    def __call__(self, x, train: bool = True):
        norm = partial(nn.BatchNorm, use_running_average=not train)
        x = nn.relu(norm()(nn.Conv(8, (3, 3), use_bias=False)(x)))
        y = nn.relu(norm()(nn.Conv(8, (3, 3), use_bias=False)(x)))
        x = nn.relu(x + norm()(nn.Conv(8, (3, 3), use_bias=False)(y)))
        y = nn.Conv(8, (1, 1))(nn.relu(norm()(x)))
        x = x + nn.Conv(8, (3, 3))(nn.relu(y))
        return nn.Dense(10)(x.mean((1, 2)))


class Plain(nn.Module):
    """A convolution with a norm, and a linear layer."""

    @nn.compact
    def __call__(self, x, train: bool = True):
        x = nn.Conv(8, (3, 3), (2, 2), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(10)(x.mean((1, 2)))


def images(n: int, seed: int = 0, size: int = 8) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(0.3, 1, (n, size, size, 3)), jnp.float32)


def parameters(model, seed: int = 0):
    """Of every sign, so that no term vanishes."""
    r = np.random.default_rng(seed)

    def value(a):
        if a.ndim > 1:
            return r.normal(size=a.shape) * np.sqrt(2 / np.prod(a.shape[:-1]))
        return r.uniform(0.5, 1.5, a.shape) * r.choice([-1, 1], a.shape)

    return jax.tree.map(lambda a: value(a).astype(a.dtype), model.params)


@cache
def calibrated(module, n: int = 32):
    """A folded model, and the images that its norms are fixed by."""
    model = trace(module, (1, 8, 8, 3))
    x = images(n)
    return calibrate(model, parameters(model), [x]), x


def residual() -> Residual:
    """For `--model=tests.tuning.models:residual`."""
    return Residual()


def plain() -> Plain:
    """For `--model=tests.tuning.models:plain`."""
    return Plain()
