"""Parameters of a published PyTorch GHN, as ours.

Our arrays are theirs with linear weights as [in, out], the conv decoder's first layer as a slab for each
kernel position, and its last one as tiles [in, out]. Files: .npz with one array for each entry of the
state dict, or a PyTorch .pt file where torch is installed (`statefile`).
"""

import functools
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ghn_jax.base import jsonfile
from ghn_jax.base.errors import UserError
from ghn_jax.hypernet.ghn import GHNConfig
from ghn_jax.hypernet.statefile import load_state

_NOTES = ('torch', 'seed')  # fields of a published config that say how it was made


def load_published(
    state_path: str | os.PathLike, config_path: str | os.PathLike
) -> tuple[GHNConfig, dict[str, Any]]:
    """Read a state dict and its JSON config: the configuration, and Flax parameters of the file's dtypes.

    Raises UserError for files that are absent or do not load, and for entries that are missing, unexpected,
    of the wrong shape, or not finite.
    """
    config = load_config(config_path)
    return config, convert_state(config, load_state(state_path))


def load_config(path: str | os.PathLike) -> GHNConfig:
    """Read the configuration from a JSON object with the fields of GHNConfig. Raises UserError."""
    fields = jsonfile.read(path, 'config', 'give the JSON file of the hypernetwork')
    if not isinstance(fields, dict):
        raise UserError(f'config {path} holds a {type(fields).__name__}: expected one JSON object')
    try:
        return GHNConfig.from_dict({key: value for key, value in fields.items() if key not in _NOTES})
    except UserError as e:
        raise UserError(f'config {path}: {e}') from e


