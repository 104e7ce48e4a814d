"""The parameters of a model, predicted, in the model's own structure, layout and precision."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from ghn_jax.base.errors import UserError
from ghn_jax.hypernet.ghn import GHN
from ghn_jax.hypernet.policy_features import weight_names
from ghn_jax.hypernet.predict import predict_from_graph
from ghn_jax.models.channel_places import aligned
from ghn_jax.models.model import Model
from ghn_jax.models.names import map_named
from ghn_jax.networks.counts import MAX_TILES
from ghn_jax.networks.layers import LAYERS
from ghn_jax.quant.policy import FLOAT_BITS, NamedWidths
from ghn_jax.quant.rounding import round_to
from ghn_jax.quant.scheme import Scheme

_MUST_BE_KNOWN = ('msa', 'cse', 'ln', 'pos_enc')  # kinds of nodes that training must have had


def unknown_parameters(model: Model, primitives: Collection[str]) -> dict[str, str]:
    """Find the parameters at nodes of kinds that a hypernetwork has not met: name -> why it predicts none.

    They are those of a norm or of positions themselves, and of the layers before attention or a gate and
    after attention.

    primitives: the kinds that it has met.
    """
    nodes, distance = model.graph.nodes, model.graph.distance
    found = {}
    for v, node in enumerate(nodes):
        if node.primitive not in _MUST_BE_KNOWN or node.primitive in primitives:
            continue
        around = {v} if node.primitive in ('ln', 'pos_enc') else {*_layers(distance, nodes, v, 0)}
        if node.primitive == 'msa':
            around |= {*_layers(distance, nodes, v, 1)}
        for p in model.graph.parameters:
            if p.node in around:
                found[p.name] = f'is at a node of kind {node.primitive!r}, which this hypernetwork never met'
    return found


def _layers(distance: np.ndarray, nodes: Any, v: int, axis: int) -> list[int]:
    """Find the nearest layers before (axis 0) or after (axis 1) a node, with their biases."""
    ahead: list[tuple[int, tuple[str, ...]]] = [(v, (*LAYERS, 'bias'))]
    found = []
    while ahead:
        u, wanted = ahead.pop()
        for w in np.flatnonzero((distance[:, u] if axis == 0 else distance[u]) == 1).tolist():
            kind = nodes[w].primitive
            if kind in wanted:
                found.append(w)
                ahead.append((w, LAYERS if axis == 0 and kind == 'bias' else ('bias',) if axis == 1 else ()))
    return found


def check_model(model: Model, ghn: GHN, primitives: Collection[str]) -> None:
    """Raise UserError if a hypernetwork does not predict the parameters of this model.

    primitives: the kinds of nodes that it has met.
    """
    if model.classes != ghn.config.num_classes:
        raise UserError(
            f'model {model.name!r} has {model.classes} classes, the hypernetwork predicts '
            f'{ghn.config.num_classes}: give a model with {ghn.config.num_classes} outputs'
        )
    unknown = unknown_parameters(model, primitives)
    if unknown and not model.keep:
        name, why = next(iter(unknown.items()))
        raise UserError(
            f'parameter {name!r} of model {model.name!r} {why}: take a hypernetwork that was trained with '
            "such operations, or trace the model with unsupported='keep', which leaves such parameters as "
            'initialised'
        )
    window = ghn.config.max_shape[2]
    for p in model.graph.parameters:
        if max(p.shape[2:], default=1) > window:
            raise UserError(
                f'parameter {p.name!r} of model {model.name!r} has a kernel of {max(p.shape[2:])} pixels, '
                f'the hypernetwork predicts up to {window}: give smaller ones'
            )
    tiles = sum(int(np.prod(p.shape[2:])) for p in model.graph.parameters if len(p.shape) == 4)
    if tiles > MAX_TILES:
        raise UserError(
            f'model {model.name!r} has {tiles:,} positions of kernels, more than {MAX_TILES:,}: '
            'give a smaller one'
        )


def predict_model(
    ghn: GHN,
    params: Any,
    model: Model,
    widths: NamedWidths | None = None,
    *,
    primitives: Collection[str],
    rounded: Scheme | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Predict the parameters of a model.

    Args:
      ghn, params: the hypernetwork.
      model: the model.
      widths: the bits of each weight by name (`policy_features.resolve`); None: float.
      primitives: the kinds of nodes that the hypernetwork has met.
      rounded: round the weights to these bits, on the grids of this scheme.

    Returns:
      A pytree as `model.params`; how weights are rounded, as of `round_to`.

    Raises:
      UserError: as `check_model`; no initial values for parameters that are kept.
    """
    check_model(model, ghn, primitives)
    graph = aligned(model)
    tensors = predict_from_graph(
        ghn, params, graph, widths or dict.fromkeys(weight_names(graph), (FLOAT_BITS, FLOAT_BITS))
    )
    quantization: dict[str, Any] = {}
    kept = {*model.kept, *unknown_parameters(model, primitives)}
    if rounded is not None and widths is not None:
        widths = {name: bits for name, bits in widths.items() if name not in kept}
        tensors, quantization = round_to(tensors, widths, rounded)
    return to_params(model, tensors, kept), quantization


def to_params(model: Model, tensors: Mapping[str, np.ndarray], kept: Collection[str] = ()) -> Any:
    """Put tensors where a model has its parameters, in their layout and precision.

    Args:
      model: the model.
      tensors: by the names of `model.graph.parameters`, in the shapes there.
      kept: names of parameters that stay as initialised.

    Returns:
      A pytree of NumPy arrays as `model.params`; 0 for parameters that the graph does not have: biases of
      convolutions, and what the logits do not depend on.

    Raises:
      UserError: no initial values for parameters that are kept.
    """
    initial = model.initial_values(kept) if kept else {}

    def value(name: str, leaf: Any) -> np.ndarray:
        if name in kept:
            value = np.asarray(initial[name])
        elif name in tensors:
            value = model.tensors[name].to_parameter(tensors[name], leaf.shape)
        else:
            value = np.zeros(leaf.shape)
        return np.ascontiguousarray(value, leaf.dtype)

    return map_named(value, model.params)
