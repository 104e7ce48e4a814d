"""References tell a device that computes something else from one that adds in another order."""

import copy
import json

import numpy as np
import pytest

from ghn_jax.bringup import numbers
from ghn_jax.bringup.numbers import TOLERANCES, compare, compare_logits, judged, read_references
from ghn_jax.bringup.six_networks import COUNT, NetworkOutputs, difference, digest


@pytest.fixture(scope='module')
def references():
    return read_references()


def outputs(references, name):
    each = references['training'][name]
    return [NetworkOutputs(*one) for one in zip(each['loss'], each['gradients'], strict=True)]


def test_a_digest_estimates_how_far_two_trees_are_apart():
    random = np.random.default_rng(0)
    a = {'x': random.normal(size=(40, 50)), 'y': {'z': random.normal(size=300)}}
    b = {'x': a['x'] + 0.01 * random.normal(size=(40, 50)), 'y': {'z': 1.02 * a['y']['z']}}
    flat = [np.concatenate([t['x'].ravel(), t['y']['z']]) for t in (a, b)]
    exact = np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1])
    assert difference(digest(a), digest(b)) == pytest.approx(exact, rel=0.5)
    assert difference(digest(a), digest(a)) == 0
    assert digest(a).keys() == {'x', 'y/z'}
    assert difference(digest(a), digest({'x': a['x']})) == np.inf


def test_the_references_are_of_six_networks_and_small(references):
    assert numbers.REFERENCES.stat().st_size < 1_000_000
    assert references['training'].keys() == {'float32', 'w8a8', 'w4a4', 'bfloat16'}
    for each in references['training'].values():
        assert len(each['loss']) == len(each['gradients']) == COUNT
        assert all(g.keys() == each['gradients'][0].keys() for g in each['gradients'])
    for each in references['logits'].values():
        assert np.isfinite(np.array(each)).all() and np.shape(each) == (COUNT, 16, 10)


@pytest.mark.parametrize('name', ['float32', 'w8a8', 'w4a4', 'bfloat16'])
def test_each_reference_is_good_to_itself_and_one_at_other_bits_is_not(references, name):
    expected = references['training'][name]
    assert compare(name, outputs(references, name), expected)['good']
    for other in {'float32', 'w8a8', 'w4a4'} - {name}:
        # bfloat16 and W8/A8 are meant to be near float32.
        near = {name, other} <= {'bfloat16', 'float32', 'w8a8'} and name != 'float32'
        assert near or not compare(name, outputs(references, other), expected)['good'], other


def test_logits_at_other_bits_are_noticed(references):
    logits = {name: [*map(np.array, each)] for name, each in references['logits'].items()}
    assert compare_logits('w4a4', logits['w4a4'], references['logits']['w4a4'])['good']
    assert not compare_logits('w4a4', logits['float32'], references['logits']['w4a4'])['good']
    assert not compare_logits('float32', logits['w8a8'], references['logits']['float32'])['good']


@pytest.mark.parametrize('wrong', ['one tensor of one gradient', 'one loss', 'not a number'])
def test_one_wrong_number_in_float32_is_noticed(references, wrong):
    found = copy.deepcopy(outputs(references, 'float32'))
    if wrong == 'one tensor of one gradient':
        name, largest = max(found[2].gradients.items(), key=lambda item: item[1][0])
        found[2].gradients[name] = [0.8 * x for x in largest]
    else:
        found[2] = found[2]._replace(loss=np.nan if wrong == 'not a number' else found[2].loss * 1.001)
    judgement = compare('float32', found, references['training']['float32'])
    assert not judgement['good']
    json.dumps(judgement, allow_nan=False)  # it is written whole


def test_every_check_has_a_tolerance_and_what_is_no_number_is_not_good():
    assert all(t > 0 for each in TOLERANCES.values() for t in each.values())
    assert not judged('published', {'logits': float('nan')})['good']
    assert judged('published', {'logits': 0.0})['good']


@pytest.mark.slow
def test_this_cpu_agrees_with_the_references(shared):
    found = list(numbers.check(str(shared / 'golden')))
    assert len(found) == 14
    assert [each for each in found if not each['good']] == []
