"""GHN: the graph hypernetwork, from graphs of networks to their weights (GHN-2, arXiv 2110.13100; GHN-3).

embed (all graphs of a batch together) -> one embedding for each node -> decode (one network) -> tiles of
weights.

Axes: B graphs | N nodes, padded | D hidden.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from ghn_jax.base.errors import FieldError, UserError, shown
from ghn_jax.base.fields import check_fields, choice, items, number
from ghn_jax.hypernet.decoder import decode, init_decoder, predict_tensors
from ghn_jax.hypernet.embedding import Vocabulary, embed_nodes, init_embedding, vocabulary
from ghn_jax.hypernet.gnn import gated_gnn, init_gnn
from ghn_jax.hypernet.graphormer import graphormer, init_graphormer
from ghn_jax.hypernet.layers import init_layer_norm, init_mlp, layer_norm, mlp
from ghn_jax.hypernet.policy_features import embed_bits, init_bits
from ghn_jax.hypernet.tiles import DecoderTable, Tiles
from ghn_jax.networks.graph import NetworkGraph
from ghn_jax.networks.graph_batch import GraphBatch, batch_graphs, to_graphs_tuple
from ghn_jax.networks.spec import NetworkSpec

MAX_GHN_PARAMETERS = 2**30  # of a hypernetwork: 4 GiB; the largest published one has 654 million


@dataclasses.dataclass(frozen=True, kw_only=True)
class GHNConfig:
    """The hyperparameters of a hypernetwork.

    The defaults are GHN-2. GHN-1 has weight_norm, ve and layernorm off; GHN-3 has the hypernet 'graphormer'.

    Attributes:
      hid: width of node embeddings, a multiple of 4.
      max_shape: (channels, channels, height, width) of a decoded tile and of the largest kernel, both square.
      num_classes: outputs of the last layer of every network.
      hypernet: 'gatedgnn'; 'graphormer', which also decodes kernels from the middle of the largest; or 'mlp',
        where a node sees itself only (the baseline).
      decoder: 'conv'.
      weight_norm: whether predicted weights are scaled by their fan-in.
      ve: whether nodes see others along virtual edges, too.
      layernorm: whether embeddings are normalised before they are decoded.
      bits: whether nodes are told a policy's bits, so that weights are predicted for it (`policy_features`).
      rounds: of a gatedgnn, all with the same parameters.
      layers, heads: of a graphormer; hid is a multiple of its heads.

    Raises:
      FieldError: a value of the wrong type, or an impossible one.
    """

    hid: int = number(32, 4, MAX_GHN_PARAMETERS)
    max_shape: tuple[int, int, int, int] = items((64, 64, 11, 11), int)
    num_classes: int = number(10, 1, MAX_GHN_PARAMETERS)
    hypernet: str = choice('gatedgnn', ('gatedgnn', 'graphormer', 'mlp'))
    decoder: str = choice('conv', ('conv',))
    weight_norm: bool = True
    ve: bool = True
    layernorm: bool = True
    bits: bool = False
    rounds: int = number(1, 1, MAX_GHN_PARAMETERS)
    layers: int = number(3, 1, MAX_GHN_PARAMETERS)
    heads: int = number(8, 1, MAX_GHN_PARAMETERS)

    def __post_init__(self):
        check_fields(self)
        if self.hid % 4:
            raise FieldError('hid', f'={shown(self.hid)}: expected a multiple of 4')
        if self.is_graphormer and self.hid % self.heads:
            raise FieldError('heads', f'={self.heads}: expected a divisor of hid={self.hid}')
        shape = self.max_shape
        if len(shape) != 4 or min(shape) < 1 or shape[0] != shape[1] or shape[2] != shape[3]:
            raise FieldError('max_shape', f'={shown(shape)}: expected (C, C, K, K), as in (64, 64, 11, 11)')
        # Of its large layers: those of the window, of the tile and of the classes.
        C, _, K, _ = shape
        size = 4 * (self.hid * K) ** 2 + 32 * self.hid**2 + 8 * self.hid * C**2 + 2 * C * self.num_classes
        size += self.is_graphormer * 12 * self.layers * self.hid**2
        if size > MAX_GHN_PARAMETERS:
            raise FieldError(
                'hid',
                f'={shown(self.hid)}, max_shape={shown(list(shape))} and num_classes='
                f'{shown(self.num_classes)} make {shown(size)} parameters, more than {MAX_GHN_PARAMETERS:,}: '
                'give smaller ones',
            )

    @property
    def is_graphormer(self) -> bool:
        """Whether this is a GHN-3."""
        return self.hypernet == 'graphormer'

    @property
    def sizes(self) -> Vocabulary:
        """The sizes of tensors that have an embedding of their own."""
        return vocabulary(self.num_classes, self.max_shape[2])

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> 'GHNConfig':
        """Make a config from JSON's types; absent fields keep their default.

        Raises:
          UserError: an unknown field, or a bad value.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(fields) - set(known))
        if unknown:
            raise UserError(
                f'hypernetwork config has unknown fields {", ".join(unknown)[:80]}: known are '
                f'{", ".join(known)}'
            )
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields in JSON's types; `from_dict` reads them back."""
        return {**dataclasses.asdict(self), 'max_shape': list(self.max_shape)}


