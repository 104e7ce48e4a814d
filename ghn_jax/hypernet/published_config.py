"""The configuration of a published hypernetwork: a JSON file, what its checkpoint says, or its shapes."""

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ghn_jax.base import jsonfile
from ghn_jax.base.errors import FieldError, UserError, shown
from ghn_jax.hypernet.ghn import GHNConfig

# Fields of a published config that say how it was made or used, and not what it is.
_NOTES = ('torch', 'seed', 'is_ghn2', 'pretrained', 'debug_level')
_OF_GHN3 = 'gnn.0.ln1.weight', 'module.gnn.0.ln1.weight'  # an entry that no other has


def load_config(path: str | os.PathLike, state: Mapping[str, np.ndarray]) -> GHNConfig:
    """Read the configuration of a state dict from a JSON object with the fields of GHNConfig.

    Raises UserError.
    """
    fields = jsonfile.read(path, 'config', 'give the JSON file of the hypernetwork')
    if not isinstance(fields, dict):
        raise UserError(f'config {path} holds a {type(fields).__name__}: expected one JSON object')
    try:
        return _from_fields(fields, state)
    except UserError as e:
        raise UserError(f'config {path}: {e}') from e


def config_of(fields: Mapping[str, Any] | None, state: Mapping[str, np.ndarray]) -> GHNConfig:
    """Return the configuration that a checkpoint has beside its state dict, or that a GHN-3's shapes tell.

    Raises:
      UserError: it says nothing, and is not a GHN-3's: whether GHN-1 or GHN-2 scale their weights is not seen
        in their shapes.
    """
    if fields is not None:
        try:
            return _from_fields(fields, state)
        except UserError as e:
            raise UserError(f'the config in the checkpoint cannot be used: {e}') from e
    if not is_ghn3(state):
        raise FieldError(
            'config_file', ' is missing: the checkpoint has no config of its own, give a JSON file'
        )
    state = {name.removeprefix('module.'): value for name, value in state.items()}
    try:
        tiles, side = (len(state[f'decoder.{name}.weight']) for name in ('conv.2', 'fc.0'))
        hid = state['embed.weight'].shape[1]
        C, K = math.isqrt(tiles), math.isqrt(side // (4 * hid))
        return GHNConfig(
            hid=hid,
            max_shape=(C, C, K, K),
            num_classes=len(state['bias_class.1.weight']),
            hypernet='graphormer',
            layernorm='ln.weight' in state,
            layers=sum(name.endswith('.ln1.weight') for name in state),
            heads=len(state['gnn.0.attn.proj_e.2.weight']),
        )
    except (KeyError, IndexError, TypeError, ZeroDivisionError) as e:
        raise UserError(f'the state dict is like that of a GHN-3, but lacks {e}: give another file') from None


def is_ghn3(state: Mapping[str, np.ndarray]) -> bool:
    """Say whether a state dict has the layers of a GHN-3."""
    return any(name in state for name in _OF_GHN3)


def _from_fields(fields: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> GHNConfig:
    for key, value in fields.items():
        if not isinstance(key, str) or not isinstance(value, int | str | list | tuple | None):
            raise UserError(f'the field {shown(key)} is {shown(value)}: expected a number, a word or a list')
    known = {key: value for key, value in fields.items() if key not in _NOTES}
    if is_ghn3(state):  # whose published configs keep the word for GHN-2's network
        known['hypernet'] = 'graphormer'
    return GHNConfig.from_dict(known)
