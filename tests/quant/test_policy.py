"""Policies: which bits a name gets, and what is said to those who ask for impossible ones."""

import json

import numpy as np
import pytest

from ghn_jax.base.errors import UserError
from ghn_jax.quant import Policy, load_policy, parse_bits
from ghn_jax.quant.policy import TERNARY, quantizable

NAMES = ('stem.0.weight', 'cells.1._ops.0.op.1.weight', 'cells.11._ops.0.op.1.weight', 'classifier.0.weight')


def test_without_rules_every_name_gets_the_same_bits():
    policy = Policy(4, 8)
    assert all(policy.widths(name) == (4, 8) for name in NAMES)


def test_the_first_rule_that_matches_wins():
    policy = Policy(4, 4, (('stem.*', 8, 8), (r'.*\.0\.weight', 6, 32), (r'stem\.0\.weight', 2, 2)))
    assert [policy.widths(name) for name in NAMES] == [(8, 8), (4, 4), (4, 4), (6, 32)]


def test_a_rule_matches_whole_names_only():
    policy = Policy(4, 4, (('cells.1', 8, 8), (r'cells\.1\..*', 16, 16)))
    assert [policy.widths(name)[0] for name in NAMES] == [4, 16, 4, 4]


def test_a_rule_that_matches_nothing_is_an_error_that_names_it():
    Policy(4, 4, (('stem.*', 8, 8),)).check(NAMES)
    with pytest.raises(UserError, match="'stem1.*' matches none of the 4 weights .*'stem.0.weight'"):
        Policy(4, 4, (('stem.*', 8, 8), ('stem1.*', 8, 8))).check(iter(NAMES))
    with pytest.raises(UserError, match='matches none of the 0 weights'):
        Policy(4, 4, (('.*', 8, 8),)).check(())


@pytest.mark.parametrize('text', ['w4a4', 'w2a16', 'w32a8', 'w32a32', 'w1a2', 'wta2', 'w1a1'])
def test_parsing_and_printing_are_inverse(text):
    assert str(parse_bits(text)) == text
    assert parse_bits(str(parse_bits(text))) == parse_bits(text)


def test_float_is_32_bits():
    assert parse_bits('float') == parse_bits('w32a32') == Policy()
    assert Policy().is_float
    assert not parse_bits('w32a8').is_float
    assert not Policy(rules=(('.*', 32, 8),)).is_float


def test_other_spellings_parse_alike():
    assert parse_bits('W4/A8') == parse_bits(' w4a8 ') == Policy(4, 8)


NOT_BITS = [
    '',
    'w4',
    'a4w4',
    '4',
    'w0a4',
    'w4a0',
    'w4at',
    'w04a4',
    'w4a17',
    'w33a8',
    'w4a4a4',
    'w-4a4',
    'w4.0a4',
    'int8',
    None,
    4,
]


@pytest.mark.parametrize('text', NOT_BITS)
def test_impossible_bits_are_user_errors_that_say_what_came_and_what_is_allowed(text):
    with pytest.raises(
        UserError, match='expected float, or w<bits>a<bits> such as w4a8 with bits 1 to'
    ) as error:
        parse_bits(text)
    assert repr(text) in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('bits', [17, 31, 33, -4, 4.0, True, '4', None])
def test_impossible_widths_are_user_errors_wherever_they_stand(bits):
    for make in (
        lambda: Policy(bits, 4),
        lambda: Policy(4, bits),
        lambda: Policy(rules=(('.*', bits, 4),)),
        lambda: Policy(rules=(('.*', 4, bits),)),
        lambda: Policy(layers=(('stem.0.weight', bits, 4),)),
        lambda: Policy(edges=(4, bits)),
    ):
        with pytest.raises(UserError, match='expected an integer, 1 to 16, or 32 for float'):
            make()


def test_every_rule_is_judged_not_the_first_alone():
    for rules in ((('(a+)+b', 8, 8),), (('stem.*', 8, 8), ('(a+)+b', 8, 8))):
        with pytest.raises(UserError, match=r"rule '\(a\+\)\+b' .* might take years"):
            Policy(rules=rules)


@pytest.mark.parametrize('rules', [4, ('.*', 8, 8), (('.*', 8),), ((5, 8, 8),), (('(', 8, 8),)])
def test_malformed_rules_are_user_errors(rules):
    with pytest.raises(UserError):
        Policy(rules=rules)


