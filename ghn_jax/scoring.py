"""Scoring networks: predicts the weights of each once, then counts correct predictions at every bit-width.

Networks are data: all those of one program share two compiled functions, whatever their bits. JAX keeps them:
scoring other networks of the same program, or with other GHN parameters, compiles nothing.

Axes: M networks | P policies | K batches | N images of a batch | H pixels.
"""

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ghn_jax import devices, steps
from ghn_jax.batches import prepare
from ghn_jax.cnn.building import build_program
from ghn_jax.cnn.coverage import Family, family, program_for
from ghn_jax.cnn.lowering import BLOCK, check_lowerable, round_up
from ghn_jax.cnn.program import Program
from ghn_jax.data import Dataset, Split
from ghn_jax.errors import UserError
from ghn_jax.hypernet.ghn import GHN, GHNConfig
from ghn_jax.networks.graph import build_graph
from ghn_jax.networks.limits import check_families
from ghn_jax.networks.size import count_parameters
from ghn_jax.networks.spaces import Space
from ghn_jax.networks.spec import IMAGE_SIZE, NetworkSpec
from ghn_jax.quant.policy import Policy

_NODES = 64  # graphs are padded to a multiple


class Images(NamedTuple):
    """Whole batches: images uint8 [K, N, H, H, 3], labels int32 [K, N]; mean and std [3] in units of 0..1."""

    images: np.ndarray
    labels: np.ndarray
    mean: np.ndarray
    std: np.ndarray

    @property
    def count(self) -> int:
        """Images in all batches."""
        return self.labels.size


class Selection(NamedTuple):
    """Networks to score. groups: of each program, its networks."""

    specs: tuple[NetworkSpec, ...]
    groups: tuple[tuple[Program, tuple[int, ...]], ...]


def image_batches(dataset: Dataset, split: Split, *, batch_size: int, num_images: int = 0) -> Images:
    """The first `num_images` of a split of `dataset` (0: all) as whole batches.

    BatchNorm reads the statistics of a batch, so one that is not full is another protocol: it is dropped.

    Raises:
      UserError: more images than there are, fewer than a batch.
    """
    available = len(split.labels)
    if not 0 <= num_images <= available:
        raise UserError(f'num_images={num_images}: {dataset.name} has {available} images there; 0 takes all')
    if batch_size < 1:
        raise UserError(f'batch_size={batch_size}: expected at least 1 image')
    K = (num_images or available) // batch_size
    if K == 0:
        raise UserError(
            f'batch_size={batch_size} is more than the {num_images or available} images of {dataset.name}: '
            'BatchNorm needs full batches; give a smaller batch_size'
        )
    images, labels = (a[: K * batch_size].reshape(K, batch_size, *a.shape[1:]) for a in split)
    return Images(images, labels, dataset.mean, dataset.std)


def select_split(space: Space, split: str, *, seed: int, count: int, image_size: int) -> Selection:
    """The first `count` networks of a split (0: all), grouped by family.

    Each family has the program of all networks of its split, so another selection needs no other program.

    Raises:
      UserError: unknown split, more networks than it has.
    """
    size = space.size(split)
    if not 0 <= count <= size:
        raise UserError(f'num_networks={count}: the split {split} has {size} networks; 0 takes all')
    specs = [space.sample(split, seed, index) for index in range(count or size)]
    return _grouped(specs, lambda family, members: program_for(space, split, family, image_size))


def check_given(specs: Sequence[NetworkSpec], image_size: int) -> None:
    """Raises UserError for networks of a file that cannot be run, before anything is made from them.

    Such a network is named with its field; networks of very many widths are refused together.
    """
    for spec in specs:
        check_lowerable(spec, image_size)
        if not spec.glob_avg and image_size != IMAGE_SIZE:
            raise UserError(
                f'network {spec.name!r} has a flattened head, defined for {IMAGE_SIZE} pixels, and the run '
                f'is on images of {image_size}: give networks with glob_avg=true'
            )
    check_families(specs)


def check_memory(programs: Iterable[Program], batch_size: int, flag: str = '--batch_size') -> None:
    """Raises UserError if scoring batches on one device takes more than its memory, at least."""
    device = jax.local_devices()[0]
    room = (device.memory_stats() or {}).get('bytes_limit') if device.platform != 'cpu' else None
    room = room or os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    for program in programs:
        values = sum(slots * batch_size * h * h * c for (h, c), slots in program.capacity.slots)
        needed = 4 * (values + 2 * program.capacity.blocks * BLOCK)
        if needed > room:
            channels = max(c for _, c in program.classes)
            raise UserError(
                f'networks of up to {channels} channels take at least {needed / 2**30:.1f} GiB for batches '
                f'of {batch_size} images, and there are {room / 2**30:.1f} GiB: give a smaller {flag}, or '
                'networks with a smaller C or fewer cells'
            )


