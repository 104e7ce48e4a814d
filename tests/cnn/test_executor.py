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

from ghn_jax.cnn.building import build_program
from ghn_jax.cnn.covering import Family, covering_networks, program_for
from ghn_jax.cnn.instructions import Attention, Excite, Mlp, Position
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
    make_inputs,
    reference,
    relative_error,
    tape_copies,
    used_branches,
    with_cover,
)
from tests.cnn.networks import one_sided_policy, quantized_names, small_network

SIZE, BATCH = 16, 2
# All ops behind the stem of three convolutions, widening; a few behind the other stems, of one width.
WIDENING = make_space(
    'convnets250k', channels=(16,), fc_dims=(64, 320), stem_types=(1,), C_mults=(2,), cells=(4, 7)
)
LEVEL_OPS = ('none', 'avg_pool_3x3', 'skip_connect', 'sep_conv_3x3')
LEVEL = make_space(
    'convnets250k',
    ops=LEVEL_OPS,
    channels=(16,),
    fc_dims=(64, 320),
    stem_types=(0,),
    C_mults=(1,),
    cells=(4, 7),
)
WIDE = make_space(
    'convnets250k', ops=('conv_3x3', 'skip_connect'), channels=(16,), ks=(5,), fc_dims=(64,),
    stem_types=(1,), C_mults=(2,), cells=(4, 4), max_steps=2,
)  # fmt: skip


pytestmark = pytest.mark.usefixtures('quick_reference')


def sampled(space, split, count):
    return [space.sample(split, 0, i) for i in range(count)]


@pytest.fixture(scope='module')
def networks():
    """Sampled networks, deep ones and some without BatchNorm among them, then the few it takes to use all."""
    pool = [spec for space in (WIDENING, LEVEL) for spec in covering_networks(space, 'train', Family(16))]
    sample = sampled(WIDENING, 'train', 18) + sampled(WIDENING, 'bnfree', 3)
    sample += sampled(LEVEL, 'train', 12) + sampled(LEVEL, 'bnfree', 3) + sampled(LEVEL, 'deep', 2)
    return with_cover(sample, pool, SIZE), pool


@pytest.fixture(scope='module')
def executor(networks):
    chosen, pool = networks
    program = build_program([*pool, *chosen], image_size=SIZE, max_params=2e6)
    with jax.enable_x64(True):
        return Executor(program, batch=BATCH)


def quantized_policy(spec, k):
    """Each of four kinds in turn: activations, weights, and every other layer's activations or weights.

    Without BatchNorm, two bits are too few: channels come out equal and cancel, and noise decides what relu
    passes.
    """
    if k % 4 < 2:
        return (Policy(32, 3), Policy(2 if spec.norm else 4, 32))[k % 4]
    names = quantized_names(spec)
    policy = one_sided_policy([name for name in names if 'conv_2.' not in name], bits=4, turn=k % 2)
    # Both convolutions of a FactorizedReduce read what the policy says for the first: one kind for both.
    rest = [name for name in names if 'conv_2.' in name]
    rules = [(re.escape(name), policy.weights(name.replace('conv_2', 'conv_1')), 32) for name in rest]
    return Policy(rules=(*policy.rules, *rules))


def test_the_sample_uses_every_branch_op_stem_and_head(networks, executor):
    chosen, _ = networks
    assert len(chosen) >= 40  # 60 of the whole space below, in the slow suite
    assert set().union(*(used_branches(executor.program, spec) for spec in chosen)) == branches(
        executor.program
    )
    assert set().union(*(spec.genotype.ops for spec in chosen)) == set(WIDENING.ops)
    assert {(spec.stem_type, spec.stem_pool, spec.ks) for spec in chosen} == {
        (stem, pool, ks) for stem, pool in ((0, False), (0, True), (1, False)) for ks in (3, 5, 7)
    }
    assert {(spec.fc_layers, spec.glob_avg) for spec in chosen} == {
        (a, b) for a in (1, 2) for b in (True, False)
    }
    assert {spec.fc_dim for spec in chosen if spec.fc_layers == 2} == {64, 320}  # one panel of units and two
    assert {spec.norm for spec in chosen} == {'bnorm', None}
    assert {spec.C_mult for spec in chosen} == {1, 2}
    assert max(spec.n_cells for spec in chosen) > 20
    concats = {
        len(concat)
        for spec in chosen
        for concat in (spec.genotype.normal_concat, spec.genotype.reduce_concat)
    }
    assert concats == {1, 2, 3, 4}
    heads = {int(executor.program.layout(spec).tables.head.variant) for spec in chosen}
    assert heads == set(range(len(executor.program.heads)))


