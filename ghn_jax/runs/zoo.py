"""Hypernetworks that come with the package: `zoo:NAME` in the place of a run directory.

An entry is two files in `ghn_jax/zoo/`: NAME.safetensors has the parameters, and in its metadata, as JSON,
what the checkpoint said about itself; NAME.json is its card, with the SHA-256 of the first.
"""

import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load, save

from ghn_jax import config as configs
from ghn_jax.base import files, jsonfile, paths
from ghn_jax.base.digests import leaf_name
from ghn_jax.base.errors import FieldError, UserError, shown

FOLDER = pathlib.Path(__file__).parents[1] / 'zoo'
"""Where the entries of the package lie."""
DTYPES = ('float16', 'float32')
_FORMAT = 'ghn_jax zoo 1'  # counts up when an old entry can no longer be read
_NAME = re.compile(r'[a-z0-9]+(-[a-z0-9]+)*')
_ADVICE = 'install the package again'


def names(folder: pathlib.Path = FOLDER) -> list[str]:
    """Return the names of the entries, sorted."""
    return sorted(file.stem for file in folder.glob('*.json'))


def read_card(name: str, folder: pathlib.Path = FOLDER) -> dict[str, Any]:
    """Read the card of an entry; `zoo.cards` says what is in it.

    Raises:
      UserError: there is no such entry, and the message has the names that there are; the card is damaged.
    """
    if name not in names(folder):
        known = ', '.join(f'{paths.ZOO}{known}' for known in names(folder)) or 'none, for there are none'
        raise UserError(f'no hypernetwork {shown(paths.ZOO + name)} comes with the package: expected {known}')
    card = jsonfile.read(folder / f'{name}.json', 'card', _ADVICE)
    if not isinstance(card, dict) or not isinstance(card.get('sha256'), str):
        raise UserError(f'the card of zoo:{name} has no digest: {_ADVICE}')
    return card


def read_curve(name: str, folder: pathlib.Path = FOLDER) -> list[dict[str, float]]:
    """Return the course of the training of an entry as rows of a metrics.jsonl, a few of them.

    Raises:
      UserError: as `read_card`.
    """
    columns = read_card(name, folder).get('curve') or {}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def read_entry(name: str, folder: pathlib.Path = FOLDER) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read (parameters as nested dicts of float32 arrays, meta as of `run.run_meta`) of an entry.

    Raises:
      UserError: as `read_card`; the parameters are not those that the card is about.
    """
    digest = read_card(name, folder)['sha256']
    try:
        data = (folder / f'{name}.safetensors').read_bytes()
    except OSError as e:
        raise UserError(f'zoo:{name} cannot be read ({e.strerror}): {_ADVICE}') from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise UserError(f'zoo:{name} is damaged: its digest is not that of its card: {_ADVICE}')
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], 'little')])
        run, arrays = json.loads(header['__metadata__']['run']), load(data)
        if run['format'] != _FORMAT:
            raise ValueError(f'its format is {shown(run["format"])}')
    except (safetensors.SafetensorError, KeyError, ValueError) as e:
        raise UserError(f'zoo:{name} cannot be read by this version ({shown(str(e))}): {_ADVICE}') from None
    params = {name: array.astype(np.float32) for name, array in arrays.items()}
    return unflatten_dict(params, sep='/'), run['meta']


def write_entry(
    name: str,
    params: Mapping[str, Any],
    meta: Mapping[str, Any],
    card: Mapping[str, Any],
    *,
    dtype: str = 'float16',
    folder: pathlib.Path = FOLDER,
) -> dict[str, Any]:
    """Write an entry, in the place of the one of this name if there is one. Returns its card.

    Args:
      name: lower-case words with hyphens between them.
      params: nested dicts of arrays.
      meta: what their checkpoint says about itself; where its data lay is left out.
      card: all that the card says but name, digest, size, number of parameters and dtype.
      dtype: of DTYPES, what the parameters are stored in.
      folder: where to.

    Raises:
      FieldError: another kind of name; parameters that the dtype does not hold.   UserError: the files cannot
        be written.
    """
    if not _NAME.fullmatch(name):
        raise FieldError('name', f'={shown(name)}: expected lower-case words with hyphens, as in digits-bits')
    leaves = jax.tree_util.tree_leaves_with_path(params)
    with np.errstate(over='ignore'):
        arrays = {leaf_name(path): np.asarray(leaf).astype(dtype, order='C') for path, leaf in leaves}
    if wrong := [path for path, array in arrays.items() if not np.isfinite(array).all()]:
        raise FieldError('dtype', f'={dtype}: {wrong[0]} has numbers beyond it: give float32')
    config = dataclasses.replace(configs.from_json(meta['config']), data_dir='')
    meta = {**meta, 'config': configs.to_json(config)}
    # One key: safetensors writes several in an order that changes, and so the digest would.
    data = save(arrays, {'run': json.dumps({'format': _FORMAT, 'meta': meta})})
    about = {
        'name': name,
        'sha256': hashlib.sha256(data).hexdigest(),
        'bytes': len(data),
        'parameters': sum(array.size for array in arrays.values()),
        'dtype': dtype,
    }
    with files.writing(folder):
        folder.mkdir(exist_ok=True)
    files.write(folder / f'{name}.safetensors', data)
    files.write_json(folder / f'{name}.json', about | dict(card))
    return about | dict(card)
