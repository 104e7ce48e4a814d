"""Makes a run directory from a published PyTorch GHN, for `ghn_jax.evaluate` and `ghn_jax.predict`."""

import os
from dataclasses import fields

import jax
import numpy as np

from ghn_jax.base import cli, files, paths
from ghn_jax.base.errors import FieldError, UserError
from ghn_jax.config import HypernetworkConfig, RunConfig, SpaceConfig
from ghn_jax.hypernet.ghn import GHNConfig
from ghn_jax.hypernet.published import load_published
from ghn_jax.runs.checkpoint import Checkpoints
from ghn_jax.runs.run import run_meta

_TRACES = ('lock', 'checkpoints', 'metrics.jsonl', 'tensorboard')  # what a run leaves in its directory


def convert(
    state: str | os.PathLike, config_file: str | os.PathLike | None, workdir: str | os.PathLike
) -> GHNConfig:
    """Write a checkpoint of step 0 with the published parameters, in float32; return their configuration.

    config_file: JSON of that configuration; None: what the checkpoint has beside its state dict, or, of a
    GHN-3, what the shapes in it say.

    The run's config is the default one (CIFAR-10, 32 pixels) in the published space, deepnets1m.

    Raises:
      UserError: files that do not fit, a directory that holds a run already (nothing is written then).
    """
    path = cli.check_workdir(workdir)
    state = paths.local(state, 'state')
    config_file = paths.local(config_file, 'config_file') if config_file else None
    if found := [name for name in _TRACES if files.exists(path / name)]:
        raise FieldError(
            'workdir', f'={workdir} holds a run already ({found[0]}): give another directory, or remove it'
        )
    ghn_config, params = load_published(state, config_file)
    with np.errstate(over='ignore'):
        params = jax.tree.map(lambda a: np.asarray(a, np.float32), params)
    if not all(np.isfinite(a).all() for a in jax.tree.leaves(params)):
        raise UserError(f'state {state} has values beyond float32: give another file')
    section = {field.name: getattr(ghn_config, field.name) for field in fields(HypernetworkConfig)}
    space = SpaceConfig(name='deepnets1m', num_classes=ghn_config.num_classes)
    run_config = RunConfig(space=space, ghn=HypernetworkConfig(**section))
    meta = run_meta(run_config, ghn_config, 0, kind='converted')
    with Checkpoints(path) as checkpoints:
        checkpoints.save(0, {'params': params}, meta, wait=True)
    return ghn_config
