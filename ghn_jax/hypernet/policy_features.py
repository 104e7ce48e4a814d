"""What the hypernetwork knows of a policy: the bits of every node, as features added to its embedding.

A node with a convolution's or linear layer's weight has the bits of that weight and of the activation
entering it. A norm or a bias has those of the layer before it: its input carries that layer's rounding
errors, which its scale and shift can make up for. (What follows a node reaches it through the graph, in the
backward sweep.) The other nodes have none.

A width b becomes a sum over the rows of a table, one for every step of WIDTHS down from FLOAT_FROM bits:

    e(b) = sum_k clip((wider_k - b) / (wider_k - WIDTHS_k), 0, 1) table_k

So e is linear between the widths of WIDTHS, any values are possible at these, and e is 0 where nothing is
said and where tensors stay float: there the model is the published GHN-2. A table of rows looked up would
leave rows of widths not seen in training untrained; here they lie between their neighbours (5 bits half way
between 4 and 6), and fewer bits than any seen count as the fewest seen. Tables start at 0: a conditional
hypernetwork begins as the plain one.

Axes: N nodes | K = len(WIDTHS) | D hidden.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax.base.errors import UserError
from ghn_jax.hypernet.layers import Params
from ghn_jax.networks.graph import Graph
from ghn_jax.networks.layers import LAYERS
from ghn_jax.quant.policy import TERNARY, NamedWidths, Policy, Widths, check_policy

WIDTHS = np.array([1, 2, 3, 4, 6, 8])
FLOAT_FROM = 16  # bits; so many are as good as float in these networks, which 8 bits hardly change
TERNARY_AS = 2  # bits: a ternary weight has 1.6
_WIDER = np.array([*WIDTHS[1:], FLOAT_FROM])
_FAR = 1 << 16  # more bits than any layer has
_HEARS_OF_LAYER_BEFORE = ('bn', 'ln', 'bias')


# ---- on the host


def weight_names(graph: Graph) -> tuple[str, ...]:
    """Return the weights of a network that policies speak of: those of convolutions and linear layers."""
    return tuple(p.name for p in graph.parameters if graph.nodes[p.node].primitive in LAYERS)


def resolve(policy: Policy, graph: Graph) -> dict[str, Widths]:
    """Return the bits of every weight of a network: {name: (of the weight, of the activation entering it)}.

    Raises:
      UserError: no policy; one of another network, or one that names none of its weights.
    """
    check_policy(policy)
    return policy.resolve(weight_names(graph), graph.name)


def with_bits(graph: Graph, widths: NamedWidths) -> Graph:
    """Return the graph with the bits of each node, of those of all its weights by name.

    The layer before a norm or a bias is the one whose weight the shortest path comes from. Of several at one
    distance (the two halves of a strided skip) it is told the fewest bits, for their errors are the largest.
    """
    names = weight_names(graph)
    node_of = {p.name: p.node for p in graph.parameters}
    layers = np.array([node_of[name] for name in names])
    own = np.array([widths[name] for name in names], np.int32)
    own[own == TERNARY] = TERNARY_AS
    bits = np.zeros((len(graph.nodes), 2), np.int32)
    bits[layers] = own
    hearing = [v for v, node in enumerate(graph.nodes) if node.primitive in _HEARS_OF_LAYER_BEFORE]
    distance = graph.distance[layers][:, hearing] - np.uint8(1)  # 255 for no path
    nearest = (distance == distance.min(0)) & (distance < 255)
    bits[hearing] = np.where(nearest[..., None], own[:, None], _FAR).min(0) % _FAR  # 0 without a layer before
    return dataclasses.replace(graph, weight_bits=bits[:, 0], activation_bits=bits[:, 1])


def check_policies(graphs: Iterable[Graph], policies: Sequence[Policy]) -> None:
    """Raise UserError, with the names of both, unless every policy is for every network."""
    for graph in graphs:
        for policy in policies:
            try:
                resolve(policy, graph)
            except UserError as e:
                raise UserError(f'policy {str(policy)!r}, network {graph.name!r}: {e}') from None


# ---- on the device


def init_bits(key: jax.Array, hid: int) -> Params:
    """Make tables of zeros [K, D], for the bits of weights and of activations; no use is made of the key."""
    return {name: jnp.zeros((len(WIDTHS), hid)) for name in ('weights', 'activations')}


def embed_bits(params: Params, weight_bits: jax.Array, activation_bits: jax.Array) -> jax.Array:
    """Return the features [..., D] of nodes with these bits, int32 [...]; 0 says nothing."""
    tables = params['weights'], params['activations']
    weights, activations = (_steps_down(b, tables[0].dtype) for b in (weight_bits, activation_bits))
    return weights @ tables[0] + activations @ tables[1]


def _steps_down(bits: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """How much of each row of a table bits [...] take: [..., K] in 0..1."""
    bits = jnp.where(bits == 0, FLOAT_FROM, bits)[..., None]
    return jnp.clip((_WIDER - bits) / (_WIDER - WIDTHS), 0, 1).astype(dtype)
