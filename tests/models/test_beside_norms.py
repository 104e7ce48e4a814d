"""Batch norms are told from what stands beside them and from norms of single images, wherever images lie."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ghn_jax
from ghn_jax.models.folding import calibrate
from ghn_jax.models.tracing import trace
from ghn_jax.models.weights import to_params
from tests.models.traced import conv
from tests.tuning.models import images, parameters


def deviation(x, axes=(0, 1, 2)):
    return jnp.sqrt(x.var(axes, keepdims=True) + 1e-3)


def normalised(x, axes=(0, 1, 2)):
    return (x - x.mean(axes, keepdims=True)) / deviation(x, axes)


def positions_added(x, p):
    return normalised(x) * p['scale'] + p['positions']


def positions_multiplied(x, p):
    return normalised(x) * p['positions'] + p['shift']


def positions_over_the_deviation(x, p):
    return (x - x.mean((0, 1, 2))) * (p['positions'] / deviation(x))


def mean_over_pixels_added(x, p):
    return normalised(x) * p['scale'] + x.mean((1, 2), keepdims=True)


def deviation_over_pixels_added(x, p):
    return normalised(x) + deviation(x, (1, 2))


def norm_of_a_norm(x, p):
    return normalised(jnp.square(normalised(x))) * p['scale'] + p['shift']


def norm_of_the_pooled(x, p):
    pooled = x.mean((1, 2))
    return normalised(pooled, 0) * p['scale'] + pooled


def scale_and_shift_in_one(x, p):
    scale = p['scale'] / deviation(x)
    return x * scale + (p['shift'] - x.mean((0, 1, 2)) * scale)


def norm_of_pixels_in_a_row(x, p):
    return normalised(x.reshape(-1, 8), 0).reshape(x.shape) * p['scale'] + p['shift']


def images_last(norm, x):
    return jnp.transpose(norm(jnp.transpose(x, (1, 2, 3, 0))), (3, 0, 1, 2))


def norm_of_channels_by_the_deviation_of_all(x, p):
    centred = x - x.mean((0, 1, 2))
    return centred / jnp.sqrt(jnp.square(centred).mean() + 1e-3)


def norm_of_all_by_the_deviation_of_each_pixel(x, p):
    centred = x - x.mean()
    return centred / jnp.sqrt(jnp.square(centred).mean(0) + 1e-3)


def norm_with_images_last(x, p):
    return images_last(lambda x: normalised(x, (0, 1, 3)), x) * p['scale'] + p['shift']


def norm_of_single_images_that_lie_last(x, p):
    return images_last(lambda x: normalised(x, (0, 1)), x)


def sum_along_a_new_first_axis(x, p):
    return jnp.stack([normalised(x), x]).sum(0)


def product_that_puts_images_second(x, p):
    return jnp.einsum('ohnw->nhwo', normalised(jnp.einsum('oc,nhwc->ohnw', p['square'], x), (1, 2, 3)))


FOUND = {  # beside the convolution and the linear layer
    positions_added: {'bn': 1, 'pos_enc': 1, 'sum': 1, 'glob_avg': 1},
    positions_multiplied: {'bn': 2, 'bias': 1, 'glob_avg': 1},
    mean_over_pixels_added: {'bn': 1, 'glob_avg': 2, 'sum': 1},
    deviation_over_pixels_added: {'bn': 1, 'glob_avg': 2, 'sum': 1},
    norm_of_a_norm: {'bn': 2, 'glob_avg': 1},
    norm_of_the_pooled: {'bn': 1, 'glob_avg': 1, 'sum': 1},
    scale_and_shift_in_one: {'bn': 1, 'glob_avg': 1},
    norm_of_pixels_in_a_row: {'bn': 1, 'glob_avg': 1},
    norm_of_channels_by_the_deviation_of_all: {'bn': 1, 'glob_avg': 1},
    norm_of_all_by_the_deviation_of_each_pixel: {'bn': 1, 'glob_avg': 1},
    norm_with_images_last: {'bn': 1, 'glob_avg': 1},
    norm_of_single_images_that_lie_last: {'ln': 1, 'glob_avg': 1},
    sum_along_a_new_first_axis: {'bn': 1, 'concat': 1, 'glob_avg': 1},
    product_that_puts_images_second: {'conv': 1, 'bn': 1, 'glob_avg': 1},
}


def traced(beside):
    def apply(p, x):
        x = jax.nn.relu(beside(conv(x, p['w']), p))
        return (x.mean((1, 2)) if x.ndim == 4 else x) @ p['head']

    shapes = {'w': (3, 3, 3, 8), 'head': (8, 10), 'square': (8, 8)}
    shapes |= {'scale': (8,), 'shift': (8,), 'positions': (1, 8, 8, 8)}
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    return trace(apply, (2, 8, 8, 3), params=params)


@pytest.mark.parametrize('beside', FOUND, ids=lambda beside: beside.__name__)
def test_the_graph_has_what_stands_beside_a_norm_and_parameters_get_their_numbers(beside):
    model = traced(beside)
    kinds = Counter(node.primitive for node in model.graph.nodes)
    assert kinds == Counter(FOUND[beside]) + Counter({'input': 1, 'conv': 2})
    r = np.random.default_rng(0)
    tensors = {p.name: r.normal(size=p.shape).astype(np.float32) for p in model.graph.parameters}
    params = to_params(model, tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(np.sort(params[name], None), np.sort(tensor, None))


@pytest.mark.parametrize('beside', FOUND, ids=lambda beside: beside.__name__)
def test_fixed_by_a_batch_a_model_gives_the_logits_of_that_batch_for_each_image_alone(beside):
    model, x = traced(beside), images(4)
    params = parameters(model)
    calibrated = calibrate(model, params, [x])
    expected = jax.jit(model.apply)(params, x)
    apply, atol = jax.jit(lambda c, x: c.apply(x)), 1e-4 * float(jnp.abs(expected).max())
    np.testing.assert_allclose(apply(calibrated, x), expected, atol=atol)
    np.testing.assert_allclose(apply(calibrated, x[:1]), expected[:1], atol=atol)


def norm_of_pairs_of_images(x, p):
    return normalised(x.reshape(-1, 2, *x.shape[1:]), (1, 2, 3)).reshape(x.shape)


@pytest.mark.parametrize('beside', [positions_over_the_deviation, norm_of_pairs_of_images])
def test_a_norm_of_an_unknown_form_is_refused_in_a_line(beside):
    model = traced(beside)
    with pytest.raises(ghn_jax.UserError, match='score the model by the statistics of each batch') as caught:
        calibrate(model, parameters(model), [images(4)])
    assert '\n' not in str(caught.value)
