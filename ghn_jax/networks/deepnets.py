"""DeepNets-1M's published files (arXiv 2110.13100, ppuda): their networks, in place of drawn ones.

A folder holds pairs of files: deepnets1m_train with the split of that name; deepnets1m_eval with val, test,
wide, deep, dense and bnfree.

    deepnets1m_eval_meta.json    {split: {'nets': [...], 'meta': {'primitives_ext': {number: name}, ...}}}
    deepnets1m_eval.hdf5         split/index/adj    uint8 [N, N], lengths of shortest paths up to 250
                                 split/index/nodes  uint16 [N, 3]: numbers of primitive, cell and name

An entry of `nets` has a network's fields, and says its number of nodes and of parameters. Networks to train
on have no width: it is drawn whenever one is taken. Wide ones are widened by four.
"""

import collections
import dataclasses
import functools
import json
import os
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ghn_jax.base import paths
from ghn_jax.base.errors import FieldError, UserError, one_line, shown
from ghn_jax.base.whole_numbers import is_int
from ghn_jax.networks.drawing import WIDE_FACTOR, widened
from ghn_jax.networks.graph import MAX_DISTANCE, build_graph
from ghn_jax.networks.space_rules import known_split
from ghn_jax.networks.spaces import SPACES, Space
from ghn_jax.networks.spec import NetworkSpec

_MAX_BYTES = 4 * 2**30  # of a JSON file; that of the million networks has 0.7 GiB
_MAX_NODES = 65_536
_NOTES = ('num_nodes', 'num_params')  # what an entry says beside a network's fields
_SAYS = 'give the folder of DeepNets-1M'


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedSpace(Space):
    """The space deepnets1m, whose splits are those of the files in a folder.

    Attributes:
      folder: where they lie.
    """

    folder: str

    def size(self, split: str) -> int:
        """Return the number of networks in a split. Raises UserError where its files cannot be read."""
        return len(_split(self.folder, known_split(split))['nets'])

    def sample(self, split: str, seed: int, index: int) -> NetworkSpec:
        """Return network `index` of a split. seed: of its widths, in the split train.

        Raises UserError as `check_place`, and for an entry that is no network.
        """
        self.check_place(split, seed, index)
        try:
            return _network(self, _split(self.folder, split)['nets'][index], split, seed, index)
        except UserError as e:
            raise UserError(f'{_file(self.folder, split, "_meta.json")}, {split} {index}: {e}') from None


def published_space(folder: str | os.PathLike) -> PublishedSpace:
    """Make the space of DeepNets-1M's published files.

    Raises:
      FieldError: no such folder.
    """
    path = paths.local(folder, 'deepnets')
    if not path.is_dir():
        raise FieldError('deepnets', f'={os.fspath(folder)} is no directory: {_SAYS}')
    rules = {field.name: getattr(SPACES['deepnets1m'], field.name) for field in dataclasses.fields(Space)}
    return PublishedSpace(**rules, folder=str(path))


def load_deepnets(
    folder: str | os.PathLike, split: str, count: int = 0, *, seed: int = 0
) -> list[NetworkSpec]:
    """Load networks of a published split, and hold the graphs that are made of them against the file's.

    Args:
      folder: of DeepNets-1M's HDF5 and JSON files.
      split: 'train', 'val', 'test', 'wide', 'deep', 'dense' or 'bnfree'.
      count: the first ones; 0 takes all.
      seed: of the widths of networks of 'train', which have none of their own.

    Returns:
      The networks in the order of the files.

    Raises:
      UserError: files that are absent or of another format, fewer networks, graphs that are others.
    """
    space = published_space(folder)
    size = space.size(split)
    if not is_int(count) or not 0 <= count <= size:
        raise FieldError('count', f'={shown(count)}: the split {split} has {size} networks; 0 takes all')
    specs = [space.sample(split, seed, index) for index in range(count or size)]
    if others := differing(space, split, specs):
        raise UserError(
            f'{len(others)} of {len(specs)} graphs in {_file(space.folder, split, ".hdf5")} are not those of '
            f'their networks (the first: {split} {others[0]}): give files of one version'
        )
    return specs