class GHN(nn.Module):
    """The hypernetwork.

    Its parameters are dicts of arrays named embedding, gnn, decoder, norm (with layernorm) and bits (with
    bits). It computes in their type: float32, or float64 in JAX's 64-bit mode.
    """

    config: GHNConfig

    def setup(self):
        c = self.config
        self.gnn: Any
        self.embedding = self.param(
            'embedding', partial(init_embedding, narrow=c.is_graphormer), c.hid, c.sizes
        )
        if c.hypernet == 'gatedgnn':
            self.gnn = self.param('gnn', init_gnn, c.hid, c.ve)
        elif c.is_graphormer:
            self.gnn = self.param('gnn', init_graphormer, c.hid, c.layers, c.heads)
        else:
            self.gnn = self.param('gnn', init_mlp, (c.hid, c.hid, c.hid))
        if c.layernorm:
            self.norm = self.param('norm', init_layer_norm, c.hid)
        decoder = partial(init_decoder, small=c.is_graphormer)
        self.decoder = self.param('decoder', decoder, c.hid, c.max_shape, c.num_classes)
        if c.bits:
            self.bits = self.param('bits', init_bits, c.hid)

    def embed(self, batch: GraphBatch) -> jax.Array:
        """Return the embeddings of all nodes, [B, N, D]; zero in padding."""
        return self.embed_stages(batch)['x']

    def embed_stages(self, batch: GraphBatch) -> dict[str, jax.Array]:
        """Return the embeddings at three stages, [B, N, D] each, zero in padding.

        These are x_init, the features of nodes; x_gnn, what the graph network makes of them; and x, that
        after the LayerNorm.
        """
        graphs: Any = jax.tree.map(jnp.asarray, batch)  # made by numpy, maybe not yet on the device
        real = (jnp.arange(graphs.primitive.shape[1]) < graphs.n_node[:, None])[..., None]  # [B, N, 1]
        stages = {'x_init': embed_nodes(self.embedding, graphs.primitive, graphs.shape, self.config.sizes)}
        if self.config.bits:
            stages['x_init'] += embed_bits(self.bits, graphs.weight_bits, graphs.activation_bits)
        if self.config.hypernet == 'gatedgnn':
            h = stages['x_init']
            for _ in range(self.config.rounds):
                h = gated_gnn(self.gnn, h, graphs.distance, graphs.waves, graphs.n_waves)
        elif self.config.is_graphormer:
            distance = graphs.distance if self.config.ve else jnp.where(graphs.distance == 1, 1, 0)
            h = graphormer(self.gnn, stages['x_init'], distance, graphs.n_node)
        else:
            h = jax.nn.relu(mlp(self.gnn, stages['x_init']))
        stages['x_gnn'] = h
        stages['x'] = layer_norm(self.norm, h) if self.config.layernorm else h
        return {name: jnp.where(real, x, 0) for name, x in stages.items()}

    def decode(self, x: jax.Array, table: DecoderTable) -> Tiles:
        """Return the weights of one network, as tiles, from its embeddings x [N, D]."""
        c = self.config
        return decode(self.decoder, x, table, normalise=c.weight_norm, centred=c.is_graphormer)

    def predict(self, graph: NetworkGraph) -> dict[str, jax.Array]:
        """Return every tensor of one network, slowly: see `predict_parameters`."""
        c = self.config
        batch = batch_graphs([to_graphs_tuple(graph)], max_nodes=len(graph.nodes))
        x = self.embed(batch)[0]
        return predict_tensors(self.decoder, x, graph, normalise=c.weight_norm, centred=c.is_graphormer)


def init_params(config: GHNConfig, key: jax.Array, dtype: jnp.dtype = jnp.float32) -> dict[str, Any]:
    """Draw fresh parameters, as the published model starts: PyTorch's defaults.

    Linear layers and the GRU: kernels and biases uniform within 1/sqrt(fan_in). Embeddings: standard normal.
    LayerNorm: scale 1, bias 0. Tables of bits: 0. GHN-3: embeddings have a variance of 1 / width, the last
    layers of its decoders a fifth of these kernels and no bias.
    """
    return _init(config, dtype, key)


@partial(jax.jit, static_argnums=(0, 1))
def _init(config, dtype, key):
    params = GHN(config).init(key, method=lambda ghn: ghn.embedding)['params']
    return jax.tree.map(lambda p: p.astype(dtype), params)


def check_classes(config: GHNConfig, spec: NetworkSpec) -> None:
    """Raise UserError unless the network has as many classes as the hypernetwork predicts."""
    if spec.num_classes != config.num_classes:
        raise UserError(
            f'network {spec.name!r} has {spec.num_classes} classes, the hypernetwork predicts '
            f'{config.num_classes}: give networks with num_classes={config.num_classes}'
        )


def predict_parameters(ghn: GHN, params: Any, graph: NetworkGraph) -> dict[str, jax.Array]:
    """Predict every tensor of one network, slowly and obviously: tensor by tensor, as the definition says.

    It is the oracle of tests and benchmarks; `hypernet.predict` is the fast way.

    Args:
      ghn: the hypernetwork.
      params: its parameters.
      graph: of the network. A hypernetwork that reads the bits predicts for the policy that the graph carries
        (`with_bits`), for float where it carries none.

    Returns:
      Arrays by DeepNets-1M's name in PyTorch's layout, positional encodings too.

    Raises:
      UserError: the network's classes are not the hypernetwork's.
    """
    check_classes(ghn.config, graph.spec)
    return cast(dict[str, jax.Array], ghn.apply({'params': params}, graph, method='predict'))
