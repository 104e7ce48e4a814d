"""What training and scoring ask for, and what is compiled ahead for them: facts of programs, none compiled.

python -m tests.aot.agreement   compares them for eight simulated devices, of which a network has two.
"""

import dataclasses
import functools
import os
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax import config as configs
from ghn_jax.aot import programs
from ghn_jax.assembly.mesh import make_mesh, mesh_of, replicate
from ghn_jax.base import executables, recipes
from ghn_jax.evaluation import compiled, score
from ghn_jax.evaluation.evaluation_spec import EvaluationSpec
from ghn_jax.evaluation.protocol import Protocol
from ghn_jax.evaluation.selection import image_batches, select_split
from ghn_jax.hypernet.ghn import init_params
from ghn_jax.quant.policy import Policy
from ghn_jax.quant.strategy import strategy_of
from ghn_jax.runs.task import load_data, make_ghn, make_space_of
from ghn_jax.training.optimizer import make_optimizer
from ghn_jax.training.sampling import Preparation
from ghn_jax.training.state import make_state
from ghn_jax.training.stepper import Stepper
from ghn_jax.training.validation import make_validation
from tests.small_run import small_config

SCORED = EvaluationSpec(splits=('test',), num_networks=2, num_images=48, batch_size=6)
CALIBRATED = dataclasses.replace(
    SCORED, protocol=Protocol(batch_norm='calibrated', ranges='calibrated'), calibration_batches=2
)


class Asked(Exception):
    """Something is to be found or compiled."""


def asked(config):
    """The facts of the programs that a step, a validation and an evaluation of SCORED ask for."""
    facts = []

    def find(recipe, arguments):
        facts.append(recipes.facts_of(recipe, arguments, recipes.devices_of(arguments)))
        if recipe.function is compiled.predict:
            return lambda params, networks, out: out
        if recipe.function is compiled.measure:
            measured, _ = jax.eval_shape(functools.partial(recipe.function, **recipe.static), *arguments)
            zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), measured)
            return lambda *arguments: (zeros, arguments[-1])
        raise Asked

    def run(function, *arguments, **options):
        compiled.predictor.cache_clear()
        compiled.runner.cache_clear()
        try:
            function(*arguments, **options)
        except Asked:
            return
        raise AssertionError('nothing was asked for')

    space, data, mesh = make_space_of(config), load_data(config), make_mesh(config)
    ghn, optimizer = make_ghn(config), make_optimizer(config)
    shapes = jax.eval_shape(lambda: init_params(ghn.config, jax.random.key(0)))
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    strategy = strategy_of(config)
    with mock.patch.object(executables, 'find_or_compile', find):
        program, networks = Preparation(config, space, strategy, mesh).step(0)
        stepper = Stepper(config, ghn, optimizer, data, mesh)
        run(stepper, program, replicate(mesh, make_state(params, optimizer)), networks, 0)
        run(make_validation(config, ghn, space, data), params)
        selection = select_split(space, 'test', seed=0, count=2, image_size=config.image_size)
        images = image_batches(data, data.test, batch_size=6, num_images=48)
        common = {'scheme': strategy.scheme.when_used(), 'mesh': mesh_of(jax.devices(), 1)}
        run(score.score_networks, ghn, params, selection, images, [Policy()], **common)
        first = image_batches(data, data.train, batch_size=6, num_images=6 * CALIBRATED.calibration_batches)
        run(
            score.score_in_full, ghn, params, selection, images, [Policy(4, 4)],
            protocol=CALIBRATED.protocol, calibration=first, **common,
        )  # fmt: skip
    return facts


def made(config):
    """The facts of the programs that are compiled ahead for the same."""
    devices = jax.devices()
    jobs = [
        *programs.training_jobs(config, devices),
        *programs.validation_jobs(config, devices),
        *programs.evaluation_jobs(config, devices, 'test', SCORED),
        *programs.evaluation_jobs(config, devices, 'test', CALIBRATED),
    ]
    return [recipes.facts_of(job.recipe, job.arguments, recipes.devices_of(job.arguments)) for job in jobs]


def config_for(**changes):
    """A config of small networks, with validations."""
    c = small_config(mode='qat')
    c.eval.every_steps = 3
    c.update_from_flattened_dict(changes)
    return configs.freeze(c)


def main():
    """Compare."""
    several = {'devices.per_process': 0, 'devices.images': 2, 'train.meta_batch': 8, 'train.batch_size': 8}
    config = config_for(**several)
    assert len(jax.devices()) == 8 and asked(config) == made(config)


if __name__ == '__main__':
    os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=8'
    main()
