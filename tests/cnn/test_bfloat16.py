"""The executor on bfloat16 tapes: the float32 results, to what eight bits of mantissa allow."""

import jax.numpy as jnp
import numpy as np
import pytest

from ghn_jax.cnn.building import build_program
from ghn_jax.quant import Policy
from tests.cnn.comparison import Executor, make_inputs, relative_error
from tests.cnn.networks import small_network

SIZE, BATCH = 8, 16
# A normal cell and a reduction each: most ops, strided and not, in half as many branches as sampled networks.
BOTH = {'normal_concat': (2, 3), 'reduce_concat': (2, 3), 'n_cells': 2, 'C': 16}
NETWORKS = [
    small_network([('sep_conv_3x3', 0), ('conv_3x3', 1), ('avg_pool_3x3', 0), ('cse', 1)], **BOTH, name='a'),
    small_network(
        [('conv_7x1_1x7', 0), ('max_pool_3x3', 1), ('skip_connect', 0), ('conv_1x1', 1)], **BOTH, name='b'
    ),
]


@pytest.fixture(scope='module')
def executors():
    program = build_program(NETWORKS, image_size=SIZE, max_params=1e6)
    return {dtype: Executor(program, batch=BATCH, dtype=dtype, flat_dtype='float32')
            for dtype in ('float32', 'bfloat16')}  # fmt: skip


@pytest.mark.parametrize(
    ('policy', 'tolerance', 'least_cosine'), [(Policy(), 0.05, 0.9), (Policy(8, 8), 0.2, 0.8)]
)
def test_loss_and_gradients_are_nearly_those_of_float32(executors, policy, tolerance, least_cosine):
    """Loose: a value rounded to the other side of 0 or of a level changes gradients by whole steps."""
    for spec in NETWORKS:
        inputs = make_inputs(spec, 0, size=SIZE, batch=BATCH, dtype='float32')
        exact, rounded = (executors[dtype](spec, inputs, policy) for dtype in ('float32', 'bfloat16'))
        assert exact.logits.dtype == rounded.logits.dtype == np.float32
        assert 0 < relative_error(rounded.logits, exact.logits) < tolerance
        assert abs(rounded.loss - exact.loss) < 0.02 * exact.loss
        a, b = (np.concatenate([r.gradients[k].ravel() for k in exact.gradients]) for r in (rounded, exact))
        assert a.dtype == np.float32
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > least_cosine


def test_tapes_take_half_the_memory_and_weights_all_of_it(executors):
    full, half = (executors[dtype].buffers[0] for dtype in ('float32', 'bfloat16'))
    for c, tape in full.values.items():
        assert half.values[c].nbytes * 2 == tape.nbytes
        assert half.gradients[c].nbytes * 2 == full.gradients[c].nbytes
    assert half.weights.dtype == full.weights.dtype == jnp.float32