def select_given(specs: Sequence[NetworkSpec], *, image_size: int) -> Selection:
    """Exactly these networks, grouped by family; each group's program is made for it.

    Raises:
      UserError: as `check_given`.
    """

    def program(family: Family, members: list[NetworkSpec]) -> Program:
        return build_program(members, image_size=image_size, max_params=max(map(count_parameters, members)))

    check_given(specs, image_size)
    return _grouped(list(specs), program)


def _grouped(specs: list[NetworkSpec], program: Callable[[Family, list[NetworkSpec]], Program]) -> Selection:
    groups = []
    for each in sorted(set(map(family, specs))):
        members = tuple(i for i, spec in enumerate(specs) if family(spec) == each)
        groups.append((program(each, [specs[i] for i in members]), members))
    return Selection(tuple(specs), tuple(groups))


def check_classes(ghn: GHN, specs: Sequence[NetworkSpec], dataset: Dataset) -> None:
    """Raises UserError unless hypernetwork, networks and data have one number of classes."""
    classes = ghn.config.num_classes
    if dataset.num_classes != classes:
        raise UserError(
            f'{dataset.name} has {dataset.num_classes} classes, the hypernetwork predicts {classes}: '
            'score it on the data it was trained on'
        )
    for spec in specs:
        if spec.num_classes != classes:
            raise UserError(
                f'network {spec.name!r} has {spec.num_classes} classes, the hypernetwork predicts {classes}: '
                f'give networks with num_classes={classes}'
            )


# Functions of a program and a GHN, which are static and compared by value: one compilation for each.
_predict = jax.jit(steps.predict_weights, static_argnums=0, donate_argnums=3)


@functools.cache
def score_on(mesh: Mesh | None) -> Callable:
    """`steps.score`, jitted; the batches are spread over the devices of the mesh, each with a workspace."""

    def score(program, *arrays):
        run = functools.partial(steps.score, program, axes=devices.axes_of(mesh))
        all_, each = devices.REPLICATED, devices.OVER_DEVICES
        inputs = (all_, all_, all_, each, each, all_, all_, each)
        return devices.on_each(run, mesh, inputs, (all_, all_, each))(*arrays)

    return jax.jit(score, static_argnums=0, donate_argnums=8)


def spread_images(mesh: Mesh | None, images: Images) -> Images:
    """The batches on their devices, with batches of no labels where the last device would have fewer."""
    if mesh is None:
        return Images(*map(jnp.asarray, images))
    missing = -len(images.labels) % mesh.size
    widen = lambda a, fill: np.pad(a, [(0, missing)] + [(0, 0)] * (a.ndim - 1), constant_values=fill)
    batches = (widen(images.images, 0), widen(images.labels, -1))
    constants = (images.mean, images.std)
    return Images(
        *devices.replicate(mesh, batches, devices.OVER_DEVICES), *devices.replicate(mesh, constants)
    )


def score_networks(
    ghn: GHN,
    params: Any,
    selection: Selection,
    images: Images,
    policies: Sequence[Policy],
    *,
    mesh: Mesh | None = None,
    done: Callable[[int, int], None] = lambda network, policy: None,
) -> np.ndarray:
    """Shares of images whose label is the first, and among the first five, prediction: float64 [M, P, 2].

    BatchNorm uses the statistics of each batch, activations are quantized by the range of each batch.

    mesh: of devices that score batches of the same network side by side. `done` is called after every
    network and policy with their numbers.
    """
    if ghn.config.max_shape != GHNConfig.max_shape:
        raise UserError(
            f'the hypernetwork has max_shape {ghn.config.max_shape}: only {GHNConfig.max_shape} can be run'
        )
    shares = np.zeros((len(selection.specs), len(policies), 2))
    count, batch_size = images.count, images.labels.shape[1]
    images, score = spread_images(mesh, images), score_on(mesh)
    for program, members in selection.groups:
        nodes = max(len(build_graph(selection.specs[i]).nodes) for i in members)
        # Made for every group and given back after it: tapes of several programs may not fit side by side.
        # The weights are read while the workspace is donated, so they cannot be part of it.
        workspace = devices.make_workspace(mesh, program, batch_size, train=False)
        weights = jnp.zeros(program.capacity.blocks * BLOCK)
        for i in members:
            networks, layouts = prepare(
                program, [selection.specs[i]], policies[0], max_nodes=round_up(nodes, _NODES)
            )
            weights = _predict(ghn, params, networks, weights)
            own = devices.replicate(mesh, weights) if mesh else weights
            tables = jax.tree.map(lambda a: a[0], networks.tables)
            for p, policy in enumerate(policies):
                bits = program.bits(layouts[0], policy)
                top1, top5, workspace = score(program, own, tables, bits, *images, workspace)
                shares[i, p] = int(top1), int(top5)
                done(i, p)
    return shares / count
