"""Parameters of a published PyTorch GHN, as ours: GHN-1, GHN-2 and MLP of ppuda, GHN-3 of ghn3.

Our arrays are theirs with linear weights as [in, out], the conv decoder's first layer as a slab for each
kernel position, its last one as tiles [in, out], and GHN-3's layers side by side. Files: `statefile`; their
configuration: `published_config`.
"""

import functools
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ghn_jax.base.errors import UserError
from ghn_jax.hypernet.ghn import GHNConfig, init_params
from ghn_jax.hypernet.published_config import config_of, load_config
from ghn_jax.hypernet.statefile import load_checkpoint


def load_published(
    state_path: str | os.PathLike, config_path: str | os.PathLike | None = None
) -> tuple[GHNConfig, dict[str, Any]]:
    """Read a published hypernetwork: its configuration, and Flax parameters of the file's dtypes.

    Args:
      state_path: the state dict, .pt, .npz or .safetensors.
      config_path: its JSON config; None: what the file itself has, or its shapes say (`config_of`).

    Returns:
      The configuration; the parameters, as those of `init_params`.

    Raises:
      UserError: a file that is absent or does not load; entries that are missing, unexpected, of the wrong
        shape, or not finite.
    """
    state, fields = load_checkpoint(state_path)
    config = load_config(config_path, state) if config_path else config_of(fields, state)
    return config, convert_state(config, state)


