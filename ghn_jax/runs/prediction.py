"""Weights of single networks from a run, by name: predicted, rounded, and written as safetensors."""

import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save

import ghn_jax
from ghn_jax.base import cli, files
from ghn_jax.base.errors import UserError
from ghn_jax.hypernet.decoder import Tiles, count_items, decoder_table, tile_parameters
from ghn_jax.hypernet.ghn import GHN
from ghn_jax.hypernet.policy_features import check_policies, with_policy
from ghn_jax.networks.graph import batch_graphs, build_graph, to_graphs_tuple
from ghn_jax.networks.limits import largest_kernel
from ghn_jax.networks.spec import IMAGE_SIZE, NetworkSpec
from ghn_jax.quant.bit_schedule import strategy_of
from ghn_jax.quant.export import round_weights
from ghn_jax.quant.policy import Policy
from ghn_jax.runs import run as runs

LAYOUTS = ('pytorch', 'jax')
_BUCKET = {'nodes': 192, 'dense': 512, 'depth': 512}  # times a power of two: few programs serve all networks
Weights = dict[str, np.ndarray]


def check_network(spec: NetworkSpec, ghn: GHN, image_size: int = IMAGE_SIZE) -> None:
    """Raises UserError if `ghn` does not predict the weights of this network for images of this size."""
    if spec.num_classes != ghn.config.num_classes:
        raise UserError(
            f'network {spec.name!r} has {spec.num_classes} classes, the hypernetwork predicts '
            f'{ghn.config.num_classes}: give networks with num_classes={ghn.config.num_classes}'
        )
    window, largest = ghn.config.max_shape[2], largest_kernel(spec)
    if largest > window:
        raise UserError(
            f'network {spec.name!r} has kernels of {largest} pixels (ks, ops, positional encodings of msa), '
            f'the hypernetwork predicts up to {window}: give smaller ones'
        )
    if not spec.glob_avg and image_size != IMAGE_SIZE:
        raise UserError(
            f'network {spec.name!r} has a flattened head, defined for {IMAGE_SIZE} pixels, and the run is on '
            f'images of {image_size}: give networks with glob_avg=true'
        )


def predict_weights(ghn: GHN, params: Any, spec: NetworkSpec, policy: Policy | None = None) -> Weights:
    """Every tensor that the logits depend on, by DeepNets-1M's name, in PyTorch's layouts; not rounded.

    policy: what a GHN that is told the bits predicts them for (None: float); no other reads it.

    Of networks of all ops, msa and cse too. The decoding is compiled for a few sizes of networks.

    Raises:
      UserError: another number of classes than the hypernetwork's, a kernel larger than its window, a policy
        that is not for this network.
    """
    check_network(spec, ghn)
    graph, max_shape = with_policy(build_graph(spec), policy or Policy()), ghn.config.max_shape
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
    return tile_parameters(_tiles(ghn, params, batch, table), places, graph)


@jax.jit(static_argnums=0)
def _tiles(ghn: GHN, params: Any, batch: Any, table: Any) -> Tiles:
    x: Any = ghn.apply({'params': params}, batch, method='embed')[0]
    tiles: Any = ghn.apply({'params': params}, x, table, method='decode')
    return tiles


def to_jax_layout(weights: Weights) -> Weights:
    """PyTorch's layouts to JAX's, as `ghn_jax.predict` says."""

    def turned(name: str, w: np.ndarray) -> np.ndarray:
        if name == 'pos_enc.weight':
            return w.transpose(0, 2, 3, 1)
        return w.transpose(2, 3, 1, 0) if w.ndim == 4 else w.T

    return {name: turned(name, w) for name, w in weights.items()}


def to_safetensors(weights: Weights, metadata: Mapping[str, str]) -> bytes:
    """The content of a safetensors file."""
    # safetensors writes strided and Fortran-ordered arrays wrongly, without a word.
    return save({name: np.asarray(w, order='C') for name, w in weights.items()}, dict(metadata))


