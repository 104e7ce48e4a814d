"""A quantized network on disk: a calibrated model with rounded weights, its policy and its scheme.

A folder holds one safetensors file, FILE. Its tensors are the arrays of `Calibrated`, by name:

    weights.LAYER, biases.LAYER             folded; weights on the levels of their grids
    weight_ranges.LAYER                     [2, out], lo and hi of these grids
    ranges.WEIGHT                           [2], of the activation that enters the layer of this weight
    norms.K.scale, norms.K.shift            of the K-th batch norm, where it is not folded
    params.NAME                             of the parameters that are neither folded nor rounded

Its metadata, strings, say how to make the model (`arch`: a network as JSON, or `model`:
package.module:function), `input_shape`, `policy` and `scheme` as JSON, `computes` (the digest of the model,
with the versions that it is of), and what the method says of itself.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

import flax
import jax
import numpy as np

from ghn_jax.base import files, paths
from ghn_jax.base.errors import UserError, shown
from ghn_jax.base.paths import Place
from ghn_jax.models.folded_program import NormForm
from ghn_jax.models.folding import Calibrated
from ghn_jax.models.loading import load_model
from ghn_jax.models.model import Model
from ghn_jax.models.names import map_named, named_leaves
from ghn_jax.models.quantizer import FakeQuantizer
from ghn_jax.models.tracing import trace
from ghn_jax.networks.spec import NetworkSpec
from ghn_jax.quant.policy import Policy, policy_from_dict
from ghn_jax.quant.scheme import Scheme
from ghn_jax.runs.weight_files import read_safetensors, write_weights

FILE = 'network.safetensors'
UNFINISHED = 'unfinished'  # in the metadata: JSON {'key': what is being done, 'blocks': how many are}
_ADVICE = 'give a folder that ghn_jax.quantize has written, or one of a network that ghn_jax.finetune has'
_REQUIRED = ('input_shape', 'policy', 'scheme')
_COMPUTES = 'computes'


@dataclasses.dataclass(frozen=True, eq=False)
class QuantizedNetwork:
    """A network that is ready to be used.

    Attributes:
      calibrated: with rounded weights, and ranges of weights and activations.
      policy: the bits of both.
      scheme: how tensors are quantized.
      source: how its model is made: {'arch': JSON of a network} or {'model': 'package.module:function'}.
      about: what the method says of itself, strings.
    """

    calibrated: Calibrated
    policy: Policy
    scheme: Scheme
    source: Mapping[str, str]
    about: Mapping[str, str]

    def quantizer(self) -> FakeQuantizer:
        """Return what rounds its activations; its weights are rounded."""
        return self.calibrated.quantizer(self.policy, self.scheme)


def save(folder: Place, network: QuantizedNetwork) -> Place:
    """Write a quantized network to a folder, whole or not at all; return the file.

    Raises:
      UserError: it cannot be written.
    """
    of = network.calibrated
    arrays: dict[str, Any] = {f'weights.{name}': w for name, w in of.weights.items()}
    arrays |= {f'biases.{name}': b for name, b in of.biases.items() if b is not None}
    arrays |= {f'weight_ranges.{name}': np.stack(pair) for name, pair in of.weight_ranges.items()}
    arrays |= {f'ranges.{name}': np.stack(pair) for name, pair in of.ranges.items()}
    for k, norm in enumerate(of.norms):
        if isinstance(norm, tuple):
            arrays |= {f'norms.{k}.scale': norm[0], f'norms.{k}.shift': norm[1]}
    arrays |= {f'params.{name}': value for name, value in _params_read(of).items()}
    metadata = {
        **network.about,
        **network.source,
        'input_shape': json.dumps(of.model.input_shape),
        _COMPUTES: json.dumps(_computes(of.model)),
        'policy': json.dumps({**network.policy.to_dict(), 'name': network.policy.name}),
        'scheme': json.dumps(dataclasses.asdict(network.scheme)),
    }
    path = folder / FILE
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_weights(path, {name: np.asarray(a) for name, a in arrays.items()}, metadata, 'safetensors')
    return path


def load(folder: str | os.PathLike) -> QuantizedNetwork:
    """Read a quantized network that `ghn_jax.quantize` has written, and make its model.

    Raises:
      UserError: there is none, it is damaged, or its model can no longer be made or is another one by now.
    """
    path = paths.place(folder, 'quantized') / FILE
    arrays, metadata = read_safetensors(path, _ADVICE)
    if UNFINISHED in metadata:
        raise UserError(f'{path} is not finished: run the same ghn_jax.quantize again, which goes on there')
    source = {key: metadata[key] for key in ('arch', 'model') if key in metadata}
    if len(source) != 1 or any(key not in metadata for key in _REQUIRED):
        raise UserError(f'{path} is no quantized network: {_ADVICE}')
    try:
        shape = tuple(json.loads(metadata['input_shape']))
        fields = json.loads(metadata['policy'])
        policy = policy_from_dict(fields, fields.pop('name', ''))
        scheme = Scheme(**json.loads(metadata['scheme']))
    except (ValueError, TypeError) as e:
        raise UserError(f'{path} is damaged ({shown(str(e))}): quantize the network again') from None
    if 'arch' in source:
        model = trace(NetworkSpec.from_json(source['arch']), shape)
    else:
        model = load_model(source['model'], shape)
        _check_computes(model, metadata.get(_COMPUTES), path)
    about = {k: v for k, v in metadata.items() if k not in (*_REQUIRED, _COMPUTES, *source)}
    return QuantizedNetwork(_calibrated(model, arrays, str(path)), policy, scheme, source, about)


def _computes(model: Model) -> dict[str, str]:
    return {'jax': jax.__version__, 'flax': flax.__version__, 'digest': model.digest}


def _check_computes(model: Model, written: str | None, path: Place) -> None:
    """Raise UserError where the model's code has changed since; of other versions that cannot be told."""
    try:
        then = json.loads(written or '{}')
    except ValueError:
        raise UserError(f'{path} is damaged ({_COMPUTES}): quantize the network again') from None
    now = _computes(model)
    if isinstance(then, dict) and then | {'digest': model.digest} == now and then != now:
        raise UserError(
            f'{path}: model {model.name!r} computes something else than when it was quantized: take the code '
            'of then, or quantize it again'
        )


