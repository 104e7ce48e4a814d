"""Checks of the executor against the reference that several files of tests share; see `test_executor`."""

import re

import jax

from ghn_jax.quant import Policy
from tests.cnn.comparison import Executor, Inputs, assert_close, make_inputs, reference
from tests.cnn.networks import one_sided_policy, quantized_names

SIZE, BATCH = 16, 2


def inputs_for(spec, seed=0, size=SIZE) -> Inputs:
    return make_inputs(spec, seed, size=size, batch=BATCH)


def sampled(space, split, count):
    return [space.sample(split, 0, i) for i in range(count)]


def quantized_policy(spec, k, weights=4, activations=4) -> Policy:
    """Each of four kinds in turn: activations, weights, and every other layer's activations or weights.

    One bit-width throughout lets networks share what the reference compiles. Without BatchNorm, two bits are
    too few: channels come out equal and cancel, and noise decides what relu passes.
    """
    if k % 4 < 2:
        return (Policy(32, activations), Policy(weights if spec.norm else 4, 32))[k % 4]
    names = quantized_names(spec)
    policy = one_sided_policy([name for name in names if 'conv_2.' not in name], bits=4, turn=k % 2)
    # Both convolutions of a FactorizedReduce read what the policy says for the first: one kind for both.
    rest = [name for name in names if 'conv_2.' in name]
    rules = [(re.escape(name), policy.widths(name.replace('conv_2', 'conv_1'))[0], 32) for name in rest]
    return Policy(rules=(*policy.rules, *rules))


def check(executor: Executor, spec, k, policies, size=SIZE) -> None:
    """Losses, logits and gradients of the network under each policy are those of the reference."""
    inputs = inputs_for(spec, k, size)
    with jax.enable_x64(True):
        for policy in policies:
            result = executor(spec, inputs, policy)
            assert_close(result, reference(spec, inputs, policy), 1e-9, (spec.name, str(policy)[:40]))
