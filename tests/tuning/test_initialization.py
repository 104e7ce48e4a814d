"""Where training begins: random weights have the moments of their papers, files those that were written."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from ghn_jax.base.errors import UserError
from ghn_jax.models.tracing import trace
from ghn_jax.models.weights import to_params
from ghn_jax.quant.policy import Policy
from ghn_jax.runs.model_parameters import read_params, write_params
from ghn_jax.tuning.initialization import NAIVE_RANGES, RANDOM, parse_starts, random_params
from tests.tuning.nets import SIZE, Net, traced

SHAPES = (
    (64, 32, 3, 3),
    (200, 1, 3, 3),
    (50, 40),
)  # a convolution, one of each channel by itself, a linear layer


@pytest.mark.parametrize(
    'name, variance',
    [
        ('he', lambda fan_in, fan_out: 2 / fan_in),
        ('glorot', lambda fan_in, fan_out: 2 / (fan_in + fan_out)),
        ('he_uniform', lambda fan_in, fan_out: 2 / fan_in),
        ('glorot_normal', lambda fan_in, fan_out: 2 / (fan_in + fan_out)),
        *((f'uniform_{r}', lambda fan_in, fan_out, r=r: r**2 / 3) for r in NAIVE_RANGES),
        *((f'normal_{r}', lambda fan_in, fan_out, r=r: r**2) for r in NAIVE_RANGES),
    ],
)
def test_weights_have_the_variance_of_the_formula(name, variance):
    for shape in SHAPES:
        w = np.asarray(RANDOM[name](jax.random.key(0), shape))
        pixels = int(np.prod(shape[2:]))
        expected = variance(shape[1] * pixels, shape[0] * pixels)
        assert np.var(w) == pytest.approx(expected, rel=5 / np.sqrt(w.size)) and w.shape == shape
        assert abs(w.mean()) < 5 * np.sqrt(expected / w.size)
        uniform = name.startswith('uniform') or name in ('he_uniform', 'glorot')
        assert (np.abs(w).max() <= np.sqrt(3 * expected) * 1.0001) == uniform


@pytest.mark.parametrize('shape', [(8, 4, 3, 3), (40, 20)])
def test_orthogonal_rows_or_columns_have_length_sqrt_2_and_are_perpendicular(shape):
    matrix = np.asarray(RANDOM['orthogonal'](jax.random.key(0), shape)).reshape(shape[0], -1)
    product = matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(product, 2 * np.eye(len(product)), atol=1e-5)


def test_norms_begin_with_1_and_0_biases_with_0_and_seeds_differ():
    a, again, b = (random_params(traced(), RANDOM['he'], seed) for seed in (0, 0, 1))
    assert np.all(a['BatchNorm_0']['scale'] == 1) and not a['BatchNorm_0']['bias'].any()
    assert not a['Conv_1']['bias'].any() and not a['Dense_0']['bias'].any()
    for layer in ('Conv_0', 'Conv_1', 'Dense_0'):
        np.testing.assert_array_equal(a[layer]['kernel'], again[layer]['kernel'])
        assert np.all(a[layer]['kernel'] != b[layer]['kernel'])
    assert np.all(a['Conv_1']['kernel'][..., :3] != a['Conv_1']['kernel'][..., 3:])  # keys of their own


def test_tensors_go_where_the_model_has_them():
    model = traced()
    tensors = {p.name: np.random.default_rng(0).normal(size=p.shape) for p in model.graph.parameters}
    params = to_params(model, tensors)
    kernel = tensors['Conv_0.kernel'].transpose(
        2, 3, 1, 0
    )  # out, in, height, width -> height, width, in, out
    np.testing.assert_array_equal(params['Conv_0']['kernel'], np.float32(kernel))
    np.testing.assert_array_equal(params['Dense_0']['bias'], np.float32(tensors['Dense_0.bias']))


def test_a_file_is_where_training_begins_and_is_read_as_written(tmp_path):
    model, params = traced(), random_params(traced(), RANDOM['he'], 4)
    write_params(tmp_path / 'mine.safetensors', model, params, {'bits': 'w4a4'})
    (start,) = parse_starts([str(tmp_path / 'mine.safetensors')], [model], None)
    assert start.name == 'mine'
    given = start.params(model, Policy(), 1)
    np.testing.assert_array_equal(given['Conv_0']['kernel'], params['Conv_0']['kernel'])
    np.testing.assert_array_equal(given['BatchNorm_0']['bias'], params['BatchNorm_0']['bias'])


@pytest.mark.parametrize(
    'change, words',
    [
        (lambda a: {}, "has no 'BatchNorm_0.bias' of model 'Net'"),
        (lambda a: a | {'more': np.zeros(1, np.float32)}, "has 'more', which model 'Net' has not"),
        (
            lambda a: a | {'Dense_0.bias': np.zeros(4, np.float32)},
            r"'Dense_0.bias' is float32\[4\].*float32\[10\]",
        ),
        (lambda a: a | {'Dense_0.bias': np.zeros(10, np.int32)}, r'is int32\[10\]'),
        (lambda a: a | {'Dense_0.bias': np.full(10, np.nan, np.float32)}, 'no numbers'),
    ],
)
def test_parameters_of_another_model_get_one_line(tmp_path, change, words):
    names = [('BatchNorm_0', 'bias'), ('BatchNorm_0', 'scale'), ('Conv_0', 'kernel'), ('Conv_1', 'kernel')]
    names += [('Conv_1', 'bias'), ('Dense_0', 'kernel'), ('Dense_0', 'bias')]
    params = random_params(traced(), RANDOM['he'], 0)
    save_file(change({f'{a}.{b}': params[a][b] for a, b in names}), file := str(tmp_path / 'a.safetensors'))
    with pytest.raises(UserError, match=words):
        read_params(traced(), file)


@pytest.mark.parametrize(
    'names, words',
    [
        (['predicted'], 'there is no hypernetwork: give workdir=RUN'),
        (['hee'], 'init=hee: expected predicted, he, he_uniform, glorot, .*, normal_0.5, or a file'),
        ([], 'init is empty'),
        ([__file__], 'no safetensors file'),
    ],
)
def test_where_nothing_can_begin_gets_one_line(names, words):
    with pytest.raises(UserError, match=words):
        parse_starts(names, [trace(Net(), (1, SIZE, SIZE, 3))], None)
