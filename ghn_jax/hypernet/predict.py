"""Weights of one network by name, predicted by a hypernetwork: of all ops, in a few compiled programs."""

from typing import Any

import jax
import numpy as np

from ghn_jax.base.errors import UserError
from ghn_jax.hypernet.ghn import GHN, check_classes
from ghn_jax.hypernet.policy_features import resolve, with_bits
from ghn_jax.hypernet.tiles import Tiles, count_items, decoder_table, tile_parameters
from ghn_jax.networks.counts import largest_kernel
from ghn_jax.networks.graph import Graph, build_graph
from ghn_jax.networks.graph_batch import batch_graphs, to_graphs_tuple
from ghn_jax.networks.spec import IMAGE_SIZE, NetworkSpec
from ghn_jax.quant.policy import NamedWidths, Policy

_BUCKET = {'nodes': 192, 'dense': 512, 'depth': 512}  # times a power of two: few programs serve all networks
Weights = dict[str, np.ndarray]


def check_network(spec: NetworkSpec, ghn: GHN, image_size: int = IMAGE_SIZE) -> None:
    """Raise UserError if `ghn` does not predict the weights of this network for images of this size."""
    check_classes(ghn.config, spec)
    window, largest = ghn.config.max_shape[2], largest_kernel(spec)
    if largest > window:
        raise UserError(
            f'network {spec.name!r} has kernels of {largest} pixels (ks, ops, positional encodings of msa), '
            f'the hypernetwork predicts up to {window}: give smaller ones'
        )
    check_head(spec, image_size)


def check_head(spec: NetworkSpec, image_size: int) -> None:
    """Raise UserError if the network has a flattened head and images are of a size it is not defined for."""
    if not spec.glob_avg and image_size != IMAGE_SIZE:
        raise UserError(
            f'network {spec.name!r} has a flattened head, defined for {IMAGE_SIZE} pixels, and the run is on '
            f'images of {image_size}: give networks with glob_avg=true'
        )


def predict_weights(ghn: GHN, params: Any, spec: NetworkSpec, policy: Policy | None = None) -> Weights:
    """Predict every tensor that the logits depend on, not rounded.

    The decoding is compiled for a few sizes of networks.

    Args:
      ghn: the hypernetwork.
      params: its parameters.
      spec: the network, of any ops, msa and cse too.
      policy: what a hypernetwork that reads the bits predicts the weights for (None: float); no other
        reads it.

    Returns:
      Arrays by DeepNets-1M's name in PyTorch's layouts: convolutions (out, in / groups, height, width),
      linear weights (out, in), norms and biases (channels,), positional encodings (1, channels, 11, 11).

    Raises:
      UserError: another number of classes than the hypernetwork's, a kernel larger than its window, a policy
        that is not for this network.
    """
    check_network(spec, ghn)
    graph = build_graph(spec)
    return predict_from_graph(ghn, params, graph, resolve(policy or Policy(), graph))


def predict_from_graph(ghn: GHN, params: Any, graph: Graph, widths: NamedWidths) -> Weights:
    """Predict weights as `predict_weights`, from a network's graph and the bits of each weight by name.

    Nothing is checked but that kernels fit the hypernetwork's window.
    """
    graph, max_shape = with_bits(graph, widths), ghn.config.max_shape
    needs = {'nodes': len(graph.nodes), **count_items(graph, max_shape=max_shape)}
    scale = 1
    while any(n > scale * _BUCKET[k] for k, n in needs.items()):
        scale *= 2
    room = {k: scale * n for k, n in _BUCKET.items()}
    table, places = decoder_table(
        graph, max_dense=room['dense'], max_depth=room['depth'], max_shape=max_shape
    )
    table = jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == np.float64 else x, table)
    batch = batch_graphs([to_graphs_tuple(graph)], max_nodes=room['nodes'])
    with jax.enable_x64(False):  # a hypernetwork is of 32 bits, whatever else the process computes
        tiles = _tiles(ghn, params, batch, table)
    return tile_parameters(tiles, places, graph)


@jax.jit(static_argnums=0)
def _tiles(ghn: GHN, params: Any, batch: Any, table: Any) -> Tiles:
    x: Any = ghn.apply({'params': params}, batch, method='embed')[0]
    tiles: Any = ghn.apply({'params': params}, x, table, method='decode')
    return tiles
