"""The reference: equal to the published networks, to slow loops, and to PyTorch where it is installed.

Golden logits come from float32 weights: ours differ by their rounding, 1e-7 to 6e-6 relative. Tolerance 2e-5.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.cnn import reference
from ghn_jax.cnn.reference import apply_reference
from ghn_jax.hypernet.ghn import GHN, predict_parameters
from ghn_jax.hypernet.published import load_published
from ghn_jax.networks.files import load_networks
from ghn_jax.networks.graph import build_graph
from ghn_jax.quant import Policy, fake_quantize, min_max, oracle
from ghn_jax.quant.scheme import QAT
from tests.cnn.networks import (
    one_sided_policy,
    quantized_names,
    random_images,
    random_parameters,
    shapes,
    small_network,
)

FULL = (
    'convnets-06',
    'convnets-09',
    'convnets-16',
    'convnets-29',
    'deepnets-01',
    'deepnets-18',
    'deepnets-20',
)
PREDICTED = ('convnets-24', 'deep-conv-01')  # too large for the golden data to hold their weights
IN_FLOAT64 = ('convnets-16', 'deepnets-20')
SEPARABLE = small_network([('sep_conv_3x3', 0), ('skip_connect', 1)], n_cells=2)
MIXED = small_network(
    [('sep_conv_3x3', 0), ('max_pool_3x3', 1), ('conv_7x1_1x7', 2), ('skip_connect', 0)],
    [('skip_connect', 0), ('dil_conv_5x5', 1), ('avg_pool_3x3', 2), ('conv_3x3', 1)],
    normal_concat=(2, 3),
    reduce_concat=(2, 3),
    stem_type=1,
    C_mult=2,
    fc_layers=2,
)
ATTENTION = small_network([('msa', 0), ('conv_3x3', 1)], n_cells=1)
EXCITE = small_network([('cse', 0), ('none', 1)], n_cells=2, fc_layers=2)
PLAIN = small_network([('conv_1x1', 0), ('avg_pool_3x3', 1)], n_cells=1, norm=None)
ONE_CELL = small_network([('sep_conv_3x3', 0), ('max_pool_3x3', 1)], n_cells=1)


@pytest.fixture(scope='module')
def published(golden):
    folder = golden / 'open'
    specs = {spec.name: spec for spec in load_networks(folder / 'archs.json')}
    entries = {entry['id']: entry for entry in json.loads((folder / 'archs.json').read_text())}
    images = np.load(folder / 'inputs.npz')['images'].transpose(0, 2, 3, 1)
    refs = {ref['id']: ref for ref in json.loads((folder / 'refs.json').read_text())}
    return specs, entries, images, refs, folder


def relative_error(x, y):
    return np.linalg.norm(np.asarray(x, 'float64') - np.asarray(y)) / np.linalg.norm(y)


def loss_weights(images, num_classes=10):
    return np.random.default_rng(0).normal(size=(len(images), num_classes))


def loss_and_gradients(spec, params, images, **options):
    weights = loss_weights(images)
    return jax.value_and_grad(lambda p: jnp.sum(apply_reference(spec, p, images, **options) * weights))(
        params
    )


def rounded(x, bits):
    """x on 2^bits levels over its own range, in numpy."""
    lo, hi = min(0, x.min()), max(0, x.max())
    s = (hi - lo) / (2**bits - 1)
    z = np.round(-lo / s)
    return ((np.clip(np.round(x / s) + z, 0, 2**bits - 1) - z) * s).astype(x.dtype)


# ---- the published networks


@pytest.mark.parametrize('name', FULL)
def test_logits_equal_the_golden_ones(published, name):
    specs, _, images, _, folder = published
    arrays = np.load(folder / 'refs' / f'{name}.npz')
    params = {key.removeprefix('param/'): arrays[key] for key in arrays if key.startswith('param/')}
    logits = apply_reference(specs[name], params, images)
    assert logits.dtype == jnp.float32
    assert relative_error(logits, arrays['logits']) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize('name', PREDICTED)
def test_logits_of_predicted_weights_equal_the_golden_ones(published, golden, name):
    specs, _, images, _, folder = published
    config, weights = load_published(folder / 'state_dict.npz', golden / 'ghn_config.json')
    params = predict_parameters(GHN(config), weights, build_graph(specs[name]))
    expected = np.load(folder / 'refs' / f'{name}.npz')['logits']
    assert (
        relative_error(apply_reference(specs[name], params, images), expected) < 1e-4
    )  # 32 cells: float32 noise


@pytest.mark.parametrize('name', IN_FLOAT64)
def test_logits_in_float64_equal_the_golden_ones(published, name):
    specs, _, images, refs, folder = published
    arrays = np.load(folder / 'refs' / f'{name}.npz')
    with jax.enable_x64(True):
        params = {
            key.removeprefix('param/'): np.float64(arrays[key]) for key in arrays if key.startswith('param/')
        }
        logits = apply_reference(specs[name], params, images)
        assert logits.dtype == jnp.float64
        assert relative_error(logits, refs[name]['logits_float64']) < 2e-5


def test_exactly_the_predicted_parameters_of_every_published_network_are_read(published):
    specs, entries, *_ = published
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    for name, spec in specs.items():
        read = set()

        class Recorder(dict):
            def __getitem__(self, key, read=read):
                read.add(key)
                return super().__getitem__(key)

        predicted = {
            key: jax.ShapeDtypeStruct(tuple(shape), jnp.float32) for key, shape in entries[name]['params']
        }
        logits = jax.eval_shape(
            lambda p, x, spec=spec: apply_reference(spec, Recorder(p), x), predicted, images
        )
        assert logits.shape == (2, 10)
        assert read == set(predicted), name


# ---- whole networks


def test_gradients_equal_finite_differences():
    with jax.enable_x64(True):
        params, images = (
            random_parameters(ONE_CELL, 0, 'float64'),
            random_images(2, 0, size=16, dtype='float64'),
        )
        _, gradients = loss_and_gradients(ONE_CELL, params, images)
        r = np.random.default_rng(1)
        direction = {name: r.normal(size=w.shape) * np.std(w) for name, w in params.items()}
        eps = 1e-7  # small, so that few relus flip on the way
        losses = []
        for sign in (1, -1):
            moved = {name: w + sign * eps * direction[name] for name, w in params.items()}
            losses.append(np.sum(apply_reference(ONE_CELL, moved, images) * loss_weights(images)))
        slope = sum(np.sum(gradients[name] * direction[name]) for name in params)
        np.testing.assert_allclose((losses[0] - losses[1]) / (2 * eps), slope, rtol=1e-4)


def test_absent_states_are_zeros_in_the_concatenation():
    entries = [('conv_1x1', 0), ('none', 1), ('none', 0), ('none', 2)]
    spec = small_network(entries, normal_concat=(2, 3), reduce_concat=(3, 2), preproc=True, n_cells=2)
    params, images = random_parameters(spec, 0), random_images(2, 0, size=16)
    _, gradients = loss_and_gradients(spec, params, images)
    head = gradients['classifier.0.weight']  # [classes, (state 3, state 2)] after the reduction cell
    assert np.all(head[:, :8] == 0)
    assert np.all(np.any(head[:, 8:] != 0, axis=0))


def test_modules_that_nothing_reads_need_no_parameters():
    entries = [('conv_3x3', 0), ('conv_3x3', 1), ('conv_5x5', 0), ('none', 1)]  # state 3 is joined nowhere
    spec = small_network(entries, n_cells=2)
    assert not any('_ops.2' in name for name in shapes(spec))
    assert apply_reference(spec, random_parameters(spec, 0), random_images(2, 0, size=16)).shape == (2, 10)


def test_batch_norm_makes_the_scale_of_a_convolution_irrelevant_and_without_it_it_matters():
    images = random_images(2, 0, size=16)
    for norm, same in (('bnorm', True), (None, False)):
        spec = small_network([('conv_3x3', 0), ('conv_3x3', 1)], n_cells=1, norm=norm)
        params = random_parameters(spec, 0)
        scaled = params | {'stem.0.weight': 7 * params['stem.0.weight']}
        close = np.allclose(
            apply_reference(spec, params, images), apply_reference(spec, scaled, images), rtol=1e-3, atol=1e-3
        )
        assert close == same


@pytest.mark.parametrize('glob_avg', [True, False])
def test_heads_read_means_or_pixels_channel_by_channel(glob_avg):
    spec = small_network([('skip_connect', 1), ('none', 0)], n_cells=1, stem_pool=True, glob_avg=glob_avg)
    params, images = random_parameters(spec, 0), random_images(2, 0)
    features = []

    def spy(layers, spec, x, mask, head=reference._head):
        features.append(np.asarray(x))
        return head(layers, spec, x, mask)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, '_head', spy)
        logits = apply_reference(spec, params, images)
    (x,) = features
    assert x.shape == (2, 16, 16, 8)
    flat = (
        x.mean((1, 2))
        if glob_avg
        else np.stack([x[..., c].reshape(2, -1) for c in range(8)], 1).reshape(2, -1)
    )
    expected = flat @ params['classifier.0.weight'].T + params['classifier.0.bias']
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('size', [16, 48, 64])
@pytest.mark.parametrize('num_classes', [3])
def test_pooled_heads_take_images_of_any_size_and_any_number_of_classes(size, num_classes):
    spec = small_network([('max_pool_3x3', 0), ('conv_1x1', 1)], stem_type=1, num_classes=num_classes)
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    logits = jax.eval_shape(lambda x: apply_reference(spec, random_parameters(spec, 0), x), images)
    assert logits.shape == (2, num_classes)


def test_dropout_masks_the_hidden_layer():
    spec = small_network([('skip_connect', 0), ('skip_connect', 1)], n_cells=1, fc_layers=2)
    params, images = random_parameters(spec, 0), random_images(2, 0, size=16)
    plain = apply_reference(spec, params, images)
    ones, zeros = np.ones((2, 16)), np.zeros((2, 16))
    np.testing.assert_array_equal(apply_reference(spec, params, images, dropout_mask=ones), plain)
    np.testing.assert_array_equal(
        apply_reference(spec, params, images, dropout_mask=zeros),
        np.tile(params['classifier.3.bias'], (2, 1)),
    )
    halved = params | {'classifier.3.weight': params['classifier.3.weight'] / 2}
    np.testing.assert_allclose(
        apply_reference(spec, halved, images, dropout_mask=2 * ones), plain, rtol=1e-5, atol=1e-5
    )


def test_bad_input_is_a_user_error():
    params, images = random_parameters(SEPARABLE, 0), random_images(1, 0, size=16)
    missing = {name: w for name, w in params.items() if name != 'stem.1.bias'}
    with pytest.raises(UserError, match="parameter 'stem.1.bias' is missing"):
        apply_reference(SEPARABLE, missing, images)
    with pytest.raises(UserError, match="'stem0.*' matches none"):
        apply_reference(SEPARABLE, params, images, policy=Policy(4, 4, (('stem0.*', 8, 8),)))
    flat = small_network([('skip_connect', 0), ('none', 1)], n_cells=1, glob_avg=False)
    with pytest.raises(UserError, match="2048 features enter 'classifier.0', whose weight takes 8192"):
        apply_reference(flat, random_parameters(flat, 0), images)
    attention = small_network([('msa', 0), ('none', 1)], n_cells=1)
    with pytest.raises(UserError, match='images give 6x6 maps'):
        apply_reference(attention, random_parameters(attention, 0), images)


# ---- fake quantization


def test_32_bits_equal_no_policy_to_the_last_digit():
    params, images = random_parameters(MIXED, 0), random_images(2, 0, size=16)
    plain = apply_reference(MIXED, params, images)
    np.testing.assert_array_equal(apply_reference(MIXED, params, images, policy=Policy()), plain)


@pytest.mark.parametrize('spec', [MIXED, ATTENTION, EXCITE], ids=['mixed', 'msa', 'cse'])
def test_quantizing_weights_equals_giving_quantized_weights(spec):
    params, images = random_parameters(spec, 0), random_images(2, 0, size=32 if spec.is_vit else 16)
    names = quantized_names(spec)
    given = {name: rounded(w, 3) if name in names else w for name, w in params.items()}
    logits = apply_reference(spec, params, images, policy=Policy(3, 32))
    np.testing.assert_allclose(logits, apply_reference(spec, given, images), rtol=1e-4, atol=1e-4)
    assert relative_error(logits, apply_reference(spec, params, images)) > 1e-2


def test_a_rule_quantizes_the_weight_it_names_and_no_other():
    params, images = random_parameters(SEPARABLE, 0), random_images(2, 0, size=16)
    name = 'cells.1._ops.0.op.6.weight'
    logits = apply_reference(SEPARABLE, params, images, policy=Policy(rules=((name, 2, 32),)))
    expected = apply_reference(SEPARABLE, params | {name: rounded(params[name], 2)}, images)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_the_image_is_an_activation_with_a_range_of_its_own():
    params, images = random_parameters(SEPARABLE, 0), random_images(2, 0, size=16)
    logits = apply_reference(SEPARABLE, params, images, policy=Policy(rules=(('stem.*', 32, 2),)))
    expected = apply_reference(SEPARABLE, params, rounded(images, 2))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_each_layer_quantizes_one_weight_and_one_activation_and_factorized_reduce_shares_its_own(monkeypatch):
    seen = []
    for function in ('quantize_weight', 'quantize_activation'):
        monkeypatch.setattr(oracle, function, lambda x, bits, *_: seen.append((bits, x.shape)) or x)
    params, images = random_parameters(MIXED, 0), random_images(2, 0)
    jax.eval_shape(lambda p: apply_reference(MIXED, p, images, policy=Policy(4, 8)), params)
    names = quantized_names(MIXED)
    assert sorted(shape for bits, shape in seen if bits == 4) == sorted(params[name].shape for name in names)
    activations = [shape for bits, shape in seen if bits == 8]
    assert len(activations) == len(names) - sum('conv_2' in name for name in names)
    assert sum('conv_2' in name for name in names) == 4  # skip connections and preprocessing
    assert (2, 32, 32, 3) in activations  # the image
    assert (2, 32, 32, 8) in activations  # FactorizedReduce of the stem: before the shift, at full resolution
    assert (2, 16, 16, 16) in activations  # a concatenation, with one range
    assert (2, 64) in activations and (2, 16) in activations  # the features, the hidden layer


@pytest.mark.parametrize('bits', [2, 4, 8])
def test_its_own_rounding_agrees_with_the_one_the_executor_uses(bits):
    with jax.enable_x64(True):
        r = np.random.default_rng(bits)
        # The last two: a range symmetric about 0, whose ends tie, and no range at all.
        for x in (r.normal(size=301), r.uniform(1, 2, size=301), np.linspace(-1, 1, 301), np.zeros(301)):
            x = jnp.asarray(x)
            y, pull = jax.vjp(lambda x: oracle.quantize_activation(x, bits, QAT), x)
            expected, expected_pull = jax.vjp(lambda x: fake_quantize(x, *min_max(x), bits), x)
            np.testing.assert_allclose(y, expected, rtol=1e-15, atol=1e-300)
            np.testing.assert_array_equal(pull(jnp.ones_like(x))[0], expected_pull(jnp.ones_like(x))[0])


def test_op_by_op_and_compiled_agree_to_rounding_when_quantized_one_sidedly():
    with jax.enable_x64(True):
        params = random_parameters(ONE_CELL, 0, 'float64')
        images = random_images(2, 0, size=16, dtype='float64')
        policy = one_sided_policy(quantized_names(ONE_CELL))
        loss, gradients = loss_and_gradients(ONE_CELL, params, images, policy=policy)
        run = jax.jit(lambda p, x: loss_and_gradients(ONE_CELL, p, x, policy=policy))
        expected_loss, expected = run(params, images)
        np.testing.assert_allclose(loss, expected_loss, rtol=1e-11)
        for name in params:
            assert relative_error(gradients[name], expected[name]) < 1e-9, name


def test_a_weight_that_is_no_number_leaves_no_logits_that_are(quick_reference):
    params, images = random_parameters(PLAIN, 0), random_images(2, 0, size=8)
    assert np.all(np.isfinite(apply_reference(PLAIN, params, images)))
    params['stem.0.weight'][:] = np.nan
    assert np.all(np.isnan(apply_reference(PLAIN, params, images)))


# ---- the same networks in PyTorch


@pytest.mark.parametrize('turn', [None, 0, 1])
@pytest.mark.parametrize('spec', [MIXED, EXCITE, ATTENTION], ids=['mixed', 'excite', 'attention'])
def test_logits_and_gradients_equal_those_of_torch(spec, turn):
    torch = pytest.importorskip('torch')
    from ghn_jax.benchmarks import pytorch_networks

    size = 32 if spec is ATTENTION else 16
    policy = Policy() if turn is None else one_sided_policy(quantized_names(spec), turn=turn)
    with jax.enable_x64(True):
        params = random_parameters(spec, 0, 'float64')
        images = random_images(3, 0, size=size, dtype='float64')
        loss, gradients = loss_and_gradients(spec, params, images, policy=policy)
        tensors = {name: torch.tensor(w, requires_grad=True) for name, w in params.items()}
        x = torch.tensor(images.transpose(0, 3, 1, 2))
        logits = pytorch_networks.logits(spec, tensors, x, policy.resolve(quantized_names(spec)))
        expected = (logits * torch.tensor(loss_weights(images))).sum()
        expected.backward()
        np.testing.assert_allclose(loss, expected.item(), rtol=1e-10)
        for name, tensor in tensors.items():
            gradient = np.zeros(tensor.shape) if tensor.grad is None else tensor.grad.numpy()
            assert relative_error(gradients[name], gradient) < 1e-9, name
