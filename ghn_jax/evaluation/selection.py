"""What is scored: images in whole batches, and networks grouped by the program that runs them.

Axes: K batches | N images of a batch | H pixels.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from ghn_jax.assembly.mesh import OVER_DEVICES, replicate
from ghn_jax.base.errors import FieldError, UserError
from ghn_jax.base.whole_numbers import round_up
from ghn_jax.cnn.building import build_program
from ghn_jax.cnn.covering import Family, family, program_for
from ghn_jax.cnn.lowering import check_lowerable
from ghn_jax.cnn.program import Program
from ghn_jax.datasets.augment import normalize
from ghn_jax.datasets.load import Dataset, Split
from ghn_jax.hypernet.ghn import GHN, check_classes
from ghn_jax.hypernet.predict import check_head
from ghn_jax.networks.counts import check_families, count_parameters
from ghn_jax.networks.graph import NetworkGraph, build_graph
from ghn_jax.networks.spaces import Space
from ghn_jax.networks.spec import NetworkSpec

_NODES = 64  # graphs are padded to a multiple


class ImageBatches(NamedTuple):
    """Whole batches of images, as they are and not normalised.

    Attributes:
      images: uint8 [K, N, H, H, 3].
      labels: int32 [K, N], -1 for an image that is not counted.
      mean, std: float32 [3], in units of 0..1.
    """

    images: Any
    labels: Any
    mean: Any
    std: Any

    @property
    def count(self) -> int:
        """Images that are counted, in all batches."""
        return int(np.sum(np.asarray(self.labels) >= 0))

    def normalized(self) -> list[Array]:
        """Return the batches as a network takes them, float32 [N, H, H, 3]."""
        return [normalize(jnp.asarray(x), self.mean, self.std) for x in self.images]


@dataclasses.dataclass(frozen=True)
class Selection:
    """Networks to score.

    Attributes:
      graphs: of each network its graph, built once.
      groups: (program, places of its networks in `graphs`), one for each family.
    """

    graphs: tuple[NetworkGraph, ...]
    groups: tuple[tuple[Program, tuple[int, ...]], ...]

    @property
    def specs(self) -> tuple[NetworkSpec, ...]:
        """The networks, in their order."""
        return tuple(graph.spec for graph in self.graphs)


def image_batches(
    dataset: Dataset, split: Split, *, batch_size: int, num_images: int = 0, filled: bool = False
) -> ImageBatches:
    """Return the first `num_images` of a split of `dataset` (0: all) as whole batches.

    BatchNorm reads the statistics of a batch, so one that is not full is another protocol: it is dropped.

    filled: no image depends on its batch: the last one is filled up with images that are not counted.

    Raises:
      UserError: more images than there are, fewer than a batch.
    """
    available = len(split.labels)
    if not 0 <= num_images <= available:
        raise FieldError(
            'num_images', f'={num_images}: {dataset.name} has {available} images there; 0 takes all'
        )
    if batch_size < 1:
        raise FieldError('batch_size', f'={batch_size}: expected at least 1 image')
    count = num_images or available
    if filled:
        missing = -count % min(batch_size, count)
        split = Split(
            np.pad(split.images[:count], [(0, missing)] + [(0, 0)] * (split.images.ndim - 1)),
            np.pad(split.labels[:count], (0, missing), constant_values=-1),
        )
        count, batch_size = count + missing, min(batch_size, count)
    K = count // batch_size
    if K == 0:
        raise FieldError(
            'batch_size',
            f'={batch_size} is more than the {count} images of {dataset.name}: '
            'BatchNorm needs full batches; give smaller ones',
        )
    images, labels = (a[: K * batch_size].reshape(K, batch_size, *a.shape[1:]) for a in split)
    return ImageBatches(images, labels, dataset.mean, dataset.std)


def calibration_images(dataset: Dataset, *, batch_size: int, batches: int) -> ImageBatches:
    """Return the first training images of a data set, so many whole batches.

    Raises:
      FieldError: there are not so many.
    """
    available = len(dataset.train.labels)
    if batches * batch_size > available:
        raise FieldError(
            'calibration_batches',
            f'={batches} of {batch_size} images are more than the {available} training images of '
            f'{dataset.name}: give at most {available // batch_size}, or smaller ones',
        )
    return image_batches(dataset, dataset.train, batch_size=batch_size, num_images=batches * batch_size)


def spread_images(mesh: Mesh | None, images: ImageBatches) -> ImageBatches:
    """Place the batches on their devices; batches without labels fill up what the last one lacks."""
    if mesh is None:
        return ImageBatches(*map(jnp.asarray, images))
    missing = -len(images.labels) % mesh.size
    widen = lambda a, fill: np.pad(a, [(0, missing)] + [(0, 0)] * (a.ndim - 1), constant_values=fill)
    batches = (widen(images.images, 0), widen(images.labels, -1))
    constants = (images.mean, images.std)
    return ImageBatches(*replicate(mesh, batches, OVER_DEVICES), *replicate(mesh, constants))


def select_split(space: Space, split: str, *, seed: int, count: int, image_size: int) -> Selection:
    """Select the first `count` networks of a split (0: all), grouped by family.

    Each family has the program of all networks of its split, so another selection needs no other program.

    Raises:
      UserError: unknown split, more networks than it has.
    """
    size = space.size(split)
    if not 0 <= count <= size:
        raise FieldError('num_networks', f'={count}: the split {split} has {size} networks; 0 takes all')
    specs = [space.sample(split, seed, index) for index in range(count or size)]
    return _grouped(specs, lambda family, members: program_for(space, split, family, image_size))


def check_given(specs: Sequence[NetworkSpec], image_size: int) -> None:
    """Raise UserError for networks of a file that cannot be run, before anything is made from them.

    Such a network is named with its field; networks of very many widths are refused together.
    """
    for spec in specs:
        check_lowerable(spec, image_size)
        check_head(spec, image_size)
    check_families(specs)


def select_given(specs: Sequence[NetworkSpec], *, image_size: int) -> Selection:
    """Select exactly these networks, grouped by family; each group's program is made for it.

    Raises:
      UserError: as `check_given`.
    """

    def program(family: Family, members: list[NetworkSpec]) -> Program:
        return build_program(members, image_size=image_size, max_params=max(map(count_parameters, members)))

    check_given(specs, image_size)
    return _grouped(list(specs), program)


def group_by_family(specs: Sequence[NetworkSpec]) -> list[tuple[Family, tuple[int, ...]]]:
    """Return the families of the networks, rising, each with the places of its networks in `specs`."""
    families = [family(spec) for spec in specs]
    places = {each: tuple(i for i, own in enumerate(families) if own == each) for each in set(families)}
    return sorted(places.items())


def room_for(graphs: Iterable[NetworkGraph]) -> int:
    """Return the nodes that these graphs are padded to: few numbers, so few compilations."""
    return round_up(max(len(graph.nodes) for graph in graphs), _NODES)


def check_task(ghn: GHN, specs: Sequence[NetworkSpec], dataset: Dataset) -> None:
    """Raise UserError unless hypernetwork, networks and data have one number of classes."""
    classes = ghn.config.num_classes
    if dataset.num_classes != classes:
        raise UserError(
            f'{dataset.name} has {dataset.num_classes} classes, the hypernetwork predicts {classes}: '
            'score it on the data it was trained on'
        )
    for spec in specs:
        check_classes(ghn.config, spec)


def _grouped(specs: list[NetworkSpec], program: Callable[[Family, list[NetworkSpec]], Program]) -> Selection:
    groups = [
        (program(each, [specs[i] for i in members]), members) for each, members in group_by_family(specs)
    ]
    return Selection(tuple(map(build_graph, specs)), tuple(groups))
