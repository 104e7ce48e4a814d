"""Files of a network's weights: safetensors, npz, Orbax checkpoints, and integers packed to their bits.

Every one of them holds the arrays by name and, as strings, what `prediction.predict` says about them. An
Orbax checkpoint is a directory; its pytree has the names cut at their dots: tree['stem']['0']['weight'].
"""

import io
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ghn_jax.base import cli, files, paths
from ghn_jax.base.errors import FieldError, UserError, one_line
from ghn_jax.base.paths import Place
from ghn_jax.quant.packed import pack_weights, unpack_weights
from ghn_jax.quant.policy import FLOAT_BITS, NamedWidths

FORMATS = ('safetensors', 'npz', 'orbax')
METADATA = '__metadata__'
"""The entry of a file with the metadata; in npz it is JSON in a string."""

_CHANNELS = {'pytorch': 0, 'jax': -1}  # axis of the output channels in each layout
Weights = dict[str, np.ndarray]


def write_weights(path: Place, weights: Weights, metadata: Mapping[str, str], format: str) -> None:
    """Write a file of weights, or a directory for 'orbax', whole or not at all.

    Raises:
      UserError: it cannot be written.
    """
    if format == 'orbax':
        _write_orbax(path, weights, metadata)
    elif format == 'npz':
        data = io.BytesIO()
        arrays: dict[str, Any] = {**weights, METADATA: np.array(json.dumps(dict(metadata)))}
        np.savez(data, **arrays)
        files.write(path, data.getvalue())
    else:
        _write_safetensors(path, weights, metadata)


def read_safetensors(path: str | os.PathLike, advice: str) -> tuple[Weights, dict[str, str]]:
    """Read the arrays of a safetensors file by name, and its metadata.

    Args:
      path: the file.
      advice: what to give instead, for messages.

    Raises:
      UserError: no such file, or one that is not safetensors or not whole.
    """
    path = paths.local(path, 'file')
    try:
        with safe_open(path, 'np') as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except FileNotFoundError:
        raise UserError(f'{os.fspath(path)} does not exist: {advice}') from None
    except (OSError, SafetensorError, AttributeError) as e:  # the last: of a type that numpy has not
        raise UserError(f'{os.fspath(path)} is no safetensors file ({one_line(e)}): {advice}') from None


def format_of(path: str | os.PathLike) -> str:
    """Return the format that the name of a file ends in; safetensors where it ends in none."""
    suffix = os.path.splitext(path)[1].removeprefix('.')
    return suffix if suffix in FORMATS else 'safetensors'


def check_place(path: str | os.PathLike, format: str) -> Place:
    """Return the path of a file of weights to be written. Raises FieldError where it cannot be."""
    if not os.fspath(path):
        raise FieldError('out', f' is missing: give a file, such as net.{format}')
    for other in FORMATS:
        if other != format and os.path.splitext(path)[1] == f'.{other}':
            raise FieldError(
                'out', f'={path} ends in .{other} and the format is {format}: give format={other}'
            )
    if format != 'orbax':
        return cli.check_output(path, 'out')
    place = cli.check_folder(path, 'out')
    if place.exists():
        raise FieldError('out', f'={path} exists: give a directory that is not there yet')
    return place


def check_packed(widths: NamedWidths, bits: str, format: str) -> None:
    """Raise FieldError where there is nothing to pack, or no such format.

    widths: of every weight.   bits: what they are called.
    """
    if format != 'safetensors':
        raise FieldError('packed', f' and format={format}: packed weights are safetensors')
    if all(width == FLOAT_BITS for width, _ in widths.values()):
        raise FieldError('packed', f' and bits={bits}: no weight is rounded, give fewer bits')


def pack(
    weights: Weights, metadata: Mapping[str, str], axes: Mapping[str, int] | None = None
) -> tuple[Weights, dict[str, str]]:
    """Pack predicted weights to their bits: the arrays and the metadata of a file that `unpack` reads.

    axes: of the output channels, by name; None: where the layout has them.

    In place of the metadata's `quantization` there is `packed`, JSON of `pack_weights`'s table.
    """
    metadata = dict(metadata)
    quantization = json.loads(metadata.pop('quantization', '{}'))
    axis = _CHANNELS[metadata['layout']] if axes is None else axes
    arrays, table = pack_weights(weights, quantization, axis=axis)
    return arrays, metadata | {'packed': json.dumps(table, separators=(',', ':'))}


def unpack(path: str | os.PathLike) -> Weights:
    """Read the weights of a packed file, as floats: exactly those of a file that is not packed.

    Args:
      path: a file of `ghn_jax.predict --packed`.

    Returns:
      Arrays by name, in the layout of the file.

    Raises:
      UserError: no such file, or one that is not packed or not whole.
    """
    arrays, metadata = read_safetensors(path, 'give a file of packed weights')
    if 'packed' not in metadata:
        raise UserError(f'{os.fspath(path)} is not packed: read it with safetensors')
    try:
        table = json.loads(metadata['packed'])
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):
        raise UserError(f'{os.fspath(path)} has a damaged table of packed weights: write it again')
    return unpack_weights(arrays, table)


def _write_safetensors(path: Place, weights: Weights, metadata: Mapping[str, str]) -> None:
    # safetensors writes strided and Fortran-ordered arrays wrongly, without a word.
    data = save({name: np.asarray(w, order='C') for name, w in weights.items()}, dict(metadata))
    # It leaves the order of metadata to chance. Sorted, what is written again is the same to the byte.
    end = 8 + int.from_bytes(data[:8], 'little')
    header = json.loads(data[8:end])
    header[METADATA] = dict(sorted(header.get(METADATA, {}).items()))
    text = json.dumps(header, separators=(',', ':'), ensure_ascii=False).encode()
    text += b' ' * (-len(text) % 8)
    with files.replacing(path) as file:
        file.write(len(text).to_bytes(8, 'little') + text)
        file.write(memoryview(data)[end:])


def _write_orbax(path: Place, weights: Weights, metadata: Mapping[str, str]) -> None:
    import orbax.checkpoint as ocp  # a second to import
    from flax.traverse_util import unflatten_dict

    tree = unflatten_dict({name: np.asarray(w, order='C') for name, w in weights.items()}, sep='.')
    with files.writing(path), ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path, tree, custom_metadata=dict(metadata))
