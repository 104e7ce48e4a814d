"""A network that comes through the door can be worked with: nothing that was accepted fails later."""

import random

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ghn_jax.base.errors import UserError
from ghn_jax.cnn.building import build_program
from ghn_jax.evaluation.selection import check_given
from ghn_jax.hypernet.ghn import GHN, init_params
from ghn_jax.hypernet.predict import check_network, predict_weights
from ghn_jax.hypernet.tiles import count_items
from ghn_jax.networks import counts
from ghn_jax.networks.counts import count_parameters
from ghn_jax.networks.forward_pass import forward_pass
from ghn_jax.networks.graph import build_graph
from ghn_jax.networks.spec import NetworkSpec
from tests.fuzz import architectures, states

SETTINGS = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
RANDOM = st.randoms(use_true_random=False)


def accepted(rng: random.Random, **kind) -> NetworkSpec | None:
    """A network that the file's door lets in; None where it does not."""
    try:
        spec = NetworkSpec.from_dict(architectures.network(rng, **kind))
        counts.check_size(spec)
    except UserError:
        return None
    return spec


@SETTINGS
@given(RANDOM)
def test_the_bounds_of_an_accepted_network_hold(rng):
    spec = accepted(rng)
    if spec is None:
        return
    operations, tiles = counts.bounds(spec)
    assert len(forward_pass(spec)[0].kind) <= operations
    graph = build_graph(spec)
    assert len(graph.nodes) <= operations
    items = count_items(graph)
    assert items['dense'] + items['depth'] <= tiles + 64 + 128  # small and large ones begin a chunk each
    kernels = [max(p.shape[2:]) for p in graph.parameters if len(p.shape) == 4]
    assert max(kernels) <= counts.largest_kernel(spec)


@SETTINGS
@given(RANDOM, st.sampled_from((8, 16, 32)))
def test_an_accepted_network_has_a_program(rng, image_size):
    spec = accepted(rng, small=True, runnable=True)
    if spec is None:
        return
    try:
        check_given([spec], image_size)
    except UserError as e:
        assert repr(spec.name) in str(e)
        return
    program = build_program([spec], image_size=image_size, max_params=count_parameters(spec))
    layout = program.layout(spec)
    assert layout.tables.bounds[-1] == len(layout.instructions)


@pytest.mark.slow
def test_accepted_networks_of_all_sizes_compile_a_handful_of_programs(count_compiles):
    ghn = GHN(states.TINY)
    params = init_params(states.TINY, jax.random.key(0))
    rng, sizes = random.Random(0), set()
    with count_compiles() as compiles:
        done = 0
        while done < 200:
            spec = accepted(rng, small=rng.random() < 0.7)
            if spec is None or spec.num_classes != ghn.config.num_classes or count_parameters(spec) > 2e7:
                continue
            check_network(spec, ghn)
            weights = predict_weights(ghn, params, spec)
            assert all(np.isfinite(w).all() for w in weights.values())
            sizes.add(len(weights))
            done += 1
    assert len(sizes) > 50 and compiles.n <= 12  # one for each power of two up to the limits
