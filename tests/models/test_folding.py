"""A calibrated model computes what it would by the same statistics, unfolded, and depends on no batch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import ghn_jax
from ghn_jax.cnn.reference import apply_reference, observe_reference
from ghn_jax.models.folding import calibrate, correct
from ghn_jax.models.kept_norms import balance
from ghn_jax.models.norm_statistics import measure
from ghn_jax.models.tracing import trace
from ghn_jax.quant.policy import FLOAT_BITS, Policy, parse_bits
from ghn_jax.quant.scheme import QAT, Scheme
from tests.cnn.networks import (
    one_sided_policy,
    quantized_names,
    random_images,
    random_parameters,
    small_network,
)
from tests.models import linen_models
from tests.tuning.models import parameters


class Norms(nn.Module):
    """Norms of all kinds: of a biased layer, of a sum, without scale, without shift, of features."""

    @nn.compact
    def __call__(self, x, train: bool = True):
        norm = partial(nn.BatchNorm, use_running_average=not train)
        x = nn.relu(norm()(nn.Conv(8, (3, 3))(x)))
        y = norm(use_scale=False)(nn.Conv(8, (3, 3), use_bias=False)(x))
        x = nn.relu(norm(use_bias=False, use_fast_variance=False)(x + y))
        x = nn.LayerNorm()(nn.Conv(6, (3, 3), feature_group_count=2)(x))
        y = nn.Conv(4, (1, 1), use_bias=False)(x)
        x = jnp.concatenate([y, norm()(y)], axis=-1)
        x = nn.silu(norm()(nn.Dense(12)(x.mean((1, 2)))))
        return nn.Dense(10)(x)


FOLDED = [True, True, False, False, True]  # of these norms


def images(seed: int, n: int = 8, size: int = 8) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(n, size, size, 3)) + 0.3).astype(np.float32)


apply = jax.jit(lambda calibrated, x: calibrated.apply(x))


def assert_close(found, expected, atol=1e-5):
    np.testing.assert_allclose(found, expected, atol=atol * float(np.abs(expected).max()))


def linen(name, dtype=jnp.float32):
    module = {
        'norms': Norms(),
        'densenet': linen_models.DenseNet((1, 1)),
        'inception': linen_models.Inception(),
        **{name: make() for name, make in linen_models.MODELS.items() if name.startswith('mobilenet')},
        'efficientnet': linen_models.MobileNet(
            (linen_models._row(1, 16, 1, 1, 3, 4, nn.silu), linen_models._row(6, 24, 2, 2, 5, 24, nn.silu)),
            stem=16, head=64, activation=nn.silu, gate=nn.sigmoid,
        ),
    }[name]  # fmt: skip
    return trace(module, (1, 16, 16, 3), dtype=dtype)


def in_float64(name):
    """(model, parameters, images), all in float64; to be used with `jax.enable_x64`."""
    model = linen(name, np.float64)
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), parameters(model))
    return model, params, images(0, size=16).astype(np.float64)


def test_calibrated_on_a_batch_a_model_gives_its_logits_by_the_statistics_of_that_batch():
    """In float32 the model itself is off by 1e-3: it takes variances as differences of squares."""
    model, x = linen('norms'), images(0, size=16)
    params = parameters(model)
    calibrated = calibrate(model, params, [x])
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), {'params': params, 'x': x})
        module = Norms()
        statistics = module.init(jax.random.key(0), wide['x'])['batch_stats']
        variables = {'params': wide['params'], 'batch_stats': statistics}
        expected, _ = module.apply(variables, wide['x'], mutable=['batch_stats'])
    assert_close(apply(calibrated, x), expected)
    # The same of each image by itself: nothing depends on the batch.
    assert_close(apply(calibrated, x[:1]), expected[:1])
    assert [fixed is None for fixed in calibrated.norms] == FOLDED


@pytest.mark.slow
@pytest.mark.parametrize('name', ['densenet', 'inception', 'mobilenet_v2', 'mobilenet_v3', 'efficientnet'])
def test_so_does_one_of_a_known_family_in_float64(name, quick_reference):
    """In float32 the same models are off by up to 4e-3. It is noise: channels without much variance on eight
    images of one pixel make it large, and statistics that are fixed do not take it out again.

    MobileNetV2's logits move by 4e-8 where its images are moved by 1e-12, and its own variances, differences
    of squares, are off by as much as 4e-12 of variance + epsilon."""
    tolerance = 1e-6 if name == 'mobilenet_v2' else 1e-10
    with jax.enable_x64(True):
        model, params, x = in_float64(name)
        calibrated = calibrate(model, params, [x])
        expected = jax.jit(model.apply)(params, x)
        assert {w.dtype for w in calibrated.weights.values()} == {np.dtype('float64')}
        assert_close(apply(calibrated, x), expected, tolerance)
        assert_close(apply(calibrated, x[:1]), expected[:1], tolerance)


def test_folded_a_model_equals_its_own_with_the_same_running_statistics():
    """The statistics of three batches are those of all their images."""
    module, batches = Norms(), [images(seed, size=16) * (1 + seed) for seed in range(3)]
    model = linen('norms')
    params = parameters(model)
    moments = measure(model, params, batches)
    names = [f'BatchNorm_{i}' for i in range(5)]
    running = {n: {'mean': m.mean.ravel(), 'var': m.variance.ravel()} for n, m in zip(names, moments)}
    variables = {'params': params, 'batch_stats': running}
    calibrated = calibrate(model, params, batches)
    x = images(7, size=16)
    expected = jax.jit(lambda v, x: module.apply(v, x, train=False))(variables, x)
    assert_close(apply(calibrated, x), expected)
    # The first norm reads what no other norm changes: its moments are those of all images together.
    first = lambda x: nn.Conv(8, (3, 3)).apply({'params': params['Conv_0']}, x)
    seen = np.asarray(first(np.concatenate(batches)), np.float64)
    np.testing.assert_allclose(moments[0].mean.ravel(), seen.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(moments[0].variance.ravel(), seen.var((0, 1, 2)), rtol=1e-4)


def test_corrected_statistics_are_those_of_the_rounded_model():
    """The mean that leaves the first norm is its shift, which rounding its weights had moved."""
    model, x = linen('norms'), images(0, size=16)
    params = parameters(model)
    quantizer = model.quantizer(Policy(2, 32))
    off = {}
    for how, calibrated in (
        ('calibrated', calibrate(model, params, [x])),
        ('corrected', correct(model, params, [x], quantizer)),
    ):
        mean = np.asarray(first_layer(calibrated, quantizer, x).mean((0, 1, 2)))
        scale, shift = (1, calibrated.biases['Conv_0.kernel'])
        if how == 'corrected':
            scale, shift = (a.ravel() for a in calibrated.norms[0])
            shift = shift + scale * calibrated.biases['Conv_0.kernel']
        off[how] = np.abs(mean * scale + shift - params['BatchNorm_0']['bias']).max()
    assert off['corrected'] < 1e-4 < 1e-2 < off['calibrated'], off


@pytest.mark.parametrize('bits', ['w32a32', 'w2a32', 'w2a2'])
def test_with_corrected_statistics_of_a_batch_a_rounded_model_is_what_it_is_by_that_batch(bits):
    """Weights are on the grids that they have in training, also those of one grid for all channels."""
    with jax.enable_x64(True):
        model, params, x = in_float64('norms')
        quantizer = model.quantizer(parse_bits(bits))
        assert quantizer.scheme.granularity == 'tensor'
        corrected = correct(model, params, [x], quantizer)
        by_batch = jax.jit(model.apply)(params, x, quantizer)
        fixed = jax.jit(lambda calibrated, x: calibrated.apply(x, quantizer))(corrected, x)
        assert_close(fixed, by_batch, 1e-9)


def test_statistics_are_of_the_rounded_model_wherever_something_is_rounded():
    model, x = linen('norms'), images(0, size=16)
    params, kept = parameters(model), lambda **how: [norm is not None for norm in calibrated(**how).norms]
    calibrated = partial(calibrate, model, params, [x])
    folded = kept()
    assert folded == kept(policy=parse_bits('w32a32')) == kept(policy=Policy(2, 2), batch_norm='calibrated')
    assert folded == [not folds for folds in FOLDED]
    expected = correct(model, params, [x], model.quantizer(Policy(2, 2))).norms
    jax.tree.map(np.testing.assert_array_equal, calibrated(policy=Policy(2, 2)).norms, expected)
    with pytest.raises(ghn_jax.UserError, match="batch_norm='batch' is unknown: expected one of corrected, "):
        calibrated(batch_norm='batch')


def test_balanced_scales_are_near_one_and_the_logits_are_the_same_to_the_bit():
    model, x = linen('norms'), images(0, size=16)
    params = jax.tree.map(lambda a: a * 1e-3 if a.ndim > 1 else a, parameters(model))
    quantizer = model.quantizer(parse_bits('w2a32'))
    corrected = correct(model, params, [x], quantizer)
    balanced = balance(corrected)
    sizes = lambda calibrated: [np.sqrt(np.mean(np.square(scale))) for scale, _ in calibrated.norms]
    after = [size for size, folds in zip(sizes(balanced), FOLDED) if folds]
    assert max(sizes(corrected)) > 100 and 0.7 < min(after) and max(after) < 1.5
    logits = jax.jit(lambda calibrated, x: calibrated.apply(x, quantizer))
    np.testing.assert_array_equal(logits(balanced, x), logits(corrected, x))


def first_layer(calibrated, quantizer, x):
    def result(calibrated, x):
        captured: dict = {}
        calibrated.apply(x, quantizer, captured)
        return captured['Conv_0.kernel']

    return jax.jit(result)(calibrated, x)


def test_what_is_folded_is_gone_from_the_program():
    model = linen('norms')
    calibrated = calibrate(model, parameters(model), [images(0, size=16)])
    folded = calibrated.program((4, 16, 16, 3))
    named = {site.layer.name for site in folded.sites.values()}
    assert named == set(calibrated.weights) == set(folded.weights.values())
    assert set(folded.biases.values()) == {name for name, b in calibrated.biases.items() if b is not None}
    for slot, name in folded.weights.items():
        (site,) = (s for s in folded.sites.values() if s.layer.name == name)
        np.testing.assert_array_equal(
            site.layout.to_tensor(folded.program.constants[slot]), calibrated.weights[name]
        )
        assert calibrated.weights[name].shape == site.layer.shape
    # Only LayerNorm, of each pixel, takes roots; no step sums over the images.
    steps = folded.program.steps
    assert sum(step.primitive == 'rsqrt' for step in steps) == 1
    assert not any(step.primitive == 'reduce_sum' and 0 in step.eqn.params['axes'] for step in steps)


def test_a_layer_without_deviation_keeps_its_shift():
    """A channel that is constant on the calibration images: the norm's epsilon is what it is divided by."""
    model = trace(lambda p, x: _normalised(x @ p['w']) @ p['head'], (4, 3), params={
        'w': jnp.zeros((3, 5)), 'head': jnp.ones((5, 2)),
    })  # fmt: skip
    params = {'w': np.zeros((3, 5), np.float32), 'head': np.ones((5, 2), np.float32)}
    calibrated = calibrate(model, params, [np.ones((4, 3), np.float32)])
    assert np.all(np.isfinite(calibrated.weights['w'])) and np.all(calibrated.biases['w'] == 0)


