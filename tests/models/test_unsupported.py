"""What cannot be traced is named in one line, or stays as initialised where that is asked for."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import ghn_jax
from ghn_jax.models.tracing import trace
from ghn_jax.tuning.initialization import RANDOM, random_params
from tests.models.traced import Normed, Vit, conv, function, kinds


def recurrent(params, x):
    x = conv(x, params[0])
    x, _ = jax.lax.scan(lambda x, _: (jnp.tanh(conv(x, params[1])), None), x, length=3)
    return x.mean((1, 2)) @ params[2]


RECURRENT = (3, 3, 3, 8), (3, 3, 8, 8), (8, 10)


def test_a_loop_over_a_parameter_is_named_with_its_line():
    with pytest.raises(
        ghn_jax.UserError, match=r"parameter '1' enters 'scan' \(.*test_unsupported.py:\d+.*\), a loop"
    ):
        function(recurrent, *RECURRENT)


def test_what_cannot_be_predicted_is_kept_and_listed_where_that_is_asked_for():
    model = function(recurrent, *RECURRENT, unsupported='keep')
    assert list(model.kept) == ['1']
    assert [p.name for p in model.graph.parameters] == ['0', '2']


class Prelu(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(nn.PReLU()(nn.Dense(8)(x.mean((1, 2)))))


def test_one_factor_for_all_channels_is_no_scale_of_a_norm_and_stays_as_initialised():
    with pytest.raises(
        ghn_jax.UserError, match="parameter 'PReLU_0.negative_slope' enters 'mul' .* one factor"
    ):
        trace(Prelu(), (2, 8, 8, 3))
    model = trace(Prelu(), (2, 8, 8, 3), unsupported='keep')
    assert kinds(model.graph) == {'input': 1, 'glob_avg': 1, 'conv': 2, 'bias': 2}
    assert list(model.kept) == ['PReLU_0.negative_slope']
    slope = random_params(model, RANDOM['he'], 0)['PReLU_0']['negative_slope']
    np.testing.assert_allclose(slope, 0.01)  # a slope of 1 would leave the model linear


def test_a_weight_that_is_computed_from_a_parameter_is_named():
    standardised = lambda p, x: conv(x, (p[0] - p[0].mean()) / p[0].std()).mean((1, 2)) @ p[1]
    with pytest.raises(
        ghn_jax.UserError, match=r"parameter '0' enters 'reduce_sum' .*no convolution, linear"
    ):
        function(standardised, (3, 3, 3, 8), (8, 10))


def test_an_operation_without_a_rule_is_named_with_its_line():
    with pytest.raises(
        ghn_jax.UserError, match=r"operation 'cholesky' \(.*test_unsupported.py:\d+.*\) has no rule"
    ):
        function(lambda p, x: jnp.linalg.cholesky(x[:, :3, :3, 0]).reshape(2, -1) @ p[0], (9, 10))


linear = lambda p, x: x.mean((1, 2)) @ p[0]


RUNNING = {'use_running_average': True}


class Other(nn.Module):
    """An operation of a model's own."""

    do: Callable

    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(self.do(self, x).mean((1, 2)))


drop = lambda module, x: x * jax.random.bernoulli(module.make_rng('droppath'), 0.9, (len(x), 1, 1, 1))


buffer = lambda module, x: x * module.variable('buffers', 'scale', lambda: jnp.ones(3)).value


class Big(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(nn.Dense(31_623)(nn.Dense(31_623)(x.mean((1, 2)))))


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda: trace(3, (1, 8, 8, 3)), 'the model is 3: expected a Flax module'),
        (lambda: trace([Vit()], (1, 16, 16, 3)), 'expected a Flax module'),  # whose repr has many lines
        (lambda: trace(Vit, (1, 16, 16, 3)), 'expected a Flax module .an instance'),
        (lambda: trace(Vit(), (1, 16)), r'cannot be run on images of shape \(1, 16\): '),
        (lambda: trace(Vit(), 'big'), "input_shape is 'big': expected the number of images and their shape"),
        (lambda: trace(Vit(), (1, 0, 16, 3)), 'input_shape is'),
        (lambda: trace(recurrent, (1, 8, 8, 3)), 'params is missing'),
        (lambda: trace(recurrent, (1, 8, 8, 3), params=['a']), 'params is .*expected a pytree of arrays'),
        (lambda: function(lambda p, x: x.mean((1, 2))), 'has no parameters'),
        (lambda: function(lambda p, x: x @ p[0], (3, 10)), r'returns shape \(2, 8, 8, 10\) for 2 images'),
        (lambda: trace(linear, (1, 8, 8, 3), params=[np.ones((3, 10), int)]), "'0' is int.*floating-point"),
        (lambda: function(lambda p, x: p[0], (2, 10)), 'do not depend on the images'),
        (lambda: trace(Big(), (1, 8, 8, 3)), 'has 1,000,488,484 parameters, more than'),
        (lambda: trace(Normed(nn.BatchNorm, RUNNING), (1, 8, 8, 3)), "'batch_stats.*as in training"),
        (lambda: trace(Other(drop), (1, 8, 8, 3)), "random numbers other than .*droppath.*: give them"),
        (lambda: trace(Other(buffer), (1, 8, 8, 3)), "variable 'buffers.scale', .* write constants into the"),
        (lambda: function(lambda p, x: conv(conv(x, p[0]), p[1], padding='VALID').reshape(2, 10),
                          (1, 1, 3, 10), (8, 8, 10, 10)), 'no linear layer or 1x1 convolution .* 10 logits'),
        (lambda: trace(Vit(), (1, 16, 16, 3), params={}), 'params are for a function'),
        (lambda: trace(Vit(), (1, 16, 16, 3), dtype='wide'), "dtype is 'wide': expected that of"),
        (lambda: trace(Vit(), (1, 16, 16, 3), unsupported='drop'), "expected 'raise' or 'keep'"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line(make, message):
    with pytest.raises(ghn_jax.UserError, match=message) as caught:
        make()
    assert '\n' not in str(caught.value)
