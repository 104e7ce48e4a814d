"""Policies: which bits a name gets, and what is said to those who ask for impossible ones."""

import pytest

from ghn_jax.errors import UserError
from ghn_jax.quant import Policy, parse_bits
from ghn_jax.quant.policy import TERNARY, quantizable

NAMES = ('stem.0.weight', 'cells.1._ops.0.op.1.weight', 'cells.11._ops.0.op.1.weight', 'classifier.0.weight')


def test_without_rules_every_name_gets_the_same_bits():
    policy = Policy(4, 8)
    assert all((policy.weights(name), policy.activations(name)) == (4, 8) for name in NAMES)


def test_the_first_rule_that_matches_wins():
    policy = Policy(4, 4, (('stem.*', 8, 8), (r'.*\.0\.weight', 6, 32), (r'stem\.0\.weight', 2, 2)))
    assert [policy.weights(name) for name in NAMES] == [8, 4, 4, 6]
    assert [policy.activations(name) for name in NAMES] == [8, 4, 4, 32]


def test_a_rule_matches_whole_names_only():
    policy = Policy(4, 4, (('cells.1', 8, 8), (r'cells\.1\..*', 16, 16)))
    assert [policy.weights(name) for name in NAMES] == [4, 16, 4, 4]


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


@pytest.mark.parametrize('rules', [4, ('.*', 8, 8), (('.*', 8),), ((5, 8, 8),), (('(', 8, 8),)])
def test_malformed_rules_are_user_errors(rules):
    with pytest.raises(UserError):
        Policy(rules=rules)


def test_policies_are_values():
    from_lists = Policy(4, 4, [['stem.*', 8, 8]])
    assert from_lists == Policy(4, 4, (('stem.*', 8, 8),))
    assert len({from_lists, Policy(4, 4, (('stem.*', 8, 8),)), Policy(4, 4)}) == 2
    assert str(from_lists) == 'w4a4 stem.*=w8a8'


def test_convolutions_and_linear_layers_are_quantizable_and_nothing_else():
    shapes = [('stem0.weight', (8, 3, 3, 3)), ('pos_enc.weight', (1, 8, 11, 11)), ('stem.1.weight', (8,))]
    shapes += [('classifier.0.weight', (10, 8)), ('classifier.0.bias', (10,))]
    assert quantizable(shapes) == ('stem0.weight', 'classifier.0.weight')


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
        UserError, match=r"'cells.1._ops.0.op.1.weight' is none of the 1 weights .*another network"
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
