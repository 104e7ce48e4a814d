"""Networks on their way into a batch: lowered once, their graphs built once, their policies resolved once."""

import functools

import jax
import numpy as np
import pytest

from ghn_jax.assembly.network_batch import make_networks, place, prepare
from ghn_jax.cnn.covering import family, program_for
from ghn_jax.cnn.lowering import lower
from ghn_jax.hypernet.policy_features import resolve
from ghn_jax.networks.graph import build_graph
from ghn_jax.quant.policy import Policy
from ghn_jax.runs.task import make_space_of
from ghn_jax.training.sampling import draw
from tests.small_run import small_config
from tests.spies import calls_of

POLICIES = [Policy(4, 4), Policy(2, 8, rules=(('classifier.*', 8, 8),)), Policy(8, 4, edges=(8, 6))]


@functools.cache
def networks_and_program():
    space = make_space_of(small_config())
    specs = draw(space, 0, 0, 3)
    return specs, program_for(space, 'train', family(specs[0]), 8)


def test_each_network_is_lowered_once_and_its_graph_built_once(monkeypatch):
    specs, program = networks_and_program()
    resolved = []
    check = Policy.check
    monkeypatch.setattr(Policy, 'check', lambda self, *args: (resolved.append(self), check(self, *args))[1])
    graphs, lowered = calls_of(monkeypatch, build_graph), calls_of(monkeypatch, lower)
    prepare(program, specs, POLICIES, max_nodes=128)
    assert graphs == lowered == specs
    assert resolved == POLICIES


def test_a_placed_network_at_other_bits_is_the_network_prepared_with_them():
    """So scoring at several policies places a network once."""
    specs, program = networks_and_program()
    placed = [place(program, build_graph(spec)) for spec in specs]
    for policy in POLICIES:
        widths = [resolve(policy, network.graph) for network in placed]
        again = make_networks(program, placed, widths, max_nodes=128)
        jax.tree.map(np.testing.assert_array_equal, again, prepare(program, specs, policy, max_nodes=128)[0])


@pytest.mark.parametrize('policy', POLICIES, ids=str)
def test_the_table_of_bits_is_the_same_from_the_graph_and_from_the_program(policy):
    """Of which layers are the first and the last, too."""
    specs, program = networks_and_program()
    for spec in specs:
        placed = place(program, build_graph(spec))
        jax.tree.map(
            np.testing.assert_array_equal,
            program.bit_table(placed.layout, resolve(policy, placed.graph)),
            program.bits(placed.layout, policy),
        )
