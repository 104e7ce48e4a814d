"""The compiled training step: one program that training, replaying and the benchmarks run alike.

Axes: n images of a data set | N images of a batch | M networks of a meta-batch.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from ghn_jax.assembly.mesh import OVER_DEVICES, OVER_IMAGES, REPLICATED, axes_of, replicate, spread
from ghn_jax.assembly.network_batch import Networks
from ghn_jax.assembly.workspace import Workspace
from ghn_jax.cnn.program import Program
from ghn_jax.datasets.augment import crop_and_flip, halved_to, normalize
from ghn_jax.datasets.load import Dataset
from ghn_jax.hypernet.ghn import GHN
from ghn_jax.quant.scheme import Scheme
from ghn_jax.training.refinements import AS_PUBLISHED, Refinements
from ghn_jax.training.step import TrainState, train_step


class ImageStream(NamedTuple):
    """The training images, on each device for the whole run.

    Attributes:
      images: uint8 [n, H, H, 3].
      labels: int32 [n].
      mean, std: float32 [3], in units of 0..1.
    """

    images: Array
    labels: Array
    mean: Array
    std: Array


def make_stream(dataset: Dataset, mesh: Mesh | None) -> ImageStream:
    """Put the training images of a data set on every device of the mesh."""
    stream = ImageStream(*map(jnp.asarray, (*dataset.train, dataset.mean, dataset.std)))
    return replicate(mesh, stream) if mesh else stream


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepSettings:
    """All that is static in a step but the program of its networks: each combination is compiled once.

    Its text leaves out the optimizer, whose functions have no text that lasts.

    Attributes:
      ghn: the hypernetwork.
      optimizer: of its parameters.
      scheme: how networks are quantized.
      augment: whether images are cropped at random, and with `flip` mirrored.
      mesh: devices that share the step; None is one device.
      refinements: what else a step does.
    """

    ghn: GHN
    optimizer: optax.GradientTransformation = dataclasses.field(repr=False)
    scheme: Scheme
    augment: bool
    flip: bool
    mesh: Mesh | None = None
    refinements: Refinements = AS_PUBLISHED


@functools.partial(jax.jit, static_argnames=('program', 'settings'), donate_argnames=('state', 'workspace'))
def training_step(
    state: TrainState,
    networks: Networks,
    stream: ImageStream,
    indices: Array,
    key: Array,
    workspace: Workspace,
    *,
    program: Program,
    settings: StepSettings,
) -> tuple[TrainState, dict[str, Array], Workspace]:
    """Do one step on images of the stream, augmented and normalised on the device.

    Args:
      state: of the training; it is overwritten.
      networks: M networks of `program`'s space; on a mesh, placed by `mesh.place_networks`.
      stream: the training images.
      indices: which of them make the batch, int32 [N].
      key: of the whole run; what the step draws is a function of it and of `state.step`.
      workspace: of `mesh.make_workspaces`; it is overwritten.
      program: static, what the networks run in; its images may be half as large as the stream's.
      settings: static, all else.

    Returns:
      state, metrics and workspace, as `step.train_step`.
    """
    axes = axes_of(settings.mesh)

    def step(state, networks, stream, indices, key, workspace):
        k_augment, k_step = jax.random.split(jax.random.fold_in(key, state.step))
        images = stream.images[indices]
        if settings.augment:
            images = crop_and_flip(k_augment, images, flip=settings.flip, axis=axes and axes.images)
        images = halved_to(program.image_size, normalize(images, stream.mean, stream.std))
        labels = stream.labels[indices]
        return train_step(
            program, settings.ghn, settings.optimizer, state, networks, images, labels,
            workspace=workspace, key=k_step, scheme=settings.scheme,
            refinements=settings.refinements, axes=axes,
        )  # fmt: skip

    specs = (REPLICATED, OVER_IMAGES, REPLICATED, OVER_DEVICES)
    return spread(step, settings.mesh, specs)(state, networks, stream, indices, key, workspace)
