"""The graph hypernetwork (GHN-1, GHN-2, GHN-3) in Flax: node embeddings, graph network, decoders."""

from ghn_jax.hypernet.ghn import GHN as GHN
from ghn_jax.hypernet.ghn import GHNConfig as GHNConfig
from ghn_jax.hypernet.ghn import init_params as init_params
from ghn_jax.hypernet.ghn import predict_parameters as predict_parameters
from ghn_jax.hypernet.published import load_published as load_published
from ghn_jax.hypernet.tiles import DecoderTable as DecoderTable
from ghn_jax.hypernet.tiles import Tiles as Tiles
from ghn_jax.hypernet.tiles import count_items as count_items
from ghn_jax.hypernet.tiles import decoder_table as decoder_table
from ghn_jax.hypernet.tiles import tile_parameters as tile_parameters
