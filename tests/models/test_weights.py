"""Predicted parameters of a model: in its structure, layout and precision, and the right ones."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from safetensors.numpy import load_file

import ghn_jax
from ghn_jax.hypernet.ghn import GHN, init_params
from ghn_jax.hypernet.predict import predict_weights
from ghn_jax.models.tracing import trace
from ghn_jax.models.weights import predict_model, unknown_parameters
from ghn_jax.networks.layers import PRIMITIVES
from ghn_jax.networks.ops import primitives_of
from ghn_jax.quant.policy import parse_bits
from ghn_jax.quant.scheme import QAT
from tests.hypernet.helpers import SMALL, small_spec
from tests.models import linen_models
from tests.small_run import command, is_one_error_line, write_run

CONVNETS = primitives_of(('sep_conv_3x3', 'conv_3x3', 'avg_pool_3x3'))


@pytest.fixture(scope='module')
def ghn():
    return GHN(SMALL), init_params(SMALL, jax.random.key(0))


class Net(nn.Module):
    """What a hypernetwork predicts, and what it does not: parameters that nothing depends on."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(16, (3, 3), use_bias=False, param_dtype=jnp.bfloat16)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=False)(x))
        self.param('unused', nn.initializers.ones, (3,))
        x = nn.Conv(16, (3, 3), feature_group_count=16)(x)
        return nn.Dense(10)(nn.LayerNorm()(x).mean((1, 2)))


def test_a_traced_spec_is_predicted_as_the_spec_is(ghn):
    spec = small_spec('sep_conv_3x3', 'cse', C=16, name='a')
    predicted, _ = predict_model(*ghn, trace(spec, (1, 32, 32, 3)), primitives=PRIMITIVES)
    expected = predict_weights(*ghn, spec)
    assert predicted.keys() == expected.keys()
    for name, w in expected.items():
        np.testing.assert_allclose(predicted[name], w, atol=1e-6, err_msg=name)


def test_parameters_have_the_structure_the_layout_and_the_precision_of_the_models_own(ghn):
    model = trace(Net(), (1, 8, 8, 3))
    params, _ = predict_model(*ghn, model, primitives=PRIMITIVES)
    expected = jax.tree.map(lambda a: (a.shape, a.dtype), model.params)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), params) == expected
    assert params['Conv_0']['kernel'].dtype == jnp.bfloat16
    assert np.isfinite(jax.jit(model.apply)(params, np.ones((2, 8, 8, 3), np.float32))).all()
    np.testing.assert_array_equal(params['unused'], 0)
    np.testing.assert_array_equal(params['Conv_1']['bias'], 0)
    assert np.all(params['Dense_0']['bias'] != 0)


def test_rounded_weights_have_as_many_values_as_their_bits_allow(ghn):
    model = trace(Net(), (1, 8, 8, 3))
    widths = model.quantizer(parse_bits('w2a8')).widths
    params, how = predict_model(*ghn, model, widths, primitives=PRIMITIVES, rounded=QAT)
    assert how.keys() == {'Conv_0.kernel', 'Conv_1.kernel', 'Dense_0.kernel'}
    assert all(len(np.unique(params[name]['kernel'])) <= 4 for name in ('Conv_0', 'Conv_1', 'Dense_0'))
    assert len(np.unique(params['LayerNorm_0']['scale'])) > 4


def test_what_a_hypernetwork_never_met_is_named_or_kept_as_initialised(ghn):
    with pytest.raises(
        ghn_jax.UserError, match="parameter 'LayerNorm_0.scale' .*kind 'ln', which .*never met"
    ):
        predict_model(*ghn, trace(Net(), (1, 8, 8, 3)), primitives=CONVNETS)
    model = trace(Net(), (1, 8, 8, 3), unsupported='keep')
    assert list(unknown_parameters(model, CONVNETS)) == ['LayerNorm_0.scale', 'LayerNorm_0.bias']
    params, _ = predict_model(*ghn, model, primitives=CONVNETS)
    np.testing.assert_array_equal(params['LayerNorm_0']['scale'], 1)
    np.testing.assert_array_equal(params['LayerNorm_0']['bias'], 0)
    assert np.ptp(params['Dense_0']['kernel']) > 0


