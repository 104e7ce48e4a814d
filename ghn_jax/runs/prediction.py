"""The weights of networks from a run's hypernetwork, rounded, and their files.

Tensors have DeepNets-1M's names. Layouts: 'pytorch' is OIHW for convolutions (depthwise: I is 1), (out, in)
for linear weights. 'jax' is HWIO for convolutions, as `lax.conv_general_dilated` and flax want (depthwise:
(H, W, 1, C), with feature_group_count=C), (in, out) for linear weights, (1, H, W, C) for position encodings.
"""

import dataclasses
import json
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

import ghn_jax
from ghn_jax.base import files, paths
from ghn_jax.base.errors import FieldError, UserError
from ghn_jax.base.paths import Place
from ghn_jax.hypernet.policy_features import check_policies, resolve
from ghn_jax.hypernet.predict import Weights, check_network, predict_from_graph
from ghn_jax.networks.graph import build_graph
from ghn_jax.networks.spec import NetworkSpec
from ghn_jax.quant.policy import Policy
from ghn_jax.quant.rounding import round_to
from ghn_jax.quant.strategy import strategy_of
from ghn_jax.runs import weight_files
from ghn_jax.runs.run import Run

LAYOUTS = ('pytorch', 'jax')


def to_jax_layout(weights: Weights) -> Weights:
    """Turn PyTorch's layouts into JAX's, as at the top of this file."""

    def turned(name: str, w: np.ndarray) -> np.ndarray:
        if name == 'pos_enc.weight':
            return w.transpose(0, 2, 3, 1)
        return w.transpose(2, 3, 1, 0) if w.ndim == 4 else w.T

    return {name: turned(name, w) for name, w in weights.items()}


def predict(
    run: Run, spec: NetworkSpec, *, layout: str = 'pytorch', policy: Policy | None = None
) -> tuple[Weights, dict[str, str]]:
    """Predict the weights of one network with a run's hypernetwork, and round them.

    Args:
      run: from `load_run`.
      spec: the network.
      layout: one of LAYOUTS.
      policy: the bits that the weights are rounded to, and that a hypernetwork which reads them predicts
        them for; None: float.

    Returns:
      weights by name, as `predict_weights`; metadata for their file: network (its JSON), layout, image_size,
      step, training_mode, bits, policy (JSON), predicted_for (the policy's name, or 'any' of a hypernetwork
      that does not read it) and, where a policy quantizes, quantization: JSON of what `round_weights` gives.

    Raises:
      UserError: as `check_network`, `predict_weights`.
    """
    config: Any = run.config
    policy = policy or Policy()
    check_network(spec, run.ghn, config.image_size)
    strategy = strategy_of(config)
    graph = build_graph(spec)
    widths = resolve(strategy.used(policy), graph)
    weights = predict_from_graph(run.ghn, run.params, graph, widths)
    weights, quantization = round_to(weights, widths, strategy.scheme)
    if layout == 'jax':
        weights = to_jax_layout(weights)
    metadata = {
        'network': spec.to_json(),
        'layout': layout,
        'image_size': str(config.image_size),
    }
    return weights, metadata | about_prediction(run, policy, quantization)


def about_prediction(run: Run, policy: Policy, quantization: Any) -> dict[str, str]:
    """Return what a file of weights says of the run that predicted them, and of how they were rounded."""
    about = {
        'step': str(run.step),
        'training_mode': run.config.quant.mode,
        'bits': str(policy),
        'policy': json.dumps(policy.to_dict()),
        'predicted_for': str(policy) if run.ghn.config.bits else 'any',
        'ghn_jax': ghn_jax.__version__,
    }
    return about | ({'quantization': json.dumps(quantization)} if quantization else {})


def output_files(out: str, specs: Sequence[NetworkSpec], format: str = 'safetensors') -> list[Place]:
    """Return the file of each network. `out` is a file, a name with {name} in it, or a directory that exists.

    format: one of `weight_files.FORMATS`; what 'orbax' writes is a directory.

    Raises:
      UserError: several networks for one file, names that are no file names or come twice, no such directory.
    """
    if out and files.is_folder(paths.place(out, 'out')):
        out = os.path.join(out, f'{{name}}.{format}')
    if '{name}' not in out:
        if out and len(specs) > 1:
            raise FieldError(
                'out',
                f'={out} is one file for {len(specs)} networks: give a directory, or a name such as '
                'weights/{name}.safetensors',
            )
        return [weight_files.check_place(out, format)]
    names = [spec.name for spec in specs]
    for name in names:
        if not paths.is_file_name(name):
            raise UserError(f'network {name!r} has no name for a file: give it one in the architecture file')
        if names.count(name) > 1:
            raise UserError(f'two networks are called {name!r}, so their files would be: rename one')
    return [weight_files.check_place(out.replace('{name}', name), format) for name in names]


def with_names(specs: Sequence[NetworkSpec]) -> list[NetworkSpec]:
    """Give networks without a name one by their place: network-0, network-1, ..."""
    return [
        spec if spec.name else dataclasses.replace(spec, name=f'network-{i}') for i, spec in enumerate(specs)
    ]


def write_predictions(
    run: Run,
    specs: Sequence[NetworkSpec],
    outputs: Sequence[Place],
    *,
    layout: str,
    policy: Policy,
    format: str,
    packed: bool,
) -> Iterator[str]:
    """Predict the weights of networks and write a file for each; yield a line about each file.

    outputs: the files, as `output_files` gives them.   layout, policy: as for `predict`.   format: one of
    `weight_files.FORMATS`.   packed: write integers of just their bits, which `weight_files.unpack` reads.

    Raises:
      UserError: a network or a policy that is of no use, before the first file is written; a file that cannot
        be written.
    """
    for spec in specs:
        check_network(spec, run.ghn, run.config.image_size)
    graphs = [build_graph(spec) for spec in specs]
    check_policies(graphs, [policy])
    for graph in graphs if packed else ():
        weight_files.check_packed(resolve(policy, graph), str(policy), format)
    for spec, file in zip(specs, outputs, strict=True):
        start = time.perf_counter()
        weights, metadata = predict(run, spec, layout=layout, policy=policy)
        seconds = time.perf_counter() - start
        size = sum(w.size for w in weights.values())
        line = f'{file}: {len(weights)} tensors, {size:,} parameters, {policy}, predicted in {seconds:.2f} s'
        if packed:
            weights, metadata = weight_files.pack(weights, metadata)
        weight_files.write_weights(file, weights, metadata, format)
        yield line
