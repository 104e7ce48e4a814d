import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.hypernet.ghn import GHN, GHNConfig, init_params, predict_parameters
from ghn_jax.hypernet.gnn import gated_gnn
from ghn_jax.hypernet.tiles import decoder_table, tile_parameters
from ghn_jax.networks.graph import build_graph
from tests.cnn.comparison import QUICK
from tests.hypernet.helpers import SMALL, batch, random_params, small_graphs, small_spec

pytestmark = pytest.mark.usefixtures('quick_reference')

VARIANTS = {
    'GHN-2': SMALL,
    'GHN-1': dataclasses.replace(SMALL, weight_norm=False, ve=False, layernorm=False),
    'MLP': dataclasses.replace(SMALL, hypernet='mlp'),
    'GHN-3': dataclasses.replace(SMALL, hypernet='graphormer', layers=1, heads=2),
}


@pytest.fixture(scope='module')
def graphs():
    return small_graphs()


@partial(jax.jit, static_argnames=('ghn', 'method'), compiler_options=QUICK)
def apply(ghn, params, *args, method):
    return ghn.apply({'params': params}, *args, method=method)


def predict(ghn, params, graph):
    """All tensors of one network by the fast path."""
    C = ghn.config.max_shape
    table, items = decoder_table(graph, max_dense=320, max_depth=128, max_shape=C)
    x = apply(ghn, params, batch([graph, graph], 80), method='embed')
    return tile_parameters(apply(ghn, params, x[0], table, method='decode'), items, graph)


def test_every_variant_predicts_finite_tensors_of_the_right_shapes_and_they_differ(graphs):
    graph, predictions = graphs[2], {}
    for name, config in VARIANTS.items():
        predictions[name] = predict(GHN(config), random_params(config), graph)
        for p in graph.parameters:
            tensor = predictions[name][p.name]
            assert tensor.shape == p.shape and tensor.dtype == np.float32 and np.isfinite(tensor).all()
    name = graph.parameters[3].name
    for a, b in itertools.combinations((p[name] for p in predictions.values()), 2):
        assert not np.allclose(a, b)


def test_the_mlp_baseline_knows_no_neighbours_and_the_gnn_does(graphs):
    alone = dataclasses.replace(graphs[2], distance=np.zeros_like(graphs[2].distance))
    for name, sees_them in (('MLP', False), ('GHN-1', True), ('GHN-2', True), ('GHN-3', True)):
        ghn = GHN(VARIANTS[name])
        params = random_params(VARIANTS[name])
        x = apply(ghn, params, batch([graphs[2], alone], 80), method='embed')
        assert np.allclose(x[0], x[1], atol=1e-6) != sees_them


def test_a_second_round_goes_over_the_states_of_the_first(graphs):
    once, twice = (dataclasses.replace(SMALL, rounds=rounds) for rounds in (1, 2))
    params, given = random_params(SMALL), batch([graphs[2]], 80)
    first = apply(GHN(once), params, given, method='embed_stages')
    second = apply(GHN(twice), params, given, method='embed_stages')
    again = gated_gnn(params['gnn'], first['x_gnn'], given.distance, given.waves, given.n_waves)
    real = len(graphs[2].nodes)
    np.testing.assert_allclose(second['x_gnn'][:, :real], again[:, :real], atol=1e-5)
    assert not np.allclose(first['x_gnn'][:, :real], again[:, :real], atol=1e-3)


def test_virtual_edges_are_read_by_ghn2_and_not_by_ghn1(graphs):
    near = dataclasses.replace(graphs[2], distance=np.where(graphs[2].distance == 1, 1, 0).astype(np.uint8))
    for name, reads in (('GHN-1', False), ('GHN-2', True)):
        ghn = GHN(VARIANTS[name])
        params = random_params(VARIANTS[name])
        x = apply(ghn, params, batch([graphs[2], near], 80), method='embed')
        assert np.allclose(x[0], x[1], atol=1e-6) != reads


def test_the_fast_path_equals_predict_parameters(graphs):
    ghn, params = GHN(SMALL), random_params(SMALL, 1)
    oracle, ours = predict_parameters(ghn, params, graphs[2]), predict(ghn, params, graphs[2])
    assert set(oracle) == set(ours) == {p.name for p in graphs[2].parameters}
    for name, tensor in oracle.items():
        np.testing.assert_allclose(ours[name], tensor, rtol=1e-4, atol=1e-5, err_msg=name)


