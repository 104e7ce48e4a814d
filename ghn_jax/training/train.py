"""Trains a hypernetwork; a run that was stopped goes on from its last checkpoint.

python -m ghn_jax.train --config=configs/quickstart.py --workdir=runs/quickstart [--config.key=value]

Everything random is a function of (seed, step): the networks and images of a step, augmentation, noise. So a
resumed run is the uninterrupted one, bit for bit. With another number of devices it is the same up to the
order in which floating-point numbers are added.

On several machines, the same command on each, with a workdir that all share:
--coordinator=HOST:PORT --num_processes=N --process_id=I, or --coordinator=auto where JAX finds these out
(Cloud TPU). Process 0 writes the logs; validation is run by every process, on its first device.
"""

import collections
import contextlib
import functools
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ghn_jax import config as configs
from ghn_jax.assembly.lone_values import check_batch_norm
from ghn_jax.assembly.memory import check, free_bytes, program_bytes
from ghn_jax.assembly.mesh import (
    OVER_DEVICES,
    OVER_IMAGES,
    REPLICATED,
    axes_of,
    make_mesh,
    make_workspaces,
    own_networks,
    place_networks,
    replicate,
    spread,
)
from ghn_jax.assembly.network_batch import Networks, draw, prepare
from ghn_jax.assembly.workspace import Workspace
from ghn_jax.base import executables, lock, processes
from ghn_jax.base.errors import FieldError
from ghn_jax.cnn.covering import Family, family, program_for
from ghn_jax.cnn.program import Program
from ghn_jax.config import RunConfig
from ghn_jax.datasets import load as data
from ghn_jax.evaluation.score import image_batches, score_networks, select_split
from ghn_jax.hypernet.ghn import GHN, init_params
from ghn_jax.networks.spaces import Space
from ghn_jax.networks.spec import NetworkSpec
from ghn_jax.quant.bit_schedule import Strategy, scheme_of, strategy_of
from ghn_jax.quant.policy import Policy, parse_bits
from ghn_jax.runs.checkpoint import Checkpoints
from ghn_jax.runs.run import (
    FREE_KEYS,
    differing_keys,
    load_data,
    make_ghn,
    make_space_of,
    params_of,
    run_meta,
    validated,
)
from ghn_jax.training.loop import Course
from ghn_jax.training.optimizer import make_optimizer
from ghn_jax.training.preemption import Stopping
from ghn_jax.training.run_logger import Journal, Silent
from ghn_jax.training.running_means import Window
from ghn_jax.training.step import TrainState, train_step

_AHEAD = 4  # steps whose networks are made ready while the device works


def train(
    config: RunConfig | ConfigDict,
    workdir: pathlib.Path,
    *,
    stop_at: int | None = None,
    stopping: Stopping | None = None,
) -> TrainState:
    """Trains until config.train.steps, or `stop_at`; returns the state.

    Raises:
      UserError: whatever in the config or the workdir is not as it should be, memory or disk that is not
        enough; NotFinite: too many networks whose loss or gradient is not.
      Stopped: `stopping` was asked to; the state is saved.
    """
    config = configs.freeze(config)
    space = make_space_of(config)
    check_batch_norm(config, space)
    strategy = strategy_of(config)
    dataset = load_data(config)
    mesh = make_mesh(config)
    ghn = make_ghn(config, dataset.num_classes)
    optimizer = make_optimizer(config)
    validate = make_validation(config, ghn, space, dataset)
    processes.check_agreement({'the config': configs.to_json(config)})
    with contextlib.ExitStack() as stack:
        processes.from_first(lambda: stack.enter_context(lock.holding(workdir)))
        checkpoints = stack.enter_context(
            Checkpoints(
                workdir, keep=config.keep_checkpoints, keep_every=config.keep_every_steps,
                background=config.save_in_background,
            )
        )  # fmt: skip
        processes.check_agreement({'the newest checkpoint': str(checkpoints.latest_step())})
        state, window = restore_or_init(checkpoints, config, ghn, optimizer, mesh)
        start, stop = int(state.step), min(config.train.steps, stop_at or config.train.steps)
        run_step = Stepper(config, ghn, optimizer, dataset, mesh)
        networks = Preparation(config, space, strategy, mesh)
        journal = stack.enter_context(
            Journal(workdir, config, space, start, validated=validated(config))
            if processes.is_first()
            else Silent()
        )
        meta = functools.partial(
            run_meta, config, ghn.config, kind='train', num_devices=mesh.size if mesh else 1,
            dataset={'name': dataset.name, 'note': dataset.note},
        )  # fmt: skip
        course = Course(
            config, run_step, networks, validate, checkpoints, journal, meta, stopping or Stopping()
        )
        return course.run(state, window, start, stop)


