"""Convolutions on images smaller than their kernel, as products: the numbers of the convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ghn_jax.models import small_images
from ghn_jax.models.program import flatten, run
from ghn_jax.models.tracing import trace
from ghn_jax.quant.policy import Policy

NHWC, NCHW = ('NHWC', 'HWIO', 'NHWC'), ('NCHW', 'OIHW', 'NCHW')
CASES = {  # images, weight, strides, padding, layouts, dilation; of which a product is made
    '3x3 on 2x2': ((5, 2, 2, 6), (3, 3, 6, 4), (1, 1), 'SAME', NHWC, (1, 1), True),
    '1x7 on 4x4': ((5, 4, 4, 6), (1, 7, 6, 4), (1, 1), 'SAME', NHWC, (1, 1), True),
    'uneven, strided': ((5, 3, 4, 6), (4, 5, 6, 4), (2, 1), ((1, 3), (3, 0)), NHWC, (1, 1), True),
    'channels first': ((5, 6, 2, 4), (4, 6, 3, 3), (1, 2), 'SAME', NCHW, (1, 1), True),
    'dilated': ((5, 4, 4, 6), (3, 3, 6, 4), (1, 1), 'SAME', NHWC, (2, 3), True),
    'one axis': ((5, 2, 6), (3, 6, 4), (1,), 'SAME', ('NHC', 'HIO', 'NHC'), (1,), True),
    '3x3 on 4x4, strided': ((5, 4, 4, 6), (3, 3, 6, 4), (2, 2), 'SAME', NHWC, (1, 1), True),
    '3x3 on 3x3': ((5, 3, 3, 6), (3, 3, 6, 4), (1, 1), 'SAME', NHWC, (1, 1), False),
    'groups': ((5, 2, 2, 6), (3, 3, 3, 4), (1, 1), 'SAME', NHWC, (1, 1), False),
}


@pytest.mark.parametrize('name', CASES)
def test_a_convolution_and_its_gradients_are_the_same_as_a_product(name):
    shape, of_weight, strides, padding, layouts, dilation, is_product = CASES[name]
    random = np.random.default_rng(0)
    x, w = (random.normal(size=size).astype(np.float32) for size in (shape, of_weight))

    def convolve(x, w):
        groups = {'feature_group_count': 2} if name == 'groups' else {}
        return lax.conv_general_dilated(
            x, w, strides, padding, dimension_numbers=layouts, rhs_dilation=dilation, **groups
        )

    program = flatten(jax.make_jaxpr(convolve)(x, w))
    assert small_images.is_small(program.steps[-1]) == is_product
    multiply = lambda x, w: run(program, [x, w], compute=small_images.compute)[0]
    assert ('conv_general_dilated' in str(jax.make_jaxpr(multiply)(x, w))) != is_product
    both = lambda f: jax.jit(
        lambda x, w: (f(x, w), jax.grad(lambda x, w: jnp.sum(f(x, w) ** 2), (0, 1))(x, w))
    )
    found, expected = (jax.tree.leaves(both(f)(x, w)) for f in (multiply, convolve))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize(
    'more',
    [{'lhs_dilation': (2, 2)}, {'padding': ((-1, 2), (2, 2))}, {'batch_group_count': 2}],
    ids=lambda more: next(iter(more)),
)
def test_what_the_product_does_not_cover_stays_a_convolution(more):
    how = {'window_strides': (1, 1), 'padding': ((2, 2), (2, 2)), 'dimension_numbers': NHWC} | more
    convolve = lambda x, w: lax.conv_general_dilated(x, w, **how)
    (step,) = flatten(jax.make_jaxpr(convolve)(jnp.ones((4, 2, 2, 6)), jnp.ones((4, 4, 6, 4)))).steps
    assert not small_images.is_small(step)


def test_a_product_has_the_precision_and_the_type_of_the_convolution():
    how = {'precision': lax.Precision.HIGHEST, 'preferred_element_type': jnp.float32}
    convolve = lambda x, w: lax.conv_general_dilated(x, w, (1, 1), 'SAME', dimension_numbers=NHWC, **how)
    x, w = jnp.ones((5, 2, 2, 6), jnp.bfloat16), jnp.ones((3, 3, 6, 4), jnp.bfloat16)
    program = flatten(jax.make_jaxpr(convolve)(x, w))
    made = flatten(jax.make_jaxpr(lambda x, w: run(program, [x, w], compute=small_images.compute)[0])(x, w))
    (product,) = (step.eqn for step in made.steps if step.primitive == 'dot_general')
    assert product.params['precision'] == (lax.Precision.HIGHEST,) * 2
    assert product.params['preferred_element_type'] == jnp.float32


def test_a_model_is_itself_without_a_quantizer_and_multiplies_with_one():
    def apply(params, x):
        y = lax.conv_general_dilated(x, params['a'], (1, 1), 'SAME', dimension_numbers=NHWC)
        return y.mean((1, 2)) @ params['b']

    params = {'a': np.ones((3, 3, 3, 4), np.float32), 'b': np.ones((4, 10), np.float32)}
    model = trace(apply, (1, 2, 2, 3), params=params)
    x = np.ones((2, 2, 2, 3), np.float32)
    text = lambda quantizer: str(jax.make_jaxpr(lambda x: model.apply(params, x, quantizer))(x))
    assert 'conv_general_dilated' in text(None)
    assert 'conv_general_dilated' not in text(model.quantizer(Policy(4, 4)))
