"""Runs one network on weights that are given by name: through the plain applier, or through the executor.

Axes: N images | H rows and columns | L classes.
"""

import functools
from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ghn_jax.base.concrete import check_concrete
from ghn_jax.base.errors import UserError, shown
from ghn_jax.cnn.building import build_program
from ghn_jax.cnn.executor import forward, make_tapes
from ghn_jax.cnn.program import Program
from ghn_jax.cnn.reference import apply_reference
from ghn_jax.cnn.tables import RunnableNetwork
from ghn_jax.cnn.weight_quantization import quantize_weights
from ghn_jax.networks.counts import count_parameters
from ghn_jax.networks.graph import build_graph
from ghn_jax.networks.spec import IMAGE_SIZE, NetworkSpec
from ghn_jax.quant.policy import Policy, check_policy, quantizable
from ghn_jax.quant.scheme import QAT, Scheme, check_scheme

Applier = Literal['reference', 'executor']
_LEAST_SIZE = 8  # pixels on a side, as of data sets


def run(
    network: NetworkSpec,
    weights: Mapping[str, np.ndarray | Array],
    images: np.ndarray | Array,
    policy: Policy | None = None,
    *,
    scheme: Scheme = QAT,
    applier: Applier = 'reference',
) -> Array:
    """Return the logits of a network on a batch of images.

    BatchNorm statistics and activation ranges are those of this batch. Weights are rounded here, as in
    training and evaluation, so give them as they were predicted. For weights that are rounded already, give
    a policy with `weight_bits=32`.

    Args:
      network: the architecture.
      weights: float32 arrays by DeepNets-1M's parameter names, in PyTorch's layouts (convolutions OIHW,
        linear weights (out, in)), as `Hypernetwork.predict` returns them.
      images: float [N, H, H, 3], normalised as `Dataset.normalized` does.
      policy: the bits of every weight and activation; None: float.
      scheme: how weights and activations are rounded; its mode has no effect here.
      applier: 'reference', which compiles this one network and has gradients, or 'executor', the interpreter
        that training and evaluation use. The two agree up to the order of sums.

    Returns:
      Logits, float32 [N, L].

    Raises:
      UserError: an unknown applier, images of another shape or type, a missing weight or one of another
        shape, a policy that does not fit the network, a network that the executor does not run.
    """
    if applier not in get_args(Applier):
        raise UserError(f'applier={shown(applier)}: expected one of {", ".join(get_args(Applier))}')
    if not isinstance(network, NetworkSpec):
        raise UserError(
            f'the network is {shown(network)}: expected a NetworkSpec; a traced model has `apply` of its own'
        )
    if policy is not None:
        check_policy(policy)
    check_scheme(scheme)
    size = _image_size(images)
    if not network.glob_avg and size != IMAGE_SIZE:
        raise UserError(
            f'network {network.name!r} has a flattened head, defined for {IMAGE_SIZE} pixels, and images '
            f'have {size}: give images of {IMAGE_SIZE} pixels, or networks with glob_avg=True'
        )
    tensors = _check_weights(network, weights)
    policy, scheme = policy or Policy(), scheme.when_used()
    policy.check(quantizable((name, w.shape) for name, w in tensors.items()), network.name)
    images = jnp.asarray(images, jnp.float32)
    if applier == 'reference':
        return _run_reference(network, policy, scheme, tensors, images)
    check_concrete('weights', tensors, "take applier='reference'")
    program = build_program([network], image_size=size, max_params=count_parameters(network))
    layout = program.layout(network)
    flat = program.pack(layout, tensors)
    return _run_executor(program, scheme, flat, layout.tables, program.bits(layout, policy), images)


def _image_size(images: np.ndarray | Array) -> int:
    if not isinstance(images, np.ndarray | Array) or not jnp.issubdtype(images.dtype, jnp.floating):
        kind = getattr(images, 'dtype', type(images).__name__)
        raise UserError(
            f'images are of type {kind}: expected normalised floats, an array as of Dataset.normalized'
        )
    shape = images.shape
    if len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3 or not shape[0] or shape[1] < _LEAST_SIZE:
        raise UserError(f'images have the shape {shape}: expected [N, H, H, 3], H at least {_LEAST_SIZE}')
    return shape[1]


def _check_weights(network: NetworkSpec, weights: Mapping[str, Any]) -> dict[str, Any]:
    """Return the float32 tensors that the logits depend on, in the order of the network's graph."""
    if not isinstance(weights, Mapping):
        raise UserError(f'weights are {shown(weights)}: expected arrays by name, as of Hypernetwork.predict')
    tensors = {}
    for parameter in build_graph(network).parameters:
        name, expected = parameter.name, tuple(parameter.shape)
        if name not in weights:
            raise UserError(f'weights lack {name!r}: give all tensors of network {network.name!r}')
        given = weights[name]
        try:
            tensor = given if isinstance(given, Array) else np.asarray(given)  # one of JAX may be traced
        except (TypeError, ValueError):  # of lists that do not fit together
            tensor = None
        if tensor is None or not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise UserError(f'weights have {name!r}={shown(given)}: expected an array of floats, {expected}')
        tensors[name] = tensor.astype(np.float32)
        if tensors[name].shape != expected:
            raise UserError(f'weights have {name!r} of shape {tensors[name].shape}: expected {expected}')
    return tensors


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _run_reference(
    network: NetworkSpec, policy: Policy, scheme: Scheme, weights: Mapping[str, Array], images: Array
) -> Array:
    return apply_reference(network, weights, images, policy=policy, scheme=scheme)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run_executor(
    program: Program, scheme: Scheme, flat: Array, tables: Any, bits: Any, images: Array
) -> Array:
    tapes = make_tapes(program, images.shape[0], train=False)
    rounded, _ = quantize_weights(flat, tables, bits.weights, jnp.zeros_like(flat), scheme=scheme)
    return forward(program, RunnableNetwork(rounded, tables, bits), images, tapes, scheme=scheme)[0]
