"""Scoring networks: predicts the weights of each, then counts correct predictions at every bit-width.

Weights are predicted once for all policies; by a hypernetwork that is told the bits, anew for each policy.

Networks are data: all those of one program share two compiled functions (and one or two more that measure
where the protocol asks for it), whatever their bits. JAX keeps them: scoring other networks of the same
program, or with other GHN parameters, compiles nothing.

Axes: M networks | P policies | K batches | N images of a batch | H pixels.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from tqdm import tqdm

from ghn_jax.assembly import lone_values
from ghn_jax.assembly.mesh import OVER_DEVICES, REPLICATED, axes_of, make_workspaces, on_each, replicate
from ghn_jax.assembly.network_batch import prepare
from ghn_jax.base.errors import UserError
from ghn_jax.base.numbers import round_up
from ghn_jax.cnn.building import build_program
from ghn_jax.cnn.covering import Family, family, program_for
from ghn_jax.cnn.deploy import integer
from ghn_jax.cnn.lowering import check_lowerable
from ghn_jax.cnn.packing import BLOCK
from ghn_jax.cnn.program import Layout, Program
from ghn_jax.datasets.load import Dataset, Split
from ghn_jax.evaluation import device, protocol
from ghn_jax.evaluation.protocol import PAPERS, Measure, Network, Protocol
from ghn_jax.hypernet.ghn import GHN, GHNConfig
from ghn_jax.networks.counts import check_families, count_parameters
from ghn_jax.networks.graph import build_graph
from ghn_jax.networks.spaces import Space
from ghn_jax.networks.spec import IMAGE_SIZE, NetworkSpec
from ghn_jax.quant.policy import Policy
from ghn_jax.quant.scheme import QAT, Scheme

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


class Score(NamedTuple):
    """Of one network at one policy.

    top1, top5: shares of images whose label is the first, and among the first five, prediction. predicted:
    classes, int32 [K * N]. sqnr: layer -> (of its weight, of the activation that enters it) in dB, None where
    nothing is rounded. integer: share of the images run in integer arithmetic that it puts into another
    class. None: not measured.
    """

    top1: float
    top5: float
    predicted: np.ndarray
    sqnr: dict[str, tuple[float | None, float | None]] | None = None
    integer: float | None = None


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
_predict = jax.jit(device.predict_weights, static_argnums=0, donate_argnums=3)


@functools.cache
def score_on(mesh: Mesh | None, scheme: Scheme) -> Callable:
    """`device.score` in a scheme, jitted; devices of the mesh share the batches, each with a workspace."""

    def score(program, *arrays):
        run = functools.partial(device.score, program, scheme=scheme, axes=axes_of(mesh))
        all_, each = REPLICATED, OVER_DEVICES
        inputs = (all_, all_, all_, each, each, all_, all_, each, all_)
        return on_each(run, mesh, inputs, (all_, all_, each, each))(*arrays)

    return jax.jit(score, static_argnums=0, donate_argnums=8)


def spread_images(mesh: Mesh | None, images: Images) -> Images:
    """The batches on their devices, with batches of no labels where the last device would have fewer."""
    if mesh is None:
        return Images(*map(jnp.asarray, images))
    missing = -len(images.labels) % mesh.size
    widen = lambda a, fill: np.pad(a, [(0, missing)] + [(0, 0)] * (a.ndim - 1), constant_values=fill)
    batches = (widen(images.images, 0), widen(images.labels, -1))
    constants = (images.mean, images.std)
    return Images(*replicate(mesh, batches, OVER_DEVICES), *replicate(mesh, constants))


def score_networks(
    ghn: GHN, params: Any, selection: Selection, images: Images, policies: Sequence[Policy], **options
) -> np.ndarray:
    """Shares of images whose label is the first, and among the first five, prediction: float64 [M, P, 2].

    options: as for `score_in_full`.
    """
    scores = score_in_full(ghn, params, selection, images, policies, **options)
    return np.array([[(s.top1, s.top5) for s in network] for network in scores])


def score_in_full(
    ghn: GHN,
    params: Any,
    selection: Selection,
    images: Images,
    policies: Sequence[Policy],
    *,
    told: Policy | None = None,
    scheme: Scheme = QAT,
    how: Protocol = PAPERS,
    calibration: Images | None = None,
    mesh: Mesh | None = None,
    done: Callable[[int, int], None] = lambda network, policy: None,
) -> list[list[Score]]:
    """The score of every network (M) at every policy (P).

    told: what a hypernetwork that is told the bits is told, in place of the policy that is run.
    scheme: how networks are quantized, of mode 'qat' (`Scheme.when_used`).
    how: what normalisations and activation ranges go by. calibration: training images, for a protocol that
    measures; by a hypernetwork that is told the bits it does so for each policy.
    mesh: of devices that score batches of the same network side by side. `done` is called after every
    network and policy with their numbers.

    Raises:
      UserError: a hypernetwork whose networks cannot be run, integer arithmetic for a network without it.
    """
    if ghn.config.max_shape != GHNConfig.max_shape:
        raise UserError(
            f'the hypernetwork has max_shape {ghn.config.max_shape}: only {GHNConfig.max_shape} can be run'
        )
    if text := lone_values.warning(selection.specs, images.images.shape[2], images.labels.shape[1]):
        _warn_once(text)
    scores: list[list[Score]] = [[] for _ in selection.specs]
    assert (calibration is not None) == how.measures
    batch_size, given = images.labels.shape[1], images
    images, score = spread_images(mesh, images), score_on(mesh, scheme)
    for program, members in selection.groups:
        nodes = room_for([selection.specs[i] for i in members])
        measure = make_measure(program, mesh, calibration, scheme) if calibration else None
        # Made for every group and given back after it: tapes of several programs may not fit side by side.
        # The weights are read while the workspace is donated, so they cannot be part of it.
        workspace = make_workspaces(mesh, program, batch_size, train=False)
        weights = jnp.zeros(program.capacity.blocks * BLOCK)
        for i in members:
            for p, policy in enumerate(policies):
                if p == 0 or (ghn.config.bits and not told):
                    own, layout, weights = predict_network(
                        ghn, params, program, selection.specs[i], told or policy, weights,
                        max_nodes=nodes, mesh=mesh,
                    )  # fmt: skip
                    if measure:
                        moments, workspace = protocol.statistics(how, measure, layout, own, workspace)
                bits = program.bits(layout, policy)
                network, sqnr, share = own, None, None
                if measure:
                    network, sqnr, workspace = protocol.prepare(
                        how, measure, layout, own, moments, bits, workspace
                    )
                    network = replicate(mesh, network)
                top1, top5, predicted, workspace = score(
                    program, network.weights, network.tables, bits, *images, workspace, network.ranges
                )
                predicted = np.asarray(predicted).ravel()[: given.count]
                if how.integer and not policy.is_float:
                    share = _integer_share(
                        how, scheme, program, selection.specs[i], layout, network, bits, given, predicted
                    )
                shares = int(top1) / given.count, int(top5) / given.count
                scores[i].append(Score(*shares, predicted, sqnr, share))
                done(i, p)
    return scores


@functools.cache
def _warn_once(text: str) -> None:
    tqdm.write(text, file=sys.stderr)


def room_for(specs: Sequence[NetworkSpec]) -> int:
    """Nodes that the graphs of these networks are padded to: few numbers, so few compilations."""
    return round_up(max(len(build_graph(spec).nodes) for spec in specs), _NODES)


def predict_network(
    ghn: GHN,
    params: Any,
    program: Program,
    spec: NetworkSpec,
    policy: Policy,
    buffer: Array,
    *,
    max_nodes: int,
    mesh: Mesh | None = None,
) -> tuple[Network, Layout, Array]:
    """(the network with its predicted weights, where they lie in its buffer, a buffer for the next call).

    policy: what a hypernetwork that is told the bits is told. buffer: float32 [F], taken for the weights.
    mesh: of devices that the weights are copied to.

    Raises:
      UserError: as `batches.prepare`.
    """
    networks, (layout,) = prepare(program, [spec], policy, max_nodes=max_nodes)
    buffer = _predict(ghn, params, networks, buffer)
    tables = jax.tree.map(lambda a: a[0], networks.tables)
    return Network(replicate(mesh, buffer) if mesh else buffer, tables, None), layout, buffer


def make_measure(program: Program, mesh: Mesh | None, images: Images, scheme: Scheme) -> Measure:
    """What measures networks of a program on these images."""
    arrays = (images.images, images.mean, images.std)
    return Measure(program, mesh, replicate(mesh, arrays), scheme)


def _integer_share(
    how: Protocol,
    scheme: Scheme,
    program: Program,
    spec: NetworkSpec,
    layout: Layout,
    network: Network,
    bits,
    images,
    predicted,
) -> float:
    """Share of the first images that integer arithmetic puts into another class than `predicted`."""
    x = images.images.reshape(-1, *images.images.shape[2:])[: how.integer]
    flat, ranges = jax.device_get((network.weights, network.ranges))
    logits = integer.logits(
        program, spec, layout, flat, bits, ranges, x, images.mean, images.std, scheme=scheme
    )
    return float(np.mean(logits.x.argmax(1) != predicted[: len(x)]))
