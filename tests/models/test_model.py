"""A traced model computes what the model itself does, and quantizes what the plain reference quantizes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import ghn_jax
from ghn_jax.cnn.reference import apply_reference
from ghn_jax.models.tracing import trace
from ghn_jax.quant.policy import Policy, parse_bits
from ghn_jax.quant.scheme import QAT, Scheme
from tests.cnn.networks import (
    one_sided_policy,
    quantized_names,
    random_images,
    random_parameters,
    small_network,
)
from tests.models import linen_models, nnx_models


def images(n: int = 4, size: int = 16) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, size, size, 3)).astype(np.float32)


class Nchw(nn.Module):
    """Images [N, 3, H, W], and most in bfloat16."""

    @nn.compact
    def __call__(self, x, train: bool = True):
        x = jnp.transpose(x, (0, 2, 3, 1)).astype(jnp.bfloat16)
        x = nn.Conv(8, (3, 3), dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)(x)
        x = nn.silu(nn.BatchNorm(use_running_average=not train, dtype=jnp.bfloat16)(x))
        return nn.Dense(10)(x.astype(jnp.float32).mean((1, 2)))


LINEN = {
    'densenet': linen_models.DenseNet((1, 1)),
    'convnext': linen_models.ConvNeXt((1, 1), (16, 32)),
    'squeezenet': linen_models.SqueezeNet(),
    'mobilenet': linen_models.MobileNet(
        (linen_models._row(1, 16, 1, 1), linen_models._row(6, 24, 2, 2, 5, 4, nn.hard_swish)),
        stem=16,
        head=64,
    ),
    'nchw_bfloat16': Nchw(),
}
SWITCHES = {'convnext': {'deterministic': True}, 'mobilenet': {'training': True}}


QUICK = ('nchw_bfloat16',)


@pytest.mark.parametrize(
    'name', [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in LINEN]
)
def test_apply_without_quantizer_equals_the_model_to_the_bit(name):
    module, x = LINEN[name], images()
    if name == 'nchw_bfloat16':
        x = x.transpose(0, 3, 1, 2)
    switches = SWITCHES.get(name, {'train': True})
    rngs = {'params': jax.random.key(0), 'dropout': jax.random.key(1)}
    variables = module.init(rngs, x, **switches)
    own = lambda v, x: module.apply(v, x, mutable=['batch_stats'], **switches)[0]
    if name == 'squeezenet':  # its dropout is not for the traced model
        own = lambda v, x: module.apply(v, x, train=False)
    if name == 'mobilenet':
        own = lambda v, x: _without_dropout(module, v, x)
    model = trace(module, (1, *x.shape[1:]))
    found = jax.jit(model.apply)(variables['params'], x)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, jax.jit(own)(variables, x))


def _without_dropout(module, variables, x):
    drop = lambda call, args, kwargs, context: (
        args[0] if isinstance(context.module, nn.Dropout) else call(*args, **kwargs)
    )
    with nn.intercept_methods(drop):
        return module.apply(variables, x, training=True, mutable=['batch_stats'])[0]


@pytest.mark.slow
def test_apply_equals_an_nnx_model_to_the_bit_and_takes_its_parameters():
    module = nnx_models.WideResNet(blocks=1, factor=1, rngs=nnx.Rngs(0))
    model = trace(module, (1, 16, 16, 3))
    params = nnx.state(module, nnx.Param)
    assert jax.tree.structure(params) == jax.tree.structure(model.params)
    found = jax.jit(model.apply)(params, images())
    module.train()
    np.testing.assert_array_equal(found, nnx.jit(lambda m, x: m(x))(module, images()))


def test_gradients_are_those_of_the_model():
    """Also at 0, where the derivative of relu is what its author says."""
    apply = lambda params, x: jax.nn.relu(x.mean((1, 2)) @ params['w']) @ params['head']
    params = {'w': jnp.zeros((3, 4)), 'head': jnp.ones((4, 10))}
    model = trace(apply, (2, 16, 16, 3), params=params)
    total = lambda apply: jax.grad(lambda p: apply(p, images()).sum())(params)
    for found, expected in zip(jax.tree.leaves(total(model.apply)), jax.tree.leaves(total(apply))):
        np.testing.assert_array_equal(found, expected)


SCHEMES = (QAT, Scheme(mode='qat', granularity='channel', weight_range='mse', activation_range='sigma'))


@pytest.mark.parametrize('turn', [0, pytest.param(1, marks=pytest.mark.slow)])
def test_quantized_a_network_of_deepnets_gives_the_logits_of_the_plain_reference(turn, quick_reference):
    """Both halves of a strided skip among them, which read one tensor."""
    spec = small_network([('max_pool_3x3', 0), ('sep_conv_3x3', 1)], n_cells=1, stem_type=1)
    model, x, params = trace(spec, (1, 16, 16, 3)), random_images(4, 0, size=16), random_parameters(spec, 0)
    policy, scheme = one_sided_policy(quantized_names(spec), turn=turn), SCHEMES[turn]
    expected = jax.jit(lambda p, x: apply_reference(spec, p, x, policy=policy, scheme=scheme))(params, x)
    found = jax.jit(lambda p, x: model.apply(p, x, model.quantizer(policy, scheme)))(params, x)
    np.testing.assert_allclose(found, expected, atol=1e-5 * float(np.abs(expected).max()))
    plain = jax.jit(model.apply)(params, x)
    assert np.abs(plain - expected).max() > 0.01


def test_every_weight_and_activation_of_a_layer_passes_through_the_quantizer_and_no_other():
    class Recording:
        def __init__(self):
            self.weights, self.activations = {}, {}

        def weight(self, name, w):
            self.weights[name] = w.shape
            return w

        def activation(self, name, x, whole):
            self.activations[name] = x.shape, whole.shape
            return x

    class Cut(nn.Module):
        """Two layers read parts of one tensor."""

        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(8, (3, 3), name='first')(x))
            y = nn.Conv(4, (1, 1), name='right')(x[:, 1:, 1:]).mean((1, 2))
            return nn.Dense(10, name='head')(x.reshape(len(x), -1)) + nn.Dense(10, name='other')(y)

    quantizer, captured = Recording(), {}
    model = trace(Cut(), (1, 8, 8, 3))
    two = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    jax.eval_shape(lambda params, x: model.apply(params, x, quantizer, captured), model.params, two)
    assert quantizer.weights == {
        'first.kernel': (8, 3, 3, 3), 'right.kernel': (4, 8, 1, 1), 'head.kernel': (10, 512),
        'other.kernel': (10, 4),
    }  # fmt: skip
    assert quantizer.activations['right.kernel'] == ((2, 7, 7, 8), (2, 8, 8, 8))
    assert quantizer.activations['head.kernel'] == ((2, 512), (2, 8, 8, 8))
    assert {name: x.shape for name, x in captured.items()} == {
        'first.kernel': (2, 8, 8, 8), 'right.kernel': (2, 7, 7, 4), 'head.kernel': (2, 10),
        'other.kernel': (2, 10),
    }  # fmt: skip


CUTS = [
    lambda x: x[:, 1:, ::2],
    lambda x: jnp.split(x, 2, axis=-1)[1],
    lambda x: jnp.unstack(x, axis=1)[3],
    lambda x: jnp.take(x, jnp.array([1, 3]), axis=2),
    lambda x: jax.lax.dynamic_slice_in_dim(x, 2, 3, axis=1),
    lambda x: jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0))),
]


@pytest.mark.parametrize('cut', CUTS)
def test_a_layer_that_reads_a_cut_of_a_tensor_rounds_it_over_the_range_of_the_whole(cut):
    class Whole:
        weight = staticmethod(lambda name, w: w)
        activation = staticmethod(lambda name, x, whole: whole.sum() * jnp.ones_like(x))

    model = trace(lambda p, x: cut(x).reshape(len(x), -1)[:, :6] @ p, (2, 8, 8, 4), params=jnp.ones((6, 10)))
    found = model.apply(jnp.ones((6, 10)), jnp.ones((2, 8, 8, 4)), Whole())
    np.testing.assert_array_equal(found, 6 * 2 * 8 * 8 * 4 * np.ones((2, 10)))


def test_policies_speak_of_the_names_of_layers():
    model = trace(LINEN['densenet'], (1, 16, 16, 3))
    quantizer = model.quantizer(Policy(8, 8, rules=(('Dense_.*', 4, 2),)))
    assert quantizer.widths['Dense_0.kernel'] == (4, 2) and quantizer.widths['Conv_0.kernel'] == (8, 8)
    with pytest.raises(
        ghn_jax.UserError, match="rule 'cells.*' matches none of the .* such as 'Conv_0.kernel'"
    ):
        model.quantizer(Policy(8, 8, rules=(('cells.*', 4, 4),)))


def test_the_name_of_a_policy_is_none():
    with pytest.raises(ghn_jax.UserError, match=r"policy is 'w4a4': expected one such as parse_bits"):
        trace(nn.Dense(10), (1, 8)).quantizer('w4a4')


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda p, x: (p, x[:, :1]), r'images are \(4, 1, 16, 3\), the model is traced for \(N, 16'),
        (lambda p, x: (p, x[:0]), r'there are no images in \(0, 16, 16, 3\): give at least one'),
        (lambda p, x: (p, x.astype(np.uint8)), 'images are uint8, the model is traced for float32'),
        (lambda p, x: (p, 'x.png'), "images are 'x.png': expected an array"),
        (lambda p, x: ({'w': p['a'], 'head': p['head']}, x), r"params have no 'a', but \['head', 'w'\]: "),
        (lambda p, x: ({'params': p}, x), r"params have no 'a', but \['params.a', 'params.head'\]"),
        (lambda p, x: (None, x), r"params have no 'a', but \[\]: give a pytree like params of model"),
        (lambda p, x: (p | {'b': p['a']}, x), "params have 'b', which the model has not: give a pytree"),
        (lambda p, x: (p | {'a': p['head']}, x), r"'a' in params has the shape \(4, 10\), expected \(3, 4\)"),
        (lambda p, x: (p | {'a': 0.5}, x), r"'a' in params has the shape \(\), expected \(3, 4\): give"),
        (lambda p, x: (p | {'a': p['a'].astype('bfloat16')}, x), "'a' in params is bfloat16, expected float"),
    ],
)  # fmt: skip
def test_images_and_parameters_that_are_not_those_of_the_model_are_refused_in_a_line(change, message):
    params = {'a': jnp.ones((3, 4)), 'head': jnp.ones((4, 10))}
    model = trace(lambda p, x: x.mean((1, 2)) @ p['a'] @ p['head'], (1, 16, 16, 3), params=params)
    with pytest.raises(ghn_jax.UserError, match=message) as caught:
        model.apply(*change(params, images()))
    assert '\n' not in str(caught.value)


def test_a_model_that_normalises_by_itself_is_traced_for_integers_and_takes_no_floats():
    weight = {'w': np.ones((3, 10), np.float32)}
    own = lambda params, x: (x.astype(np.float32) / 255).mean((1, 2)) @ params['w']
    model = trace(own, (1, 8, 8, 3), params=weight, dtype=np.uint8)
    images = np.full((2, 8, 8, 3), 51, np.uint8)
    np.testing.assert_allclose(model.apply(weight, images), 0.6, rtol=1e-6)
    with pytest.raises(ghn_jax.UserError, match='images are float32, the model is traced for uint8'):
        model.apply(weight, images.astype(np.float32))


def test_parameters_are_known_by_their_names_whatever_holds_them():
    """A dict has '10' before '2', a list has not."""
    weights = [np.full((3, 10), k, np.float32) for k in range(12)]
    weigh = lambda p, x: sum(k * (x.mean((1, 2)) @ w) for k, w in enumerate(p))
    model = trace(weigh, (1, 8, 8, 3), params=weights)
    found = model.apply({str(k): w for k, w in enumerate(weights)}, images(size=8))
    np.testing.assert_array_equal(found, model.apply(weights, images(size=8)))


def test_the_parameters_that_a_model_starts_with_are_those_of_its_own_init():
    module = nn.Dense(10)
    model = trace(module, (1, 3))
    expected = jax.jit(module.init)(jax.random.key(3), jnp.zeros((1, 3)))['params']
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), model.initial_params(3), expected)
    with pytest.raises(ghn_jax.UserError, match='with the shapes of its parameters only'):
        trace(
            lambda p, x: x.mean((1, 2)) @ p, (1, 8, 8, 3), params=jax.ShapeDtypeStruct((3, 10), jnp.float32)
        ).initial_params()
    params = {'w': np.full((3, 10), np.nan, np.float32)}
    with pytest.raises(ghn_jax.UserError, match="parameter 'w' of model .* starts with .* no numbers"):
        trace(lambda p, x: x.mean((1, 2)) @ p['w'], (1, 8, 8, 3), params=params).initial_params()


def test_1_bit_weights_of_a_layer_are_two_levels():
    model = trace(LINEN['squeezenet'], (1, 16, 16, 3))
    w = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3, 3, 3)), jnp.float32)
    quantizer = model.quantizer(parse_bits('w1a2'))
    rounded = jax.jit(lambda w: quantizer.weight('Conv_0.kernel', w))(w)
    assert len(np.unique(rounded)) == 2


def _scaled(factor, x):
    return factor * x


def test_a_model_keeps_what_is_compiled_for_it_by_function_and_static_arguments():
    params = {'a': np.ones((3, 10), np.float32)}
    apply = lambda params, x: x.mean((1, 2)) @ params['a']
    model, other = (trace(apply, (1, 8, 8, 3), params=params) for _ in range(2))
    by_two, by_three = (model.compiled(_scaled, factor) for factor in (2, 3))
    assert (float(by_two(5.0)), float(by_three(5.0))) == (10, 15)
    assert model.compiled(_scaled, 2) is by_two is not other.compiled(_scaled, 2)
