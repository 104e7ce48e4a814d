"""The records of operations: one each, and what is derived from them is what the plain reference reads."""

import math

import jax
import numpy as np
import pytest

from ghn_jax.cnn import instructions as kinds
from ghn_jax.cnn.reference import apply_reference
from ghn_jax.cnn.stages import stages_of
from ghn_jax.networks import counts
from ghn_jax.networks.counts import cost, count_parameters
from ghn_jax.networks.genotype import Genotype
from ghn_jax.networks.layers import PASS, PRIMITIVES, Conv, Norm, Pool, Relu
from ghn_jax.networks.ops import OPERATIONS, OPS, Operation, alone, tensors
from ghn_jax.networks.spaces import SPACES
from ghn_jax.reporting import graph_drawing
from tests.cnn.networks import shapes, small_network

RUN = [op for op in OPS if op != 'none']
C = 16


class Read(dict):
    """Parameters that remember which of them were read."""

    def __init__(self, *args):
        super().__init__(*args)
        self.names = set()

    def __getitem__(self, name):
        self.names.add(name)
        return super().__getitem__(name)


def read_by_the_reference(spec) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters that the plain reference reads."""
    params = Read({name: np.zeros(shape, 'float32') for name, shape in shapes(spec).items()})
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), 'float32')
    jax.eval_shape(lambda images: apply_reference(spec, params, images), images)
    return {name: params[name].shape for name in params.names}


def test_every_operation_of_a_genotype_has_one_record_and_every_record_is_one():
    assert tuple(OPERATIONS) == OPS
    for op in OPS:
        cell = ((op, 0), ('conv_1x1', 1))
        assert op in Genotype(normal=cell, normal_concat=(2,), reduce=cell, reduce_concat=(2,)).ops
    for space in SPACES.values():
        assert space.ops == tuple(op for op in OPS if space.name in OPERATIONS[op].spaces)


@pytest.mark.parametrize(
    'op, norm', [*((op, 'bnorm') for op in RUN), ('sep_conv_3x3', None), ('skip_connect', None)]
)
def test_counts_of_an_operation_are_those_of_the_tensors_that_the_reference_reads(op, norm):
    spec = small_network([(op, 0), (op, 1)], C=C, norm=norm)  # cell 0 is not strided, the others are
    read = read_by_the_reference(spec)
    assert read == shapes(spec)
    assert count_parameters(spec) == sum(map(math.prod, read.values()))
    kernels = [shape for name, shape in read.items() if name.startswith('cells') and len(shape) > 1]
    assert counts.largest_kernel(spec) == max(
        size for name, shape in read.items() if len(shape) == 4 for size in shape[2:]
    )
    _, tiles = counts.bounds(spec)
    assert sum(math.prod(shape[2:]) for shape in kernels) <= tiles
    for cell in (0, 1):
        own = {n: s for n, s in read.items() if n.startswith(f'cells.{cell}._ops.0.')}
        found = cost(op, C, strided=cell > 0 and not spec.is_vit, norm=norm is not None)
        assert found.parameters == sum(map(math.prod, own.values()))
        weights = [shape for shape in own.values() if len(shape) > 1]
        assert found.dense_tiles + found.depth_tiles == sum(math.prod(shape[2:]) for shape in weights)
        assert found.kernel == max((size for shape in weights for size in shape[2:]), default=1)


def test_parameters_of_every_operation_counted_by_hand():
    norm, gate, linear = 2 * C, C // 2, C * C
    expected = {
        'none': 0, 'max_pool_3x3': 0, 'avg_pool_3x3': 0, 'skip_connect': 0,
        'sep_conv_3x3': 2 * (9 * C + linear + norm), 'sep_conv_5x5': 2 * (25 * C + linear + norm),
        'dil_conv_3x3': 9 * C + linear + norm, 'dil_conv_5x5': 25 * C + linear + norm,
        'conv_1x1': linear + norm, 'conv_7x1_1x7': 14 * linear + norm, 'conv_3x3': 9 * linear + norm,
        'conv_5x5': 25 * linear + norm, 'conv_7x7': 49 * linear + norm,
        'msa': (norm + 3 * linear + linear + C) + (norm + 2 * (linear + C)),
        'cse': (C * gate + gate) + (gate * C + C),
        'mbconv_3x3': 4 * linear + 4 * norm + 9 * 4 * C + 4 * norm + 4 * linear + norm,
    }  # fmt: skip
    assert {op: cost(op, C).parameters for op in OPS} == expected
    assert cost('skip_connect', C, strided=True).parameters == linear + norm


@pytest.mark.parametrize('op', RUN)
@pytest.mark.parametrize('stride', [1, 2])
def test_the_instructions_of_an_operation_take_its_tensors_in_order(op, stride):
    taken, parts = [], 1
    for stage in stages_of(op, stride):
        times = parts * stage.parts if isinstance(stage.kind, kinds.Conv) else stage.parts
        shapes = stage.kind.weight_shapes((8, C), (8 // stride, C))
        taken += [times * math.prod(shape) for shape in shapes]
        parts = stage.parts
    assert parts == 1
    assert taken == [math.prod(shape) for _, shape in tensors(op, C, strided=stride > 1)]


def test_every_node_of_an_operation_is_a_primitive_that_the_report_can_draw():
    for op in OPS:
        for strided in (False, True):
            assert {*alone(op, C, strided=strided).kind} <= {*PRIMITIVES, PASS}
    assert set(graph_drawing._KINDS) == set(PRIMITIVES)


@pytest.mark.parametrize(
    'layers, message',
    [
        ((Relu(), Pool('max')), 'has a Relu before Pool'),
        ((Conv((3, 3)), Relu()), 'has a Relu before None'),
        ((Relu(), Conv((3, 3)), Norm(), Norm()), 'has a Norm after Norm'),
    ],
)
def test_layers_that_cannot_be_run_in_a_row_are_refused(layers, message):
    with pytest.raises(ValueError, match=message):
        Operation(layers)
