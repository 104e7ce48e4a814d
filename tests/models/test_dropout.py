"""Dropout is left out of traced models, however it is called."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from ghn_jax.models.tracing import trace


def test_a_dropout_that_is_called_by_keyword_is_left_out():
    class Dropped(nn.Module):
        @nn.compact
        def __call__(self, x, train: bool = True):
            x = nn.Dropout(0.5, deterministic=not train)(inputs=x.mean((1, 2)))
            return nn.Dense(10)(x)

    model, x = trace(Dropped(), (2, 8, 8, 3)), np.ones((2, 8, 8, 3), np.float32)
    params = model.initial_params(0)
    expected = Dropped().apply({'params': params}, x, train=False)
    np.testing.assert_array_equal(jax.jit(model.apply)(params, x), expected)


class Dropped(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.drop, self.out = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(3, 10, rngs=rngs)

    def __call__(self, x, train: bool = True):
        return self.out(self.drop(x.mean((1, 2)), deterministic=not train))


def test_a_dropout_of_nnx_that_is_switched_on_in_its_call_is_left_out():
    module, x = Dropped(nnx.Rngs(0)), jnp.ones((2, 8, 8, 3))
    model = trace(module, (2, 8, 8, 3))
    expected = nnx.jit(lambda module, x: module(x, train=False))(module, x)
    np.testing.assert_array_equal(jax.jit(model.apply)(model.initial_params(), x), expected)
    assert module.drop.rate == 0.5
