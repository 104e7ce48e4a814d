"""Architecture files: networks as JSON, judged by their size before anything is made of them."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ghn_jax.base import files, jsonfile, paths
from ghn_jax.base.errors import UserError, shown
from ghn_jax.base.whole_numbers import is_int
from ghn_jax.networks.counts import check_size
from ghn_jax.networks.spec import NetworkSpec

MAX_NETWORKS = 10_000  # of a file; a split has 500
_JSON_ADVICE = 'give an object or a list of objects in JSON'


def load_networks(path: str | os.PathLike) -> list[NetworkSpec]:
    """Read the networks of an architecture file: one object or a list of them.

    An object has the network's fields, or has them under "args" beside an "id", which becomes the name.

    Args:
      path: the file.

    Returns:
      The networks in the order of the file, each within the limits of `counts`.

    Raises:
      UserError: a file that cannot be read, is no JSON or is empty; a bad network, and which.
    """
    entries = jsonfile.read(path, 'architecture file', _JSON_ADVICE)
    listed = isinstance(entries, list)
    if listed and not 0 < len(entries) <= MAX_NETWORKS:
        held = f'{len(entries):,} networks' if entries else 'no network'
        raise UserError(
            f'{os.fspath(path)!r} holds {held}: expected an object or a list of 1 to {MAX_NETWORKS:,} objects'
        )
    specs = []
    for i, entry in enumerate(entries if listed else [entries]):
        try:
            specs.append(_spec_of_entry(entry))
            check_size(specs[-1])
        except UserError as error:
            where = f'{os.fspath(path)!r}, network {i}' if listed else repr(os.fspath(path))
            name = entry.get('name', entry.get('id')) if isinstance(entry, dict) else None
            where += f' ({shown(name)})' if name and isinstance(name, str) else ''
            raise UserError(f'{where}: {error}') from None
    return specs


def save_networks(path: str | os.PathLike, specs: Sequence[NetworkSpec]) -> None:
    """Write an architecture file for `load_networks`: a list, a line for each network.

    It is written whole or not at all.

    Args:
      path: the file.
      specs: the networks, at least one.

    Raises:
      UserError: the file cannot be written; there is no network, more than a file may have, or something
        else is among them.
    """
    path = paths.place(path, 'path')
    if isinstance(specs, NetworkSpec) or not (specs := list(specs)):
        raise UserError(f'no list of networks to write to {os.fspath(path)!r}: give one with at least one')
    for spec in specs:
        if not isinstance(spec, NetworkSpec):
            raise UserError(f'a network is {shown(spec)}: expected a NetworkSpec')
    text = '[\n' + ',\n'.join(spec.to_json() for spec in specs) + '\n]\n'
    if len(specs) > MAX_NETWORKS or len(text.encode()) > jsonfile.MAX_BYTES:
        raise UserError(
            f'{os.fspath(path)!r} would hold {len(specs):,} networks in {len(text):,} bytes: at most '
            f'{MAX_NETWORKS:,} in {jsonfile.MAX_BYTES:,} are read; write several files'
        )
    files.write(path, text)


def _spec_of_entry(entry: Any) -> NetworkSpec:
    if not isinstance(entry, Mapping) or 'args' not in entry:
        return NetworkSpec.from_dict(entry)
    spec = NetworkSpec.from_dict(entry['args'])
    if spec.name or 'id' not in entry:
        return spec
    if not isinstance(entry['id'], str) and not is_int(entry['id']):
        raise UserError(f'id is {shown(entry["id"])}: expected a string or an integer')
    return dataclasses.replace(spec, name=str(entry['id']))
