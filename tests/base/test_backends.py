"""Which backend a program is built for is said once, and JAX mixes up no two programs for it."""

import jax
import jax.numpy as jnp
import pytest

from ghn_jax.base import backends
from ghn_jax.cnn import ops


def test_programs_are_built_for_the_devices_that_are_here_unless_said():
    assert backends.current() == jax.default_backend() == 'cpu' and backends.on_cpu()
    with backends.built_for('tpu'):
        assert backends.current() == 'tpu' and not backends.on_cpu()
        with backends.built_for('gpu'):
            assert backends.current() == 'gpu'
        assert backends.current() == 'tpu'
    assert backends.on_cpu()


@pytest.mark.parametrize('other', ['gpu', 'tpu'])
def test_a_function_that_is_traced_for_one_backend_is_traced_anew_for_another(other):
    """Of equal arguments, in one process: JAX would take the first program for the second."""
    convolve = jax.jit(ops.depthwise_conv)
    arguments = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2))

    def convolutions():
        return str(convolve.trace(*arguments).jaxpr).count('conv_general_dilated')

    assert convolutions() == 0  # shifted slices
    with backends.built_for(other):
        assert convolutions() == 1
    assert convolutions() == 0
