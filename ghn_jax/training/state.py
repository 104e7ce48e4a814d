"""The state that a run begins with: a fresh one, or that of its newest checkpoint."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from ghn_jax import config as configs
from ghn_jax.assembly.mesh import replicate
from ghn_jax.base import processes
from ghn_jax.base.errors import FieldError
from ghn_jax.config import RunConfig
from ghn_jax.hypernet.ghn import GHN, init_params
from ghn_jax.runs.checkpoint import Checkpoints
from ghn_jax.runs.config_changes import FREE_KEYS, differing_keys
from ghn_jax.runs.run import params_of
from ghn_jax.training.running_means import RunningMeans
from ghn_jax.training.step import TrainState


def state_of(params: Any, optimizer: optax.GradientTransformation, mesh: Mesh | None) -> TrainState:
    """Make the state of step 0 with these parameters of a hypernetwork, on all devices."""
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
    return replicate(mesh, state)


def initial_state(
    config: RunConfig, ghn: GHN, optimizer: optax.GradientTransformation, mesh: Mesh | None = None
) -> TrainState:
    """Make a fresh state from config.seed, or with the parameters of config.init_from, on all devices.

    Raises:
      UserError: as `run.params_of`.
    """
    params = init_params(ghn.config, jax.random.key(config.seed))
    if config.init_from:
        params = params_of(config.init_from, ghn, params)
    return state_of(params, optimizer, mesh)


def restore_or_init(
    checkpoints: Checkpoints,
    config: RunConfig,
    ghn: GHN,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | None = None,
    *,
    step: int | None = None,
) -> tuple[TrainState, RunningMeans]:
    """Restore the newest checkpoint, or make a fresh state where there is none.

    Args:
      checkpoints: of the run.
      config: of the run; only some keys may differ from the checkpoint's.
      ghn: the hypernetwork that is trained.
      optimizer: of `make_optimizer`.
      mesh: devices that the state is put on, whole on each; None is one device.
      step: of the checkpoint to take; None is the newest.

    Returns:
      the state, and the means that were under way.

    Raises:
      UserError: the checkpoint is of a run with another config; as `run.params_of`.
    """
    if checkpoints.latest_step() is None:
        return initial_state(config, ghn, optimizer, mesh), RunningMeans()
    like = state_of(init_params(ghn.config, jax.random.key(config.seed)), optimizer, mesh)
    before = configs.from_json(checkpoints.restore_meta()['config'])
    if differing := differing_keys(before, config, FREE_KEYS):
        key = differing[0]
        raise FieldError(
            key,
            f' is another one in the run that {checkpoints.workdir} holds ({", ".join(differing)} differ): '
            'set it as it was, or take another workdir',
        )
    restored, meta = checkpoints.restore({'params': like.params, 'opt_state': like.opt_state}, step=step)
    state = TrainState(jnp.asarray(meta['step'], jnp.int32), restored['params'], restored['opt_state'])
    for what, now in (('jax', jax.__version__), ('devices', mesh.size if mesh else 1)):
        if processes.is_first() and meta.get(what, now) != now:
            print(
                f'step {meta["step"]} was made with {what} {meta[what]}, this is {now}: what follows is '
                'equal up to the order of sums',
                file=sys.stderr,
            )
    return replicate(mesh, state), RunningMeans(meta.get('window'))
