"""Removing channels of a model: what they are worth, what the model costs without them, and how they go.

A channel that is removed has zeros for the rows of the weights that make it, for the columns that read it,
and for its norms' scales and shifts and its biases. Zero is on every grid and counts in none, so the model
computes what one without these channels computes, at any bits, and its parameters keep their shapes: one
program serves whatever is left. `narrow` makes the smaller arrays.
"""

import dataclasses
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ghn_jax.base.errors import UserError
from ghn_jax.models.channels import NONE, Channels
from ghn_jax.models.costs import bit_operations, count_macs
from ghn_jax.models.model import Model
from ghn_jax.models.names import map_named, named_leaves
from ghn_jax.models.recorder import Layer
from ghn_jax.quant.policy import FLOAT_BITS, NamedWidths

LEAST = 1 / 8
"""The share of its channels that every layer keeps at least, rounded up."""


@dataclasses.dataclass(frozen=True, eq=False)
class Removal:
    """The channels of a model, and what they cost at some bits.

    `alive`, bool [channels + 1] throughout, says which are left; number 0 is none of them and always is.

    Attributes:
      model: traced.
      channels: as they are found.
      macs: of each layer with all its channels, by name (`count_macs`).
      weight_bits, activation_bits: of each layer, by name.
    """

    model: Model
    channels: Channels
    macs: Mapping[str, int]
    weight_bits: Mapping[str, int]
    activation_bits: Mapping[str, int]

    @classmethod
    def of(cls, model: Model, widths: NamedWidths) -> 'Removal':
        """Find the channels of a model.

        Args:
          model: traced.
          widths: bits by the name of the weight; float for those without.

        Raises:
          UserError: a layer whose weight is kept as initialised (`trace`), so that its rows are not known.
        """
        for layer in model.layers:
            if layer.parameter not in model.tensors:
                raise UserError(
                    f'parameter {layer.parameter!r} of model {model.name!r} is used in a way that leaves '
                    'it as initialised: channels cannot be removed from it, write the model without'
                )
        bits = {layer.name: widths.get(layer.parameter, (FLOAT_BITS, FLOAT_BITS)) for layer in model.layers}
        weights, activations = ({name: b[i] for name, b in bits.items()} for i in (0, 1))
        return cls(model, model.channels, count_macs(model), weights, activations)

    def all(self) -> np.ndarray:
        """Return `alive` with all channels left."""
        return np.ones(self.channels.count + 1, bool)

    def remaining_macs(self, alive: np.ndarray) -> dict[str, int]:
        """Count the MACs of each layer between channels that are left, for one image, by the layer's name."""
        found = {}
        for layer in self.model.layers:
            columns = alive[self.channels.columns[layer.name]].sum(1)
            rows = alive[self.channels.rows[layer.name]].reshape(layer.groups, -1).sum(1)
            all_pairs = layer.shape[0] * layer.shape[1]
            found[layer.name] = self.macs[layer.name] // all_pairs * int(rows @ columns)
        return found

    def cost(self, alive: np.ndarray) -> int:
        """Return the bit operations (BOPs) of the channels that are left (`costs.bit_operations`)."""
        return bit_operations(self.remaining_macs(alive), self.weight_bits, self.activation_bits)

    def savings(self, alive: np.ndarray) -> np.ndarray:
        """Return the BOPs that each channel costs: those saved by removing it alone, int64 [channels + 1]."""
        saved = np.zeros(len(alive), np.int64)
        for layer in self.model.layers:
            made, read = self._pairs(layer)
            bits = self.weight_bits[layer.name] * self.activation_bits[layer.name]
            each = self.macs[layer.name] // made.size * bits
            left = alive[made] & alive[read]
            np.add.at(saved, made[left], each)
            np.add.at(saved, read[left & (read != made)], each)
        saved[NONE] = 0
        return saved

    def _pairs(self, layer: Layer) -> tuple[np.ndarray, np.ndarray]:
        """The channel that each number of a weight makes, and the one it reads; [out, in / groups] both."""
        rows, columns = self.channels.rows[layer.name], self.channels.columns[layer.name]
        group = np.arange(len(rows)) // (len(rows) // layer.groups)
        return np.broadcast_to(rows[:, None], layer.shape[:2]), columns[group]

    def masks(self, alive: np.ndarray, reading: np.ndarray | None = None) -> Any:
        """Return a pytree as the model's parameters, 1 for what is left and 0 for what is removed.

        reading: the channels whose columns are left; None: those of `alive`, whose rows are left.
        """
        reading, values = alive if reading is None else reading, dict[str, np.ndarray]()
        for name, ids in self.channels.others.items():
            values[name] = alive[ids]
        for layer in self.model.layers:
            made, read = self._pairs(layer)
            values.setdefault(layer.parameter, self._placed(layer.parameter, alive[made] & reading[read]))
        return map_named(lambda name, leaf: values[name].astype(leaf.dtype), self.model.params)

    def _placed(self, parameter: str, pairs: np.ndarray) -> np.ndarray:
        """Put what is said of the pairs [out, in / groups] of a weight where its parameter has them."""
        tensor, shape = self.model.tensors[parameter], self._shapes[parameter]
        spread = np.broadcast_to(pairs.reshape(*pairs.shape, *[1] * (len(tensor.shape) - 2)), tensor.shape)
        return tensor.to_parameter(spread, shape)

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: leaf.shape for name, leaf in named_leaves(self.model.params).items()}

    @cached_property
    def _norms(self) -> dict[str, np.ndarray]:
        """The channels of the scales of norms, by the name of the parameter."""
        recorder = self.model.traced(self.model.input_shape, jnp.dtype(jnp.float32)).recorder.forward
        names = {name for kind, name in zip(recorder.kind, recorder.name) if kind == 'bn' and name}
        return {name: ids for name, ids in self.channels.others.items() if name in names}

    @cached_property
    def _bare(self) -> dict[str, np.ndarray]:
        """The channels that no norm scales, of each number of the weights that make them; 0 elsewhere."""
        scaled = np.zeros(self.channels.count + 1, bool)
        for ids in self._norms.values():
            scaled[ids] = True
        found = {}
        for layer in self.model.layers:
            rows = self.channels.rows[layer.name]
            rows = np.where(scaled[rows] | self.channels.kept[rows], 0, rows)
            if rows.any() and layer.parameter not in found:
                pairs = np.broadcast_to(rows[:, None], layer.shape[:2])
                found[layer.parameter] = self._placed(layer.parameter, pairs)
        return found

    def scales(self, params: Any) -> Array:
        """Return the scale of each channel, float32 [channels + 1]; 0 for those that must stay.

        It is the mean of the magnitudes of the scales of the channel's batch norms (arXiv 1708.06519, sec.
        3), each over the mean of its norm: one layer's may be twenty times another's, which says nothing of
        what its channels are worth. Of a channel without a norm it is the root mean square of its row in the
        weight that makes it, over the mean of this over the layer's channels; of several such weights, the
        mean: what a gate that multiplies the channel, and is multiplied into the weight, comes to.
        """
        leaves = named_leaves(params)
        none = jnp.zeros(self.channels.count + 1)
        total, count = none, np.zeros(none.shape)
        for name, ids in self._norms.items():
            total = total.at[ids].add(_over_mean(jnp.abs(leaves[name])))
            np.add.at(count, ids, 1)
        for name, ids in self._bare.items():
            numbers = np.bincount(ids.ravel(), minlength=len(count))
            numbers[0] = 0
            mean = none.at[ids].add(jnp.square(leaves[name])) / np.maximum(numbers, 1)
            present = (numbers > 0) & (mean > 0)
            total = total + _over_mean(jnp.where(present, jnp.sqrt(jnp.where(present, mean, 1)), 0))
            count += numbers > 0
        return jnp.where(self.channels.kept, 0, total / np.maximum(count, 1))

    def remove(self, alive: np.ndarray, scales: np.ndarray, most: float) -> np.ndarray:
        """Remove channels, the least scale for a BOP first, until the model costs no more than `most` BOPs.

        By scales alone the many channels go that cost next to nothing, and the few that cost most stay. Every
        layer keeps `LEAST` of its channels; where that is in the way, the cost stays higher.

        Returns:
          What is left then, as `alive`.
        """
        alive = alive.copy()
        makers: dict[int, list[str]] = {}
        room = {}
        for name, rows in self.channels.rows.items():
            room[name] = int(alive[rows].sum()) - math.ceil(LEAST * len(rows))
            for channel in rows:
                makers.setdefault(int(channel), []).append(name)
        worth = scales / np.maximum(self.savings(alive), 1)
        for channel in np.argsort(worth, kind='stable').tolist():
            if self.cost(alive) <= most:
                break
            if not alive[channel] or self.channels.kept[channel]:
                continue
            if all(room[name] >= makers[channel].count(name) for name in makers[channel]):
                alive[channel] = False
                for name in makers[channel]:
                    room[name] -= 1
        return alive

    def check(self, params: Any, alive: np.ndarray, images: Array, seed: int = 0) -> None:
        """Check that what is removed changes nothing.

        Random numbers take the place of the zeros, first of all that makes the channels that are removed,
        then of all that reads them: in float, the logits must stay what they are, to the bit. Those of a
        training that has diverged are no numbers, and stay none.

        Args:
          params: in which the channels are removed.
          alive: those that are left.
          images: a batch, normalised.
          seed: of the random numbers.

        Raises:
          RuntimeError: the logits differ.
        """
        r, run = np.random.default_rng(seed), jax.jit(self.model.apply)
        expected = np.asarray(run(params, images))
        for left in (self.masks(alive, self.all()), self.masks(self.all(), alive)):
            filled = jax.tree.map(
                lambda p, m: np.where(m > 0, p, r.normal(size=p.shape)).astype(p.dtype), params, left
            )
            if not np.array_equal(run(filled, images), expected, equal_nan=True):
                raise RuntimeError(
                    f'a channel of {self.model.name!r} that was removed has a part in the logits'
                )


