"""The executor against the reference, and what its buffers must never do.

Comparisons are in float64, of losses, logits and every gradient, to 1e-9 (measured: mostly 1e-14, at worst
2e-12). They quantize weights or the activations entering a layer, not both: with both, the layer's outputs
are whole numbers times one scale, and where such an output is quantized again (a depthwise convolution's
entering its 1x1, the middle of conv_7x1_1x7, anything without BatchNorm) or sees a max pool, values tie
exactly. Noise of 1e-16 then decides, and two correct programs differ by whole levels. Full W4/A4 is compared
where rules of the policy keep those few inputs float, on networks without max pooling.
"""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghn_jax.base import backends
from ghn_jax.cnn.building import build_program
from ghn_jax.cnn.covering import Family, covering_networks, program_for
from ghn_jax.cnn.instructions import Attention, AvgPool, Copy, Excite, Mlp, Norm, Position, Subsample
from ghn_jax.cnn.lowering import lower
from ghn_jax.networks.files import load_networks
from ghn_jax.networks.spaces import make_space
from ghn_jax.quant import Policy
from ghn_jax.quant.scheme import FLOAT as FLOAT_SCHEME
from tests.cnn.comparison import (
    FLOAT,
    Executor,
    Inputs,
    assert_close,
    assert_identical,
    assert_no_tape_copies,
    branches,
    cover,
    make_inputs,
    reference,
    relative_error,
    tape_copies,
    traits,
    used_branches,
)
from tests.cnn.networks import one_sided_policy, quantized_names, small_network

SIZE, BATCH = 16, 2
W4A4 = Policy(4, 4)
pytestmark = pytest.mark.usefixtures('quick_reference')


def inputs_for(spec, seed=0, size=SIZE):
    return make_inputs(spec, seed, size=size, batch=BATCH)


def sampled(space, split, count):
    return [space.sample(split, 0, i) for i in range(count)]


def quantized_policy(spec, k, weights=4, activations=4):
    """Each of four kinds in turn: activations, weights, and every other layer's activations or weights.

    One bit-width throughout lets networks share what the reference compiles. Without BatchNorm, two bits are
    too few: channels come out equal and cancel, and noise decides what relu passes.
    """
    if k % 4 < 2:
        return (Policy(32, activations), Policy(weights if spec.norm else 4, 32))[k % 4]
    names = quantized_names(spec)
    policy = one_sided_policy([name for name in names if 'conv_2.' not in name], bits=4, turn=k % 2)
    # Both convolutions of a FactorizedReduce read what the policy says for the first: one kind for both.
    rest = [name for name in names if 'conv_2.' in name]
    rules = [(re.escape(name), policy.weights(name.replace('conv_2', 'conv_1')), 32) for name in rest]
    return Policy(rules=(*policy.rules, *rules))


def check(executor, spec, k, policies, size=SIZE):
    """Losses, logits and gradients of the network under each policy are those of the reference."""
    inputs = inputs_for(spec, k, size)
    with jax.enable_x64(True):
        for policy in policies:
            result = executor(spec, inputs, policy)
            assert_close(result, reference(spec, inputs, policy), 1e-9, (spec.name, str(policy)[:40]))


# ---- each op once: what is wrong with an op shows here, within seconds


def two_cells(*entries, **fields):
    """A normal cell and a reduction, in which ops that read the cell's inputs are strided."""
    both = {'normal_concat': (2, 3), 'reduce_concat': (2, 3)} if len(entries[0]) == 4 else {}
    return small_network(*entries, **both, n_cells=2, C=16, **fields)


