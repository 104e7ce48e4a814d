"""The backend that programs are built for: that of the device at hand, or of one that is not here.

What is fastest differs from backend to backend, so code that is traced asks here which one it is for. The
answer is part of what JAX finds a traced function by: tracing the same function for another backend traces
it anew. Nothing else may remember what follows from it (no `functools.cache` around it).
"""

import contextlib
from typing import Literal, cast

import jax

Backend = Literal['cpu', 'gpu', 'tpu']

_CHOSEN = jax.make_user_context(None)


def current() -> Backend:
    """Return the backend of the program that is being built: `built_for`'s, else that of JAX's devices."""
    return cast(Backend, _CHOSEN.value or jax.default_backend())


def on_cpu() -> bool:
    """Return whether the program is for a CPU."""
    return current() == 'cpu'


def kernels_are_launches() -> bool:
    """Return whether a kernel costs its launch, so that fewer are better than less work in each: on GPUs."""
    return current() == 'gpu'


def built_for(backend: Backend) -> contextlib.AbstractContextManager[None]:
    """Build what the block builds for `backend`, whatever devices are here.

    with built_for('tpu'): lowered = f.trace(shapes).lower(lowering_platforms=('tpu',))
    """
    return _CHOSEN(backend)
