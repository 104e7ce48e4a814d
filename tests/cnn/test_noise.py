"""Noise and dropout in the executor: functions of the key, the same in the forward and the backward pass."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghn_jax.cnn.building import build_program
from ghn_jax.cnn.quantizer import Quantization, with_sizes
from ghn_jax.cnn.tables import GROUP, PARTS
from ghn_jax.quant import Policy, Scheme, fake_quantize
from ghn_jax.quant.scheme import FLOAT as FLOAT_SCHEME
from tests.cnn.comparison import (
    Executor,
    assert_close,
    assert_identical,
    assert_no_tape_copies,
    make_inputs,
    reference,
    relative_error,
)
from tests.cnn.networks import small_network

pytestmark = pytest.mark.usefixtures('quick_reference')
W4A4, NOISE = Policy(4, 4), Scheme('noise')
# Noise in every branch takes long to compile: few ops. The second has no preprocessing.
SIZES = {'C': 16, 'n_cells': 2, 'stem_type': 1}
NOISY = [
    small_network(
        [('sep_conv_3x3', 0), ('none', 1)], [('skip_connect', 0), ('conv_7x1_1x7', 1)],
        **SIZES, C_mult=2, fc_layers=2, fc_dim=24, name='a',
    ),
    small_network([('skip_connect', 0), ('skip_connect', 1)], **SIZES, preproc=False, name='b'),
]  # fmt: skip


def inputs_of(spec):
    return make_inputs(spec, 0, size=8, batch=4)


@pytest.fixture(scope='module')
def noisy():
    with jax.enable_x64(True):
        return Executor(build_program(NOISY, image_size=8, max_params=1e6), batch=4, scheme=NOISE)


def test_noise_is_a_function_of_the_key_and_vanishes_with_32_bits(noisy):
    with jax.enable_x64(True):
        for spec in NOISY:
            inputs = inputs_of(spec)
            a, b, c = (noisy(spec, inputs, W4A4, seed) for seed in (1, 2, 1))
            assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(a))
            assert_identical(a, c)
            assert relative_error(a.logits, b.logits) > 1e-2
            # Without preprocessing, ops read what the relu of the stem's second part leaves.
            assert_close(noisy(spec, inputs), reference(spec, inputs), 1e-9, spec.name)


def test_noise_on_weights_and_on_activations_averages_out(noisy):
    with jax.enable_x64(True):
        spec = NOISY[0]
        inputs = inputs_of(spec)
        exact = noisy(spec, inputs).logits
        for policy in (Policy(8, 32), Policy(32, 8)):
            off = [noisy(spec, inputs, policy, seed).logits - exact for seed in range(48)]
            single = np.mean([np.linalg.norm(x) for x in off])
            assert 1e-4 < single / np.linalg.norm(exact) < 0.3
            assert np.linalg.norm(np.mean(off, 0)) < 0.45 * single  # 1 / sqrt(48) = 0.14, were it linear


@pytest.mark.parametrize(
    'name',
    [
        'stem0.0.weight', 'stem1.1.weight', 'cells.0.preprocess0.conv_1.weight',
        'cells.1.preprocess1.op.1.weight',
        'cells.0._ops.0.op.1.weight', 'cells.0._ops.0.op.2.weight', 'cells.1._ops.1.op.1.weight',
        'cells.1._ops.1.op.2.weight', 'classifier.0.weight', 'classifier.3.weight',
    ],
)  # fmt: skip
def test_the_backward_pass_sees_the_noise_of_the_forward_pass(noisy, name):
    """Noise on what enters one layer: it does not depend on the layer's weight, so differences are exact."""
    with jax.enable_x64(True):
        spec = NOISY[0]
        inputs = inputs_of(spec)
        policy = Policy(rules=((re.escape(name), 32, 3),))
        result = noisy(spec, inputs, policy, 5)
        slope = np.linalg.norm(result.gradients[name])
        losses = []
        for step in (1e-6, -1e-6):  # small, so that few relus flip
            params = inputs.params | {name: inputs.params[name] + step * result.gradients[name] / slope}
            losses.append(noisy(spec, inputs._replace(params=params), policy, 5).loss)
        np.testing.assert_allclose((losses[0] - losses[1]) / 2e-6, slope, rtol=1e-4)
        assert relative_error(result.gradients[name], noisy(spec, inputs).gradients[name]) > 1e-3


@pytest.mark.parametrize('scheme', [Scheme('qat'), Scheme('qat', activation_clip=0.5), NOISE], ids=str)
@pytest.mark.parametrize('size', [0.0, 1.0])
def test_what_relus_give_is_rounded_as_any_tensor_over_its_range(scheme, size):
    """Zeros stay zeros: where nothing passes a relu there is no range for noise to be in."""
    key, r, slot, bits = jax.random.key(0), jnp.int32(2), 1, np.full((3, 2), 4, 'int32')
    x = size * jnp.maximum(jax.random.normal(key, (2, 4, 4, 3)), 0)
    quantization = Quantization(scheme, jnp.asarray(bits), 1, key)
    sizes = with_sizes(quantization.no_sizes(3, x.dtype), x, slot, None)
    row = jnp.zeros(10, int).at[GROUP].set(slot).at[PARTS].set(1)
    found = quantization.quantizer(r, row, sizes).quantize_relu(x)
    noise = jax.random.fold_in(jax.random.fold_in(key, r), 0)
    hi = scheme.activation_clip * x.max()
    expected = fake_quantize(x, 0, hi, 4, mode=scheme.mode, key=noise)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_dropout_masks_hidden_units_and_scales_the_others():
    with jax.enable_x64(True):
        spec = small_network([('skip_connect', 0), ('none', 1)], n_cells=1, C=16, fc_layers=2, fc_dim=24)
        plain = dataclasses.replace(spec, fc_layers=1)  # nothing to drop
        program = build_program([spec, plain], image_size=8, max_params=1e6)
        executor = Executor(program, batch=4, scheme=FLOAT_SCHEME, dropout=0.5)
        inputs = inputs_of(spec)
        a, b, c = (executor(spec, inputs, seed=seed) for seed in (1, 2, 1))
        assert_identical(a, c)
        assert relative_error(a.logits, b.logits) > 1e-2
        mask = dropout_mask(executor, spec, inputs, seed=1)
        assert set(np.unique(mask)) == {0.0, 2.0} and 0.25 < np.mean(mask > 0) < 0.75
        assert_close(a, reference(spec, inputs, dropout_mask=mask), 1e-9)
        inputs = inputs_of(plain)
        assert_close(executor(plain, inputs, seed=1), reference(plain, inputs), 1e-9)


def dropout_mask(executor, spec, inputs, seed):
    """Factors [N, hidden] read off the logits: unit u alone is given a weight into class 0."""
    units = spec.fc_dim
    zero = {
        'classifier.3.weight': np.zeros((spec.num_classes, units)),
        'classifier.3.bias': np.zeros(spec.num_classes),
    }
    params = inputs.params | zero
    params['classifier.0.weight'] = np.zeros_like(params['classifier.0.weight'])
    params['classifier.0.bias'] = np.ones(units)
    mask = []
    for u in range(units):
        weight = np.zeros((spec.num_classes, units))
        weight[0, u] = 1
        run = executor(spec, inputs._replace(params=params | {'classifier.3.weight': weight}), seed=seed)
        mask.append(run.logits[:, 0])
    return np.stack(mask, 1)


def test_no_whole_tape_is_copied(noisy):
    with jax.enable_x64(True):
        noisy(NOISY[0], inputs_of(NOISY[0]))
    assert_no_tape_copies(noisy, 4)