def _over_mean(magnitudes: Array) -> Array:
    """Divide magnitudes by the mean of those above 0, which is taken for a constant."""
    mean = jnp.sum(magnitudes) / jnp.maximum(jnp.sum(magnitudes > 0), 1)
    return magnitudes / jnp.maximum(jax.lax.stop_gradient(mean), 1e-12)


def least_cost(removal: Removal) -> int:
    """Return the BOPs of a model of which every layer has as few channels as it may have."""
    alive = removal.remove(removal.all(), np.arange(removal.channels.count + 1), 0)
    return removal.cost(alive)


def narrow(params: Any, masks: Any) -> Any:
    """Cut what is removed out of parameters: along each axis, the places that hold nothing else.

    A model can be traced with these if it takes its widths from them, such as a function of parameters and
    images, or a network of DeepNets-1M (`apply_reference`). A Flax module has its widths in its code.

    Args:
      params: a pytree of arrays.
      masks: of the same structure (`Removal.masks`).

    Raises:
      UserError: nothing is left of a parameter, or no array of full rows and columns, as in groups.
    """

    def cut(value: Any, mask: np.ndarray) -> np.ndarray:
        axes = range(mask.ndim)
        kept = [np.flatnonzero(mask.any(tuple(b for b in axes if b != axis))) for axis in axes]
        places = np.ix_(*kept)
        if not mask[places].all() or not mask.any():
            raise UserError(
                f'what is left of a parameter {list(mask.shape)} is no smaller array: leave it masked'
            )
        return np.asarray(value)[places]

    return jax.tree.map(cut, params, masks)