def convert_state(config: GHNConfig, state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Convert a published state dict to our parameters.

    Raises:
      UserError: entries do not fit the config (named), or the config has bits, which no published one reads.
    """
    if config.bits:
        raise UserError('bits is true: no published GHN reads bits: leave the field out')
    expected = _expected_shapes(config)
    state = {_renamed(name): value for name, value in state.items()}
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
        if _without_ones(state[name].shape) == _without_ones(shape):  # a 1x1 convolution is a linear layer
            state[name] = state[name].reshape(shape)
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
            state |= _from_mlp(f'gnn.{name}.fc.', params['gnn'][name])
        for ours, theirs in _GRU.items():
            state[f'gnn.gru.{theirs}'] = np.asarray(params['gnn']['gru'][ours]).T
    elif config.is_graphormer:
        state |= _from_graphormer(config, params['gnn'])
    else:
        state |= _from_mlp('gnn.fc.', params['gnn'])
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
    state |= _from_mlp('decoder_1d.fc.', decoder['norm'])
    state |= {f'bias_class.1.{_W}': np.asarray(decoder['class_bias']['kernel']).T}
    state |= {f'bias_class.1.{_B}': decoder['class_bias']['bias']}
    if config.is_graphormer:  # whose decoder has linear layers for 1x1 convolutions
        state = {name: value[..., 0, 0] if np.ndim(value) == 4 else value for name, value in state.items()}
    return {name: np.ascontiguousarray(value) for name, value in state.items()}


_W, _B = 'weight', 'bias'
_GRU = {
    'input_kernel': 'weight_ih',
    'hidden_kernel': 'weight_hh',
    'input_bias': 'bias_ih',
    'hidden_bias': 'bias_hh',
}


_TABLES = {
    'in_degree': 'centrality_embed_in',
    'out_degree': 'centrality_embed_out',
    'input_distance': 'input_dist_embed',
    'length': 'gnn.0.attn.edge_embed.embed',
}
_KERNELS = {
    'qkv_kernel': 'attn.to_qkv',
    'out_kernel': 'attn.to_out.0',
    'kernel_0': 'ff.net.0',
    'kernel_1': 'ff.net.3',
}
_BIASES = {'out_bias': 'attn.to_out.0', 'bias_0': 'ff.net.0', 'bias_1': 'ff.net.3'}
_NORMS = {'norm_0': 'ln1', 'norm_1': 'ln2'}


def _renamed(name: str) -> str:
    """The name of an entry, without what saving from several devices or from training adds to it."""
    name = name.removeprefix('module.')
    moved = name.removeprefix('gnn.0.')
    return moved if moved.removesuffix('.weight') in _TABLES.values() else name


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) else tuple(shape)


def _from_graphormer(config: GHNConfig, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    entries = {f'{theirs}.{_W}': params[ours] for ours, theirs in _TABLES.items()}
    entries |= _from_mlp('gnn.0.attn.proj_e.', params['bias'])
    layers = params['layers']
    for i in range(config.layers):
        for ours, theirs in _KERNELS.items():
            entries[f'gnn.{i}.{theirs}.{_W}'] = np.asarray(layers[ours][i]).T
        for ours, theirs in _BIASES.items():
            entries[f'gnn.{i}.{theirs}.{_B}'] = layers[ours][i]
        for ours, theirs in _NORMS.items():
            entries[f'gnn.{i}.{theirs}.{_W}'] = layers[ours]['scale'][i]
            entries[f'gnn.{i}.{theirs}.{_B}'] = layers[ours]['bias'][i]
    return entries


def _to_graphormer(config: GHNConfig, state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    def stacked(theirs: str, what: str) -> np.ndarray:
        return np.stack([state[f'gnn.{i}.{theirs}.{what}'] for i in range(config.layers)])

    layers: dict[str, Any] = {
        ours: stacked(theirs, _W).transpose(0, 2, 1) for ours, theirs in _KERNELS.items()
    }
    layers |= {ours: stacked(theirs, _B) for ours, theirs in _BIASES.items()}
    for ours, theirs in _NORMS.items():
        layers[ours] = {'scale': stacked(theirs, _W), 'bias': stacked(theirs, _B)}
    return {
        **{ours: state[f'{theirs}.{_W}'] for ours, theirs in _TABLES.items()},
        'bias': _to_mlp(state, 'gnn.0.attn.proj_e.'),
        'layers': layers,
    }


def _gnn_mlps(config: GHNConfig) -> tuple[str, ...]:
    return ('mlp', 'mlp_ve') if config.ve else ('mlp',)


def _from_mlp(prefix: str, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    entries = {}
    for layer in (0, 1):  # PyTorch counts the activation between them
        entries[f'{prefix}{2 * layer}.{_W}'] = np.asarray(params[f'kernel_{layer}']).T
        entries[f'{prefix}{2 * layer}.{_B}'] = params[f'bias_{layer}']
    return entries


def _to_mlp(state: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    params = {}
    for layer in (0, 1):
        params[f'kernel_{layer}'] = state[f'{prefix}{2 * layer}.{_W}'].T
        params[f'bias_{layer}'] = state[f'{prefix}{2 * layer}.{_B}']
    return params


def _params(config: GHNConfig, state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    C, _, height, width = config.max_shape
    hid, T = config.hid, height * width
    if config.hypernet == 'gatedgnn':
        gnn = {name: _to_mlp(state, f'gnn.{name}.fc.') for name in _gnn_mlps(config)}
        gnn['gru'] = {ours: state[f'gnn.gru.{theirs}'].T for ours, theirs in _GRU.items()}
    elif config.is_graphormer:
        gnn = _to_graphormer(config, state)
    else:
        gnn = _to_mlp(state, 'gnn.fc.')
    conv = {
        'fc_kernel': state[f'decoder.fc.0.{_W}'].reshape(4 * hid, T, hid).transpose(1, 2, 0),
        'fc_bias': state[f'decoder.fc.0.{_B}'].reshape(4 * hid, T).T,
        'hidden_kernel': state[f'decoder.conv.0.{_W}'].reshape(8 * hid, 4 * hid).T,
        'hidden_bias': state[f'decoder.conv.0.{_B}'],
        'out_kernel': state[f'decoder.conv.2.{_W}'].reshape(C, C, 8 * hid).transpose(2, 1, 0),
        'out_bias': state[f'decoder.conv.2.{_B}'].reshape(C, C).T,
        'class_kernel': state[f'decoder.class_layer_predictor.1.{_W}'].reshape(-1, C).T,
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
        'decoder': {'conv': conv, 'norm': _to_mlp(state, 'decoder_1d.fc.'), 'class_bias': class_bias},
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
    """Return names and shapes of the published state dict: what our parameters of this config turn into."""
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    params = jax.tree.map(lambda s: np.broadcast_to(np.float32(0), s.shape), shapes)
    return {name: value.shape for name, value in published_state(config, params).items()}