def test_integers_of_numpy_are_integers_and_are_kept_as_those_of_python():
    two, four = np.arange(2, 5, 2)
    made = Policy(four, two, rules=(('stem.*', two, four),), layers=(('a', four, two),), edges=(two, four))
    same = Policy(4, 2, rules=(('stem.*', 2, 4),), layers=(('a', 4, 2),), edges=(2, 4))
    assert made == same and json.dumps(made.to_dict()) == json.dumps(same.to_dict())


def test_policies_are_values():
    from_lists = Policy(4, 4, [['stem.*', 8, 8]])
    assert from_lists == Policy(4, 4, (('stem.*', 8, 8),))
    assert len({from_lists, Policy(4, 4, (('stem.*', 8, 8),)), Policy(4, 4)}) == 2
    assert str(from_lists) == 'w4a4 stem.*=w8a8'


def test_convolutions_and_linear_layers_are_quantizable_and_nothing_else():
    shapes = [('stem0.weight', (8, 3, 3, 3)), ('pos_enc.weight', (1, 8, 11, 11)), ('stem.1.weight', (8,))]
    shapes += [('classifier.0.weight', (10, 8)), ('classifier.0.bias', (10,))]
    assert quantizable(shapes) == ('stem0.weight', 'classifier.0.weight')


# ---- exact bits, and files

EXACT = Policy(4, 4, (('stem.*', 8, 8),), ((NAMES[0], 2, 3), (NAMES[2], 32, 6)), network='net')


def test_exact_bits_come_before_rules():
    assert [EXACT.widths(name) for name in NAMES] == [(2, 3), (4, 4), (32, 6), (4, 4)]
    assert str(EXACT) == f'w4a4 {NAMES[0]}=w2a3 {NAMES[2]}=w32a6 stem.*=w8a8'
    assert len({EXACT, Policy(4, 4, (('stem.*', 8, 8),)), Policy(4, 4)}) == 3
    assert not Policy(layers=(('a', 32, 4),)).is_float and Policy(layers=(('a', 32, 32),)).is_float


def test_a_policy_of_another_network_is_an_error():
    EXACT.check(NAMES)
    EXACT.check(NAMES, 'net')
    with pytest.raises(UserError, match="for network 'net', not for 'other'"):
        EXACT.check(NAMES, 'other')
    with pytest.raises(UserError, match=f"'{NAMES[2]}' is none of the 2 weights .*'{NAMES[0]}'"):
        EXACT.check(NAMES[:2], 'net')


def test_a_file_holds_what_to_dict_gives(tmp_path):
    with_edges = Policy(4, 4, (('stem.*', 8, 8),), edges=[8, 6])  # a list, as in a file
    assert with_edges.edges == (8, 6) and with_edges.to_dict()['edges'] == [8, 6]
    assert len({with_edges, Policy(4, 4, (('stem.*', 8, 8),), edges=(8, 6)), Policy(edges=(8, 6))}) == 2
    assert 'edges' not in Policy(4, 8).to_dict()
    for policy in (EXACT, Policy(4, 8), Policy(2, 2, (('a', 3, 4), ('b.*', 5, 6))), with_edges):
        (tmp_path / 'mine.json').write_text(json.dumps(policy.to_dict()))
        read = load_policy(tmp_path / 'mine.json')
        assert read == policy and hash(read) == hash(policy) and read.edges == policy.edges
        assert str(read) == 'mine'


def test_the_format_in_the_documentation_is_read(tmp_path):
    from ghn_jax.quant import policy

    text = policy.__doc__[policy.__doc__.index('{') : policy.__doc__.index('Pairs')]
    (tmp_path / 'a.json').write_text(text)
    read = load_policy(tmp_path / 'a.json')
    assert (read.network, read.widths('stem.0.weight')[0], read.widths('classifier.3.weight')[1]) == (
        'net-7',
        8,
        4,
    )
    assert read.widths('cells.0._ops.1.op.1.weight')[0] == 2


