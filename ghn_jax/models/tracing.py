"""`trace`: from a model of the user's own to its layers, its graph and a function that quantizes it."""

import contextlib
import copy
import functools
import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from flax.errors import InvalidRngError
from jax.extend.core import ClosedJaxpr
from jax.typing import DTypeLike

from ghn_jax.base.errors import UserError, one_line, shown
from ghn_jax.base.whole_numbers import is_int
from ghn_jax.models import sources
from ghn_jax.models.model import Model, Traced
from ghn_jax.models.names import variable_names
from ghn_jax.models.program import flatten
from ghn_jax.models.recorder import Leaf, Recorder
from ghn_jax.models.sources import ModelSource
from ghn_jax.models.values import CONSTANT, Flow, Statistic, View
from ghn_jax.models.walk import walk
from ghn_jax.networks.counts import MAX_OPERATIONS, MAX_PARAMETERS
from ghn_jax.networks.graph import Graph, reduce_to_nodes
from ghn_jax.networks.layers import LAYERS, PASS, ForwardPass
from ghn_jax.networks.spec import NetworkSpec

_NO_BIAS = 'is a bias of a convolution, of which no hypernetwork has met any'


def trace(
    model: Any,
    input_shape: Sequence[int],
    *,
    params: Any = None,
    dtype: DTypeLike = jnp.float32,
    unsupported: Literal['raise', 'keep'] = 'raise',
    **switches: Any,
) -> Model:
    """Trace a model: find its layers and its graph from its operations. No weights are made.

    A module is run as in training (batch norms take the statistics of the batch), without dropout.

    Args:
      model: a Flax Linen module; an NNX module, maybe an abstract one (`nnx.eval_shape`); a function
        `apply(params, images)`; or a `NetworkSpec`.
      input_shape: of the images, the number of images first: (1, 32, 32, 3), as the model wants them.
      params: of a function: its parameters, or their shapes.
      dtype: of the images.
      unsupported: what to do about parameters that no hypernetwork predicts, such as those of a recurrent
        loop: 'raise' an error that names the first, or 'keep' them as initialised, listed in `Model.kept`.
      **switches: further arguments of the module's call. Where they are not given, those called train,
        training, is_training, use_running_average and deterministic are set as in training without dropout.

    Returns:
      The model with its layers and its graph, which a hypernetwork predicts parameters for.

    Raises:
      UserError: no such model; a shape that it cannot be run on (with its own error); no parameters, or too
        many; an operation that is not known, or parameters that nothing can be predicted for.
    """
    if unsupported not in ('raise', 'keep'):
        raise UserError(f"unsupported is {shown(unsupported)}: expected 'raise' or 'keep'")
    images = images_like('input_shape', input_shape, dtype)
    source = _source(model, images, params, switches)
    leaves, keep = _leaves(source), unsupported == 'keep'
    traced = functools.lru_cache(maxsize=8)(
        lambda shape, dtype: _traced(source, leaves, jax.ShapeDtypeStruct(shape, dtype), keep)
    )
    first = traced(images.shape, images.dtype)
    recorder, graph = first.recorder, _graph(first, source.name)
    kept = {leaves[leaf].name: why for leaf, why in recorder.kept.items()}
    others = {p.name for p in graph.parameters} | {*kept}
    return Model(
        name=source.name,
        input_shape=images.shape,
        dtype=images.dtype,
        classes=first.classes,
        params=source.params,
        layers=tuple(recorder.layers),
        of_space=isinstance(model, NetworkSpec),
        graph=graph,
        keep=keep,
        kept=kept,
        zeros={name: _NO_BIAS for name in _biases(recorder.forward).values() if name not in others},
        digest=first.digest,
        tensors={name: t for name, t in recorder.tensors.items() if t.view.leaf not in recorder.kept},
        initial=source.initial,
        traced=traced,
    )