def differing(space: PublishedSpace, split: str, specs: Sequence[NetworkSpec]) -> list[int]:
    """Return the places of networks of a split whose graph in the HDF5 file is another than ours.

    The order of nodes does not matter: compared are the nodes by primitive, senders and receivers, and the
    lengths of all paths.

    specs: the first networks of the split.

    Raises:
      UserError: h5py is not installed, or the file is absent or of another format.
    """
    path, meta = _file(space.folder, split, '.hdf5'), _split(space.folder, split)['meta']
    try:
        import h5py  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            f'{path} needs h5py, which is not installed: pip install "ghn-jax[published]"'
        ) from None
    try:
        names = {int(number): _primitive(name) for number, name in meta['primitives_ext'].items()}
        with h5py.File(path, 'r') as file:
            graphs: Any = file[split]
            return [
                i
                for i, spec in enumerate(specs)
                if _about(*_published_graph(graphs[str(i)], names)) != _about(*_our_graph(spec))
            ]
    except (OSError, KeyError, TypeError, ValueError, AttributeError, IndexError) as e:
        raise UserError(
            f'{path} is no HDF5 file of graphs ({type(e).__name__}: {one_line(e)}): {_SAYS}'
        ) from None


def _network(space: PublishedSpace, entry: Any, split: str, seed: int, index: int) -> NetworkSpec:
    if not isinstance(entry, Mapping):
        raise UserError(f'{shown(entry)} is no network')
    fields = {'C': 32} | {key: value for key, value in entry.items() if key not in _NOTES}
    if split == 'train':
        fields |= {'C': 32, 'fc_dim': 256}  # those that its parameters are counted at
    spec = dataclasses.replace(NetworkSpec.from_dict(fields), name=f'{space.name}-{split}-{index}')
    if split == 'train':
        counted = entry.get('num_params')
        size = counted.get('cifar10') if isinstance(counted, Mapping) else None
        if not is_int(size):
            raise UserError(f'num_params is {shown(counted)}: expected an object with a number for cifar10')
        entropy = np.random.SeedSequence((seed, zlib.crc32(b'deepnets1m files'), index))
        rng = np.random.Generator(np.random.Philox(entropy))
        return widened(space, spec, size, rng)
    return dataclasses.replace(spec, C=WIDE_FACTOR * spec.C) if split == 'wide' else spec


def _file(folder: str, split: str, ending: str) -> pathlib.Path:
    return pathlib.Path(folder) / f'deepnets1m_{"train" if split == "train" else "eval"}{ending}'


@functools.lru_cache(maxsize=2)
def _meta(path: pathlib.Path) -> Any:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UserError(f'{path} has more than {_MAX_BYTES:,} bytes: {_SAYS}')
        with open(path, encoding='utf-8') as file:
            return json.load(file)
    except OSError as e:
        raise UserError(f'{path} cannot be read ({e.strerror}): {_SAYS}') from None
    except (ValueError, RecursionError) as e:
        if isinstance(e, UserError):
            raise
        raise UserError(f'{path} is no JSON ({one_line(e)}): {_SAYS}') from None


def _split(folder: str, split: str) -> dict[str, Any]:
    path = _file(folder, split, '_meta.json')
    meta = _meta(path)
    of_split = meta.get(split) if isinstance(meta, dict) else None
    if (
        not isinstance(of_split, dict)
        or not isinstance(of_split.get('nets'), list)
        or not isinstance(of_split.get('meta'), dict)
    ):
        raise UserError(f'{path} has no networks of the split {split}: {_SAYS}')
    return of_split


def _primitive(name: str) -> str:
    """Return a node's primitive from its name in a file, which may have the kernel's size: sep_conv_3x3."""
    if name.startswith('conv_'):
        return 'conv'
    if 'conv_' in name or 'pool_' in name:
        return name[:-4]
    return 'bias' if name == 'fc-b' else name


def _published_graph(group: Any, names: Mapping[int, str]) -> tuple[list[str], np.ndarray]:
    """Return the primitives [N] and the distances [N, N] of a graph in the file."""
    adjacency, nodes = group['adj'], group['nodes']
    N = len(nodes)
    if N > _MAX_NODES or adjacency.shape != (N, N) or nodes.shape != (N, 3):
        raise ValueError(f'adj {adjacency.shape}, nodes {nodes.shape}')
    return [names[int(number)] for number in nodes[:, 0]], adjacency[()]


def _our_graph(spec: NetworkSpec) -> tuple[list[str], np.ndarray]:
    graph = build_graph(spec)
    return [node.primitive for node in graph.nodes], graph.distance


def _about(primitives: Sequence[str], distance: np.ndarray) -> tuple[Any, ...]:
    """Return what is the same for two graphs that are the same but for the order of nodes."""
    edges = distance == 1
    nodes = collections.Counter(zip(primitives, edges.sum(0).tolist(), edges.sum(1).tolist(), strict=True))
    return nodes, np.bincount(distance[distance <= MAX_DISTANCE], minlength=MAX_DISTANCE + 1)[1:].tolist()