SMALL = [
    two_cells(
        [('conv_1x1', 0), ('sep_conv_3x3', 1), ('conv_3x3', 0), ('max_pool_3x3', 1)],
        fc_layers=2, fc_dim=24, stem_type=1, name='a',
    ),
    two_cells(
        [('conv_7x1_1x7', 1), ('cse', 1), ('none', 0), ('none', 1)],
        [('conv_7x1_1x7', 0), ('cse', 1), ('conv_7x7', 1), ('skip_connect', 0)],
        ks=7, name='b',
    ),
    two_cells(
        [('conv_5x5', 0), ('sep_conv_5x5', 1), ('dil_conv_3x3', 1), ('avg_pool_3x3', 0)],
        ks=5, norm=None, name='c',
    ),
    two_cells([('dil_conv_5x5', 0), ('conv_7x7', 1)], glob_avg=False, name='d'),
    small_network([('skip_connect', 0), ('avg_pool_3x3', 1)], C=16, stem_type=1, preproc=False, name='e'),
]  # fmt: skip


@pytest.fixture(scope='module')
def small():
    with jax.enable_x64(True):
        return Executor(build_program(SMALL, image_size=SIZE, max_params=1e6), batch=BATCH)


def test_the_small_networks_have_each_op_there_is_but_those_of_attention(small):
    spaces = make_space('convnets250k'), make_space('deepnets1m', channels=(32,))
    every = {
        i.op
        for space in spaces
        for spec in covering_networks(space, 'train', Family(32))
        for i in lower(spec).instructions
    } | {Subsample(True), Subsample(False)}  # of networks without preprocessing
    assert {op for segment in small.program.segments for op in segment.ops} == every
    assert len(every) == 35


@pytest.mark.parametrize('spec', SMALL, ids=lambda spec: spec.name)
def test_each_op_equals_the_reference(small, spec):
    check(small, spec, 0, [quantized_policy(spec, kind) for kind in (0, 1)])


def test_what_is_compiled_for_gpus_equals_the_reference():
    with jax.enable_x64(True), backends.built_for('gpu'):
        spec = SMALL[0]
        run = Executor(build_program([spec], image_size=SIZE, max_params=1e6), batch=BATCH)
        run.fill(np.nan)
        check(run, spec, 0, [quantized_policy(spec, 0)])


# ---- networks


# Ops of every kind, smallest and largest kernels, behind the stem of three convolutions, widening; a
# few behind the other stems, of one width. The slow suite has all.
POOLS = ('none', 'max_pool_3x3', 'avg_pool_3x3', 'skip_connect')
COMMON = {'channels': (16,), 'fc_dims': (64, 320), 'cells': (4, 7)}
WIDENING = make_space(
    'convnets250k', ops=(*POOLS, 'conv_1x1', 'conv_7x7', 'conv_7x1_1x7', 'sep_conv_3x3'),
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
    heads = [trait[1:] for trait in used if trait[0] == 'head']
    assert {(size, pooled) for size, pooled, _ in heads} == set(executor.program.heads)
    assert len({(pooled, layers) for _, pooled, layers in heads}) == 4
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
    """Networks of 64 channels in an executor without quantization."""
    with jax.enable_x64(True):
        return Executor(
            program_for(WIDE, 'wide', Family(64), SIZE), batch=BATCH, scheme=FLOAT_SCHEME
        ), sampled(WIDE, 'wide', 2)


def test_wide_networks_and_the_mode_without_quantization_equal_the_reference(wide):
    executor, networks = wide
    for k, spec in enumerate(networks):
        assert spec.C == 64
        check(executor, spec, k, [FLOAT])


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


# ---- what the buffers hold


@pytest.mark.parametrize('value', [np.nan, 1e30])
def test_what_the_buffers_held_before_changes_nothing(small, value):
    with jax.enable_x64(True):
        for spec in SMALL:
            small.fill(0)
            expected = small(spec, inputs_for(spec), W4A4)
            small.fill(value)
            assert_identical(small(spec, inputs_for(spec), W4A4), expected)
            assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(expected))