def images_like(name: str, shape: Any, dtype: Any) -> jax.ShapeDtypeStruct:
    """Return what stands for images of a shape, the argument `name`; raise UserError for one that is none."""
    sizes = tuple(shape) if isinstance(shape, Sequence) else ()
    if len(sizes) < 2 or not all(is_int(size) and size > 0 for size in sizes):
        raise UserError(
            f'{name} is {shown(shape)}: expected the number of images and their shape, as in (1, 32, 32, 3)'
        )
    try:
        return jax.ShapeDtypeStruct(sizes, jnp.dtype(dtype))
    except TypeError:
        raise UserError(f'dtype is {shown(dtype)}: expected that of the images, such as float32') from None


def _source(model: Any, images: jax.ShapeDtypeStruct, params: Any, switches: dict[str, Any]) -> ModelSource:
    if params is not None and isinstance(model, NetworkSpec | linen.Module | nnx.Module):
        raise UserError('params are for a function, a module or a network has its own: leave them out')
    if isinstance(model, NetworkSpec):
        return sources.of_spec(model)
    if isinstance(model, linen.Module):
        with _own_errors(images):
            return sources.of_linen(model, images, switches)
    if isinstance(model, nnx.Module) and callable(model):
        return sources.of_nnx(model, switches)
    if not callable(model) or isinstance(model, type):
        raise UserError(
            f'the model is {shown(model)}: expected a Flax module (an instance), a function apply(params, x) '
            'or a NetworkSpec'
        )
    if params is None:
        raise UserError('the model is a function and params is missing: give its parameters, or their shapes')
    return sources.of_function(model, params)


@contextlib.contextmanager
def _own_errors(images: jax.ShapeDtypeStruct) -> Iterator[None]:
    """Turn what a model raises into one line."""
    try:
        yield
    except UserError:
        raise
    except InvalidRngError as e:
        raise UserError(
            f'the model draws random numbers other than those of nn.Dropout ({one_line(e)}): give them a '
            'rate of 0, or switch them off by an argument'
        ) from e
    except Exception as e:
        raise UserError(
            f'the model cannot be run on images of shape {images.shape}: {type(e).__name__}: {one_line(e)}'
        ) from e


def _leaves(source: ModelSource) -> tuple[Leaf, ...]:
    names, arrays = variable_names(source.params), jax.tree.leaves(source.params)
    if not arrays:
        raise UserError(f'model {source.name!r} has no parameters: there is nothing to predict')
    total = sum(math.prod(a.shape) for a in arrays)
    if total > MAX_PARAMETERS:
        raise UserError(
            f'model {source.name!r} has {total:,} parameters, more than {MAX_PARAMETERS:,}: give fewer'
        )
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(
            f'two parameters are called {twice!r} once their paths are joined by dots: rename one'
        )
    return tuple(Leaf(name, tuple(a.shape)) for name, a in zip(names, arrays))


def _traced(
    source: ModelSource, leaves: tuple[Leaf, ...], images: jax.ShapeDtypeStruct, keep: bool
) -> Traced:
    with _own_errors(images):
        closed, result = jax.make_jaxpr(source.call, return_shape=True)(source.params, source.others, images)
    if not hasattr(result, 'shape') or len(result.shape) != 2 or result.shape[0] != images.shape[0]:
        said = f'shape {result.shape}' if hasattr(result, 'shape') else type(result).__name__
        raise UserError(
            f'model {source.name!r} returns {said} for {images.shape[0]} images: '
            'expected logits [images, classes]'
        )
    program = flatten(closed)
    others = variable_names(source.others)
    for name, slot in zip(others, program.inputs[len(leaves) : -1]):
        if program.reads(slot):
            raise UserError(
                f'model {source.name!r} reads the variable {name!r}, which is no parameter and has no value '
                'here: call a batch norm as in training, where it takes the statistics of the batch; draw no '
                'random numbers but by Dropout; write constants into the code'
            )
    recorder = Recorder(leaves, images=images.shape[0], channels=images.shape[-1], keep=keep)
    recorder.axes[program.inputs[-1]] = 0
    views = [View(leaf) for leaf in range(len(leaves))]
    (value,) = walk(recorder, program, [*views, *[CONSTANT] * len(others), Flow(0)])
    _check_numbers(recorder, jax.tree.leaves(source.params))
    if not isinstance(value, Flow | Statistic):
        raise UserError(
            f'the logits of model {source.name!r} do not depend on the images: give another model'
        )
    if len(recorder.forward.kind) > MAX_OPERATIONS:
        raise UserError(
            f'model {source.name!r} has {len(recorder.forward.kind):,} operations, more than '
            f'{MAX_OPERATIONS:,}: give a smaller one'
        )
    digest = _digest(leaves, closed)
    return Traced(program, recorder, recorder.as_flow(value).op, result.shape[1], digest)


