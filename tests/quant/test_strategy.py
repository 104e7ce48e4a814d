"""Strategies: which bits a network of a step gets, and what a config may say."""

import hashlib
import json

import numpy as np
import pytest

from ghn_jax import config as configs
from ghn_jax.base.errors import UserError
from ghn_jax.cnn.building import build_program
from ghn_jax.networks.graph import build_graph
from ghn_jax.networks.spaces import make_space
from ghn_jax.quant import Policy, Scheme
from ghn_jax.quant.policy import quantizable
from ghn_jax.quant.scheme import FIELDS
from ghn_jax.quant.strategy import describe_bits, edges_of, scheme_of, strategy_of
from tests.cnn.networks import quantized_names, shapes, small_network

NETWORK = small_network([('sep_conv_3x3', 0), ('skip_connect', 1)], C=16)
GRAPH = build_graph(NETWORK)
DRAW = ('w2a2', 'w4a4', 'w8a8', 'w32a32')


def strategy(seed=0, **quant):
    c = configs.default()
    c.seed = seed
    c.quant.mode = 'qat'
    c.quant.update(quant)
    return strategy_of(configs.freeze(c))


def drawn_by_layer(s, steps=range(8), indices=range(3)):
    """Bits of every layer of every draw, step by step."""
    names = quantized_names(NETWORK)
    policies = [s.policy_of(step, i, GRAPH) for step in steps for i in indices]
    return [[policy.widths(name) for name in names] for policy in policies]


def test_a_strategy_of_the_defaults_is_one_policy():
    assert {strategy().policy_of(step, 0, GRAPH) for step in (0, 7, 10**6)} == {Policy(4, 4)}
    assert strategy(mode='float').policy_of(0, 0, GRAPH) == Policy()


def test_a_schedule_lowers_bits_at_its_steps():
    s = strategy(schedule=((3, 'float'), (5, 'w8a8')), bits='w2a2')
    assert [str(s.policy_of(step, 1, GRAPH)) for step in range(7)] == ['w32a32'] * 3 + ['w8a8'] * 2 + [
        'w2a2'
    ] * 2


def test_draws_depend_on_seed_step_and_place_alone_and_are_uniform():
    s = strategy(draw=DRAW)
    drawn = [[str(s.policy_of(step, i, GRAPH)) for i in range(4)] for step in range(200)]
    again = strategy(draw=DRAW)
    assert drawn[150] == [str(again.policy_of(150, i, GRAPH)) for i in range(4)]
    counts = np.unique(np.ravel(drawn), return_counts=True)[1]
    assert len(counts) == 4 and np.all(np.abs(counts - 200) < 5 * np.sqrt(150))
    assert len({tuple(row) for row in drawn}) > 100  # places and steps differ
    assert strategy(draw=DRAW, schedule=((9, 'float'),)).policy_of(8, 0, GRAPH) == Policy()


@pytest.mark.parametrize('per', ['network', 'layer', 'either'])
def test_another_seed_draws_other_policies(per):
    first, again, other = (drawn_by_layer(strategy(seed, draw=DRAW, draw_per=per)) for seed in (0, 0, 1))
    assert first == again
    assert np.mean([a != b for a, b in zip(first, other)]) > 0.5


def test_draws_stay_what_they_are():
    """A run resumed by a later version draws on. If this fails, say so loudly, then change the digest."""
    draws = [
        drawn_by_layer(strategy(seed, draw=DRAW, draw_per=per))
        for per in ('network', 'layer', 'either')
        for seed in (0, 1)
    ]
    assert hashlib.sha256(json.dumps(draws).encode()).hexdigest()[:16] == '0df9a482d429a67f'


def test_draws_by_layer_give_every_weight_of_the_network_bits_of_its_own():
    program, names = build_program([NETWORK], image_size=8, max_params=1e6), quantized_names(NETWORK)
    layout = program.layout(NETWORK)
    policy = strategy(draw=DRAW, draw_per='layer').policy_of(0, 0, GRAPH)
    assert [name for name, *_ in policy.layers] == list(names)
    assert set(names) == set(layout.tensors)
    bits = program.bits(layout, policy)
    assert {layout.tensors[n]: w for n, w, _ in policy.layers} == {
        i: bits.weights[i] for i in layout.tensors.values()
    }
    assert len(np.unique(bits.weights[: len(names)])) > 2
    with pytest.raises(UserError, match='is none of the'):
        other = small_network([('conv_1x1', 0), ('conv_1x1', 1)], C=16)
        policy.check(quantized_names(other))


def test_a_toss_between_the_two_gives_both():
    s = strategy(draw=DRAW, draw_per='either')
    assert 10 < sum(bool(s.policy_of(step, 0, GRAPH).layers) for step in range(60)) < 50


