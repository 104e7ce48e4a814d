"""Where the channels that a model's parameters read lie in the tiles that these are cut from.

The hypernetwork decodes tiles of 64 x 64 channels. A weight is cut from them, its first input channel from
the first row. What a row is for, it has learnt in training, where all tensors are as wide as their space
says, 16 channels, 32, and so on: row k is for channel k of the layer before, and those of further layers
whose results are joined begin at multiples of 16. So the row of a channel follows from the layer that makes
it, and not from where it comes among those that are read: layers of other widths may be joined (DenseNet,
arXiv 1608.06993), channels shuffled (ShuffleNet, arXiv 1707.01083), all pixels of a map read as one vector.
A depthwise layer keeps the channels that it reads.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ghn_jax.base.whole_numbers import round_up
from ghn_jax.models.channels import NONE
from ghn_jax.models.model import Model
from ghn_jax.networks.graph import Graph, Parameter

ALIGNMENT = 16  # channels


def aligned(model: Model) -> Graph:
    """Return the graph of a model, with the places of the channels that its parameters read.

    Parameters whose channels cannot be followed read them in order, and so do groups of channels. A network
    of a space is trained as it is, whatever its widths.
    """
    if model.of_space:
        return model.graph
    found = model.channels
    depthwise = {name for name, columns in found.columns.items() if columns.shape[1] == 1 < len(columns)}
    origins = _Origins([rows for name, rows in found.rows.items() if name not in depthwise], found.count)
    read = {layer.parameter: found.columns[layer.name].ravel() for layer in reversed(model.layers)}
    read |= {name: channels.ravel() for name, channels in found.others.items()}

    def place(p: Parameter) -> Parameter:
        outputs, inputs = (*p.shape, 1)[:2]
        count = inputs if inputs > 1 else outputs
        channels = read.get(p.name)
        if channels is None or len(channels) != count or NONE in channels:
            return p
        places = origins.places(channels)
        in_order = np.array_equal(places, np.arange(count))
        return p if in_order else p._replace(places=tuple(places.tolist()))

    return dataclasses.replace(model.graph, parameters=tuple(map(place, model.graph.parameters)))


class _Origins:
    """The first layer that makes each channel, and which of its channels it is there.

    rows: of each layer, in the order of the forward pass, the channels that it makes.   count: of channels.
    """

    def __init__(self, rows: Sequence[np.ndarray], count: int):
        self.rows = rows
        self.layer, self.index = (np.zeros(count + 1, int) for _ in range(2))
        for k, made in reversed([*enumerate(rows)]):
            self.layer[made], self.index[made] = k, np.arange(len(made))

    def places(self, channels: np.ndarray) -> np.ndarray:
        """Return the place of each of these channels in a tile that is repeated without end."""
        different, first = np.unique(channels, return_index=True)
        in_order = different[np.argsort(first)]
        if any(np.array_equal(in_order, made) for made in self.rows):  # one layer makes all of them
            number = np.zeros(len(self.index), int)
            number[in_order] = np.arange(len(in_order))
            return number[channels]
        layers = list(dict.fromkeys(self.layer[channels].tolist()))
        begin = np.zeros(len(self.rows), int)
        begin[layers] = _begins([len(self.rows[k]) for k in layers])
        return begin[self.layer[channels]] + self.index[channels]


def _begins(widths: Sequence[int]) -> list[int]:
    """Return where layers of these widths begin whose results are joined.

    Halves of 8 channels lie side by side, as in a FactorizedReduce.
    """
    begins, end = [], 0
    for width in widths:
        begins.append(round_up(end, width if ALIGNMENT % width == 0 else ALIGNMENT))
        end = begins[-1] + width
    return begins
