"""States of a training, to be saved and compared."""

import chex
import jax
import jax.numpy as jnp
import optax
from flax import struct


class State(struct.PyTreeNode):
    step: jax.Array
    params: dict
    opt: optax.OptState
    key: jax.Array


def make_state(step: int, width: int = 3) -> State:
    kernel, bias = jnp.full((width, 2), float(step)), jnp.arange(2, dtype=jnp.bfloat16)
    params = {'dense': {'kernel': kernel, 'bias': bias}}
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return State(step=jnp.int32(step), params=params, opt=tx.init(params), key=jax.random.key(step))


def assert_same(a: State, b: State) -> None:
    chex.assert_trees_all_equal(jax.random.key_data(a.key), jax.random.key_data(b.key))
    a, b = a.replace(key=a.step), b.replace(key=b.step)
    chex.assert_trees_all_equal_shapes_and_dtypes(a, b)
    chex.assert_trees_all_equal(a, b)