def test_the_first_and_the_last_layer_keep_their_width_in_every_draw():
    s = strategy(draw=('w2a2', 'w4a4'), draw_per='layer', edge_bits='w8a6')
    policy, names = s.policy_of(0, 0, GRAPH), quantized_names(NETWORK)
    assert {policy.widths(name, edge=True) for name in edges_of(names)} == {(8, 6)}
    assert {bits for name in names[1:-1] for bits in policy.widths(name)} == {2, 4}
    assert s.used(Policy(2, 2)) == Policy(2, 2, edges=(8, 6))
    assert s.used(Policy(2, 2, edges=(3, 3))) == Policy(2, 2, edges=(3, 3))  # what is asked for goes first


def test_a_float_run_is_scored_with_the_width_of_the_first_and_the_last_layer():
    s = strategy(mode='float', bits='w2a2', edge_bits='w8a6', draw=DRAW, schedule=((9, 'w4a4'),))
    assert s.used(Policy(2, 2)) == Policy(2, 2, edges=(8, 6))
    assert s.used(Policy()) == Policy(edges=(8, 6))
    assert {s.policy_of(step, 0, GRAPH) for step in (0, 20)} == {Policy(edges=(8, 6))}  # and draws nothing


def test_the_first_and_the_last_layer_are_found_for_every_stem_and_head():
    space = make_space('deepnets1m', channels=(16,), fc_dims=(64,), cells=(4, 5))
    specs = [space.sample('train', 0, i) for i in range(60)]
    kinds = set()
    for spec in specs:
        names = quantizable(shapes(spec).items())
        program = build_program([spec], image_size=32, max_params=1e7)
        assert set(edges_of(names)) == program.layout(spec).edges
        kinds.add((spec.is_vit, spec.stem_type, spec.fc_layers))
    assert len(kinds) >= 5


@pytest.mark.parametrize(
    ('quant', 'words'),
    [
        ({'bits': 'w0a4'}, '^quant.bits'),
        ({'draw': ('w4',)}, 'quant.draw'),
        ({'draw_per': 'image'}, "^quant.draw_per='image'"),
        ({'edge_bits': '8'}, 'quant.edge_bits'),
        ({'schedule': ((5, 'float'), (5, 'w8a8'))}, 'quant.schedule'),
        ({'schedule': (5, 'float')}, 'quant.schedule'),
        ({'schedule': ((5, 'w99a4'),)}, 'quant.schedule'),
        ({'granularity': 'row'}, 'tensor, channel'),
        ({'activation_range': 'moving_average'}, 'one batch does not tell'),
        ({'activation_clip': 0.0}, 'quant.activation_clip=0.0'),
        ({'percentile': 101.0}, 'quant.percentile'),
    ],
)
def test_impossible_values_are_user_errors_that_name_their_key(quant, words):
    with pytest.raises(UserError, match=words) as error:
        strategy(**quant)
    assert '\n' not in str(error.value)


def test_a_scheme_is_what_the_config_says_and_is_used_hard():
    c = configs.default()
    assert set(FIELDS) <= set(c.quant.keys())
    assert scheme_of(c.quant) == Scheme()
    c.quant.update(mode='noise', granularity='channel')
    assert scheme_of(c.quant).when_used() == Scheme('qat', granularity='channel')


@pytest.mark.parametrize(
    ('quant', 'said'),
    [
        ({'mode': 'float'}, 'w32a32'),
        ({'mode': 'float', 'bits': 'w2a2', 'draw': DRAW}, 'w32a32'),
        ({'mode': 'qat', 'bits': 'w2a2'}, 'w2a2'),
        ({'draw': ('w2a2', 'w4a4')}, 'drawn of w2a2, w4a4 by network'),
        ({'draw': ('w2a2', 'w4a4'), 'draw_per': 'layer'}, 'drawn of w2a2, w4a4 by layer'),
        ({'draw': ('w2a2',), 'draw_per': 'either'}, 'drawn of w2a2 by network or layer'),
        ({'draw': DRAW + DRAW[:3]}, 'drawn of w2a2, w4a4, w8a8, w32a32, w2a2, w4a4, w8a8 by network'),
        ({'draw': DRAW + DRAW}, 'drawn of 8 policies by network'),
    ],
)
def test_the_bits_of_a_training_are_said_in_a_few_words(quant, said):
    c = configs.default()
    c.quant.update({'mode': 'qat'} | quant)
    assert describe_bits(c.quant) == said


def test_configs_of_earlier_versions_load_in_the_words_of_this_one():
    c = configs.default()
    c.quant.schedule = ((350, 'float'), (400, 'w8a8'))
    assert configs.from_json(configs.to_json(c)) == configs.freeze(c)
    old = json.loads(configs.to_json(configs.default()))
    old['quant'] = {'mode': 'qat', 'bits': 'w4a4', 'start_step': 350}
    assert configs.from_json(json.dumps(old)).quant.schedule == ((350, 'float'),)
    old['quant'] = {'mode': 'qat', 'bits': 'w4a4', 'start_step': 0, 'standardise': False, 'temperature': 0.0}
    assert configs.from_json(json.dumps(old)).quant.schedule == ()
    old['quant']['standardise'] = True  # what there is no more
    with pytest.raises(UserError, match=r'quant\.standardise'):
        configs.from_json(json.dumps(old))
