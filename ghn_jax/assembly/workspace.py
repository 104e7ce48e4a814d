"""The buffers that one network leaves to the next: making them anew takes longer than a small step."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from ghn_jax.cnn import executor
from ghn_jax.cnn.packing import BLOCK
from ghn_jax.cnn.program import Program


class Workspace(NamedTuple):
    """Buffers kept from network to network and step to step; their contents mean nothing in between."""

    executor: executor.Tapes
    weights: Array  # [F]
    quantized: Array  # [F]


def make_workspace(program: Program, batch: int, dtype=jnp.float32, *, train: bool = True) -> Workspace:
    """Make a workspace for batches of `batch` images.

    Args:
      program: what runs in it.
      batch: images of a batch.
      dtype: of the networks' values, see `executor`.
      train: with gradients and weights; without, a network's weights are given to `score`.
    """
    floats = program.capacity.blocks * BLOCK
    buffers = executor.make_tapes(program, batch, dtype, train=train)
    # One float where there is nothing: JAX forgets how empty arrays are spread, and compiles anew.
    return Workspace(buffers, jnp.zeros(floats if train else 1), jnp.zeros(floats))
