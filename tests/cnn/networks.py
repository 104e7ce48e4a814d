"""Small networks, weights and policies for the tests of running CNNs."""

import re
from collections.abc import Iterable

import numpy as np

from ghn_jax.assembly.network_batch import tile_shapes
from ghn_jax.assembly.weight_buffer import make_sources
from ghn_jax.cnn.program import Program
from ghn_jax.hypernet.tiles import decoder_table
from ghn_jax.networks.genotype import Genotype
from ghn_jax.networks.graph import build_graph
from ghn_jax.networks.spec import NetworkSpec
from ghn_jax.quant import Policy
from ghn_jax.quant.policy import quantizable


def small_network(normal, reduce=None, normal_concat=(2,), reduce_concat=(2,), **fields) -> NetworkSpec:
    """Three cells, the last two of them reductions, 8 channels, unless `fields` say otherwise."""
    genotype = Genotype(
        normal=tuple(normal),
        normal_concat=tuple(normal_concat),
        reduce=tuple(reduce or normal),
        reduce_concat=tuple(reduce_concat),
    )
    defaults = dict(C=8, n_cells=3, ks=3, stem_type=0, stem_pool=False, norm='bnorm', preproc=True, C_mult=1)
    defaults |= dict(fc_layers=1, fc_dim=16, glob_avg=True)
    return NetworkSpec(genotype=genotype, **defaults | fields)


def shapes(spec: NetworkSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters that influence the logits, by name."""
    return {parameter.name: tuple(parameter.shape) for parameter in build_graph(spec).parameters}


def random_parameters(spec: NetworkSpec, seed: int, dtype: str = 'float32') -> dict[str, np.ndarray]:
    """Weights that keep activations near 1, scales near 1, shifts near 0: nothing dies or explodes."""
    r = np.random.default_rng(seed)
    params = {}
    for name, shape in shapes(spec).items():
        if len(shape) > 1:
            value = r.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
        else:
            value = r.normal(size=shape) * 0.2 + (0 if name.endswith('.bias') else 1)
        params[name] = value.astype(dtype)
    return params


def random_images(n: int, seed: int, *, size: int = 32, dtype: str = 'float32') -> np.ndarray:
    """[n, size, size, 3], smooth enough to have structure: noise on a coarse and on the fine grid."""
    r = np.random.default_rng(seed)
    coarse = r.normal(size=(n, size // 8, size // 8, 3)).repeat(8, 1).repeat(8, 2)
    return (coarse + 0.5 * r.normal(size=(n, size, size, 3))).astype(dtype)


def one_sided_policy(names: Iterable[str], *, bits: int = 4, turn: int = 0) -> Policy:
    """Quantizes the weight of every second conv or linear layer and the activation entering each other one.

    For comparing two programs to the last digit. Where both are quantized, outputs are integers times one
    scale. Quantized again before a norm (depthwise -> 1x1, 1x7 -> 7x1, networks without norm) or seen by a
    max pool they tie exactly: noise of 1e-16 decides, and two correct programs differ by whole levels. Turns
    0 and 1 together quantize everything.
    """
    rules = []
    for i, name in enumerate(names):
        rules.append((re.escape(name), bits, 32) if (i + turn) % 2 else (re.escape(name), 32, bits))
    return Policy(rules=tuple(rules))


def quantized_names(spec: NetworkSpec) -> tuple[str, ...]:
    """Names of the spec's conv and linear weights."""
    return quantizable(shapes(spec).items())


def fits(program: Program, spec: NetworkSpec) -> None:
    """Raises where the network does not fit: its tables, its decoder table, its sources."""
    layout, capacity = program.layout(spec), program.capacity
    _, items = decoder_table(
        build_graph(spec), max_dense=capacity.dense_tiles, max_depth=capacity.depth_tiles
    )
    make_sources(layout, items, tile_shapes(program, 512), capacity)
