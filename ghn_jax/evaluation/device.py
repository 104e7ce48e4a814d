"""What evaluation runs on the device: prediction of weights, scoring, and measuring of one network.

Pure functions, to be jitted by their callers.

Axes: F floats of a weight buffer | K batches | N images of a batch | T tensors.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from ghn_jax.assembly.network_batch import Networks
from ghn_jax.assembly.weight_buffer import assemble
from ghn_jax.assembly.workspace import Workspace
from ghn_jax.base import collectives as mesh_axes
from ghn_jax.base.collectives import Axes
from ghn_jax.cnn import executor
from ghn_jax.cnn.deploy.observer import Activations, Index, RowMoments, Wanted, observe, weight_noise
from ghn_jax.cnn.program import Program
from ghn_jax.cnn.tables import ArrayOrNumpy, RunnableNetwork
from ghn_jax.cnn.weight_quantization import pages, quantize_weights
from ghn_jax.datasets.augment import normalize
from ghn_jax.evaluation.selection import ImageBatches
from ghn_jax.hypernet.ghn import GHN
from ghn_jax.quant.scheme import QAT, Scheme


def predict_buffer(ghn: GHN, params: Any, networks: Networks, out: Array) -> Array:
    """Predict the weight buffer [F] of the first network of `networks`, float, written into `out` [F]."""
    x = ghn.apply({'params': params}, networks.graphs, method='embed')[0]
    decoder, sources, tables, _ = jax.tree.map(lambda a: a[0], networks[1:])
    tiles: Any = ghn.apply({'params': params}, x, decoder, method='decode')
    return assemble(tiles, sources, pages(tables), out)


def score(
    program: Program,
    network: RunnableNetwork,
    images: ImageBatches,
    workspace: Workspace,
    *,
    scheme: Scheme = QAT,
    axes: Axes | None = None,
) -> tuple[Array, Array, Array, Workspace]:
    """Count how often the label is the first, and among the first five, of a network's predictions.

    BatchNorm uses the statistics of each batch (the papers' protocol), unless they are folded into the
    weights (`cnn.deploy.calibration`).

    Args:
      program: what runs the network.
      network: its weights not rounded.
      images: batches, normalised here.
      workspace: for batches of as many images, without gradients.
      scheme: how networks are quantized, of mode 'qat'.
      axes: of a mesh whose devices each have batches of their own.

    Returns:
      correct predictions, top 1 and top 5, int32 [] each; predicted classes, int32 [K, N]; workspace.
    """
    rounded = _rounded(network, workspace, scheme)

    def batch(buffers, inputs):
        x, y = inputs
        x = normalize(x, images.mean, images.std, network.weights.dtype)
        logits, buffers = executor.forward(program, rounded, x, buffers, scheme=scheme)
        rank, predicted = judge(logits, y)
        rank = jnp.where(y < 0, 5, rank)  # images without a label fill up the last batch
        return buffers, (jnp.sum(rank < 1), jnp.sum(rank < 5), predicted)

    buffers, (top1, top5, predicted) = lax.scan(batch, workspace.executor, (images.images, images.labels))
    top1, top5 = mesh_axes.total((jnp.sum(top1), jnp.sum(top5)), axes and axes.names)
    return top1, top5, predicted, Workspace(buffers, workspace.weights, rounded.weights)


def _rounded(network: RunnableNetwork, workspace: Workspace, scheme: Scheme) -> RunnableNetwork:
    """Round the weights of a network, into the workspace."""
    weights, tables, bits, _ = network
    quantized, _ = quantize_weights(weights, tables, bits.weights, workspace.quantized, scheme=scheme)
    return network._replace(weights=quantized)


def judge(logits: Array, labels: Array) -> tuple[Array, Array]:
    """Rank the label of each image among the predictions.

    Args:
      logits: [N, classes]; those that are no numbers are the least.
      labels: int32 [N].

    Returns:
      How many other classes have a logit as large as the label's, [N]: 0 where the label is the prediction.
      Ties count against the label, so that equal (or no) logits are no prediction. The predicted classes,
      int32 [N].
    """
    logits = jnp.where(jnp.isnan(logits), -jnp.inf, logits)
    label = jnp.take_along_axis(logits, labels[:, None], 1)
    return jnp.sum(logits >= label, 1) - 1, jnp.argmax(logits, 1).astype(jnp.int32)


class Measured(NamedTuple):
    """What the layers of a network saw.

    Attributes:
      activations, moments: of each batch, fields with a leading axis K.
      weights: sums of squares of every weight tensor, and of its rounding error, [T] each.
    """

    activations: Activations
    moments: RowMoments
    weights: tuple[ArrayOrNumpy, ArrayOrNumpy]


def measure(
    program: Program,
    network: RunnableNetwork,
    images: ImageBatches,
    index: Index,
    wanted: Wanted,
    workspace: Workspace,
    *,
    scheme: Scheme = QAT,
) -> tuple[Measured, Workspace]:
    """Measure what the layers of a network see, batch by batch, quantized as in `score`.

    Args:
      program: what runs the network.
      network: its weights not rounded.
      images: batches, normalised here; no use is made of their labels.
      index: of the network's tensors (`observer.make_index`).
      wanted: what is measured of activations and moments.
      workspace: as for `score`.
      scheme: how networks are quantized, of mode 'qat'.
    """
    rounded = _rounded(network, workspace, scheme)

    def batch(buffers, x):
        x = normalize(x, images.mean, images.std, network.weights.dtype)
        activations, moments, buffers = observe(program, rounded, x, buffers, index, wanted, scheme=scheme)
        return buffers, (activations, moments)

    buffers, (activations, moments) = lax.scan(batch, workspace.executor, images.images)
    noise = weight_noise(network, rounded.weights)
    return Measured(activations, moments, noise), Workspace(buffers, workspace.weights, rounded.weights)
