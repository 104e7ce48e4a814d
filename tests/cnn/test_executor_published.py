"""The executor gives the logits and losses of the published networks on their published weights."""

import json

import numpy as np
import pytest

from ghn_jax.cnn.building import build_program
from ghn_jax.networks.files import load_networks
from ghn_jax.quant.scheme import FLOAT
from tests.cnn.comparison import Executor, Inputs, relative_error

SLOW = pytest.param(('convnets-06', 'convnets-16'), marks=pytest.mark.slow)


@pytest.mark.parametrize('names', [SLOW, ('deepnets-01',), ('deepnets-18',)], ids=str)
def test_logits_and_losses_of_published_networks_equal_the_golden_ones(golden, names):
    folder = golden / 'open'
    specs = [spec for spec in load_networks(folder / 'archs.json') if spec.name in names]
    data = np.load(folder / 'inputs.npz')
    images, labels = data['images'].transpose(0, 2, 3, 1), data['labels']
    executor = Executor(
        build_program(specs, image_size=32, max_params=1e7),
        batch=len(images),
        dtype='float32',
        scheme=FLOAT,
    )
    assert {ref['id'] for ref in json.loads((folder / 'refs.json').read_text())} >= {
        spec.name for spec in specs
    }
    for spec in specs:
        arrays = np.load(folder / 'refs' / f'{spec.name}.npz')
        params = {key.removeprefix('param/'): arrays[key] for key in arrays if key.startswith('param/')}
        result = executor(spec, Inputs(params, images, labels))
        assert relative_error(result.logits, arrays['logits']) < 2e-5, spec.name
        assert relative_error(result.loss, arrays['loss']) < 2e-5, spec.name
