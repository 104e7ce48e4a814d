"""Networks that several files of tests look at."""

import pytest

from ghn_jax.networks.graph import build_graph
from ghn_jax.networks.spaces import SPACES, SPLITS


@pytest.fixture(scope='module')
def sampled():
    """A few networks of every split of both spaces."""
    specs = [space.sample(split, 3, i) for space in SPACES.values() for split in SPLITS for i in range(3)]
    return [build_graph(spec) for spec in specs]
