"""How a network is run when it is scored: by the statistics of each batch, or by those of calibration images.

Axes: K batches | T tensors | F floats of the weight buffer.
"""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from ghn_jax.assembly.mesh import replicate
from ghn_jax.assembly.workspace import Workspace
from ghn_jax.base.errors import FieldError
from ghn_jax.base.fields import bounded, check_fields, choice
from ghn_jax.cnn.deploy import calibration, observer
from ghn_jax.cnn.deploy.calibration import RANGE_RULE
from ghn_jax.cnn.deploy.observer import Activations, RowMoments, Wanted, make_wanted
from ghn_jax.cnn.program import Layout, Program
from ghn_jax.cnn.tables import RunnableNetwork
from ghn_jax.evaluation import compiled
from ghn_jax.evaluation.device import Measured
from ghn_jax.evaluation.selection import ImageBatches
from ghn_jax.quant.policy import Policy
from ghn_jax.quant.scheme import QAT, Scheme

BATCH_NORMS = ('batch', 'calibrated', 'corrected')
RANGES = ('batch', 'calibrated')
CALIBRATION_BATCHES = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """What the normalisations and the activation ranges of scored networks go by, and what is measured.

    Attributes:
      batch_norm: 'batch', the statistics of each batch (the papers'); 'calibrated', those of calibration
        images, in float, folded into the weights; 'corrected', those of these images with weights and
        activations rounded, beside the weights.
      ranges: of activations, of each batch or of calibration images.
      range_rule: how ranges are found on calibration images (`calibration.RANGE_RULES`).
      sqnr: whether the signal-to-quantization-noise ratio of each layer is measured.
      integer: images that are run in integer arithmetic, too.

    Raises:
      FieldError: a field that is not what it may be; integer arithmetic for a network that depends on its
        batch.
    """

    batch_norm: str = choice('batch', BATCH_NORMS)
    ranges: str = choice('batch', RANGES)
    range_rule: str = choice(RANGE_RULE, calibration.RANGE_RULES)
    sqnr: bool = False
    integer: int = bounded('integer', 0)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.integer and 'batch' in (self.batch_norm, self.ranges):
            raise FieldError(
                'integer',
                f'={self.integer}: a network runs in integer arithmetic only where nothing depends on its '
                'batch: take batch_norm=corrected (or calibrated) and ranges=calibrated',
            )

    @property
    def calibrates(self) -> bool:
        """Whether something is fixed."""
        return self.batch_norm != 'batch' or self.ranges != 'batch'

    @property
    def measures(self) -> bool:
        """Whether calibration images are needed."""
        return self.sqnr or self.calibrates


PAPERS = Protocol()


class Measure(NamedTuple):
    """Measures networks of a program on calibration images."""

    program: Program
    mesh: Mesh | None
    images: ImageBatches
    scheme: Scheme = QAT

    def __call__(
        self, layout: Layout, network: RunnableNetwork, wanted: Wanted, workspace: Workspace
    ) -> tuple[Measured, Workspace]:
        """Return (what is wanted of what the network sees at its bits, on the host; workspace)."""
        given = network, observer.make_index(self.program, layout), wanted
        network, index, wanted = replicate(self.mesh, given)  # of one type, wherever they were made
        run = compiled.runner(compiled.measure, self.program, self.scheme, self.mesh)
        measured, workspace = run(network, self.images, index, wanted, workspace)
        return jax.device_get(measured), workspace


def make_measure(program: Program, mesh: Mesh | None, images: ImageBatches, scheme: Scheme) -> Measure:
    """Return what measures networks of a program on these images, placed on every device."""
    return Measure(program, mesh, replicate(mesh, images._replace(labels=None)), scheme)


def statistics(
    protocol: Protocol, measure: Measure, layout: Layout, network: RunnableNetwork, workspace: Workspace
) -> tuple[RowMoments | None, Workspace]:
    """Measure what enters the normalisations of a network in float, over the calibration images.

    Returns:
      the moments, None if normalisations go by others or there are none; workspace.
    """
    if protocol.batch_norm != 'calibrated' or not layout.tables.has_norm:
        return None, workspace
    in_float = network._replace(bits=measure.program.bits(layout, Policy()))
    measured, workspace = measure(layout, in_float, make_wanted(measure.program, moments=True), workspace)
    return calibration.pooled(measured.moments), workspace