def predict(
    run: runs.Run, spec: NetworkSpec, *, layout: str = 'pytorch', policy: Policy | None = None
) -> tuple[Weights, dict[str, str]]:
    """(weights, metadata for their file) of one network from a run's GHN.

    metadata: network (its JSON), layout, image_size, step, training, bits, policy (JSON), predicted_for (the
    policy's name, or 'any' of a GHN that is not told it) and, where a policy quantizes, quantization: JSON of
    what `round_weights` says.

    Raises:
      UserError: as `check_network`, `predict_weights` and `round_weights`.
    """
    config: Any = run.config
    policy = policy or Policy()
    check_network(spec, run.ghn, config.image_size)
    strategy = strategy_of(config)
    used = strategy.used(policy)
    weights = predict_weights(run.ghn, run.params, spec, used)
    weights, how = round_weights(weights, used, strategy.scheme)
    if layout == 'jax':
        weights = to_jax_layout(weights)
    metadata = {
        'network': spec.to_json(),
        'layout': layout,
        'image_size': str(config.image_size),
        'step': str(run.step),
        'training_mode': config.quant.mode,
        'bits': str(policy),
        'policy': json.dumps(policy.to_dict()),
        'predicted_for': str(policy) if run.ghn.config.bits else 'any',
        'ghn_jax': ghn_jax.__version__,
    }
    return weights, metadata | ({'quantization': json.dumps(how)} if how else {})


def output_files(out: str, specs: Sequence[NetworkSpec]) -> list[pathlib.Path]:
    """The file of each network. `out` is a file, a name with {name} in it, or a directory that exists.

    Raises:
      UserError: several networks for one file, names that are no file names or come twice, no such directory.
    """
    if not out:
        raise UserError('--out is missing: give a file, as in --out=net.safetensors')
    if os.path.isdir(out):
        out = os.path.join(out, '{name}.safetensors')
    if '{name}' not in out:
        if len(specs) > 1:
            raise UserError(
                f'--out={out} is one file for {len(specs)} networks: give a directory, or a name such as '
                'weights/{name}.safetensors'
            )
        return [cli.check_output(out, 'out')]
    names = [spec.name for spec in specs]
    for name in names:
        if not name or name.startswith('.') or '/' in name or os.sep in name or '\0' in name:
            raise UserError(f'network {name!r} has no name for a file: give it one in the architecture file')
        if names.count(name) > 1:
            raise UserError(f'two networks are called {name!r}, so their files would be: rename one')
    return [cli.check_output(out.replace('{name}', name), 'out') for name in names]


def with_names(specs: Sequence[NetworkSpec]) -> list[NetworkSpec]:
    """The networks, with a name by its place for each that has none."""
    return [
        spec if spec.name else dataclasses.replace(spec, name=f'network-{i}') for i, spec in enumerate(specs)
    ]


def write_predictions(
    run: runs.Run,
    specs: Sequence[NetworkSpec],
    outputs: Sequence[pathlib.Path],
    *,
    layout: str = 'pytorch',
    policy: Policy,
) -> Iterator[str]:
    """Predict the weights of networks and write a file for each; yield a line about each file.

    outputs: the files, as `output_files` gives them.   layout, policy: as for `predict`.

    Raises:
      UserError: a network or a policy that is of no use, before the first file is written; a file that cannot
        be written.
    """
    for spec in specs:
        check_network(spec, run.ghn, run.config.image_size)
    check_policies(specs, [policy])
    for spec, file in zip(specs, outputs, strict=True):
        start = time.perf_counter()
        weights, metadata = predict(run, spec, layout=layout, policy=policy)
        seconds = time.perf_counter() - start
        files.write(file, to_safetensors(weights, metadata))
        size = sum(w.size for w in weights.values())
        yield f'{file}: {len(weights)} tensors, {size:,} parameters, {policy}, predicted in {seconds:.2f} s'
