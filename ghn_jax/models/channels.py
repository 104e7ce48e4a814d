"""The channels of a traced model: which of them can only be removed together, and who reads and writes them.

Every number that a model computes for an image belongs to one channel or to none. The pixels of the image
belong to none, and neither does what is computed from several channels without a weight. A layer makes a
channel with each row of its weight. The numbers that a sum, a product or a gate joins belong to one channel
from then on, so the ends of a residual block are tied. A depthwise convolution keeps the channels that it
reads; concatenation and reshaping move channels about. All this is found by doing the model's own steps on
arrays of channel numbers.

What cannot be followed is kept: the channels that enter attention, a norm over channels, an unknown
operation, and the logits.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax.models.program import (
    CASTS,
    PASSED_ON,
    WITH_DERIVATIVES,
    FlatProgram,
    Operand,
    Step,
    body,
    flatten,
)
from ghn_jax.models.recorder import Recorder, Site

NONE = 0  # the number of no channel

_NUMBER_BY_NUMBER = (
    'abs', 'add', 'add_any', 'and', 'atan', 'ceil', 'clamp', 'cos', 'div', 'eq', 'erf', 'erfc', 'exp', 'exp2',
    'expm1', 'floor', 'ge', 'gt', 'integer_pow', 'is_finite', 'le', 'log', 'log1p', 'logistic', 'lt', 'max',
    'min', 'mul', 'ne', 'neg', 'not', 'or', 'pow', 'rem', 'round', 'rsqrt', 'select_n', 'sign', 'sin', 'sqrt',
    'square', 'sub', 'tan', 'tanh', 'xor',
)  # fmt: skip
_REDUCTIONS = ('reduce_sum', 'reduce_max', 'reduce_min')
_WINDOWS = ('reduce_window_sum', 'reduce_window_max', 'reduce_window_min', 'reduce_window')


@dataclasses.dataclass(frozen=True, eq=False)
class Channels:
    """The channels of a model, numbered from 1; 0 (`NONE`) is none of them.

    Attributes:
      count: how many there are.
      kept: bool [count + 1], those that must stay.
      rows: name of a layer -> int [out], the channel that each row of its weight makes.
      columns: name of a layer -> int [groups, in / groups], the channel that each column reads.
      others: name of a parameter that is no weight of a layer -> int, of its shape: where its numbers go.
    """

    count: int
    kept: np.ndarray
    rows: Mapping[str, np.ndarray]
    columns: Mapping[str, np.ndarray]
    others: Mapping[str, np.ndarray]


def find_channels(program: FlatProgram, recorder: Recorder, shape: Sequence[int]) -> Channels:
    """Find the channels of a model by its operations.

    Args:
      program: of the model.
      recorder: what is known of it.
      shape: of the images of the program.
    """
    walk, leaves = _Walk(), recorder.leaves
    of_layers = {site.layer.parameter for site in recorder.sites.values()}
    given = [
        np.zeros(leaf.shape, int) if leaf.name in of_layers else walk.classes.fresh(leaf.shape)
        for leaf in leaves
    ]
    variables = len(program.inputs) - len(leaves) - 1  # which no step reads
    arguments = [*given, *[np.zeros((), int)] * variables, np.zeros(shape, int)]
    for logits in walk.walk(program, arguments, recorder.sites):
        walk.classes.keep(logits)
    others = {leaf.name: ids for leaf, ids in zip(leaves, given) if leaf.name not in of_layers}
    return _numbered(walk, others)


def _numbered(walk: '_Walk', others: Mapping[str, np.ndarray]) -> Channels:
    """Number the channels of a finished walk in the order of the layers that make them."""
    root = walk.classes.root
    made = [root(rows) for rows in walk.rows.values()]
    roots = list(dict.fromkeys(itertools.chain.from_iterable(map(np.ravel, made))))
    roots = np.array([r for r in roots if r != NONE], int)
    number = np.zeros(len(walk.classes), int)  # what no layer makes is no channel
    number[roots] = np.arange(1, len(roots) + 1)
    kept = np.zeros(len(roots) + 1, bool)
    kept[number[root(np.array(sorted(walk.classes.kept), int))]] = True
    kept[NONE] = True
    of = lambda arrays: {name: number[root(ids)] for name, ids in arrays.items()}
    return Channels(len(roots), kept, of(walk.rows), of(walk.columns), of(others))


class _Classes:
    """Numbers, of which some are said to be the same (union-find). NONE is like none of them."""

    def __init__(self):
        self.parent = np.zeros(1, int)
        self.kept: set[int] = set()

    def __len__(self) -> int:
        return len(self.parent)

    def fresh(self, shape: Sequence[int]) -> np.ndarray:
        """Return new numbers, all different."""
        ids = np.arange(math.prod(shape)) + len(self.parent)
        self.parent = np.concatenate([self.parent, ids])
        return ids.reshape(shape)

    def root(self, ids: np.ndarray) -> np.ndarray:
        """Return one number for each that is the same."""
        while True:
            above = self.parent[ids]
            if np.array_equal(above, ids):
                return ids
            ids = above

    def join(self, a: np.ndarray, b: np.ndarray) -> None:
        """Say that the numbers of two arrays of one shape are the same, but for NONE."""
        both = (a != NONE) & (b != NONE)
        a, b = a[both], b[both]
        while True:
            a, b = self.root(a), self.root(b)
            differ = a != b
            if not differ.any():
                return
            np.minimum.at(self.parent, np.maximum(a, b)[differ], np.minimum(a, b)[differ])

    def keep(self, ids: np.ndarray) -> None:
        """Say that these must stay."""
        self.kept |= set(np.unique(_once([ids], range(ids.ndim))[0]).tolist()) - {NONE}


class _Walk:
    """The steps of a program, done on arrays of channel numbers."""

    def __init__(self):
        self.classes = _Classes()
        self.rows: dict[str, np.ndarray] = {}
        self.columns: dict[str, np.ndarray] = {}

    def walk(
        self, program: FlatProgram, arguments: Sequence[np.ndarray], sites: Mapping[int, Site]
    ) -> list[np.ndarray]:
        """Return the channels of a program's results."""
        values = {slot: np.zeros(np.shape(value), int) for slot, value in program.constants.items()}
        values |= zip(program.inputs, arguments, strict=True)

        def read(operand: Operand) -> np.ndarray:
            return values[operand] if isinstance(operand, int) else np.zeros(np.shape(operand.val), int)

        for k, step in enumerate(program.steps):
            operands = list(map(read, step.inputs))
            if k in sites:
                results = [self._layer(step, sites[k], operands[sites[k].activation])]
            else:
                results = self._results(step, operands)
            values |= zip(step.outputs, results, strict=True)
        return list(map(read, program.outputs))

    def _results(self, step: Step, x: list[np.ndarray]) -> list[np.ndarray]:
        avals: Any = [v.aval for v in step.eqn.outvars]
        shapes = [tuple(aval.shape) for aval in avals]
        kind = step.primitive
        if any(_once([a], range(a.ndim))[0].any() for a in x):
            if kind in WITH_DERIVATIVES:
                return self.walk(flatten(body(step.eqn)), x, {})
            if kind in (*PASSED_ON, *CASTS):
                return x
            if kind in _MOVES:
                return [_MOVES[kind](step.eqn.params, x)]
            if kind in _REDUCTIONS:
                return [self._common(x[0], step.eqn.params['axes'])]
            if kind in _WINDOWS:
                return [self._pooled(x[0], step.eqn.params['window_dimensions'], shapes[0])]
            if kind in _NUMBER_BY_NUMBER and np.broadcast_shapes(*(a.shape for a in x)) == shapes[0]:
                return [self._together(x, shapes[0])]
            for a in x:
                self.classes.keep(a)
            if kind in _CUTS:
                return _CUTS[kind](step.eqn.params, x[0])
        return [np.zeros(shape, int) for shape in shapes]

    def _together(self, x: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
        """Join what meets at the same place."""
        x = _once([np.broadcast_to(a, shape) for a in x], range(len(shape)))
        result = np.zeros_like(x[0])
        for a in x:
            self.classes.join(result, a)
            result = np.where(result == NONE, a, result)
        return np.broadcast_to(result, shape)

    def _common(self, a: np.ndarray, axes: Sequence[int]) -> np.ndarray:
        """Return the one channel of all numbers along some axes; NONE, and they are kept, for several."""
        axes = tuple(axes)
        a = self.classes.root(_once([a], axes)[0])
        result = a.max(axis=axes, keepdims=True)  # padding is of no channel
        alone = np.all((a == result) | (a == NONE), axis=axes, keepdims=True)
        self.classes.keep(a[np.broadcast_to(~alone, a.shape)])
        return np.where(alone, result, NONE).squeeze(axes)

    def _pooled(self, a: np.ndarray, window: Sequence[int], shape: tuple[int, ...]) -> np.ndarray:
        axes = tuple(axis for axis, size in enumerate(window) if size > 1)
        return np.broadcast_to(np.expand_dims(self._common(a, axes), axes), shape)

    def _layer(self, step: Step, site: Site, x: np.ndarray) -> np.ndarray:
        layer, numbers = site.layer, step.eqn.params['dimension_numbers']
        out = layer.shape[0]
        if step.primitive == 'conv_general_dilated':
            feature = numbers.lhs_spec[1]
            entering = self._common(x, [axis for axis in range(x.ndim) if axis != feature])
            place = [1] * x.ndim
            place[numbers.out_spec[1]] = out
        else:
            contracted = numbers[0][site.activation]
            free = [axis for axis in range(x.ndim) if axis not in contracted]
            entering = self._common(x.transpose(*free, *contracted).reshape(-1, layer.shape[1]), [0])
            sizes = [
                n for axis, n in enumerate(step.shapes[site.weight]) if axis not in numbers[0][site.weight]
            ]
            place = [*sizes, *[1] * (len(free) if site.weight == 0 else 0)]
        columns = entering.reshape(layer.groups, -1)
        depthwise = layer.groups > 1 and columns.shape[1] == 1
        rows = np.repeat(entering, out // layer.groups) if depthwise else self.classes.fresh([out])
        self._share(layer.parameter, rows, columns)
        self.rows[layer.name], self.columns[layer.name] = rows, columns
        return np.broadcast_to(rows.reshape(place), step.out_shape)

    def _share(self, parameter: str, rows: np.ndarray, columns: np.ndarray) -> None:
        """Tie the channels of two layers that have one weight; the name of the first is the parameter's."""
        for found, new in ((self.rows, rows), (self.columns, columns)):
            if (before := found.get(parameter)) is not None:
                self.classes.join(before, new)
                self.classes.keep(np.where(before == NONE, new, NONE))
                self.classes.keep(np.where(new == NONE, before, NONE))


def _once(arrays: Sequence[np.ndarray], axes: Iterable[int]) -> list[np.ndarray]:
    """Cut to 1 those of some axes along which all arrays repeat themselves.

    What a layer makes does so from pixel to pixel. NumPy's broadcasting gives such axes a stride of 0.
    """
    repeated = {axis for axis in axes if not any(a.strides[axis] for a in arrays)}
    cut = [slice(0, 1) if axis in repeated else slice(None) for axis in range(arrays[0].ndim)]
    return [a[*cut] for a in arrays]


def _broadcast(params: Any, x: list[np.ndarray]) -> np.ndarray:
    shape = [1] * len(params['shape'])
    for size, axis in zip(x[0].shape, params['broadcast_dimensions'], strict=True):
        shape[axis] = size
    return np.broadcast_to(x[0].reshape(shape), params['shape'])


def _concatenate(params: Any, x: list[np.ndarray]) -> np.ndarray:
    axis, shape = params['dimension'], list(x[0].shape)
    joined = np.concatenate(_once(x, (i for i in range(x[0].ndim) if i != axis)), axis)
    shape[axis] = joined.shape[axis]
    return np.broadcast_to(joined, shape)


def _slice(params: Any, x: list[np.ndarray]) -> np.ndarray:
    strides = params['strides'] or [1] * x[0].ndim
    ends = zip(params['start_indices'], params['limit_indices'], strides, strict=True)
    return x[0][tuple(slice(*end) for end in ends)]


def _pad(params: Any, x: list[np.ndarray]) -> np.ndarray:
    padded = jax.lax.pad(jnp.asarray(x[0], jnp.int32), jnp.int32(NONE), params['padding_config'])
    return np.asarray(padded, int)


_MOVES: dict[str, Callable[[Any, list[np.ndarray]], np.ndarray]] = {
    'reshape': lambda params, x: x[0].reshape(params['new_sizes']),
    'squeeze': lambda params, x: x[0].squeeze(tuple(params['dimensions'])),
    'expand_dims': lambda params, x: np.expand_dims(x[0], tuple(params['dimensions'])),
    'stack': lambda params, x: np.stack(x, params['axis']),
    'transpose': lambda params, x: x[0].transpose(params['permutation']),
    'rev': lambda params, x: np.flip(x[0], params['dimensions']),
    'concatenate': _concatenate,
    'broadcast_in_dim': _broadcast,
    'slice': _slice,
    'pad': _pad,
}

# Of fixed sizes: their channels are followed, and must stay.
_CUTS: dict[str, Callable[[Any, np.ndarray], list[np.ndarray]]] = {
    'split': lambda params, a: np.split(a, np.cumsum(params['sizes'])[:-1], params['axis']),
    'unstack': lambda params, a: list(np.moveaxis(a, params['axis'], 0)),
}