def fields(**changes):
    return json.dumps({'weight_bits': 4, 'activation_bits': 4} | changes)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'is no JSON'),
        ('{"weight_bits": 4,', 'is no JSON'),
        ('[' * 100_000, 'nested too deep'),
        ('[4, 4]', 'expected an object with the fields weight_bits'),
        ('{"weight_bits": 4}', "lacks the field 'activation_bits'"),
        (fields(bits=4), "unknown field 'bits'"),
        (fields(name='x'), "unknown field 'name'"),
        ('{"weight_bits": 4, "weight_bits": 8, "activation_bits": 4}', "'weight_bits' twice"),
        (fields(layers={})[:-3] + '{"a": [2, 2], "a": [3, 3]}}', "'a' twice"),
        (fields(weight_bits=17), 'weight_bits=17: expected an integer, 1 to 16, or 32'),
        (fields(edges=[8]), r'edges=\[8\]: expected'),
        (fields(activation_bits='4'), "activation_bits='4': expected an integer"),
        (fields(weight_bits=float('nan')), 'has NaN, which is no JSON'),
        (fields(rules=[['stem.*', 8, 17]]), "rules 'stem.*': activation_bits=17"),
        (fields(rules=[['stem.*', 8]]), r'expected a list of \(regex, weight_bits, activation_bits\)'),
        (fields(rules=4), 'rules=4: expected a list'),
        (fields(rules=[['(', 8, 8]]), "rule '\\(' is not a regular expression"),
        (fields(rules=[[5, 8, 8]]), 'rules: 5 is no regex: expected a string'),
        (fields(layers=[['a', 4, 4]]), 'layers=.* expected an object such as'),
        (fields(layers={'a': 4}), 'layers=.* expected an object such as'),
        (fields(layers={'a': [4]}), r'expected a list of \(name, weight_bits, activation_bits\)'),
        (fields(layers={'a': [4, 0]}), "layers 'a': activation_bits=0"),
        (fields(network=3), 'network=3: expected the name'),
    ],
)
def test_a_bad_file_is_one_line_that_names_it(tmp_path, text, message):
    (tmp_path / 'bad.json').write_text(text)
    with pytest.raises(UserError, match=f"policy '.*bad.json'.*{message}") as error:
        load_policy(tmp_path / 'bad.json')
    assert '\n' not in str(error.value) and len(str(error.value)) < 400


def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / 'latin.json').write_bytes(b'{"a": "\xe9"}')
    for name, message in (
        ('absent.json', 'cannot be read'),
        ('', 'cannot be read'),
        ('latin.json', 'not UTF-8'),
    ):
        with pytest.raises(UserError, match=message):
            load_policy(tmp_path / name)


def test_only_weights_are_ternary():
    assert str(Policy(TERNARY, 2)) == 'wta2' and parse_bits('WT/A2') == Policy(TERNARY, 2)
    with pytest.raises(UserError, match='activation_bits=0: expected an integer, 1 to 16, or 32 for float$'):
        Policy(2, TERNARY)


def test_layers_by_name_come_before_rules_and_edges():
    policy = Policy(4, 4, (('cells.*', 8, 8),), layers=((NAMES[1], 2, 3),), edges=(6, 16))
    assert [policy.widths(name) for name in NAMES] == [(4, 4), (2, 3), (8, 8), (4, 4)]
    assert [policy.widths(name, edge=True) for name in NAMES] == [(6, 16), (2, 3), (8, 8), (6, 16)]
    policy.check(NAMES)
    with pytest.raises(
        UserError, match=r"'cells.1._ops.0.op.1.weight' is none of the 1 weights .*this network"
    ):
        Policy(4, 4, layers=((NAMES[1], 2, 3),)).check(NAMES[:1])


def test_edges_apply_to_what_is_quantized_at_all():
    assert Policy(edges=(8, 8)).is_float
    assert Policy(edges=(8, 8)).widths(NAMES[0], edge=True) == (32, 32)
    assert Policy(2, 32, edges=(8, 6)).widths(NAMES[0], edge=True) == (8, 32)


@pytest.mark.parametrize('edges', [8, (8,), (8, 0), 'w8'])
def test_impossible_edges_are_user_errors(edges):
    with pytest.raises(UserError, match='edges'):
        Policy(4, 4, edges=edges)


def test_a_layer_is_no_edge_unless_it_is_said_to_be():
    policy = Policy(2, 3, edges=(8, 6))
    assert policy.widths('x') == (2, 3)
    assert policy.widths('x', edge=True) == (8, 6)
