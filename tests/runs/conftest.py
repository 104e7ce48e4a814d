"""What several files of tests about checkpoints share."""

import pathlib

import pytest

from ghn_jax.runs.checkpoint import Checkpoints
from tests.runs.states import make_state


@pytest.fixture
def run(tmp_path) -> pathlib.Path:
    """A run directory with checkpoints at steps 1 and 2."""
    with Checkpoints(tmp_path) as c:
        c.save(1, make_state(1), {'config': '{"a": [1]}', 'step': 1})
        c.save(2, make_state(2), {'config': '{"a": [1]}', 'step': 2})
    return tmp_path
