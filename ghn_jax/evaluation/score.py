"""Scores networks: predicts the weights of each, then counts its correct predictions at every bit-width.

Weights are predicted once for all policies; a hypernetwork that reads the bits predicts them anew for each.

Networks are data: all those of one program share two compiled functions (`evaluation.compiled`; one or two
more measure, where the protocol asks for it), whatever their bits. Scoring other networks of the same
program, or with other parameters of the hypernetwork, compiles nothing. A network is lowered once, whatever
the policies.

Axes: M networks | P policies | K batches | N images of a batch | F floats of a weight buffer.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from tqdm import tqdm

from ghn_jax.assembly import single_value_norms
from ghn_jax.assembly.mesh import make_workspaces, replicate
from ghn_jax.assembly.network_batch import PlacedNetwork, make_networks, place
from ghn_jax.assembly.workspace import Workspace
from ghn_jax.base.errors import UserError
from ghn_jax.cnn.deploy import integer
from ghn_jax.cnn.packing import BLOCK
from ghn_jax.cnn.program import Program
from ghn_jax.cnn.tables import RunnableNetwork
from ghn_jax.evaluation import compiled
from ghn_jax.evaluation import protocol as protocols
from ghn_jax.evaluation.protocol import PAPERS, Measure, Protocol, make_measure
from ghn_jax.evaluation.selection import ImageBatches, Selection, room_for, spread_images
from ghn_jax.hypernet.ghn import GHN, GHNConfig
from ghn_jax.hypernet.policy_features import resolve
from ghn_jax.networks.graph import NetworkGraph
from ghn_jax.quant.policy import NamedWidths, Policy
from ghn_jax.quant.scheme import QAT, Scheme


class Score(NamedTuple):
    """Of one network at one policy.

    Attributes:
      top1, top5: shares of images whose label is the first, and among the first five, prediction.
      predicted: classes, int32 [K * N].
      sqnr: layer -> (of its weight, of the activation that enters it) in dB, None where nothing is rounded;
        None: not measured.
      integer: share of the images run in integer arithmetic that it puts into another class; None: none was.
    """

    top1: float
    top5: float
    predicted: np.ndarray
    sqnr: dict[str, tuple[float | None, float | None]] | None = None
    integer: float | None = None


def check_tiles(ghn: GHN) -> None:
    """Raise UserError for a hypernetwork whose tiles are not those that the executor reads."""
    C, _, K, _ = ghn.config.max_shape
    if ghn.config.max_shape != GHNConfig.max_shape:
        raise UserError(
            f'the hypernetwork decodes tiles of {C} x {C} channels and {K} x {K} pixels, networks are scored '
            f'with those of {GHNConfig.max_shape[0]} and {GHNConfig.max_shape[2]}: predict its weights, or '
            'score a model of your own with them'
        )


def score_in_full(ghn: GHN, params: Any, selection: Selection, *args: Any, **how: Any) -> list[list[Score]]:
    """Return what `score_each` yields for these arguments, in the order of the networks."""
    scores = dict(score_each(ghn, params, selection, *args, **how))
    return [scores[i] for i in range(len(selection.graphs))]


def score_networks(ghn: GHN, params: Any, selection: Selection, *args: Any, **how: Any) -> np.ndarray:
    """Return `top1` and `top5` of `score_in_full`, float64 [M, P, 2]."""
    scores = score_in_full(ghn, params, selection, *args, **how)
    return np.array([[(s.top1, s.top5) for s in network] for network in scores])


def score_each(
    ghn: GHN,
    params: Any,
    selection: Selection,
    images: ImageBatches,
    policies: Sequence[Policy],
    *,
    predicted_for: Policy | None = None,
    scheme: Scheme = QAT,
    protocol: Protocol = PAPERS,
    calibration: ImageBatches | None = None,
    mesh: Mesh | None = None,
    skip: Container[int] = (),
    done: Callable[[int], None] = lambda policy: None,
) -> Iterator[tuple[int, list[Score]]]:
    """Score every network (M) at every policy (P), one program after another.

    Args:
      ghn: the hypernetwork.
      params: its parameters.
      selection: the networks.
      images: the test images.
      policies: the bits that the networks run with.
      predicted_for: the policy that a hypernetwork which reads the bits predicts the weights for, in place of
        the one that is run.
      scheme: how networks are quantized, of mode 'qat' (`Scheme.when_used`).
      protocol: what normalisations and activation ranges go by.
      calibration: training images, for a protocol that measures; by a hypernetwork that reads the bits it
        does so for each policy.
      mesh: of devices that score batches of the same network side by side.
      skip: places of networks that are not scored.
      done: called after each policy of a network with its number.

    Yields:
      The place of a network in the selection, and its P scores.

    Raises:
      UserError: a hypernetwork whose networks cannot be run, a policy that is not for a network, integer
        arithmetic for a network without it.
    """
    check_tiles(ghn)
    if text := single_value_norms.warning(selection.specs, images.images.shape[2], images.labels.shape[1]):
        _warn_once(text)
    assert (calibration is not None) == protocol.measures
    spread = spread_images(mesh, images)
    for program, members in selection.groups:
        if not (wanted := [i for i in members if i not in skip]):
            continue
        score_one = _Scorer(
            ghn=ghn, params=params, program=program, images=spread, given=images, scheme=scheme, mesh=mesh,
            max_nodes=room_for(selection.graphs[i] for i in members), protocol=protocol,
            measure=make_measure(program, mesh, calibration, scheme) if calibration else None,
        )  # fmt: skip
        buffers = score_one.make_buffers()
        for i in wanted:
            scores, buffers = score_one(selection.graphs[i], policies, predicted_for, buffers, done)
            yield i, scores
        del buffers


class _Buffers(NamedTuple):
    """What one network leaves to the next.

    The weights are read while the workspace is donated, so they cannot be part of it.
    """

    workspace: Workspace
    weights: Array  # [F]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Scorer:
    """Scores networks of one program; the fields are those of `score_each`.

    Attributes:
      images: on their devices.
      given: the same on the host.
    """

    ghn: GHN
    params: Any
    program: Program
    images: ImageBatches
    given: ImageBatches
    scheme: Scheme
    mesh: Mesh | None
    max_nodes: int
    protocol: Protocol
    measure: Measure | None

    def make_buffers(self) -> _Buffers:
        """Make the buffers of the program, given back after it: tapes of several may not fit side by side."""
        batch_size = self.given.labels.shape[1]
        workspace = make_workspaces(self.mesh, self.program, batch_size, train=False)
        return _Buffers(workspace, jnp.zeros(self.program.capacity.blocks * BLOCK))

    def __call__(
        self, graph: NetworkGraph, policies: Sequence[Policy], predicted_for: Policy | None,
        buffers: _Buffers, done: Callable[[int], None],
    ) -> tuple[list[Score], _Buffers]:  # fmt: skip
        """Score one network at every policy; `done` is called after each with its number."""
        placed = place(self.program, graph)
        workspace, weights = buffers
        predicted_widths = resolve(predicted_for, graph) if predicted_for else None
        anew = self.ghn.config.bits and not predicted_for
        scores, own, moments = [], None, None
        for p, policy in enumerate(policies):
            widths = resolve(policy, graph)
            if own is None or anew:
                own, weights = predict_network(
                    self.ghn, self.params, self.program, placed, predicted_widths or widths, weights,
                    max_nodes=self.max_nodes, mesh=self.mesh,
                )  # fmt: skip
                if self.measure:
                    moments, workspace = protocols.statistics(
                        self.protocol, self.measure, placed.layout, own, workspace
                    )
            network, sqnr = own._replace(bits=self.program.bit_table(placed.layout, widths)), None
            if self.measure:
                network, sqnr, workspace = protocols.prepare(
                    self.protocol, self.measure, placed.layout, network, moments, workspace
                )
                network = replicate(self.mesh, network)
            score, workspace = self._score(placed, network, workspace, policy.is_float)
            scores.append(score._replace(sqnr=sqnr))
            done(p)
        return scores, _Buffers(workspace, weights)

    def _score(
        self, placed: PlacedNetwork, network: RunnableNetwork, workspace: Workspace, is_float: bool
    ) -> tuple[Score, Workspace]:
        run = compiled.runner(compiled.score, self.program, self.scheme, self.mesh)
        top1, top5, predicted, workspace = run(network, self.images, workspace)
        count = self.given.count
        predicted = np.asarray(predicted).ravel()[:count]
        share = None
        if self.protocol.integer and not is_float:
            share = self._integer_share(placed, network, predicted)
        return Score(int(top1) / count, int(top5) / count, predicted, integer=share), workspace

    def _integer_share(self, placed: PlacedNetwork, network: RunnableNetwork, predicted: np.ndarray) -> float:
        """Return the share of the first images that integer arithmetic puts into another class."""
        images = self.given
        x = images.images.reshape(-1, *images.images.shape[2:])[: self.protocol.integer]
        network = jax.device_get(network)
        logits = integer.logits(
            self.program, placed.graph.spec, placed.layout, network, x, images.mean, images.std,
            scheme=self.scheme,
        )  # fmt: skip
        return float(np.mean(logits.x.argmax(1) != predicted[: len(x)]))


@functools.cache
def _warn_once(text: str) -> None:
    tqdm.write(text, file=sys.stderr)


def predict_network(
    ghn: GHN,
    params: Any,
    program: Program,
    placed: PlacedNetwork,
    widths: NamedWidths,
    buffer: Array,
    *,
    max_nodes: int,
    mesh: Mesh | None,
) -> tuple[RunnableNetwork, Array]:
    """Predict the weights of a network.

    Args:
      ghn: the hypernetwork.
      params: its parameters.
      program: what runs the network.
      placed: the network in this program.
      widths: the bits of its weights by name, that a hypernetwork which reads them predicts it for.
      buffer: float32 [F], taken for the weights.
      max_nodes: that its graph is padded to.
      mesh: of devices that the weights are copied to.

    Returns:
      the network at these bits; a buffer for the next call.

    Raises:
      UserError: as `make_networks`.
    """
    networks = make_networks(program, [placed], [widths], max_nodes=max_nodes)
    static: Any = ghn  # which can be hashed, though its type does not say so
    buffer = compiled.predictor(static)(params, networks, buffer)
    tables, bits = jax.tree.map(lambda a: a[0], (networks.tables, networks.bits))
    return RunnableNetwork(replicate(mesh, buffer) if mesh else buffer, tables, bits), buffer
