"""The state that a run begins with: a fresh one, or that of its newest checkpoint."""

import os
import sys
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from ghn_jax import config as configs
from ghn_jax.assembly.mesh import replicate
from ghn_jax.base import files, processes
from ghn_jax.base.digests import check_types, leaf_name
from ghn_jax.base.errors import FieldError
from ghn_jax.config import RunConfig
from ghn_jax.hypernet.ghn import GHN, init_params
from ghn_jax.runs.checkpoint import Checkpoints
from ghn_jax.runs.config_changes import FREE_KEYS, differing_keys
from ghn_jax.runs.pack import read_pack
from ghn_jax.runs.run import params_of, read_meta
from ghn_jax.training.running_means import RunningMeans
from ghn_jax.training.step import TrainState


def make_state(params: Any, optimizer: optax.GradientTransformation, *, averaged: bool = False) -> TrainState:
    """Make the state of step 0 with these parameters. averaged: whether it has a moving average of them."""
    ema = jax.tree.map(jnp.copy, params) if averaged else None  # a step overwrites both
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), ema)


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
    return replicate(mesh, make_state(params, optimizer, averaged=config.train.ema > 0))


def restore_or_init(
    checkpoints: Checkpoints,
    config: RunConfig,
    ghn: GHN,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | None = None,
    *,
    images: int | None = None,
    step: int | None = None,
) -> tuple[TrainState, RunningMeans]:
    """Restore the newest checkpoint, or make a fresh state where there is none.

    Args:
      checkpoints: of the run.
      config: of the run; only some keys may differ from the checkpoint's.
      ghn: the hypernetwork that is trained.
      optimizer: of `make_optimizer`.
      mesh: devices that the state is put on, whole on each; None is one device.
      images: the digest of those that it goes on with; None: whatever they are.
      step: of the checkpoint to take; None is the newest.

    Returns:
      the state, and the means that were under way.

    Raises:
      UserError: the checkpoint is of a run with another config, or on other images; as `run.params_of`.
    """
    if checkpoints.latest_step() is None:
        return initial_state(config, ghn, optimizer, mesh), RunningMeans()
    newest = checkpoints.restore_meta()
    _check_config(configs.from_json(newest['config']), config, checkpoints.workdir)
    check_images(newest, images, config, checkpoints.workdir)
    restored, meta = checkpoints.restore(_like(config, ghn, optimizer, mesh), step=step)
    state = TrainState(jnp.asarray(meta['step'], jnp.int32), **restored)
    for what, now in (('jax', jax.__version__), ('devices', mesh.size if mesh else 1)):
        if processes.is_first() and meta.get(what, now) != now:
            print(
                f'step {meta["step"]} was made with {what} {meta[what]}, this is {now}: what follows is '
                'equal up to the order of sums',
                file=sys.stderr,
            )
    return replicate(mesh, state), RunningMeans(meta.get('window'))


def unpack(
    path: str | os.PathLike,
    checkpoints: Checkpoints,
    config: RunConfig,
    ghn: GHN,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | None = None,
    *,
    images: int | None = None,
) -> None:
    """Put a packed run into a run directory without one; the checkpoint comes last, and makes it a run.

    For the arguments see `restore_or_init`, which then finds what it would have found where the run was.

    Raises:
      UserError: no pack, one of a run with another config or on other images, or a directory that holds a run
        already.
    """
    if (step := checkpoints.latest_step()) is not None:
        raise FieldError(
            'unpack',
            f'={path}: {checkpoints.workdir} holds a run already, of step {step}: go on with that one '
            'without unpacking, or take another workdir',
        )
    pack = read_pack(path)
    before, _, step = read_meta(pack.meta, path)
    _check_config(before, config, path)
    check_images(pack.meta, images, config, path)
    like = _like(config, ghn, optimizer, mesh)
    check_types(pack.arrays, like, path)
    state = jax.tree_util.tree_map_with_path(lambda name, _: pack.arrays[leaf_name(name)], like)
    if processes.is_first():
        for name, text in pack.records.items():
            files.write(checkpoints.workdir / name, text)
    checkpoints.save(step, replicate(mesh, state), pack.meta, wait=True)


def saved_part(state: TrainState) -> dict[str, Any]:
    """Return what a checkpoint holds of a state, as a tree; its meta has the step."""
    saved = {'params': state.params, 'opt_state': state.opt_state, 'ema': state.ema}
    return saved if state.ema is not None else {'params': state.params, 'opt_state': state.opt_state}


def _like(config: RunConfig, ghn: GHN, optimizer: optax.GradientTransformation, mesh: Mesh | None) -> Any:
    """A tree of what a checkpoint holds, with the types and places of this run."""
    params = init_params(ghn.config, jax.random.key(config.seed))
    return saved_part(replicate(mesh, make_state(params, optimizer, averaged=config.train.ema > 0)))


def _check_config(before: RunConfig, config: RunConfig, where: str | os.PathLike) -> None:
    """Raise FieldError unless a run that was begun with `before` may go on with `config`."""
    if differing := differing_keys(before, config, FREE_KEYS):
        raise FieldError(
            differing[0],
            f' is another one in the run that {where} holds ({", ".join(differing)} differ): '
            'set it as it was, or take another workdir',
        )


def check_images(meta: dict, images: int | None, config: RunConfig, where: str | os.PathLike) -> None:
    """Raise FieldError where a run was trained on other images; runs from before there were digests pass."""
    before = meta.get('dataset', {}).get('digest')
    if None not in (before, images) and before != images:
        raise FieldError(
            'dataset',
            f'={config.dataset} has other images or labels than the run in {where} was trained on: put '
            'those back, say with data_dir where they are, or take another workdir',
        )