def test_losses_logits_and_gradients_equal_those_of_the_reference(networks, executor):
    with jax.enable_x64(True):
        for k, spec in enumerate(networks[0]):
            inputs = make_inputs(spec, k, size=SIZE, batch=BATCH)
            for policy in (quantized_policy(spec, k), FLOAT)[: 1 + (k % 5 == 0)]:
                result = executor(spec, inputs, policy)
                assert_close(result, reference(spec, inputs, policy), 1e-9, (spec.name, str(policy)[:40]))


def test_full_w4a4_equals_the_reference_where_nothing_ties(networks, executor):
    second = r'cells\.\d+\._ops\.\d+\.op\.[26]\.weight'  # of blocks with no norm between their convolutions
    fit = [
        spec
        for spec in networks[0]
        if spec.norm
        and not spec.stem_pool
        and 'max_pool_3x3' not in spec.genotype.ops
        and spec.n_cells < 10
        and any(re.fullmatch(second, name) for name in quantized_names(spec))
    ]
    assert len(fit) >= 6
    with jax.enable_x64(True):
        for k, spec in enumerate(fit[:6]):
            inputs, policy = make_inputs(spec, k, size=SIZE, batch=BATCH), Policy(4, 4, ((second, 4, 32),))
            result = executor(spec, inputs, policy)
            assert_close(result, reference(spec, inputs, policy), 1e-9, spec.name)
            assert relative_error(executor(spec, inputs).logits, result.logits) > 1e-2


@pytest.fixture(scope='module')
def wide():
    """Networks of 64 channels in an executor without quantization."""
    with jax.enable_x64(True):
        return Executor(
            program_for(WIDE, 'wide', Family(64), SIZE), batch=BATCH, scheme=FLOAT_SCHEME
        ), sampled(WIDE, 'wide', 3)


def test_wide_networks_and_the_mode_without_quantization_equal_the_reference(wide):
    executor, networks = wide
    with jax.enable_x64(True):
        for k, spec in enumerate(networks):
            assert spec.C == 64
            inputs = make_inputs(spec, k, size=SIZE, batch=BATCH)
            assert_close(executor(spec, inputs), reference(spec, inputs), 1e-9, spec.name)


@pytest.mark.slow
@pytest.mark.parametrize('split', ['train', 'dense'])
def test_every_branch_of_the_whole_space_equals_the_reference(split):
    space = make_space('convnets250k', channels=(16,), fc_dims=(64,), cells=(4, 9), dense_split_steps=(2, 7))
    pool = list(covering_networks(space, split, Family(16)))
    chosen = with_cover(sampled(space, split, 60 if split == 'train' else 10), pool, SIZE)
    with jax.enable_x64(True):
        executor = Executor(build_program(pool, image_size=SIZE, max_params=4e6), batch=BATCH)
        assert set().union(*(used_branches(executor.program, s) for s in chosen)) == branches(
            executor.program
        )
        for k, spec in enumerate(chosen):
            inputs = make_inputs(spec, k, size=SIZE, batch=BATCH)
            for policy in (FLOAT, *(quantized_policy(spec, i) for i in (0, 1, 2 + k % 2))):
                result = executor(spec, inputs, policy)
                assert_close(result, reference(spec, inputs, policy), 1e-9, (spec.name, str(policy)[:40]))


# ---- small programs