def test_layers_around_attention_are_those_that_attention_needs():
    class Attention(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(16, name='before')(x.reshape(len(x), -1, 3))
            x = nn.MultiHeadDotProductAttention(num_heads=2, name='attention')(x, x)
            return nn.Dense(10, name='head')(nn.relu(x).mean(1))

    model = trace(Attention(), (1, 4, 4, 3), unsupported='keep')
    expected = {
        f'attention.{part}.{w}' for part in ('query', 'key', 'value', 'out') for w in ('kernel', 'bias')
    }
    assert unknown_parameters(model, CONVNETS).keys() == expected


def test_bad_models_are_refused_before_anything_is_predicted(ghn):
    head = lambda p, x: x.mean((1, 2)) @ p[0]
    with pytest.raises(
        ghn_jax.UserError, match='has 7 classes, the hypernetwork predicts 10: give a model with 10'
    ):
        model = trace(head, (1, 8, 8, 3), params=[jax.ShapeDtypeStruct((3, 7), jnp.float32)])
        predict_model(*ghn, model, primitives=PRIMITIVES)
    with pytest.raises(
        ghn_jax.UserError, match="'layers_0.kernel' .* kernel of 13 pixels, the hypernetwork predicts"
    ):
        module = nn.Sequential([nn.Conv(8, (13, 13)), lambda x: x.mean((1, 2)), nn.Dense(10)])
        model = trace(module, (1, 16, 16, 3))
        predict_model(*ghn, model, primitives=PRIMITIVES)


MODULE = """
from flax import linen as nn

def net():
    return nn.Sequential([nn.Conv(16, (3, 3)), nn.relu, lambda x: x.mean((1, 2)), nn.Dense(10)])

def broken():
    raise RuntimeError('no such\\nmodel')

def ends():
    raise SystemExit(3)

value = 3
"""


@pytest.mark.slow
def test_the_command_writes_the_parameters_of_a_model(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'nets_of_mine', raising=False)
    (tmp_path / 'nets_of_mine.py').write_text(MODULE)
    workdir, out = write_run(tmp_path / 'run'), tmp_path / 'net.safetensors'
    run = lambda name, *more: command(
        'ghn_jax.predict', f'--workdir={workdir}', f'--out={out}', f'--model={name}', *more
    )
    code, said, error = run('nets_of_mine:net', '--bits=w4a8')
    assert code == 0 and 'net.safetensors: 4 tensors' in said, error
    shapes = {name: w.shape for name, w in load_file(out).items()}
    assert shapes == {
        'layers_0.kernel': (3, 3, 3, 16), 'layers_0.bias': (16,),
        'layers_3.kernel': (16, 10), 'layers_3.bias': (10,),
    }  # fmt: skip
    assert is_one_error_line(run('nets_of_mine:broken'), 'RuntimeError: no such model')
    assert is_one_error_line(run('nets_of_mine:net', '--layout=jax'), '--model', '--layout')


@pytest.mark.parametrize(
    'name, message',
    [
        ('nets', 'expected package.module:function'),
        ('nets.py:net', 'expected a module as Python imports it, not a file, such as nets:net'),
        ('no.such:net', "module 'no.such' cannot be imported: ModuleNotFoundError: No module named 'no'"),
        ('nets_of_mine:other', "'other' of module 'nets_of_mine' is not there"),
        ('nets_of_mine:value', "'value' of module 'nets_of_mine' is no function"),
        ('nets_of_mine:broken', 'nets_of_mine:broken fails: RuntimeError: no such model'),
        ('nets_of_mine:ends', 'nets_of_mine:ends fails: SystemExit: 3'),
    ],
)
def test_names_of_no_use_get_one_line(name, message, tmp_path, monkeypatch):
    from ghn_jax.models.loading import load_model

    (tmp_path / 'nets_of_mine.py').write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'nets_of_mine', raising=False)
    with pytest.raises(ghn_jax.UserError, match=message) as caught:
        load_model(name, (1, 8, 8, 3))
    assert '\n' not in str(caught.value)