def initial_state(
    config: RunConfig, ghn: GHN, optimizer: optax.GradientTransformation, mesh: Mesh | None = None
) -> TrainState:
    """A fresh state from config.seed, or with the parameters of config.init_from, on all devices.

    Raises:
      UserError: as `runs.params_of`.
    """
    params = init_params(ghn.config, jax.random.key(config.seed))
    if config.init_from:
        params = params_of(config.init_from, ghn, params)
    return _state_of(params, optimizer, mesh)


def _state_of(params: Any, optimizer: optax.GradientTransformation, mesh: Mesh | None) -> TrainState:
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
    return replicate(mesh, state)


def restore_or_init(
    checkpoints: Checkpoints,
    config: RunConfig,
    ghn: GHN,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | None = None,
    *,
    step: int | None = None,
) -> tuple[TrainState, Window]:
    """The state of the newest checkpoint, else a fresh one, on all devices; and the means under way.

    step: of this checkpoint.

    Raises:
      UserError: the checkpoint is of a run with another config; as `runs.params_of`.
    """
    if checkpoints.latest_step() is None:
        return initial_state(config, ghn, optimizer, mesh), Window()
    state = _state_of(init_params(ghn.config, jax.random.key(config.seed)), optimizer, mesh)
    meta = checkpoints.restore_meta()
    before = configs.from_json(meta['config'])
    if differing := differing_keys(before, config, FREE_KEYS):
        key = differing[0]
        raise FieldError(
            key,
            f' is another one in the run that {checkpoints.workdir} holds ({", ".join(differing)} differ): '
            'set it as it was, or take another --workdir',
        )
    restored, meta = checkpoints.restore({'params': state.params, 'opt_state': state.opt_state}, step=step)
    state = TrainState(jnp.asarray(meta['step'], jnp.int32), restored['params'], restored['opt_state'])
    for what, now in (('jax', jax.__version__), ('devices', mesh.size if mesh else 1)):
        if processes.is_first() and meta.get(what, now) != now:
            print(
                f'step {meta["step"]} was made with {what} {meta[what]}, this is {now}: what follows is '
                'equal up to the order of sums',
                file=sys.stderr,
            )
    return replicate(mesh, state), Window(meta.get('window'))


class ImageStream(NamedTuple):
    """The training images, on each device for the whole run: uint8 [n, H, H, 3], int32 [n]; mean and std
    [3].
    """

    images: jax.Array
    labels: jax.Array
    mean: jax.Array
    std: jax.Array


@functools.partial(
    jax.jit,
    static_argnames=('program', 'ghn', 'optimizer', 'scheme', 'augment', 'flip', 'mesh'),
    donate_argnames=('state', 'workspace'),
)
def _step(
    state, networks, stream, indices, key, workspace,
    *, program, ghn, optimizer, scheme, augment, flip, mesh=None,
):  # fmt: skip
    """`steps.train_step` on images chosen by `indices` [N], augmented and normalised on the device."""
    axes = axes_of(mesh)

    def step(state, networks, stream, indices, key, workspace):
        k_augment, k_step = jax.random.split(jax.random.fold_in(key, state.step))
        x = stream.images[indices]
        if augment:
            x = data.augment(k_augment, x, flip=flip, axis=axes and axes.images)
        x = data.normalize(x, stream.mean, stream.std)
        y = stream.labels[indices]
        return train_step(
            program, ghn, optimizer, state, networks, x, y, workspace, k_step, scheme=scheme, axes=axes
        )

    specs = (REPLICATED, OVER_IMAGES, REPLICATED, OVER_DEVICES)
    return spread(step, mesh, specs)(state, networks, stream, indices, key, workspace)


