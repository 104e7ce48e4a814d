"""The executor on networks with attention and squeeze-and-excitation equals the reference, in float64."""

import dataclasses

import jax
import pytest

from ghn_jax.cnn.building import build_program
from ghn_jax.cnn.instructions import Attention, Excite, Mlp, Position
from ghn_jax.networks.spaces import make_space
from tests.cnn.comparison import Executor, used_branches
from tests.cnn.executor_checks import BATCH, SIZE, check, quantized_policy, sampled

pytestmark = pytest.mark.usefixtures('quick_reference')

ATTENTION = make_space(
    'deepnets1m', ops=('msa', 'cse', 'conv_3x3', 'max_pool_3x3', 'skip_connect', 'none'),
    channels=(16,), fc_dims=(64,), cells=(4, 4), max_steps=2,
)  # fmt: skip


# Networks with attention have cse as well: those without it are left to the slow suite.
@pytest.mark.parametrize(
    'vit', [pytest.param(False, id='excitation', marks=pytest.mark.slow), pytest.param(True, id='attention')]
)
def test_networks_with_msa_and_cse_equal_the_reference(vit):
    size = 32 if vit else SIZE
    space = ATTENTION if vit else dataclasses.replace(ATTENTION, ops=ATTENTION.ops[1:])
    ops = {'msa', 'cse', 'conv_3x3'} if vit else {'cse', 'conv_3x3'}
    specs = [s for s in sampled(space, 'train', 60) if s.is_vit == vit and s.genotype.ops >= ops][:2]
    with jax.enable_x64(True):
        executor = Executor(build_program(specs, image_size=size, max_params=2e6), batch=BATCH)
    seen = set().union(*(used_branches(executor.program, s) for s in specs))
    assert {type(op) for _, _, op in seen} >= {Excite, *((Attention, Mlp, Position) if vit else ())}
    for k, spec in enumerate(specs):
        check(executor, spec, k, [quantized_policy(spec, i) for i in (2 * k, 2 * k + 1)], size)
