"""Blocks cover a model, compute together what it computes, and end where its dataflow is narrow."""

import jax
import numpy as np
import pytest

from ghn_jax.models.folding import calibrate
from ghn_jax.models.tracing import trace
from ghn_jax.tuning.blocks import blocks_of
from tests.cnn.networks import small_network
from tests.tuning.models import Plain, Residual, calibrated, images


def through_blocks(of, x):
    values = (x,)
    for block in blocks_of(of, len(x)):
        values = block.run(values)
    (logits,) = values
    return logits


def cell_network():
    spec = small_network([('conv_1x1', 0), ('skip_connect', 1)], C=8, n_cells=3, stem_type=0, name='cells')
    model = trace(spec, (1, 16, 16, 3))
    r = np.random.default_rng(0)
    params = jax.tree.map(lambda a: r.uniform(-1, 1, a.shape).astype(a.dtype), model.params)
    return calibrate(model, params, [images(4, size=16)]), images(4, size=16)


@pytest.mark.parametrize(
    'make',
    [
        pytest.param(lambda: calibrated(Plain(), 4), marks=pytest.mark.slow),
        lambda: calibrated(Residual(), 4),
        pytest.param(cell_network, marks=pytest.mark.slow),
    ],
    ids=['plain', 'residual', 'cells'],
)
def test_blocks_hold_each_layer_once_and_one_after_another_give_the_model_to_the_bit(make):
    of, x = make()
    blocks = blocks_of(of, len(x))
    layers = [name for block in blocks for name in block.layers]
    assert layers == [layer.name for layer in of.model.layers] and all(block.layers for block in blocks)
    np.testing.assert_array_equal(through_blocks(of, x), of.apply(x))


def test_residual_blocks_are_blocks_and_one_value_crosses_between_them():
    of, x = calibrated(Residual(), 4)
    blocks = blocks_of(of, len(x))
    assert [block.layers for block in blocks] == [
        ('Conv_0.kernel',),
        ('Conv_1.kernel', 'Conv_2.kernel'),
        ('Conv_3.kernel', 'Conv_4.kernel'),
        ('Dense_0.kernel',),
    ]
    assert all(len(block.program.inputs) == len(block.program.outputs) == 1 for block in blocks)
    assert [len(block.norms) for block in blocks] == [1, 2, 1, 0]


@pytest.mark.slow
def test_cells_that_read_two_cells_before_them_are_blocks_of_two_values():
    of, x = cell_network()
    blocks = blocks_of(of, len(x))
    assert len(blocks) > 3
    assert max(len(block.program.inputs) for block in blocks) == 2
    passing = [block for block in blocks if len(block.made) < len(block.program.outputs)]
    assert passing, 'a value that passes through a block is none that the block makes'