class Stepper:
    """Runs training steps; holds the images and the workspaces.

    A workspace is kept for when its family comes up again, for making one anew takes longer than small steps
    do. Those of all families may not fit together: the ones used longest ago make room.
    """

    def __init__(
        self,
        config: RunConfig,
        ghn: GHN,
        optimizer: optax.GradientTransformation,
        dataset: data.Dataset,
        mesh: Mesh | None = None,
    ):
        self.config, self.mesh = config, mesh
        stream = ImageStream(*map(jnp.asarray, (*dataset.train, dataset.mean, dataset.std)))
        self.count = len(stream.labels)
        key = jax.random.key(config.seed)
        self.stream, self.key = replicate(mesh, (stream, key)) if mesh else (stream, key)
        self.static = {'ghn': ghn, 'optimizer': optimizer, 'scheme': scheme_of(config.quant), 'mesh': mesh,
                       'augment': config.train.augment, 'flip': dataset.flip}  # fmt: skip
        self.free = free_bytes(mesh)  # before there are workspaces
        self.compiled: dict[Program, Callable] = {}
        self.workspaces: dict[Program, Workspace] = {}  # in the order of their last use

    def is_new(self, program: Program) -> bool:
        """Whether the next step with it compiles it."""
        return program not in self.compiled

    def __call__(
        self, program: Program, state: TrainState, networks: Networks, step: int
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        batch = self.config.train.batch_size
        if self.is_new(program):
            check(program, self.config, self.mesh, self.free)
        workspace = self.take_workspace(program)
        indices = data.batch_indices(self.config.seed, step, batch, self.count)
        if self.mesh:
            indices = replicate(self.mesh, indices, OVER_IMAGES)
            networks = place_networks(self.mesh, networks, self.config.train.meta_batch)
        arguments = state, networks, self.stream, indices, self.key, workspace
        if self.is_new(program):
            self.compiled[program] = self._compile(program, arguments)
        state, values, self.workspaces[program] = self.compiled[program](*arguments)
        return state, values

    def _compile(self, program: Program, arguments: tuple) -> Callable:
        made_of = ('ghn', 'scheme', 'flip', 'mesh')  # with config.train, all that the optimizer comes from
        named = f'{program} {self.config.train} {[self.static[k] for k in made_of]}'
        return executables.kept(_step, arguments, {'program': program, **self.static}, named=named)

    def take_workspace(self, program: Program) -> Workspace:
        """The program's, or a new one; all take half of the free memory together, one alone maybe more."""
        if program in self.workspaces:
            return self.workspaces.pop(program)
        needed = lambda p: program_bytes(p, self.config, self.mesh)
        while self.workspaces and needed(program) + sum(map(needed, self.workspaces)) > self.free / 2:
            del self.workspaces[next(iter(self.workspaces))]
        return make_workspaces(self.mesh, program, self.config.train.batch_size, self.config.train.dtype)

    def give_back(self) -> None:
        """Lets go of all workspaces: something else wants the memory."""
        self.workspaces.clear()


class Preparation:
    """Networks of the coming steps, made ready by threads (JAX leaves Python free while a step runs).

    Every process draws the same ones, and makes those of its own devices ready.
    """

    def __init__(self, config: RunConfig, space: Space, strategy: Strategy, mesh: Mesh | None = None):
        self.config, self.space, self.strategy = config, space, strategy
        self.own = own_networks(mesh, config.train.meta_batch)

    @functools.cache  # noqa: B019  (one object for each run)
    def program(self, family: Family) -> Program:
        """The program of all training networks of one family."""
        return program_for(self.space, 'train', family, self.config.image_size)

    def step(self, step: int) -> tuple[Program, Networks]:
        """The networks of one step that are this process's."""
        specs = draw(self.space, self.config.seed, step, self.config.train.meta_batch)
        program = self.program(family(specs[0]))
        policies = self.policies(step, specs)[self.own]
        networks = prepare(program, specs[self.own], policies, max_nodes=self.config.program.max_nodes)[0]
        return program, networks

    def policies(self, step: int, specs: Sequence[NetworkSpec]) -> list[Policy]:
        """The bit-widths that each of the step's networks trains with."""
        return [self.strategy.policy_of(step, i, spec) for i, spec in enumerate(specs)]

    def ahead(self, start: int, stop: int) -> Iterator[tuple[Program, Networks]]:
        """The networks of steps start .. stop - 1, in order; an error appears at its step."""
        with ThreadPoolExecutor(2) as pool:
            queue = collections.deque()
            try:
                for step in range(start, stop):
                    queue.append(pool.submit(self.step, step))
                    if len(queue) > _AHEAD:
                        yield queue.popleft().result()
                while queue:
                    yield queue.popleft().result()
            finally:
                for future in queue:
                    future.cancel()


def make_validation(
    config: RunConfig, ghn: GHN, space: Space, dataset: data.Dataset
) -> Callable[[Any], dict[str, float]]:
    """params -> mean top-1 of networks of the val split on validation images, in float and in the bits of
    the config.
    """
    bits = ('float', *(config.eval.bits or (config.quant.bits,)))
    names = list(dict.fromkeys(str(parse_bits(name)) for name in bits))
    strategy = strategy_of(config)
    policies = [strategy.used(parse_bits(name)) for name in names]

    @functools.cache
    def prepared():
        selection = select_split(
            space, 'val', seed=config.seed, count=config.eval.num_networks, image_size=config.image_size
        )
        images = image_batches(
            dataset, dataset.val, batch_size=config.train.batch_size,
            num_images=min(config.eval.num_images, len(dataset.val.labels)),
        )  # fmt: skip
        return selection, images

    def validate(params) -> dict[str, float]:
        scheme = strategy.scheme.when_used()
        shares = score_networks(ghn, params, *prepared(), policies, scheme=scheme)
        return {f'val/top1_{name}': float(np.mean(shares[:, p, 0])) for p, name in enumerate(names)}

    return validate
