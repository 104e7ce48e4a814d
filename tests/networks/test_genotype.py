"""Genotypes: what is accepted, what is refused, and that nothing is lost on the way to JSON and back."""

import json

import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.networks.genotype import OPS, Genotype

GOOD = {
    'normal': [['conv_3x3', 0], ['skip_connect', 1], ['none', 2], ['sep_conv_5x5', 0]],
    'normal_concat': [2, 3],
    'reduce': [['max_pool_3x3', 1], ['avg_pool_3x3', 0]],
    'reduce_concat': [2],
}


def test_json_and_back_is_the_identity():
    genotype = Genotype.from_dict(GOOD)
    assert genotype.to_dict() == GOOD
    assert Genotype.from_dict(json.loads(json.dumps(genotype.to_dict()))) == genotype


def test_equal_genotypes_have_equal_hashes_and_cannot_be_changed():
    one, other = Genotype.from_dict(GOOD), Genotype.from_dict(json.loads(json.dumps(GOOD)))
    assert one == other and hash(one) == hash(other)
    with pytest.raises(AttributeError):
        one.normal = ()


def test_ops_and_steps_describe_both_cells():
    genotype = Genotype.from_dict(GOOD)
    assert genotype.ops == {
        'conv_3x3',
        'skip_connect',
        'none',
        'sep_conv_5x5',
        'max_pool_3x3',
        'avg_pool_3x3',
    }
    assert genotype.steps == 2
    assert genotype.cell(reduction=True) == (genotype.reduce, (2,))


@pytest.mark.parametrize('op', OPS)
def test_every_published_op_is_accepted(op):
    assert op in Genotype.from_dict(GOOD | {'reduce': [[op, 0], ['conv_1x1', 1]]}).ops


@pytest.mark.parametrize(
    ('field', 'value', 'told'),
    [
        ('normal', [['conv_9x9', 0], ['none', 1]], 'conv_9x9'),
        ('normal', [[3, 0], ['none', 1]], 'has the op 3'),
        ('normal', [['conv_3x3', 0], ['none', 2]], 'source 2'),
        ('normal', [['conv_3x3', 0], ['none', -1]], 'source -1'),
        ('normal', [['conv_3x3', True], ['none', 1]], 'source True'),
        ('normal', [['conv_3x3', 0.0], ['none', 1]], 'source 0.0'),
        ('normal', [['conv_3x3', 0]], 'two for each'),
        ('normal', [['conv_3x3', 0, 1], ['none', 1]], 'expected [op, source]'),
        ('normal', [], 'expected a list'),
        ('normal', 'conv_3x3', 'expected a list'),
        ('normal_concat', [], 'one or more'),
        ('normal_concat', [1, 2], 'has 1'),
        ('normal_concat', [2, 4], 'has 4'),
        ('normal_concat', [2, 2], 'once'),
        ('normal_concat', [True], 'has True'),
        ('normal_concat', 2, 'expected a list'),
        ('reduce_concat', [3], 'expected one of the intermediate states'),
    ],
)
def test_bad_fields_are_refused_in_one_line_that_names_them(field, value, told):
    with pytest.raises(UserError) as error:
        Genotype.from_dict(GOOD | {field: value})
    message = str(error.value)
    assert field in message and told in message and '\n' not in message


@pytest.mark.parametrize('fields', [None, [], 'normal', 3])
def test_what_is_no_object_is_refused(fields):
    with pytest.raises(UserError, match='expected an object'):
        Genotype.from_dict(fields)


def test_unknown_and_missing_fields_are_refused():
    with pytest.raises(UserError, match="unknown field 'normol'"):
        Genotype.from_dict(GOOD | {'normol': []})
    with pytest.raises(UserError, match="lacks the field 'reduce'"):
        Genotype.from_dict({key: value for key, value in GOOD.items() if key != 'reduce'})
