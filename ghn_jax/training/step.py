"""A training step: the gradient of a meta-batch of networks, and the update it makes.

Axes: M networks of a meta-batch | N images | F floats of a weight buffer | L classes.

A training step visits its networks one after another with one workspace. Each network's gradient goes all the
way to the decoder's parameters and to the node embeddings before the next begins, so memory does not grow
with M.

On a mesh of devices (`axes`, under `jax.shard_map`) each takes its share of the networks, or with others its
share of a network's images, and the gradients are summed once, in the end, in one all-reduce.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array, lax

from ghn_jax.assembly.network_batch import Networks
from ghn_jax.assembly.weight_buffer import assemble, assemble_transposed
from ghn_jax.assembly.workspace import Workspace
from ghn_jax.base import collectives as mesh_axes
from ghn_jax.base.collectives import Axes
from ghn_jax.cnn import executor
from ghn_jax.cnn.program import Program
from ghn_jax.cnn.tables import RunnableNetwork
from ghn_jax.cnn.weight_quantization import (
    add_norm_gradient,
    pages,
    quantize_weights,
    quantize_weights_backward,
)
from ghn_jax.hypernet.ghn import GHN
from ghn_jax.hypernet.tiles import DecoderTable, Tiles
from ghn_jax.quant.scheme import Scheme
from ghn_jax.training.refinements import AS_PUBLISHED, Refinements, average, distilled, targets

FINE, BAD_GRADIENT, BAD_LOSS = range(3)  # a network in a step: what of it is not finite
_LEAST_LOSS = 1e-3  # nats, added to a loss that is divided by
DROPOUT = 0.5  # of the hidden layer of two-layer heads, in training; as published


class TrainState(struct.PyTreeNode):
    """All that a run needs to go on; keys derive from the step.

    Attributes:
      step: int32 [], how many steps are done.
      params: of the hypernetwork.
      opt_state: of the optimizer.
      ema: the moving average of the parameters, where the refinements have one.
    """

    step: Array
    params: Any
    opt_state: Any
    ema: Any = None

    @property
    def used(self) -> Any:
        """The parameters that are validated and evaluated."""
        return self.params if self.ema is None else self.ema


def meta_gradients(
    program: Program,
    ghn: GHN,
    params: Any,
    networks: Networks,
    images: Array,
    labels: Array,
    *,
    workspace: Workspace,
    key: Array,
    scheme: Scheme,
    dropout: float = DROPOUT,
    refinements: Refinements = AS_PUBLISHED,
    axes: Axes | None = None,
) -> tuple[Any, dict[str, Array], Workspace]:
    """Compute the gradient of the mean loss over networks, with metrics of each.

    A network whose loss or gradient is not finite contributes nothing.

    Args:
      program: what the networks run in.
      ghn, params: the hypernetwork and its parameters.
      networks: M networks.
      images: [N, H, H, 3], normalised.
      labels: int [N].
      workspace: for batches of N images; as it is returned, it serves the next step.
      key: of dropout and noise; one for all devices, it gives each network what it has on one device.
      scheme: how networks are quantized.
      dropout: the share of the hidden layer of two-layer heads that is dropped.
      refinements: what else changes the gradient.
      axes: of a mesh, on whose devices this runs: networks and images are those of the device; gradient,
        loss and accuracy are its shares, whose sums are those of all; `finite` is of the whole network.

    Returns:
      gradients like params; {'loss', 'accuracy', 'finite': [M]}; workspace.
    """
    over_networks, over_images = axes or (None, None)
    count = networks.tables.n_blocks.shape[0] * mesh_axes.size(over_networks)
    embed = lambda p: ghn.apply({'params': p}, networks.graphs, method='embed')
    embeddings, pull_embed = jax.vjp(embed, params)

    def network(carry, inputs):
        workspace, total = carry
        x, decoder, sources, tables, bits, k_net = inputs
        tiles, pull = jax.vjp(lambda p, x: _decode(ghn, p, x, decoder), params, x)
        weights = assemble(tiles, sources, pages(tables), workspace.weights)
        loss, accuracy, g, workspace = _weight_gradients(
            program, RunnableNetwork(weights, tables, bits), images, labels, workspace, k_net, scheme=scheme,
            dropout=dropout, refinements=refinements, axis=over_images,
        )  # fmt: skip
        gradient = pull(assemble_transposed(g, sources, tiles))
        (g_params, g_x), finite = _share_of_mean(gradient, loss, count, refinements, over_images)
        return (workspace, jax.tree.map(jnp.add, total, g_params)), (g_x, loss, accuracy, finite)

    keys = mesh_axes.own_rows(jax.random.split(key, count), over_networks)
    inputs = (embeddings, *networks[1:], keys)
    carry = (workspace, jax.tree.map(jnp.zeros_like, params))
    (workspace, gradients), (g_x, loss, accuracy, finite) = lax.scan(network, carry, inputs)
    gradients = jax.tree.map(jnp.add, gradients, pull_embed(g_x)[0])
    return gradients, {'loss': loss, 'accuracy': accuracy, 'finite': finite}, workspace


def _share_of_mean(
    gradient: tuple[Any, Array], loss: Array, count: int, refinements: Refinements, axis: str | None
) -> tuple[tuple[Any, Array], Array]:
    """Return what a network's gradient (by the parameters, by the embeddings) adds to the mean of `count`,
    nothing where it is not finite; and whether it is, [].
    """
    finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(gradient))
    finite = mesh_axes.everywhere(finite, axis)
    if refinements.loss_power:
        whole = mesh_axes.total(loss, axis and (axis,))
        scale = (whole + _LEAST_LOSS) ** -refinements.loss_power
        gradient = jax.tree.map(lambda g: g * scale, gradient)
    if refinements.network_clip_norm:
        scale = jnp.minimum(1, refinements.network_clip_norm / optax.tree.norm(gradient[0]))
        gradient = jax.tree.map(lambda g: g * scale, gradient)
    return jax.tree.map(lambda g: jnp.where(finite, g / count, 0), gradient), finite


def _decode(ghn: GHN, params: Any, x: Array, table: DecoderTable) -> Tiles:
    tiles: Any = ghn.apply({'params': params}, x, table, method='decode')
    return tiles


def _weight_gradients(
    program: Program, network: RunnableNetwork, images: Array, labels: Array, workspace: Workspace,
    key: Array, *, scheme: Scheme, dropout: float, refinements: Refinements, axis: str | None,
) -> tuple[Array, Array, Array, Workspace]:  # fmt: skip
    """Run a network with its weights rounded, and differentiate its loss by them.

    Returns:
      loss and accuracy, [] each, the device's shares of them; gradient of the weights before rounding [F];
      workspace, which holds weights and gradient.
    """
    k_weights, k_net = jax.random.split(key)
    weights, tables, bits, _ = network
    quantized, grid, tapes = workspace.quantized, None, workspace.executor
    goals = targets(labels, program.num_classes, refinements.label_smoothing)
    if refinements.distillation and scheme.mode != 'float':
        teacher, tapes = executor.forward(program, network, images, tapes, axis=axis)
        goals = distilled(goals, teacher, refinements.distillation)
    if scheme.mode != 'float':
        quantized, grid = quantize_weights(
            weights, tables, bits.weights, quantized, scheme=scheme, key=k_weights
        )
    loss, logits, g, buffers = executor.loss_and_gradients(
        program, network if grid is None else network._replace(weights=quantized), images, goals, tapes,
        scheme=scheme, key=k_net, dropout=dropout, axis=axis,
    )  # fmt: skip
    if grid is not None:
        g = quantize_weights_backward(weights, tables, bits.weights, g, grid, scheme=scheme, key=k_weights)
    if refinements.weight_penalty:
        share = refinements.weight_penalty / (mesh_axes.size(axis) if axis else 1)
        g = add_norm_gradient(weights, tables, len(bits.weights), g, share)
    accuracy = jnp.mean((jnp.argmax(logits, -1) == labels).astype(loss.dtype))
    if axis:
        accuracy = accuracy / mesh_axes.size(axis)
    return loss, accuracy, g, Workspace(buffers._replace(weights=g), weights, quantized)


def train_step(
    program: Program,
    ghn: GHN,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    networks: Networks,
    images: Array,
    labels: Array,
    *,
    workspace: Workspace,
    key: Array,
    scheme: Scheme,
    refinements: Refinements = AS_PUBLISHED,
    axes: Axes | None = None,
) -> tuple[TrainState, dict[str, Array], Workspace]:
    """Do one step of the optimizer; for the arguments see `meta_gradients`.

    Loss (without penalties) and accuracy are means over the networks with finite gradients. With `axes`,
    state and metrics are those of all devices, the same on each. Where no network is finite, or the gradient
    of all or the update is not, the step is skipped: parameters, their average and the optimizer stay as they
    are, and only `state.step` counts on.

    Returns:
      state; {'loss', 'accuracy': nan where no network is finite, 'gradient_norm', 'skipped': 0 or 1,
      'faults': int32 [M], FINE, BAD_GRADIENT or BAD_LOSS of each network}; workspace.
    """
    over_networks, over_images = axes or (None, None)
    gradients, per_network, workspace = meta_gradients(
        program, ghn, state.params, networks, images, labels, workspace=workspace, key=key,
        scheme=scheme, refinements=refinements, axes=axes,
    )  # fmt: skip
    finite = per_network['finite']
    faults = jnp.where(finite, FINE, jnp.where(jnp.isfinite(per_network['loss']), BAD_GRADIENT, BAD_LOSS))
    faults = mesh_axes.counted_once(mesh_axes.largest(faults, over_images), over_images)
    sums = {
        'loss': jnp.sum(jnp.where(finite, per_network['loss'], 0)),
        'accuracy': jnp.sum(jnp.where(finite, per_network['accuracy'], 0)),
        'faults': mesh_axes.all_rows(faults, over_networks),
    }
    gradients, sums = mesh_axes.total((gradients, sums), axes and axes.names)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    count, norm = jnp.sum(sums['faults'] == FINE), optax.tree.norm(gradients)
    sound = (count > 0) & jnp.isfinite(norm) & jnp.isfinite(optax.tree.norm(updates))
    ema = average(refinements.ema, state.step, state.ema, params) if refinements.ema else state.ema
    params, opt_state, ema = jax.tree.map(
        lambda new, old: jnp.where(sound, new, old),
        (params, opt_state, ema),
        (state.params, state.opt_state, state.ema),
    )
    metrics = {
        'loss': sums['loss'] / count,
        'accuracy': sums['accuracy'] / count,
        'gradient_norm': norm,
        'skipped': (~sound).astype(jnp.int32),
        'faults': sums['faults'],
    }
    return TrainState(state.step + 1, params, opt_state, ema), metrics, workspace
