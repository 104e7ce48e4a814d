"""Preparing a training step: no network is lowered, and no graph built, more than once."""

import pytest

from ghn_jax.base.errors import FieldError
from ghn_jax.cnn.lowering import lower
from ghn_jax.config import RunConfig, replace
from ghn_jax.networks.graph import build_graph
from ghn_jax.quant.strategy import strategy_of
from ghn_jax.runs.task import make_space_of
from ghn_jax.training.train import Preparation
from tests.small_run import small_config
from tests.spies import calls_of


def test_each_network_of_a_step_is_lowered_once_and_its_graph_built_once(monkeypatch):
    """With bits drawn layer by layer as well, for which the names of the layers are needed."""
    config = small_config(draw=('w2a2', 'w4a4'), draw_per='layer')
    config.train.meta_batch = 3
    preparation = Preparation(config, make_space_of(config), strategy_of(config))
    preparation.step(0)  # makes the program, from networks of its own
    graphs, lowered = calls_of(monkeypatch, build_graph), calls_of(monkeypatch, lower)
    for step in (0, 1):
        preparation.step(step)
        assert graphs == lowered and len(graphs) == 3
        graphs.clear()
        lowered.clear()


def test_young_runs_see_images_of_half_the_size_in_a_program_of_its_own():
    config = small_config()
    config.image_size, config.train.small_images_steps = 16, 2
    preparation = Preparation(config, make_space_of(config), strategy_of(config))
    programs = [preparation.step(step)[0] for step in range(4)]
    assert [program.image_size for program in programs] == [8, 8, 16, 16]
    assert len(set(programs)) == 2


def test_half_the_size_must_be_one_that_networks_take():
    with pytest.raises(FieldError, match='half of it is no multiple of 8') as e:
        replace(RunConfig(image_size=24), 'train.small_images_steps', 3)
    assert e.value.field == 'train.small_images_steps'
    with pytest.raises(FieldError, match='flattened heads are defined for 32 pixels') as e:
        make_space_of(replace(RunConfig(), 'train.small_images_steps', 3))
    assert e.value.field == 'train.small_images_steps'
