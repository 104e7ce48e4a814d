"""The parameters of a model of one's own, packed."""

import jax
import numpy as np
import pytest
from flax import linen as nn
from safetensors.numpy import load_file

import ghn_jax
from ghn_jax.base.errors import UserError
from ghn_jax.config import QuantConfig, RunConfig
from ghn_jax.hypernet.ghn import GHN, init_params
from ghn_jax.models.tracing import trace
from ghn_jax.quant.policy import Policy
from ghn_jax.runs.model_parameters import read_params
from ghn_jax.runs.model_prediction import write_model
from ghn_jax.runs.run import Run
from tests.hypernet.helpers import SMALL


def model(dtype='float32'):
    """A convolution whose outputs are its last axis, and a linear layer whose outputs are its first."""

    def apply(params, x):
        x = nn.relu(nn.Conv(6, (3, 3)).apply({'params': params['conv']}, x)).mean((1, 2))
        return x @ params['head'].T

    shape = jax.ShapeDtypeStruct
    conv = {'kernel': shape((3, 3, 3, 6), 'float32'), 'bias': shape((6,), 'float32')}
    return trace(apply, (1, 16, 16, 3), params={'conv': conv, 'head': shape((10, 6), dtype)})


def run(granularity):
    config = RunConfig(quant=QuantConfig(granularity=granularity))
    params = init_params(SMALL, jax.random.key(0))
    return Run(config=config, ghn=GHN(SMALL), params=params, step=0, meta={})


@pytest.mark.parametrize('granularity', ['tensor', 'channel'])
def test_packed_parameters_of_a_model_are_those_that_are_not_packed(granularity, tmp_path):
    for packed in (False, True):
        file = tmp_path / f'{packed}.st'
        write_model(run(granularity), model(), file, policy=Policy(3, 8), packed=packed)
    plain, back = load_file(tmp_path / 'False.st'), ghn_jax.unpack(tmp_path / 'True.st')
    assert plain.keys() == back.keys() and len(np.unique(plain['head'])) > 2
    for name, w in plain.items():
        np.testing.assert_array_equal(back[name], w)


@pytest.mark.parametrize('packed', [False, True])
def test_weights_that_would_be_rounded_twice_are_told_of(packed, tmp_path, capsys):
    traced, file = model(), tmp_path / 'a.st'
    write_model(run('tensor'), traced, file, policy=Policy(3, 8), packed=packed)
    read_params(traced, file, [Policy(32, 8)])
    assert capsys.readouterr().err == ''
    read_params(traced, file, [Policy(), Policy(3, 8)])
    assert f'the weights of {file} are rounded to w3a8 already' in capsys.readouterr().err
    write_model(run('tensor'), traced, file, policy=Policy())
    read_params(traced, file, [Policy(3, 8)])
    assert capsys.readouterr().err == ''


def test_parameters_of_another_precision_are_not_packed(tmp_path):
    """What is rounded in float32 is not on a grid once it is cast."""
    with pytest.raises(UserError, match='packed: head of the model is bfloat16, expected float32'):
        write_model(run('tensor'), model('bfloat16'), tmp_path / 'a.st', policy=Policy(3, 8), packed=True)
    assert not list(tmp_path.iterdir())


def test_the_line_about_a_file_says_how_many_parameters_are_not_predicted(tmp_path):
    module = nn.Sequential([nn.Conv(4, (3, 3)), nn.LayerNorm(), lambda x: x.mean((1, 2)), nn.Dense(10)])
    traced = trace(module, (1, 16, 16, 3), unsupported='keep')
    line = write_model(run('tensor'), traced, tmp_path / 'a.st', policy=Policy(3, 8))
    assert ': 6 tensors, 2 of them as initialised, ' in line