def _normalised(x):
    return (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-3)


def test_a_batch_norm_of_an_unknown_form_is_refused():
    def apply(p, x):
        x = x @ p['w']
        return x / jnp.sqrt(jnp.square(x).mean(0) + 1e-3) @ p['head']

    shape = jax.ShapeDtypeStruct
    params = {'w': shape((3, 5), jnp.float32), 'head': shape((5, 2), jnp.float32)}
    model = trace(apply, (4, 3), params=params)
    with pytest.raises(ghn_jax.UserError, match="'div' .*is of a form that cannot be calibrated"):
        calibrate(model, parameters(model), [np.ones((4, 3), np.float32)])


def test_another_dependence_on_the_batch_is_refused():
    def apply(p, x):
        x = x @ p['w']
        return (x - x.mean(0)) @ p['head']

    shape = jax.ShapeDtypeStruct
    params = {'w': shape((3, 5), jnp.float32), 'head': shape((5, 2), jnp.float32)}
    model = trace(apply, (4, 3), params=params)
    with pytest.raises(ghn_jax.UserError, match="'reduce_sum' .*sums over the images and is no part of"):
        calibrate(model, parameters(model), [np.ones((4, 3), np.float32)])


@pytest.mark.parametrize(
    'changes, words',
    [
        ({'model': nn.Dense(10)}, 'the model is Dense'),
        ({'params': None}, "params have no 'bias', but .*: give a pytree like params of model 'Dense'"),
        ({'params': {'kernel': jnp.full((3, 10), jnp.nan), 'bias': jnp.ones(10)}}, 'params have values that'),
        ({'images': [jnp.full((2, 3), jnp.inf)]}, 'images have values that are no numbers'),
        ({'images': jnp.ones((4, 3))}, r'a batch of images has the shape \(3,\): expected a list of batches'),
        ({'scheme': None}, 'scheme is None'),
    ],
)
def test_what_would_calibrate_to_no_numbers_is_refused_in_a_line(changes, words):
    model = trace(nn.Dense(10), (1, 3))
    given = {'model': model, 'params': parameters(model), 'images': [jnp.ones((2, 3))]} | changes
    with pytest.raises(ghn_jax.UserError, match=words) as caught:
        calibrate(**given, policy=parse_bits('w4a4'))
    assert '\n' not in str(caught.value)