def convert_state(config: GHNConfig, state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Convert a published state dict to our parameters.

    Raises:
      UserError: entries do not fit the config (named), or the config has bits, which no published one reads.
    """
    if config.bits:
        raise UserError('bits is true: no published GHN reads bits: leave the field out')
    expected = _expected_shapes(config)
    for problem, names in (
        ('misses', set(expected) - set(state)),
        ('has unexpected', set(state) - set(expected)),
    ):
        if names:
            some = ', '.join(name[:60] for name in sorted(names)[:5]) + (', ...' if len(names) > 5 else '')
            raise UserError(
                f'state dict {problem} {len(names)} entries ({some}): give the config it was made with'
            )
    for name, shape in expected.items():
        if tuple(state[name].shape) != shape:
            raise UserError(
                f'state dict entry {name} has shape {tuple(state[name].shape)}, expected {shape}: '
                'give the config it was made with'
            )
        if not np.issubdtype(state[name].dtype, np.floating) or not np.isfinite(state[name]).all():
            raise UserError(f'state dict entry {name} is not all finite floats: give another file')
    return _params(config, state)


def published_state(config: GHNConfig, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Convert back: a published state dict from our parameters (or from gradients with respect to them).

    It has no place for the tables of a conditional GHN (`bits`): they are left out.
    """
    C, _, height, width = config.max_shape
    decoder = params['decoder']
    conv = {name: np.asarray(value) for name, value in decoder['conv'].items()}
    state = {f'embed.{_W}': params['embedding']['primitive']}
    for name in ('channel', 'spatial'):
        state[f'shape_enc.embed_{name}.{_W}'] = params['embedding'][name]
    if config.hypernet == 'gatedgnn':
        for name in _gnn_mlps(config):
            state |= _from_mlp(f'gnn.{name}.', params['gnn'][name])
        for ours, theirs in _GRU.items():
            state[f'gnn.gru.{theirs}'] = np.asarray(params['gnn']['gru'][ours]).T
    else:
        state |= _from_mlp('gnn.', params['gnn'])
    if config.layernorm:
        state |= {f'ln.{_W}': params['norm']['scale'], f'ln.{_B}': params['norm']['bias']}
    hidden = 4 * config.hid
    fc = conv['fc_kernel'].transpose(2, 0, 1)  # [T, D, 4D] -> (4D, T, D): their rows are (4D, height, width)
    state[f'decoder.fc.0.{_W}'] = fc.reshape(hidden * height * width, config.hid)
    state[f'decoder.fc.0.{_B}'] = conv['fc_bias'].T.reshape(-1)
    state[f'decoder.conv.0.{_W}'] = conv['hidden_kernel'].T[:, :, None, None]
    state[f'decoder.conv.0.{_B}'] = conv['hidden_bias']
    state[f'decoder.conv.2.{_W}'] = conv['out_kernel'].transpose(2, 1, 0).reshape(C * C, -1)[:, :, None, None]
    state[f'decoder.conv.2.{_B}'] = conv['out_bias'].T.reshape(-1)
    state[f'decoder.class_layer_predictor.1.{_W}'] = conv['class_kernel'].T[:, :, None, None]
    state[f'decoder.class_layer_predictor.1.{_B}'] = conv['class_bias']
    state |= _from_mlp('decoder_1d.', decoder['norm'])
    state |= {f'bias_class.1.{_W}': np.asarray(decoder['class_bias']['kernel']).T}
    state |= {f'bias_class.1.{_B}': decoder['class_bias']['bias']}
    return {name: np.ascontiguousarray(value) for name, value in state.items()}


_W, _B = 'weight', 'bias'
_GRU = {
    'input_kernel': 'weight_ih',
    'hidden_kernel': 'weight_hh',
    'input_bias': 'bias_ih',
    'hidden_bias': 'bias_hh',
}


def _gnn_mlps(config: GHNConfig) -> tuple[str, ...]:
    return ('mlp', 'mlp_ve') if config.ve else ('mlp',)


def _from_mlp(prefix: str, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    entries = {}
    for layer in (0, 1):  # PyTorch counts the activation between them
        entries[f'{prefix}fc.{2 * layer}.{_W}'] = np.asarray(params[f'kernel_{layer}']).T
        entries[f'{prefix}fc.{2 * layer}.{_B}'] = params[f'bias_{layer}']
    return entries


def _to_mlp(state: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    params = {}
    for layer in (0, 1):
        params[f'kernel_{layer}'] = state[f'{prefix}fc.{2 * layer}.{_W}'].T
        params[f'bias_{layer}'] = state[f'{prefix}fc.{2 * layer}.{_B}']
    return params


def _params(config: GHNConfig, state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    C, _, height, width = config.max_shape
    hid, T = config.hid, height * width
    if config.hypernet == 'gatedgnn':
        gnn = {name: _to_mlp(state, f'gnn.{name}.') for name in _gnn_mlps(config)}
        gnn['gru'] = {ours: state[f'gnn.gru.{theirs}'].T for ours, theirs in _GRU.items()}
    else:
        gnn = _to_mlp(state, 'gnn.')
    conv = {
        'fc_kernel': state[f'decoder.fc.0.{_W}'].reshape(4 * hid, T, hid).transpose(1, 2, 0),
        'fc_bias': state[f'decoder.fc.0.{_B}'].reshape(4 * hid, T).T,
        'hidden_kernel': state[f'decoder.conv.0.{_W}'][:, :, 0, 0].T,
        'hidden_bias': state[f'decoder.conv.0.{_B}'],
        'out_kernel': state[f'decoder.conv.2.{_W}'].reshape(C, C, 8 * hid).transpose(2, 1, 0),
        'out_bias': state[f'decoder.conv.2.{_B}'].reshape(C, C).T,
        'class_kernel': state[f'decoder.class_layer_predictor.1.{_W}'][:, :, 0, 0].T,
        'class_bias': state[f'decoder.class_layer_predictor.1.{_B}'],
    }
    class_bias = {'kernel': state[f'bias_class.1.{_W}'].T, 'bias': state[f'bias_class.1.{_B}']}
    params = {
        'embedding': {
            'primitive': state[f'embed.{_W}'],
            'channel': state[f'shape_enc.embed_channel.{_W}'],
            'spatial': state[f'shape_enc.embed_spatial.{_W}'],
        },
        'gnn': gnn,
        'decoder': {'conv': conv, 'norm': _to_mlp(state, 'decoder_1d.'), 'class_bias': class_bias},
    }
    if config.layernorm:
        params['norm'] = {'scale': state[f'ln.{_W}'], 'bias': state[f'ln.{_B}']}
    return _contiguous(params)


def _contiguous(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _contiguous(value) for key, value in tree.items()}
    return np.ascontiguousarray(tree)


@functools.lru_cache(maxsize=8)
def _expected_shapes(config: GHNConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published state dict: those that our parameters of this config turn into."""
    import jax

    from ghn_jax.hypernet.ghn import init_params

    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    params = jax.tree.map(lambda s: np.broadcast_to(np.float32(0), s.shape), shapes)
    return {name: value.shape for name, value in published_state(config, params).items()}