def prepare(
    protocol: Protocol,
    measure: Measure,
    layout: Layout,
    network: RunnableNetwork,
    moments: RowMoments | None,
    workspace: Workspace,
) -> tuple[RunnableNetwork, dict[str, tuple[float | None, float | None]] | None, Workspace]:
    """Fix what a protocol fixes in a network at its bits.

    Args:
      protocol: what normalisations and ranges go by.
      measure: of the network's program, on the calibration images.
      layout: of the network.
      network: with its predicted weights, and the bits of a policy.
      moments: from `statistics`.
      workspace: taken.

    Returns:
      the network as it runs; the SQNR of its layers if wanted; workspace.
    """
    if protocol.batch_norm == 'corrected' and layout.tables.has_norm:
        network, workspace = _correct(measure, layout, network, workspace)
    elif moments is not None:
        flat, tables = calibration.fold(layout, np.asarray(network.weights), moments)
        network = network._replace(weights=flat, tables=tables)
    if protocol.ranges == 'calibrated':
        network, workspace = _fix_ranges(protocol, measure, layout, network, workspace)
    if not protocol.sqnr or not observer.any_rounded(network.bits):
        return network, None, workspace
    return network, *_layer_sqnr(measure, layout, network, workspace)


def _correct(
    measure: Measure, layout: Layout, network: RunnableNetwork, workspace: Workspace
) -> tuple[RunnableNetwork, Workspace]:
    """Return the network with the statistics that it has on the calibration images at its bits."""
    wanted = make_wanted(measure.program, moments=True)
    measured, workspace = measure(layout, network, wanted, workspace)
    flat, tables = calibration.fix(layout, np.asarray(network.weights), calibration.pooled(measured.moments))
    return network._replace(weights=flat, tables=tables), workspace


def _fix_ranges(
    protocol: Protocol, measure: Measure, layout: Layout, network: RunnableNetwork, workspace: Workspace
) -> tuple[RunnableNetwork, Workspace]:
    """Return the network with the ranges that its activations have on the calibration images at its bits."""
    wanted = make_wanted(measure.program, activations=True)
    bounds, index = wanted.bounds, observer.make_index(measure.program, layout)
    lo, hi = bounds.T
    if observer.any_rounded(network.bits):
        measured, workspace = measure(layout, network, wanted, workspace)
        seen = measured.activations
        if protocol.range_rule in calibration.HISTOGRAM_RULES:
            seen, bounds, workspace = histograms(measure, layout, network, seen, workspace)
        tensor_bits = observer.tensor_bits(index, network.bits)
        lo, hi = calibration.activation_ranges(protocol.range_rule, seen, tensor_bits, bounds, measure.scheme)
    return network._replace(ranges=observer.make_ranges(index, lo, hi)), workspace


def histograms(
    measure: Measure, layout: Layout, network: RunnableNetwork, seen: Activations, workspace: Workspace
) -> tuple[Activations, np.ndarray, Workspace]:
    """Measure activations again, with histograms between the extremes of those `seen`.

    Returns:
      activations; the bounds of the histograms, [T, 2]; workspace.
    """
    bounds = np.stack([seen.lo.min(0), seen.hi.max(0)], -1)
    wanted = make_wanted(measure.program, activations=True, bounds=bounds)
    measured, workspace = measure(layout, network, wanted, workspace)
    return measured.activations, bounds, workspace


def _layer_sqnr(
    measure: Measure, layout: Layout, network: RunnableNetwork, workspace: Workspace
) -> tuple[dict[str, tuple[float | None, float | None]], Workspace]:
    """Return the signal-to-quantization-noise ratio of each layer over the calibration images, in dB.

    Layer -> (of its weight, of the activation that enters it), None where nothing is rounded, and for the
    second input of a FactorizedReduce, which is the first.
    """
    wanted = make_wanted(measure.program, activations=True, noise=True)
    measured, workspace = measure(layout, network, wanted, workspace)
    seen = measured.activations
    weights = calibration.decibels(*measured.weights)
    activations = calibration.decibels(seen.signal.sum(0), seen.noise.sum(0))
    known = lambda x: round(float(x), 2) if np.isfinite(x) else None
    return {n: (known(weights[t]), known(activations[t])) for n, t in layout.tensors.items()}, workspace
