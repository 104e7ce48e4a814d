"""The executor against the reference, and what its buffers must never do.

Comparisons are in float64, of losses, logits and every gradient, to 1e-9 (measured: mostly 1e-14, at worst
2e-12). They quantize weights or the activations entering a layer, not both: with both, the layer's outputs
are whole numbers times one scale, and where such an output is quantized again (a depthwise convolution's
entering its 1x1, the middle of conv_7x1_1x7, anything without BatchNorm) or sees a max pool, values tie
exactly. Noise of 1e-16 then decides, and two correct programs differ by whole levels. Full W4/A4 is compared
where rules of the policy keep those few inputs float, on networks without max pooling.
"""

import re

import jax
import pytest

from ghn_jax.cnn.building import build_program
from ghn_jax.cnn.covering import Family, covering_networks, program_for
from ghn_jax.cnn.instructions import AvgPool, Copy, Norm
from ghn_jax.networks.spaces import make_space
from ghn_jax.quant import Policy
from ghn_jax.quant.scheme import FLOAT as FLOAT_SCHEME
from tests.cnn.comparison import (
    FLOAT,
    Executor,
    assert_no_tape_copies,
    branches,
    cover,
    relative_error,
    traits,
    used_branches,
)
from tests.cnn.executor_checks import BATCH, SIZE, check, inputs_for, quantized_policy, sampled
from tests.cnn.networks import quantized_names

pytestmark = pytest.mark.usefixtures('quick_reference')


# Ops of every kind behind the stem of three convolutions, widening; a few behind the other stems, of one
# width. `test_executor_ops` has all ops one by one, the slow suite all of them in sampled networks.
POOLS = ('none', 'max_pool_3x3', 'avg_pool_3x3', 'skip_connect')
COMMON = {'channels': (16,), 'fc_dims': (64, 320), 'cells': (4, 4)}
WIDENING = make_space(
    'convnets250k', ops=(*POOLS, 'conv_1x1', 'conv_7x1_1x7', 'sep_conv_3x3'),
    stem_types=(1,), ks=(7,), C_mults=(2,), **COMMON,
)  # fmt: skip
LEVEL = make_space(
    'convnets250k', ops=('none', 'avg_pool_3x3', 'skip_connect', 'sep_conv_3x3'),
    stem_types=(0,), ks=(3,), C_mults=(1,), **COMMON,
)  # fmt: skip
WIDE = make_space(
    'convnets250k', ops=('conv_3x3', 'skip_connect'), channels=(16,), ks=(5,), fc_dims=(64,),
    stem_types=(1,), C_mults=(2,), cells=(4, 4), max_steps=2,
)  # fmt: skip


@pytest.fixture(scope='module')
def pool():
    """Networks that have every branch of two spaces, and samples: some deep, some without BatchNorm."""
    pool = [spec for space in (WIDENING, LEVEL) for spec in covering_networks(space, 'train', Family(16))]
    pool += sampled(WIDENING, 'train', 18) + sampled(WIDENING, 'bnfree', 3)
    return pool + sampled(LEVEL, 'train', 14) + sampled(LEVEL, 'bnfree', 3) + sampled(LEVEL, 'deep', 2)


@pytest.fixture(scope='module')
def executor(pool):
    with jax.enable_x64(True):
        return Executor(build_program(pool, image_size=SIZE, max_params=2e6), batch=BATCH)


@pytest.fixture(scope='module')
def networks(pool, executor):
    """The few of the pool that it takes to have all that any of them has."""
    return cover(pool, lambda spec: traits(executor.program, spec))


def test_the_networks_use_every_branch_op_stem_and_head(networks, executor):
    assert len(networks) < 30
    used = set().union(*(traits(executor.program, spec) for spec in networks))
    assert used >= branches(executor.program)
    assert used >= {('op', op) for op in WIDENING.ops}
    assert used >= {('stem', 0, False, 3), ('stem', 0, True, 3), ('stem', 1, False, 7)}
    assert used >= {('head', size, pooled) for size, pooled in executor.program.heads}
    assert used >= {('layers', pooled, layers) for pooled in (False, True) for layers in (1, 2)}
    assert used >= {('hidden', units) for units in (64, 320)}  # one panel of units and two
    assert used >= {('norm', 'bnorm'), ('norm', None), ('widening', 1), ('widening', 2), ('deep', True)}
    assert used >= {('concat', n) for n in (1, 2, 3, 4)}
    assert used >= {('adds', op, flag) for op in (Norm(), Copy(), AvgPool(1)) for flag in (0, 1)}


