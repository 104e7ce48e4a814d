"""A training run from its config to its last checkpoint."""

import contextlib
import functools
import os
import sys

from ml_collections import ConfigDict

from ghn_jax import config as configs
from ghn_jax.assembly.mesh import about_exchanges, make_mesh
from ghn_jax.assembly.single_value_norms import check_batch_norm
from ghn_jax.base import lock, processes
from ghn_jax.config import RunConfig
from ghn_jax.networks.spaces import Space
from ghn_jax.quant.strategy import strategy_of
from ghn_jax.runs.checkpoint import Checkpoints
from ghn_jax.runs.pack import write_pack
from ghn_jax.runs.run import run_meta, validation_metric
from ghn_jax.runs.task import load_data, make_ghn, make_space_of, sizes_of
from ghn_jax.training.loop import Loop, LoopParts
from ghn_jax.training.optimizer import make_optimizer
from ghn_jax.training.preemption import Stopping
from ghn_jax.training.run_logger import FileLogger, SilentLogger
from ghn_jax.training.sampling import Preparation
from ghn_jax.training.state import restore_or_init
from ghn_jax.training.state import unpack as unpack_run
from ghn_jax.training.step import TrainState
from ghn_jax.training.stepper import Stepper
from ghn_jax.training.validation import make_validation


def train(
    config: RunConfig | ConfigDict,
    workdir: str | os.PathLike,
    *,
    stop_at: int | None = None,
    stopping: Stopping | None = None,
    pack: str | os.PathLike | None = None,
    unpack: str | os.PathLike | None = None,
) -> TrainState:
    """Train until config.train.steps; a run that was stopped goes on from its last checkpoint.

    Args:
      config: of the run.
      workdir: its directory; one process, or the processes of one run, may train there at a time.
      stop_at: a step to end after, where it comes earlier.
      stopping: what is asked after each step whether to stop.
      pack: a file that is replaced with each checkpoint, and has all that the run needs to go on elsewhere.
      unpack: such a file, of this config, to go on with in a workdir that holds no run yet.

    Returns the state after the last step; it is saved.

    Raises:
      UserError: a config or workdir that is of no use, too little memory or disk.
      NotFinite: too many networks whose loss or gradient is not.   Stopped: at a signal; all is saved.
    """
    config = configs.freeze(config)
    space = make_space_of(config)
    check_batch_norm(config, space)
    strategy = strategy_of(config)
    sizes_of(config)  # which judges its classes
    dataset = load_data(config)
    mesh = make_mesh(config)
    if processes.is_first() and (line := about_exchanges(mesh)):
        print(line, file=sys.stderr)
    ghn, optimizer = make_ghn(config), make_optimizer(config)
    validate = make_validation(config, ghn, space, dataset)
    processes.check_agreement({'the config': configs.to_json(config), 'the images': str(dataset.digest)})
    with contextlib.ExitStack() as stack:
        processes.from_first(lambda: stack.enter_context(lock.holding(workdir)))
        checkpoints = stack.enter_context(_checkpoints(config, workdir))
        if unpack:
            unpack_run(unpack, checkpoints, config, ghn, optimizer, mesh, images=dataset.digest)
        processes.check_agreement({'the newest checkpoint': str(checkpoints.latest_step())})
        state, means = restore_or_init(checkpoints, config, ghn, optimizer, mesh, images=dataset.digest)
        start, stop = int(state.step), min(config.train.steps, stop_at or config.train.steps)
        parts = LoopParts(
            config=config,
            stepper=Stepper(config, ghn, optimizer, dataset, mesh),
            networks=Preparation(config, space, strategy, mesh),
            validate=validate,
            checkpoints=checkpoints,
            logger=stack.enter_context(_logger(config, workdir, space, start)),
            meta=functools.partial(
                run_meta, config, ghn.config, kind='train', num_devices=mesh.size if mesh else 1,
                dataset={'name': dataset.name, 'note': dataset.note, 'digest': dataset.digest},
            ),
            stopping=stopping or Stopping(),
            pack=functools.partial(write_pack, pack, workdir) if pack and processes.is_first() else None,
        )  # fmt: skip
        return Loop(parts, means).run(state, start, stop)


def _checkpoints(config: RunConfig, workdir: str | os.PathLike) -> Checkpoints:
    return Checkpoints(
        workdir, keep=config.keep_checkpoints, keep_every=config.keep_every_steps,
        background=config.save_in_background,
    )  # fmt: skip


def _logger(
    config: RunConfig, workdir: str | os.PathLike, space: Space, start: int
) -> FileLogger | SilentLogger:
    if not processes.is_first():
        return SilentLogger()
    return FileLogger(workdir, config, space, start, metric=validation_metric(config))