def test_a_function_of_other_arguments_gets_one_line(tmp_path, monkeypatch):
    from ghn_jax.models.loading import load_model

    (tmp_path / 'nets_to_call.py').write_text('def none(): ...\ndef one(factor): ...\n')
    monkeypatch.syspath_prepend(tmp_path)
    for name, given, said in (
        ('one', (), "nets_to_call:one has to take no arguments: missing a required argument: 'factor'"),
        (
            'none',
            (2.0,),
            'nets_to_call:none has to take the factor of its width, such as 1.0, alone: too many',
        ),
    ):
        with pytest.raises(ghn_jax.UserError, match=said):
            load_model(f'nets_to_call:{name}', (1, 8, 8, 3), *given)


def test_what_is_neither_predicted_nor_rounded_is_said(tmp_path, monkeypatch, capsys):
    from ghn_jax.models.loading import load_model

    (tmp_path / 'nets_with_loops.py').write_text(
        'import jax, ghn_jax\n'
        'def net():\n'
        "    step = lambda params, x: (x @ params['w'], None)\n"
        "    apply = lambda p, x: jax.lax.scan(lambda y, _: step(p, y), x, None, 2)[0] @ p['v']\n"
        '    shapes = {k: jax.ShapeDtypeStruct((3, 3), float) for k in "vw"}\n'
        "    return ghn_jax.trace(apply, (1, 3), params=shapes, unsupported='keep')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    load_model('nets_with_loops:net', (1, 3))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "warning: of model '<lambda>', 1 of 2 parameters are neither predicted nor rounded"
    )
    assert "'w' enters 'scan'" in line


def test_what_was_not_traced_is_not_predicted():
    hypernetwork = ghn_jax.load('zoo:digits-bits')
    for network in (nn.Dense(10), 'net', None):
        with pytest.raises(ghn_jax.UserError, match='expected a model of ghn_jax.trace, or a Net') as caught:
            hypernetwork.predict(network)
        assert '\n' not in str(caught.value)


ROW = linen_models._row
MODELS_FOR_DIGITS = [
    (
        linen_models.ResNet((1, 1, 1), linen_models.BasicBlock, width=16, imagenet_stem=False),
        {'train': True},
    ),
    (linen_models.Inception(), {'train': True}),
    (
        linen_models.MobileNet((ROW(1, 16, 1, 1), ROW(3, 16, 2, 2), ROW(3, 32, 2, 2)), stem=16, head=64),
        {'training': True},
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize('module, switches', MODELS_FOR_DIGITS)
def test_predicted_weights_beat_random_ones_on_the_data_of_the_hypernetwork(module, switches, shared):
    """Of a hypernetwork trained on cells of 16 channels, for models of other kinds."""
    hypernetwork = ghn_jax.load(shared / 'zoo' / 'digits_bits')
    data = hypernetwork.load_data()
    images, labels = data.normalized('test')[:240], np.asarray(data.test[1])[:240]
    model = trace(module, (1, 16, 16, 3))
    logits = jax.jit(model.apply)
    score = lambda params: float(np.mean(np.argmax(logits(params, images), -1) == labels))
    keys = lambda seed: {'params': jax.random.key(seed), 'dropout': jax.random.key(9)}
    start = jax.jit(lambda seed: module.init(keys(seed), images[:1], **switches)['params'])
    random = np.mean([score(start(seed)) for seed in range(5)])
    assert score(hypernetwork.predict(model)) > random + 0.05