def _digest(leaves: Sequence[Leaf], closed: ClosedJaxpr) -> str:
    """Tell models apart by their parameters and operations, wherever these stand in the code."""
    program = flatten(closed, derivatives=False)
    results = [slot for step in program.steps for slot in step.outputs]
    number = {slot: k for k, slot in enumerate([*program.inputs, *program.constants, *results])}
    read = lambda operand: number[operand] if isinstance(operand, int) else str(operand)
    steps = [
        (step.primitive, str(sorted(step.eqn.params.items())), [*map(read, step.inputs)])
        for step in program.steps
    ]
    types = [str(aval) for aval in closed.in_avals]
    digest = hashlib.sha256(repr((leaves, types, steps, [*map(read, program.outputs)])).encode())
    for constant in program.constants.values():
        is_key = jnp.issubdtype(constant.dtype, jax.dtypes.prng_key)
        digest.update(np.asarray(jax.random.key_data(constant) if is_key else constant).tobytes())
    return digest.hexdigest()[:16]


def _check_numbers(recorder: Recorder, arrays: Sequence[Any]) -> None:
    """Refuse parameters that are no real numbers: what is predicted for them would be cut off."""
    for name, tensor in recorder.tensors.items():
        leaf = tensor.view.leaf
        if not jnp.issubdtype(dtype := arrays[leaf].dtype, jnp.floating):
            if not recorder.keep:
                raise UserError(f'parameter {name!r} is {dtype}: expected floating-point numbers')
            recorder.kept.setdefault(leaf, f'is {dtype}, no floating-point numbers')


def _graph(traced: Traced, name: str) -> Graph:
    """Return the graph, without the biases of convolutions but that of the last layer."""
    forward, (weight, bias) = traced.recorder.forward, _last_layer(traced)
    left_out = {op for op, added in _biases(forward).items() if added != bias}
    seen = copy.copy(forward)
    seen.kind = [PASS if op in left_out else kind for op, kind in enumerate(forward.kind)]
    nodes, distance, parameters = reduce_to_nodes(seen, traced.logits)
    node_of = {p.name: p.node for p in parameters}
    return Graph(
        nodes=nodes,
        distance=distance,
        parameters=parameters,
        name=name,
        class_weight=node_of[weight],
        class_bias=None if bias is None else node_of[bias],
    )


def _biases(forward: ForwardPass) -> dict[int, str]:
    """Find what adds a bias to what a convolution makes: operation -> name of the bias."""
    found = {}
    for op, (kind, name, parents) in enumerate(zip(forward.kind, forward.name, forward.parents)):
        if kind == 'bias' and name and forward.kind[parents[0]] in LAYERS:
            if len(forward.shape[parents[0]] or ()) == 4:
                found[op] = name
    return found


def _last_layer(traced: Traced) -> tuple[str, str | None]:
    """Find the parameters: the weight and the bias of the layer that makes the logits."""
    forward, ahead, bias = traced.recorder.forward, [traced.logits], {}
    while ahead:
        op = ahead.pop()
        name, shape = forward.name[op], forward.shape[op]
        if forward.kind[op] in LAYERS and name and shape:
            if shape[0] == traced.classes and math.prod(shape[2:]) == 1:
                return name, bias.get(op)
            continue  # what is before another layer makes no logits
        if forward.kind[op] == 'bias':
            bias[forward.parents[op][0]] = name
        ahead.extend(forward.parents[op])
    raise UserError(
        f'no linear layer or 1x1 convolution of the model makes its {traced.classes} logits: end it with one'
    )
