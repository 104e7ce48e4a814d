"""Every scheme in the executor against the plain version in the reference, in float64, at many bit-widths.

Ties as at the top of `tests/cnn/test_executor.py`: policies quantize weights or activations, not both.
"""

import dataclasses

import jax
import numpy as np
import pytest

from ghn_jax.cnn.building import build_program
from ghn_jax.quant import Policy, Scheme
from ghn_jax.quant.policy import TERNARY
from tests.cnn.comparison import Executor, assert_close, make_inputs, reference, relative_error
from tests.cnn.networks import small_network

NETWORKS = [
    small_network(
        [('sep_conv_3x3', 0), ('skip_connect', 1)], C=16, n_cells=2, fc_layers=2, fc_dim=24, name='a',
    ),
    small_network([('skip_connect', 0), ('conv_1x1', 1)], C=16, n_cells=2, norm=None, name='b'),
]  # fmt: skip
# Every option at least once, and in company.
SCHEMES = {
    'default': Scheme('qat'),
    'channel, percentile, sigma': Scheme(
        'qat', granularity='channel', weight_range='percentile', percentile=90, activation_range='sigma',
    ),
    'mse, clipped': Scheme('qat', weight_range='mse', activation_clip=0.5),
    'channel, symmetric, mse, given sigmas': Scheme(
        'qat', granularity='channel', symmetric=True, weight_range='mse', activation_range='sigma',
        activation_sigmas=1.5,
    ),
    'sigma, symmetric': Scheme('qat', symmetric=True, weight_range='sigma', activation_range='sigma'),
    'channel, sigma': Scheme('qat', granularity='channel', weight_range='sigma'),
}  # fmt: skip
# By turns: what a policy leaves out for one scheme the next one has.
POLICIES = [
    Policy(2, 32, (('stem.*', TERNARY, 32), ('classifier.*', 1, 32))),
    Policy(32, 2, (('cells.*', 32, 1),)),
    Policy(1, 32, edges=(5, 5)),
    Policy(TERNARY, 32, (('stem.*', 32, 4),)),
    Policy(32, 1, edges=(8, 8)),
    Policy(4, 32, (('stem.*', 2, 32),)),
]


pytestmark = pytest.mark.usefixtures('quick_reference')


FAST = ('channel, percentile, sigma',)  # the others: parts in test_weights, test_fake_quant


@pytest.mark.parametrize(
    'name', [s if s in FAST else pytest.param(s, marks=pytest.mark.slow) for s in SCHEMES]
)
def test_losses_logits_and_gradients_equal_those_of_the_reference(name):
    scheme, turn = SCHEMES[name], 3 * (list(SCHEMES).index(name) % 2)
    networks = [dataclasses.replace(NETWORKS[0], n_cells=1)] if name in FAST else NETWORKS
    with jax.enable_x64(True):
        executor = Executor(build_program(networks, image_size=8, max_params=1e6), batch=3, scheme=scheme)
        for spec in networks:
            inputs = make_inputs(spec, 1, size=8, batch=3)
            results = []
            for policy in POLICIES[turn : turn + 3]:
                result = executor(spec, inputs, policy)
                assert_close(
                    result, reference(spec, inputs, policy, scheme=scheme), 1e-9, (name, str(policy))
                )
                results.append(result.logits)
            distinct = [relative_error(a, b) > 1e-6 for i, a in enumerate(results) for b in results[:i]]
            assert np.mean(distinct) > 0.9
