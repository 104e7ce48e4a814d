"""The best network seen closely: weights before and after rounding, and the activations between its layers.

The network runs as it was scored, by the same protocol, on the training images that SQNR is measured on.

Axes: B bins | F floats of the weight buffer.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax.assembly.mesh import local_mesh, make_workspaces
from ghn_jax.assembly.network_batch import place
from ghn_jax.base.errors import FieldError, UserError
from ghn_jax.cnn.deploy import calibration, observer
from ghn_jax.cnn.packing import BLOCK
from ghn_jax.evaluation import protocol
from ghn_jax.evaluation.evaluation_spec import GIVEN
from ghn_jax.evaluation.protocol import CALIBRATION_BATCHES, make_measure
from ghn_jax.evaluation.score import predict_network
from ghn_jax.evaluation.selection import Selection, image_batches, room_for, select_given, select_split
from ghn_jax.hypernet.policy_features import resolve
from ghn_jax.networks.spec import NetworkSpec
from ghn_jax.quant.policy import quantizable
from ghn_jax.quant.rounding import round_to
from ghn_jax.quant.strategy import strategy_of
from ghn_jax.reporting.report_subject import ReportSubject
from ghn_jax.runs.run import Run
from ghn_jax.runs.task import make_space_of

LAYERS = 4  # that are shown, evenly spaced from the first to the last
BINS = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundedLayer:
    """A layer of a network, as it is rounded.

    Attributes:
      name: of its weight.
      bits: of the weight, and of the activation that enters the layer.
      weights, rounded: every value before and after rounding, [n].
      counts, edges: [B] and [B + 1], a histogram of the activation before it is rounded, zeros left out.
      decibels: SQNR of weight and activation, not a number where nothing is rounded.
    """

    name: str
    bits: tuple[int, int]
    weights: np.ndarray
    rounded: np.ndarray
    counts: np.ndarray
    edges: np.ndarray
    decibels: tuple[float, float]


def select(run: Run, subject: ReportSubject, specs: Sequence[NetworkSpec] | None = None) -> Selection:
    """Select the networks of the first split, as they were scored.

    specs: those of the architecture file, if it was these.

    Raises:
      UserError: they are not the networks of the result.
    """
    split, p = subject.splits[0], subject.result['protocol']
    config = run.config
    digests = [network['digest'] for network in subject.networks(split)]
    if split != GIVEN:
        selection = select_split(
            make_space_of(config), split, seed=p['seed'], count=len(digests),
            image_size=config.image_size,
        )  # fmt: skip
    elif specs is None:
        raise FieldError('specs', ' is missing: the result is of an architecture file: give it, too')
    else:
        selection = select_given(specs, image_size=config.image_size)
    if [spec.digest for spec in selection.specs] != digests:
        raise UserError('the result is of other networks than this run has there: evaluate again')
    return selection


def look(run: Run, subject: ReportSubject, selection: Selection, num_devices: int = 1) -> list[RoundedLayer]:
    """Look at LAYERS layers of the best network, in the order of the forward pass.

    Args:
      run: that the evaluation is of.
      subject: what was scored, and how.
      selection: from `select`.
      num_devices: as for `evaluate`, which has compiled what is needed for as many.

    Raises:
      UserError: data that are not there, or are too few.
    """
    graph, p = selection.graphs[subject.best], subject.result['protocol']
    program = next(program for program, members in selection.groups if subject.best in members)
    mesh = local_mesh(num_devices)
    strategy = strategy_of(run.config)
    used, scheme = strategy.used(subject.policies[subject.closeup]), strategy.scheme.when_used()
    dataset = run.load_images()
    count = p['calibration_images'] or p['sqnr_images'] or CALIBRATION_BATCHES * p['batch_size']
    images = image_batches(dataset, dataset.train, batch_size=p['batch_size'], num_images=count)
    measure = make_measure(program, mesh, images, scheme)
    placed, widths = place(program, graph), resolve(used, graph)
    layout = placed.layout

    workspace = make_workspaces(mesh, program, p['batch_size'], train=False)
    network, _ = predict_network(
        run.ghn, run.params, program, placed, resolve(subject.predicted_for or used, graph),
        jnp.zeros(program.capacity.blocks * BLOCK), max_nodes=room_for([graph]),
        mesh=mesh,
    )  # fmt: skip
    network, how = network._replace(bits=program.bit_table(layout, widths)), subject.protocol
    moments, workspace = protocol.statistics(how, measure, layout, network, workspace)
    network, _, workspace = protocol.prepare(how, measure, layout, network, moments, workspace)
    wanted = observer.make_wanted(program, activations=True, noise=True)
    measured, workspace = measure(layout, network, wanted, workspace)
    seen, bounds, _ = protocol.histograms(measure, layout, network, measured.activations, workspace)

    shapes = {parameter.name: parameter.shape for parameter in graph.parameters}
    weights = program.unpack(layout, np.asarray(jax.device_get(network.weights)), shapes)
    rounded, _ = round_to(weights, widths, scheme)
    of_weights = calibration.decibels(*measured.weights)
    noted = measured.activations
    of_activations = calibration.decibels(np.sum(noted.signal, 0), np.sum(noted.noise, 0))
    histograms = np.sum(seen.histogram, 0).reshape(-1, BINS, observer.BINS // BINS).sum(-1)
    layers = []
    for name in evenly(quantizable(shapes.items()), LAYERS):
        t = layout.tensors[name]
        layers.append(
            RoundedLayer(
                name=name,
                bits=widths[name],
                weights=weights[name].ravel(),
                rounded=rounded[name].ravel(),
                counts=histograms[t],
                edges=np.linspace(bounds[t, 0], bounds[t, 1], BINS + 1),
                decibels=(float(of_weights[t]), float(of_activations[t])),
            )
        )
    return layers


def evenly(names: tuple[str, ...], count: int) -> list[str]:
    """Return so many of the names, from the first to the last; all, where there are no more."""
    places = np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int)
    return [names[place] for place in places]
