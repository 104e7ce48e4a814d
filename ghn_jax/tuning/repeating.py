"""Steps that are repeated: in one compiled loop, or on a CPU one after another.

On a CPU, XLA computes gradients of convolutions some 20 times slower inside of a compiled loop than outside
of it (docs/decisions.md). Elsewhere a loop saves the way to the device and back for each step.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
from jax import Array, lax

State = TypeVar('State')


def steps_at_once(most: int) -> int:
    """Return how many steps a compiled function is to do: `most` of them, or 1 on a CPU."""
    return 1 if jax.default_backend() == 'cpu' else most


def repeat(step: Callable[[Array, State], State], first: Array | int, steps: int, state: State) -> State:
    """Do step(i, state) for `steps` numbers i from `first` on; one step makes no loop."""
    if steps == 1:
        return step(jax.numpy.asarray(first), state)
    return lax.fori_loop(first, first + steps, step, state)