def test_results_do_not_depend_on_the_networks_run_before(small):
    with jax.enable_x64(True):
        first = {spec.name: small(spec, inputs_for(spec), W4A4) for spec in SMALL}
        for spec in [*SMALL[::-1], *SMALL[::2], *SMALL[1::2]]:
            assert_identical(small(spec, inputs_for(spec), W4A4), first[spec.name])


# ---- compiled text


def test_tape_copies_are_found_where_there_are_some():
    def two(tape):
        return jax.lax.fori_loop(0, 3, lambda i, t: t.at[i].set(t[::-1][i] + t[2 - i]), tape), tape

    text = jax.jit(two).lower(jnp.ones((3, 4, 8, 8, 5))).compile().as_text()
    assert tape_copies(text, {(3, 4, 8, 8, 5)})
    assert not tape_copies(text, {(3, 4, 8, 8, 6)})


def test_no_whole_tape_is_copied_however_it_is_compiled(networks, executor, wide, small):
    with jax.enable_x64(True):
        for compiled, spec in ((executor, networks[0]), (wide[0], wide[1][0]), (small, SMALL[0])):
            compiled(spec, inputs_for(spec))
            assert_no_tape_copies(compiled, BATCH)


def test_no_whole_tape_is_copied_in_training_as_users_compile_it():
    # The gradient of the 5x5 kernel is so large that its instruction runs in a loop of its own.
    cells = [('sep_conv_3x3', 0), ('max_pool_3x3', 1)], [('conv_5x5', 0), ('max_pool_3x3', 1)]
    specs = [small_network(entries, C=32, stem_pool=True, n_cells=3) for entries in cells]
    program = build_program(specs, image_size=8, max_params=1e6)
    executor = Executor(program, batch=3, dtype='float32', options={})
    executor(specs[0], make_inputs(specs[0], 0, size=8, batch=3, dtype='float32'), W4A4)
    assert_no_tape_copies(executor, 3)


# ---- attention and squeeze-and-excitation

ATTENTION = make_space(
    'deepnets1m', ops=('msa', 'cse', 'conv_3x3', 'max_pool_3x3', 'skip_connect', 'none'),
    channels=(16,), fc_dims=(64,), cells=(4, 5), max_steps=2,
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
        executor = Executor(program_for(space, 'train', Family(16, vit), size), batch=BATCH)
    seen = set().union(*(used_branches(executor.program, s) for s in specs))
    assert {type(op) for _, _, op in seen} >= {Excite, *((Attention, Mlp, Position) if vit else ())}
    for k, spec in enumerate(specs):
        policies = [quantized_policy(spec, i) for i in (2 * k, 2 * k + 1)]
        check(executor, spec, k, [*policies, FLOAT][: 3 - k], size)


# ---- the published networks


@pytest.mark.parametrize(
    'names', [('convnets-06', 'convnets-16'), ('deepnets-01',), ('deepnets-18',)], ids=str
)
def test_logits_and_losses_of_published_networks_equal_the_golden_ones(golden, names):
    folder = golden / 'open'
    specs = [spec for spec in load_networks(folder / 'archs.json') if spec.name in names]
    data = np.load(folder / 'inputs.npz')
    images, labels = data['images'].transpose(0, 2, 3, 1), data['labels']
    executor = Executor(
        build_program(specs, image_size=32, max_params=1e7),
        batch=len(images),
        dtype='float32',
        scheme=FLOAT_SCHEME,
    )
    assert {ref['id'] for ref in json.loads((folder / 'refs.json').read_text())} >= {
        spec.name for spec in specs
    }
    for spec in specs:
        arrays = np.load(folder / 'refs' / f'{spec.name}.npz')
        params = {key.removeprefix('param/'): arrays[key] for key in arrays if key.startswith('param/')}
        result = executor(spec, Inputs(params, images, labels))
        assert relative_error(result.logits, arrays['logits']) < 2e-5, spec.name
        assert relative_error(result.loss, arrays['loss']) < 2e-5, spec.name
