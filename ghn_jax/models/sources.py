"""What a model may be: a Flax Linen module, an NNX module, a function of parameters and images, a spec.

Each becomes a `ModelSource`: one function of parameters, of variables that are no parameters, and of images.
Modules are run as in training, where a batch norm takes the statistics of the batch, but without dropout.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx

from ghn_jax.base.errors import UserError, shown
from ghn_jax.cnn.reference import apply_reference
from ghn_jax.models.names import named_leaves
from ghn_jax.networks.graph import build_graph
from ghn_jax.networks.spec import NetworkSpec

# What people call the switches of a module's call, and how they stand here.
_SWITCHES = {
    'train': True, 'training': True, 'is_training': True, 'use_running_average': False, 'deterministic': True,
}  # fmt: skip


Initial = Callable[[int, Collection[str]], dict[str, Any]]


@dataclasses.dataclass(frozen=True, eq=False)
class ModelSource:
    """A model as a function.

    Attributes:
      call: (params, others, images) -> logits.
      params, others: pytrees of `jax.ShapeDtypeStruct`.
      initial: (seed, names) -> {name: value} of some parameters as the model starts with them; None: these
        are not known.
      name: what to call it.
    """

    call: Callable[[Any, Any, Any], Any]
    params: Any
    others: Any
    initial: Initial | None
    name: str


def of_spec(spec: NetworkSpec) -> ModelSource:
    """Return a DeepNets-1M network, run by the plain reference."""
    params = {p.name: jax.ShapeDtypeStruct(p.shape, jnp.float32) for p in build_graph(spec).parameters}
    return ModelSource(lambda params, _, x: apply_reference(spec, params, x), params, {}, None, spec.name)


def of_linen(module: linen.Module, images: jax.ShapeDtypeStruct, switches: Mapping[str, Any]) -> ModelSource:
    """Return a Linen module; its parameters are those of the collection `params`."""
    switches = _switches(module.__call__, switches)

    def initial(key):
        with linen.intercept_methods(_without_dropout):
            return module.init(key, jnp.zeros(images.shape, images.dtype), **switches)

    def call(params, others, x):
        with linen.intercept_methods(_without_dropout):
            variables = {'params': params, **others}
            return module.apply(variables, x, mutable=list(others), **switches)[0]

    variables = dict(jax.eval_shape(initial, jax.random.key(0)))
    params = variables.pop('params', {})

    def start(seed: int, names: Collection[str]) -> dict[str, Any]:
        wanted = jax.jit(lambda key: _by_name(initial(key)['params'], names))  # compiles nothing else
        return wanted(jax.random.key(seed))

    return ModelSource(call, params, variables, start, type(module).__name__)


def of_nnx(module: nnx.Module, switches: Mapping[str, Any]) -> ModelSource:
    """Return an NNX module; its parameters are its `nnx.Param`s, its weights may be abstract."""
    definition, params, others = nnx.split(module, nnx.Param, ...)
    switches = _switches(module.__call__, switches)  # pyright: ignore[reportAttributeAccessIssue]

    def call(params, others, x):
        run: Any = nnx.merge(definition, params, others)
        run.set_attributes(use_running_average=False, deterministic=True, raise_if_not_found=False)
        # Also those whose call says that they are not deterministic.
        run.set_attributes(nnx.Dropout, rate=0.0, raise_if_not_found=False)
        return run(x, **switches)

    abstract = lambda tree: jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)
    return ModelSource(call, abstract(params), abstract(others), _held(params), type(module).__name__)


def of_function(apply: Callable[[Any, Any], Any], params: Any) -> ModelSource:
    """Return a function `apply(params, images)`; params may be arrays or `jax.ShapeDtypeStruct`s."""
    try:
        abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), params)
    except AttributeError:
        raise UserError(
            f'params is {shown(params)}: expected a pytree of arrays or of jax.ShapeDtypeStruct'
        ) from None
    name = getattr(apply, '__name__', type(apply).__name__)
    return ModelSource(lambda params, _, x: apply(params, x), abstract, {}, _held(params), name)


def _held(params: Any) -> Initial | None:
    """Return what gives the parameters that a model came with, whatever the seed, if these are numbers."""
    abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params))
    return None if abstract else lambda seed, names: _by_name(params, names)


def _switches(call: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    known = inspect.signature(call).parameters
    return {name: value for name, value in _SWITCHES.items() if name in known} | dict(given)


def _without_dropout(call: Callable[..., Any], args: tuple, kwargs: dict, context: Any) -> Any:
    if isinstance(context.module, linen.Dropout) and context.method_name == '__call__':
        return args[0] if args else kwargs['inputs']
    return call(*args, **kwargs)


def count_parameters(params: Any) -> int:
    """Count the numbers in a pytree of arrays, or of their shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def _by_name(tree: Any, names: Collection[str]) -> dict[str, Any]:
    return {name: leaf for name, leaf in named_leaves(tree).items() if name in names}
