"""Parameters of one model in a file: read into the model's own pytree, and written from it.

Tensors are called by their paths in that pytree, joined by dots. A network of DeepNets-1M is a model like any
other once it is traced; its tensors have DeepNets-1M's names, in PyTorch's layouts. So files of
`ghn_jax.predict` are read, packed ones too.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ghn_jax.base.errors import UserError
from ghn_jax.base.paths import Place
from ghn_jax.hypernet.policy_features import resolve
from ghn_jax.models.model import Model
from ghn_jax.models.names import map_named, named_leaves, variable_names
from ghn_jax.quant.policy import FLOAT_BITS, Policy
from ghn_jax.runs.weight_files import read_safetensors, unpack, write_weights


def read_params(model: Model, path: str | os.PathLike, policies: Sequence[Policy] = ()) -> Any:
    """Read the parameters of a model. Weights that would be rounded twice are told of on stderr.

    Args:
      model: traced.
      path: safetensors, of `ghn_jax.predict` or `ghn_jax.finetune`, or of its own parameters.
      policies: what the parameters are to be rounded to.

    Returns:
      A pytree of NumPy arrays as `model.params`.

    Raises:
      UserError: no such file, or parameters of another model.
    """
    where = os.fspath(path)
    arrays, metadata = read_safetensors(path, 'give a safetensors file of parameters')
    if 'packed' in metadata:
        arrays = unpack(path)
    if metadata.get('layout') == 'jax':
        raise UserError(f'{where} is in the layout jax: predict it with the layout pytorch')
    rounds = any(bits < FLOAT_BITS for of in policies for bits, _ in resolve(of, model.graph).values())
    if rounds and ('packed' in metadata or 'quantization' in metadata):
        print(
            f'warning: the weights of {where} are rounded to {metadata.get("bits")} already, and are rounded '
            'again, maybe to other levels: give weights 32 bits, as in w32a4, to run them as they are',
            file=sys.stderr,
        )
    if unknown := sorted(set(arrays) - set(variable_names(model.params))):
        raise UserError(
            f'{where} has {unknown[0]!r}, which model {model.name!r} has not: give parameters of this model'
        )

    def value_of(name: str, leaf: Any) -> np.ndarray:
        if name not in arrays:
            raise UserError(f'{where} has no {name!r} of model {model.name!r}: give parameters of this model')
        value = arrays[name]
        if value.shape != leaf.shape or value.dtype.kind not in 'fV':
            raise UserError(
                f'{where}: {name!r} is {value.dtype}{list(value.shape)}, that of model {model.name!r} is '
                f'{leaf.dtype}{list(leaf.shape)}: give parameters of this model'
            )
        if not np.all(np.isfinite(value.astype(np.float32))):
            raise UserError(f'{where}: {name!r} has values that are no numbers: give finite parameters')
        return value.astype(leaf.dtype)

    return map_named(value_of, model.params)


def write_params(path: Place, model: Model, params: Any, metadata: Mapping[str, str]) -> None:
    """Write the parameters of a model as safetensors, whole or not at all.

    metadata: what the file says beside the model's name and the shape of its images.

    Raises:
      UserError: it cannot be written.
    """
    weights = {name: np.asarray(leaf) for name, leaf in named_leaves(params).items()}
    about = {'model': model.name, 'input_shape': json.dumps(model.input_shape), 'layout': 'model'}
    write_weights(path, weights, about | dict(metadata), 'safetensors')