SMALL = [
    small_network(
        [('sep_conv_3x3', 0), ('max_pool_3x3', 1), ('none', 0), ('none', 1)],
        [('skip_connect', 0), ('conv_7x1_1x7', 1), ('dil_conv_3x3', 2), ('conv_1x1', 1)],
        normal_concat=(2, 3), reduce_concat=(2, 3), C=16, C_mult=2, fc_layers=2, fc_dim=24, stem_type=1,
        name='a',
    ),
    small_network([('conv_3x3', 0), ('skip_connect', 1)], C=16, norm=None, n_cells=4, ks=5, name='b'),
    small_network([('avg_pool_3x3', 0), ('conv_5x5', 1)], C=16, stem_pool=True, glob_avg=False, name='c'),
    small_network([('skip_connect', 0), ('max_pool_3x3', 1)], C=16, stem_type=1, preproc=False, name='d'),
]  # fmt: skip
W4A4 = Policy(4, 4)


@pytest.fixture(scope='module')
def small():
    return Executor(build_program(SMALL, image_size=8, max_params=1e6), batch=4, dtype='float32')


def small_inputs(spec, seed=0, dtype='float32'):
    return make_inputs(spec, seed, size=8, batch=4, dtype=dtype)


@pytest.mark.parametrize('value', [np.nan, 1e30])
def test_what_the_buffers_held_before_changes_nothing(small, value):
    for spec in SMALL:
        small.fill(0)
        expected = small(spec, small_inputs(spec), W4A4)
        small.fill(value)
        assert_identical(small(spec, small_inputs(spec), W4A4), expected)
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(expected))


def test_results_do_not_depend_on_the_networks_run_before(small):
    first = {spec.name: small(spec, small_inputs(spec), W4A4) for spec in SMALL}
    for spec in [*SMALL[::-1], *SMALL[::2], *SMALL[1::2]]:
        assert_identical(small(spec, small_inputs(spec), W4A4), first[spec.name])


# ---- compiled text


def test_tape_copies_are_found_where_there_are_some():
    def two(tape):
        return jax.lax.fori_loop(0, 3, lambda i, t: t.at[i].set(t[::-1][i] + t[2 - i]), tape), tape

    text = jax.jit(two).lower(jnp.ones((3, 4, 8, 8, 5))).compile().as_text()
    assert tape_copies(text, {(3, 4, 8, 8, 5)})
    assert not tape_copies(text, {(3, 4, 8, 8, 6)})


def test_no_whole_tape_is_copied_however_it_is_compiled(executor, wide, small):
    for compiled, batch in ((executor, BATCH), (wide[0], BATCH), (small, 4)):
        assert_no_tape_copies(compiled, batch)


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
    'deepnets1m', ops=('msa', 'cse', 'conv_3x3', 'sep_conv_3x3', 'max_pool_3x3', 'skip_connect', 'none'),
    channels=(16,), fc_dims=(64,), cells=(4, 5), max_steps=2,
)  # fmt: skip


# Networks with attention have cse as well: those without it are left to the slow suite.
@pytest.mark.parametrize(
    'vit', [pytest.param(False, id='excitation', marks=pytest.mark.slow), pytest.param(True, id='attention')]
)
def test_networks_with_msa_and_cse_equal_the_reference(vit):
    size = 32 if vit else SIZE
    ops = {'msa', 'cse'} if vit else {'cse'}
    space = ATTENTION if vit else dataclasses.replace(ATTENTION, ops=ATTENTION.ops[1:])
    specs = [s for s in sampled(space, 'train', 60) if s.is_vit == vit and s.genotype.ops & ops][:4]
    assert set().union(*(s.genotype.ops for s in specs)) >= ops and len(specs) == 4
    with jax.enable_x64(True):
        executor = Executor(program_for(space, 'train', Family(16, vit), size), batch=BATCH)
        seen = set().union(*(used_branches(executor.program, s) for s in specs))
        assert {type(op) for _, _, op in seen} >= {Excite, *((Attention, Mlp, Position) if vit else ())}
        for k, spec in enumerate(specs):
            inputs = make_inputs(spec, k, size=size, batch=BATCH)
            for policy in (quantized_policy(spec, k), FLOAT)[: 1 + (k % 2)]:
                result = executor(spec, inputs, policy)
                assert_close(result, reference(spec, inputs, policy), 1e-9, (spec.name, str(policy)[:40]))


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
