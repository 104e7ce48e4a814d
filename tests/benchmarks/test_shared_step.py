"""The benchmarks time the step that training runs: the same function, of arguments of the same types."""

import jax
import numpy as np
import pytest

from ghn_jax.base import executables
from ghn_jax.benchmarks import images, profile, programs
from ghn_jax.benchmarks.options import BenchmarkOptions
from ghn_jax.datasets.load import load
from ghn_jax.datasets.sizes import SIZES
from ghn_jax.quant.strategy import strategy_of
from ghn_jax.runs.task import load_data, make_ghn, make_space_of
from ghn_jax.training.compiled import training_step
from ghn_jax.training.optimizer import make_optimizer
from ghn_jax.training.sampling import Preparation
from ghn_jax.training.state import initial_state
from ghn_jax.training.stepper import Stepper
from tests.small_run import small_config


class Compiles(Exception):
    """A step is about to be compiled."""


def types(tree):
    return jax.tree.map(lambda x: (np.shape(x), x.dtype), tree)


@pytest.fixture
def compiled(monkeypatch):
    """compiled(step): the function, arguments and static arguments that a step would compile."""

    def find(recipe, arguments):
        raise Compiles(recipe.function, arguments, recipe.static)

    monkeypatch.setattr(executables, 'find_or_compile', find)

    def catch(step):
        with pytest.raises(Compiles) as error:
            step()
        return error.value.args

    return catch


def test_profile_and_programs_measure_the_step_that_training_compiles(compiled, monkeypatch):
    config = small_config(mode='qat')
    config.train.dtype = 'bfloat16'  # not the default
    ghn, optimizer = make_ghn(config), make_optimizer(config)
    stepper = Stepper(config, ghn, optimizer, load_data(config))
    program, networks = Preparation(config, make_space_of(config), strategy_of(config)).step(0)
    function, arguments, static = compiled(
        lambda: stepper(program, initial_state(config, ghn, optimizer), networks, 0)
    )
    assert function is training_step
    assert 'bfloat16' in {x.dtype.name for x in jax.tree.leaves(arguments[5].executor)}

    profiled = profile._Profile(config, 'qat', 1)
    same, profiled_arguments, profiled_static = compiled(lambda: profiled.steps()(profiled.prepare()))
    assert same is training_step and profiled_static == static
    assert types(profiled_arguments) == types(arguments)

    traced = []
    monkeypatch.setattr(programs, 'compiled_figures', lambda trace: (traced.append(trace()), {}))
    rows = programs.measure(BenchmarkOptions(config=config, split='train'))
    assert [row['function'] for row in rows] == ['training_step']
    expected = training_step.trace(*arguments, **static)
    assert [str(each.jaxpr) for each in traced] == [str(expected.jaxpr)]


@pytest.mark.parametrize('name', ['digits', 'synthetic'])
def test_random_images_have_the_shapes_of_their_data_set(name):
    data, like = load(name, image_size=8), images.random_dataset(SIZES[name], 8)
    assert types(like.train) == types(data.train)
    assert (like.flip, like.num_classes) == (data.flip, data.num_classes)
    counts = (len(split.labels) for split in (data.train, data.val, data.test))
    assert SIZES[name] == (*counts, data.num_classes, data.flip)
