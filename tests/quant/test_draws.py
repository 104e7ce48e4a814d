"""Drawn policies: functions of (seed, step, index), in the shares asked for."""

import collections

import numpy as np

from ghn_jax.quant import Policy
from ghn_jax.quant.draws import describe_bits, draw_policy

NAMES = tuple(f'{i}.weight' for i in range(20))
WIDTHS = (2, 3, 4, 6, 8, 32)
FIXED = Policy(5, 7)


def drawn(step, index=0, *, seed=0, uniform=0.5, mixed=0.25, names=NAMES):
    return draw_policy(
        seed, step, index, names, fixed=FIXED, uniform_share=uniform, mixed_share=mixed, widths=WIDTHS
    )


def test_a_policy_is_a_function_of_seed_step_and_index():
    first = [[drawn(step, index, mixed=0.5) for index in range(4)] for step in range(10)]
    assert first == [[drawn(step, index, mixed=0.5) for index in range(4)] for step in range(10)]
    assert len({str(policy) for row in first for policy in row}) > 20
    assert first != [[drawn(step, index, mixed=0.5, seed=1) for index in range(4)] for step in range(10)]


def test_shares_are_those_asked_for_and_all_widths_come_up():
    policies = [drawn(step) for step in range(800)]
    kinds = collections.Counter(
        'fixed' if policy == FIXED else 'mixed' if policy.layers else 'uniform' for policy in policies
    )
    np.testing.assert_allclose([kinds['uniform'] / 800, kinds['mixed'] / 800], [0.5, 0.25], atol=0.06)
    uniform = [p for p in policies if not p.layers and p != FIXED]
    pairs = collections.Counter((p.weight_bits, p.activation_bits) for p in uniform)
    assert set(pairs) == {(w, a) for w in WIDTHS for a in WIDTHS}
    assert drawn(0, uniform=0, mixed=0) is FIXED
    assert all(drawn(step, uniform=1, mixed=0) != FIXED for step in range(50))


def test_mixed_policies_give_every_layer_its_own_bits():
    policies = [drawn(step, uniform=0, mixed=1) for step in range(60)]
    weights = [[policy.weights(name) for name in NAMES] for policy in policies]
    activations = [[policy.activations(name) for name in NAMES] for policy in policies]
    for bits in (weights, activations):
        values, counts = np.unique(bits, return_counts=True)
        assert values.tolist() == list(WIDTHS)
        np.testing.assert_allclose(counts / np.size(bits), 1 / 6, atol=0.05)
        assert all(len(set(layers)) > 1 for layers in bits)
    assert weights != activations
    policies[0].check(NAMES)


def test_the_bits_of_a_training_in_words():
    draws = {'uniform_share': 0.5, 'mixed_share': 0.5, 'widths': (2, 4, 32)}
    assert describe_bits('w4a4', **draws) == '50% uniform, 50% mixed of 2,4,32 bits'
    assert (
        describe_bits('w4a4', **draws | {'mixed_share': 0.25})
        == 'w4a4, 50% uniform, 25% mixed of 2,4,32 bits'
    )
    assert describe_bits('w4a4', **draws | {'uniform_share': 0, 'mixed_share': 0}) == 'w4a4'