def test_without_images_or_ranges_nothing_is_calibrated():
    model = linen('norms')
    params = parameters(model)
    with pytest.raises(ghn_jax.UserError, match='no calibration images'):
        calibrate(model, params, [])
    with pytest.raises(ghn_jax.UserError, match=r'have \[4, 8\] images: give batches of one size'):
        calibrate(model, params, [images(0, size=16), images(0, n=4, size=16)])
    calibrated = calibrate(model, params, [images(0, size=16)])
    with pytest.raises(ghn_jax.UserError, match='range of the activation that enters .* is not calibrated'):
        calibrated.apply(images(1, size=16), calibrated.quantizer(parse_bits('w8a8')))


SPEC = small_network([('max_pool_3x3', 0), ('sep_conv_3x3', 1)], n_cells=1, stem_type=1)


@pytest.mark.parametrize('turn', [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_network_of_deepnets_is_the_reference_with_the_same_statistics_and_ranges(turn, quick_reference):
    """Both halves of a strided skip among them: two convolutions side by side, that one norm folds into."""
    model, x, params = trace(SPEC, (1, 16, 16, 3)), random_images(8, 0, size=16), random_parameters(SPEC, 0)
    policy = one_sided_policy(quantized_names(SPEC), turn=turn)
    calibrated = calibrate(model, params, [x], policy, batch_norm='calibrated')
    assert all(fixed is None for fixed in calibrated.norms)
    statistics, _ = jax.jit(partial(observe_reference, SPEC))(params, x)
    ranges = calibrated.ranges | {n: (0, 0) for n in quantized_names(SPEC) if n not in calibrated.ranges}
    other = random_images(8, 1, size=16)
    reference = jax.jit(partial(apply_reference, SPEC, policy=policy))
    expected = reference(params, other, statistics=statistics, ranges=ranges)
    found = jax.jit(lambda c, x: c.apply(x, c.quantizer(policy)))(calibrated, other)
    assert_close(found, expected)
    assert np.abs(apply(calibrated, other) - expected).max() > 0.01


@pytest.mark.parametrize('rule', ['moving_average', pytest.param('mse', marks=pytest.mark.slow)])
def test_ranges_are_those_that_the_rule_makes_of_the_batches(rule):
    model, batches = linen('norms'), [images(seed, size=16) for seed in range(2)]
    params = parameters(model)
    ranges = calibrate(model, params, batches, Policy(8, 4), rule=rule).ranges
    assert set(ranges) == {layer.parameter for layer in model.layers}
    lo, hi = ranges['Conv_0.kernel']  # reads the images
    lows, highs = zip(*((x.min(), x.max()) for x in batches))
    if rule == 'moving_average':
        np.testing.assert_allclose(lo, 0.9 * lows[0] + 0.1 * lows[1], rtol=1e-6)
        np.testing.assert_allclose(hi, 0.9 * highs[0] + 0.1 * highs[1], rtol=1e-6)
    else:
        assert min(lows) < lo < 0 < hi < max(highs)
    assert all(lo <= 0 <= hi for lo, hi in ranges.values())


def test_ranges_of_one_batch_round_it_as_its_own_do():
    """Also where the scheme cuts them, as in training: all values of a batch are another range."""
    model = trace(
        nn.Sequential([nn.Conv(4, (3, 3), use_bias=False), nn.relu, _mean, nn.Dense(10)]), (1, 8, 8, 3)
    )
    batch, scheme = images(0, size=8), Scheme('qat', activation_range='sigma')
    policy = Policy(FLOAT_BITS, 2)
    calibrated = calibrate(model, parameters(model), [batch], policy, scheme=scheme)
    fixed = calibrated.apply(batch, calibrated.quantizer(policy, scheme))
    np.testing.assert_allclose(fixed, calibrated.apply(batch, model.quantizer(policy, scheme)), rtol=1e-4)
    cut, whole = (
        calibrate(model, parameters(model), [batch], policy, scheme=s).ranges for s in (scheme, QAT)
    )
    assert cut['layers_0.kernel'][1] < 0.9 * whole['layers_0.kernel'][1]


def _mean(x):
    return x.mean((1, 2))


def test_what_is_compiled_for_a_model_serves_all_parameters_and_all_bits(count_compiles):
    model, batches = linen('norms'), [images(0, size=16)]
    params = parameters(model)
    calibrate(model, params, batches, Policy(8, 8))
    mixed = Policy(4, 4, edges=(8, 16), rules=(('Conv_[12].*', 2, FLOAT_BITS),))
    with count_compiles() as compiled:
        ranges = calibrate(model, jax.tree.map(lambda a: 2 * a, params), batches, mixed).ranges
    assert compiled.n == 0
    rounded = {name for name, (_, bits) in model.quantizer(mixed).widths.items() if bits < FLOAT_BITS}
    assert ranges.keys() == rounded < {layer.parameter for layer in model.layers}
