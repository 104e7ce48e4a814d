"""Running training steps: the images, the compiled programs and the workspaces that steps share."""

from collections.abc import Callable

import jax
import optax
from jax.sharding import Mesh

from ghn_jax.assembly import memory
from ghn_jax.assembly.mesh import OVER_IMAGES, make_workspaces, place_networks, replicate
from ghn_jax.assembly.network_batch import Networks
from ghn_jax.assembly.workspace import Workspace
from ghn_jax.base import executables
from ghn_jax.base.recipes import Recipe
from ghn_jax.cnn.program import Program
from ghn_jax.config import RunConfig, TrainConfig
from ghn_jax.datasets.load import Dataset, batch_indices
from ghn_jax.hypernet.ghn import GHN
from ghn_jax.quant.scheme import Scheme
from ghn_jax.quant.strategy import scheme_of
from ghn_jax.training.compiled import StepSettings, make_stream, training_step
from ghn_jax.training.optimizer import make_optimizer
from ghn_jax.training.refinements import refinements_of
from ghn_jax.training.step import TrainState


def settings_of(
    config: RunConfig,
    ghn: GHN,
    optimizer: optax.GradientTransformation,
    *,
    flip: bool,
    mesh: Mesh | None,
    scheme: Scheme | None = None,
) -> StepSettings:
    """Return what is static in the steps of a run.

    Args:
      config: of the run.
      ghn: the hypernetwork that is trained.
      optimizer: of `make_optimizer`.
      flip: whether a mirrored image is one of the same class.
      mesh: devices that share each step; None is one device.
      scheme: how networks are quantized, where it is not the config's.
    """
    return StepSettings(
        ghn=ghn, optimizer=optimizer, scheme=scheme or scheme_of(config.quant), augment=config.train.augment,
        flip=flip, mesh=mesh, refinements=refinements_of(config),
    )  # fmt: skip


def recipe_of(program: Program, settings: StepSettings, train: TrainConfig) -> Recipe:
    """Return the recipe of a step. train: all that the optimizer is made from."""
    return Recipe(
        function=training_step,
        static={'program': program, 'settings': settings},
        named=f'{program} {settings} {train}',
        made_by=(make_optimizer,),
    )


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
        dataset: Dataset,
        mesh: Mesh | None = None,
        *,
        scheme: Scheme | None = None,
    ):
        """Put the images on the devices.

        Args:
          config: of the run.
          ghn: the hypernetwork that is trained.
          optimizer: of `make_optimizer`.
          dataset: whose training images the steps see.
          mesh: devices that share each step; None is one device.
          scheme: how networks are quantized, where it is not the config's.
        """
        self.config, self.mesh = config, mesh
        self.stream = make_stream(dataset, mesh)
        self.count = len(dataset.train.labels)
        key = jax.random.key(config.seed)
        self.key = replicate(mesh, key) if mesh else key
        self.settings = settings_of(config, ghn, optimizer, flip=dataset.flip, mesh=mesh, scheme=scheme)
        self.free = memory.free_bytes(mesh)  # before there are workspaces
        self.compiled: dict[Program, Callable] = {}
        self.workspaces: dict[Program, Workspace] = {}  # in the order of their last use

    def is_new(self, program: Program) -> bool:
        """Tell whether the next step with it compiles it."""
        return program not in self.compiled

    def __call__(
        self, program: Program, state: TrainState, networks: Networks, step: int
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Begin a step; the device may still be at it on return.

        Args:
          program: of the networks' family.
          state: after `step` steps; it is overwritten.
          networks: this process's, of `sampling.Preparation`.
          step: its number, from 0: which images it sees.

        Returns:
          the state after it, and the metrics of `step.train_step`.

        Raises:
          UserError: the program takes more memory than there is.
        """
        batch = self.config.train.batch_size
        if self.is_new(program):
            memory.check(program, self.config, self.mesh, self.free)
        workspace = self.take_workspace(program)
        indices = batch_indices(self.config.seed, step, batch, self.count)
        if self.mesh:
            indices = replicate(self.mesh, indices, OVER_IMAGES)
            networks = place_networks(self.mesh, networks, self.config.train.meta_batch)
        arguments = state, networks, self.stream, indices, self.key, workspace
        if self.is_new(program):
            recipe = recipe_of(program, self.settings, self.config.train)
            self.compiled[program] = executables.find_or_compile(recipe, arguments)
        state, values, self.workspaces[program] = self.compiled[program](*arguments)
        return state, values

    def take_workspace(self, program: Program) -> Workspace:
        """Take the program's workspace, or make one.

        All take half of the free memory together; one alone may take more.
        """
        if program in self.workspaces:
            return self.workspaces.pop(program)
        needed = lambda p: memory.program_bytes(p, self.config, self.mesh)
        while self.workspaces and needed(program) + sum(map(needed, self.workspaces)) > self.free / 2:
            del self.workspaces[next(iter(self.workspaces))]
        return make_workspaces(self.mesh, program, self.config.train.batch_size, self.config.train.dtype)

    def give_back(self) -> None:
        """Let go of all workspaces: something else wants the memory."""
        self.workspaces.clear()