def test_embeddings_of_padding_are_zero_and_layer_norm_has_unit_scale(graphs):
    ghn, params = GHN(SMALL), random_params(SMALL)
    params = {**params, 'norm': {'scale': jnp.ones(SMALL.hid), 'bias': jnp.zeros(SMALL.hid)}}
    n = len(graphs[2].nodes)
    stages = apply(ghn, params, batch([graphs[2]], 80), method='embed_stages')
    assert set(stages) == {'x_init', 'x_gnn', 'x'}
    assert not any(np.asarray(x)[:, n:].any() for x in stages.values())
    x = np.asarray(stages['x'])[0, :n]
    np.testing.assert_allclose(x.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(x.var(-1), 1, atol=0.05)


def test_initial_values_are_those_of_pytorch_and_depend_on_the_key():
    params, other = (init_params(GHNConfig(), jax.random.key(i)) for i in (0, 1))
    decoder, gnn = params['decoder'], params['gnn']
    conv = decoder['conv']
    for array, fan_in, near in (
        (gnn['gru']['input_kernel'], 32, 0.99),
        (gnn['gru']['hidden_kernel'], 32, 0.99),
        (gnn['gru']['hidden_bias'], 32, 0.9),  # 96 numbers
        (gnn['mlp']['kernel_0'], 32, 0.98),
        (gnn['mlp_ve']['kernel_1'], 16, 0.98),
        (gnn['mlp']['bias_1'], 16, 0.8),
        (conv['fc_kernel'], 32, 0.999),
        (conv['hidden_kernel'], 128, 0.999),
        (conv['out_kernel'], 256, 0.999),
        (decoder['norm']['kernel_1'], 64, 0.99),
    ):
        bound = fan_in**-0.5
        assert near * bound < jnp.abs(array).max() <= bound
        assert array.std() == pytest.approx(bound / 3**0.5, rel=0.3)
    firsts = (
        *(gnn['mlp']['kernel_0'], gnn['mlp_ve']['kernel_0'], gnn['gru']['input_kernel']),
        *(conv['fc_kernel'], decoder['norm']['kernel_0'], decoder['class_bias']['kernel']),
    )
    draws = np.corrcoef([np.ravel(array)[:500] for array in firsts])
    assert np.abs(draws - np.eye(len(firsts))).max() < 0.3  # each its own
    assert params['embedding']['channel'].std() == pytest.approx(1, rel=0.1)
    assert (params['norm']['scale'] == 1).all() and (params['norm']['bias'] == 0).all()
    assert not jnp.allclose(conv['fc_bias'], other['decoder']['conv']['fc_bias'])
    assert (
        jax.eval_shape(partial(init_params, SMALL, dtype=jnp.bfloat16), jax.random.key(0))['norm'][
            'bias'
        ].dtype
        == jnp.bfloat16
    )


def test_a_network_with_other_classes_is_refused():
    graph = build_graph(small_spec('conv_3x3', 'skip_connect', num_classes=7, name='seven'))
    with pytest.raises(UserError, match="'seven' has 7 classes, the hypernetwork predicts 10"):
        predict_parameters(GHN(SMALL), {}, graph)


@pytest.mark.parametrize(
    ('field', 'value', 'message'),
    [
        ('hid', 30, 'expected a multiple of 4'),
        ('hid', True, 'expected an integer from 4'),
        ('num_classes', 0, 'expected an integer from 1'),
        ('rounds', 0, 'expected an integer from 1'),
        ('max_shape', [64, 32, 11, 11], r'expected \(C, C, K, K\)'),
        ('max_shape', 64, 'expected a value of type tuple'),
        ('hypernet', 'gcn', 'one of gatedgnn, graphormer, mlp'),
        ('decoder', 'mlp', 'one of conv'),
        ('ve', 1, 'expected a value of type bool'),
        ('hidd', 32, 'unknown fields hidd'),
    ],
)
def test_an_impossible_config_is_one_clear_error(field, value, message):
    with pytest.raises(UserError, match=message) as error:
        GHNConfig.from_dict({field: value})
    assert field in str(error.value) and '\n' not in str(error.value)


def test_a_config_survives_json():
    config = VARIANTS['GHN-1']
    assert GHNConfig.from_dict(config.to_dict()) == config
    assert hash(config) == hash(GHNConfig.from_dict(config.to_dict()))