def load_unfinished(folder: Place, model: Model, key: str) -> tuple[int, Calibrated] | None:
    """Read what a folder has of a network that is being quantized: how many blocks are done, and the network.

    Returns:
      None where the folder has none, or another one than `key` says, which is told on stderr.
    """
    try:
        arrays, metadata = read_safetensors(folder / FILE, _ADVICE)
        done = json.loads(metadata.get(UNFINISHED, '{}'))
        if done.get('key') == key:
            return done['blocks'], _calibrated(model, arrays, str(folder))
        if UNFINISHED in metadata:
            print(
                f'{folder / FILE} is the unfinished one of another command: it is begun anew', file=sys.stderr
            )
    except (UserError, ValueError, KeyError):
        pass  # it is written anew
    return None


def _calibrated(model: Model, arrays: Mapping[str, np.ndarray], path: str) -> Calibrated:
    def of(kind: str) -> dict[str, np.ndarray]:
        return {name.removeprefix(f'{kind}.'): a for name, a in arrays.items() if name.startswith(f'{kind}.')}

    weights, biases = of('weights'), of('biases')
    shapes = {layer.name: layer.shape for layer in model.layers}
    if {name: w.shape for name, w in weights.items()} != shapes:
        raise UserError(
            f'{path} has {len(weights)} layers that are not the {len(shapes)} of model {model.name!r}: the '
            'model has changed since, quantize it again'
        )
    norms: dict[int, NormForm] = {}
    scales, params = of('norms'), of('params')
    for name in scales:
        k, _, what = name.partition('.')
        if what == 'scale':
            norms[int(k)] = (scales[name], scales[f'{k}.shift'])
    return Calibrated(
        model,
        map_named(lambda name, leaf: params.get(name, np.zeros(leaf.shape, leaf.dtype)), model.params),
        weights,
        {name: biases.get(name) for name in weights},
        tuple(norms.get(k) for k in range(_count_norms(model))),
        {name: (pair[0], pair[1]) for name, pair in of('ranges').items()},
        {name: (pair[0], pair[1]) for name, pair in of('weight_ranges').items()},
    )


def _count_norms(model: Model) -> int:
    recorder = model.traced(model.input_shape, np.dtype(np.float32)).recorder
    return sum(recorder.forward.kind[op] == 'bn' for op in recorder.normalised)


def _params_read(calibrated: Calibrated) -> dict[str, Any]:
    """Return the parameters that the folded program reads, by name."""
    program = calibrated.program(calibrated.model.input_shape).program
    named = zip(program.inputs, named_leaves(calibrated.params).items())  # the last input is the images
    return {name: value for slot, (name, value) in named if program.reads(slot)}