def test_losses_logits_and_gradients_equal_those_of_the_reference(networks, executor):
    for k, spec in enumerate(networks):
        check(executor, spec, k, [quantized_policy(spec, k), FLOAT][: 1 + (k % 8 == 0)])


def test_full_w4a4_equals_the_reference_where_nothing_ties(pool, executor):
    second = r'cells\.\d+\._ops\.\d+\.op\.[26]\.weight'  # of blocks with no norm between their convolutions
    fit = [
        spec
        for spec in pool
        if spec.norm
        and not spec.stem_pool
        and 'max_pool_3x3' not in spec.genotype.ops
        and spec.n_cells < 10
        and len(spec.genotype.ops) > 2
        and any(re.fullmatch(second, name) for name in quantized_names(spec))
    ]
    assert len(fit) >= 4
    for k, spec in enumerate(fit[:4]):
        policy = Policy(4, 4, ((second, 4, 32),))
        check(executor, spec, k, [policy])
        with jax.enable_x64(True):
            quantized, exact = (executor(spec, inputs_for(spec, k), p) for p in (policy, FLOAT))
            assert relative_error(exact.logits, quantized.logits) > 1e-2


@pytest.fixture(scope='module')
def wide():
    """An executor without quantization, and a network of 64 channels."""
    program = program_for(WIDE, 'wide', Family(64), SIZE)
    with jax.enable_x64(True):
        return Executor(program, batch=BATCH, scheme=FLOAT_SCHEME), WIDE.sample('wide', 0, 1)


def test_wide_networks_and_the_mode_without_quantization_equal_the_reference(wide):
    executor, spec = wide
    assert spec.C == 64
    check(executor, spec, 1, [FLOAT])


def test_plain_networks_equal_the_reference():
    space = make_space(
        'convnets250k', plain_share=1.0, ops=('none', 'skip_connect', 'sep_conv_3x3'), channels=(16,),
        cells=(3, 3), stem_types=(1,), ks=(3,), C_mults=(1,), fc_dims=(64,), fc_layers=(1,),
    )  # fmt: skip
    pool = [spec for spec in sampled(space, 'train', 60) if not spec.preproc]
    residual, single = (
        next(spec for spec in pool if spec.norm and spec.genotype.normal[1][0] == beside)
        for beside in ('skip_connect', 'none')
    )
    with jax.enable_x64(True):
        executor = Executor(program_for(space, 'train', Family(16), SIZE), batch=BATCH)
    for spec in (residual, single):
        check(executor, spec, 0, [Policy(4, 8)])


@pytest.mark.slow
@pytest.mark.parametrize('split', ['train', 'dense'])
def test_every_branch_of_the_whole_space_equals_the_reference(split):
    space = make_space('convnets250k', channels=(16,), fc_dims=(64,), cells=(4, 9), dense_split_steps=(2, 7))
    pool = list(covering_networks(space, split, Family(16)))
    with jax.enable_x64(True):
        executor = Executor(build_program(pool, image_size=SIZE, max_params=4e6), batch=BATCH)
    chosen = sampled(space, split, 60 if split == 'train' else 10)
    chosen += cover(pool, lambda spec: traits(executor.program, spec))
    assert set().union(*(used_branches(executor.program, s) for s in chosen)) == branches(executor.program)
    for k, spec in enumerate(chosen):
        policies = (quantized_policy(spec, i, weights=2, activations=3) for i in (0, 1, 2 + k % 2))
        check(executor, spec, k, (FLOAT, *policies))


def test_no_whole_tape_is_copied(networks, executor, wide):
    with jax.enable_x64(True):
        for compiled, spec in ((executor, networks[0]), wide):
            compiled(spec, inputs_for(spec))
            assert_no_tape_copies(compiled, BATCH)
