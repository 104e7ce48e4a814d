"""A traced model: its layers, its graph, and its own computation with a quantizer in it."""

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ghn_jax.base import bounds
from ghn_jax.base.errors import UserError, shown
from ghn_jax.hypernet.policy_features import resolve
from ghn_jax.models import small_images
from ghn_jax.models.channels import Channels, find_channels
from ghn_jax.models.layout import PredictedTensor
from ghn_jax.models.names import map_named, named_leaves, variable_names
from ghn_jax.models.norms import DependsOnBatch, Structure
from ghn_jax.models.program import FlatProgram, Rewrite, Step, run
from ghn_jax.models.quantizer import FakeQuantizer, Quantizer
from ghn_jax.models.recorder import Layer, Recorder, Site
from ghn_jax.models.sources import Initial
from ghn_jax.networks.graph import Graph
from ghn_jax.quant.policy import Policy
from ghn_jax.quant.scheme import QAT, Scheme, check_scheme


@dataclasses.dataclass(frozen=True, eq=False)
class Traced:
    """A model's program for images of one shape, and what is recorded of it. logits: their operation.

    digest: as `Model.digest`, for this shape.
    """

    program: FlatProgram
    recorder: Recorder
    logits: int
    classes: int
    digest: str

    @functools.cached_property
    def structure(self) -> Structure:
        """Where its batch norms are. Raises DependsOnBatch for one of an unknown form."""
        return Structure(self.program, self.recorder)


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A traced model.

    Attributes:
      name: what the model is called: its class or function.
      input_shape: of the images that it was traced with, the number of images first.
      dtype: of these.
      classes: outputs.
      params: its parameters as a pytree of `jax.ShapeDtypeStruct`.
      layers: its convolutions and linear layers, in the order of the forward pass.
      of_space: whether it is a network of a space, traced.
      graph: as the hypernetwork reads it; names of parameters are their paths in `params`, joined by dots.
      keep: whether parameters that cannot be predicted stay as initialised (`unsupported='keep'`).
      kept: those for which no hypernetwork predicts anything -> why.
      zeros: biases of convolutions, which are 0 where the others are predicted -> why. They are no nodes of
        the graph: in the spaces only linear layers have a bias, and other graphs are unlike all in training.
      digest: 16 hexadecimal digits, others for a model that computes something else or whose parameters have
        other names or shapes. Another version of JAX or Flax may give the same model others.
    """

    name: str
    input_shape: tuple[int, ...]
    dtype: np.dtype
    classes: int
    params: Any
    layers: tuple[Layer, ...]
    of_space: bool
    graph: Graph
    keep: bool
    kept: dict[str, str]
    zeros: dict[str, str]
    digest: str
    tensors: dict[str, PredictedTensor] = dataclasses.field(repr=False)
    initial: Initial | None = dataclasses.field(repr=False)
    traced: Callable[[tuple[int, ...], Any], 'Traced'] = dataclasses.field(repr=False)
    _compiled: dict[Any, Callable[..., Any]] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def apply(
        self,
        params: Any,
        x: Array,
        quantizer: Quantizer | None = None,
        capture: dict[str, Array] | None = None,
    ) -> Array:
        """Compute the logits [N, classes] by the model's own operations; batch norms use this batch.

        Differentiable, and to be compiled with `jax.jit`, in which it gives the numbers of the model itself.

        Args:
          params: a pytree as `self.params`.
          x: images, as many as there are, of the size that the model was traced with.
          quantizer: what every weight and every activation that enters a convolution or a linear layer passes
            through; None: nothing.
          capture: a dict that is filled with the result of each of these layers, by the layer's name.

        Raises:
          UserError: as `prepared`; a quantizer or a capture that is none.
        """
        traced, given = self.prepared(params, x)
        sites = traced.recorder.sites
        # Without a quantizer the numbers are those of the model itself.
        compute = Step.compute if quantizer is None else small_images.compute
        return run(traced.program, given, rewriter(sites, quantizer), capturer(sites, capture), compute)[0]

    def prepared(self, params: Any, x: Array) -> tuple[Traced, list[Any]]:
        """Return the program for these images, and its inputs: parameters, what is not read, images.

        Raises:
          UserError: images of another shape, or integers in place of floats; parameters of other names or
            shapes.
        """
        try:
            x = jnp.asarray(x)
        except (TypeError, ValueError):
            raise UserError(f'images are {shown(x)}: expected an array') from None
        if x.shape[1:] != self.input_shape[1:]:
            raise UserError(
                f'images are {shown(x.shape)}, the model is traced for (N, '
                f'{", ".join(map(str, self.input_shape[1:]))}): trace it for these, or resize them'
            )
        if jnp.issubdtype(x.dtype, jnp.floating) != jnp.issubdtype(self.dtype, jnp.floating):
            raise UserError(
                f'images are {x.dtype}, the model is traced for {self.dtype}: normalise them, as '
                'Dataset.normalized does, or trace it with that dtype'
            )
        if x.shape[0] == 0:  # it may be a symbol
            raise UserError(f'there are no images in {x.shape}: give at least one')
        traced, given = self.traced(x.shape, x.dtype), self._leaves(params)
        return traced, [*given, *[None] * (len(traced.program.inputs) - len(given) - 1), x]

    def _leaves(self, params: Any) -> list[Any]:
        """Return the leaves of a pytree that has those of `self.params` by name, in the order there."""
        expected, given = named_leaves(self.params), named_leaves(params)
        advice = f'give a pytree like params of model {self.name!r}'
        for name in [*expected, *given]:
            if name not in given:
                raise UserError(f'params have no {name!r}, but {shown([*given])}: {advice}')
            if name not in expected:
                raise UserError(f'params have {name!r}, which the model has not: {advice}')
            wanted, shape = expected[name], np.shape(given[name])
            if shape != wanted.shape:
                raise UserError(
                    f'{name!r} in params has the shape {shape}, expected {wanted.shape}: {advice}'
                )
            dtype = jnp.result_type(given[name])
            if dtype not in (wanted.dtype, np.float64):  # in which a model can be run to be more precise
                raise UserError(f'{name!r} in params is {dtype}, expected {wanted.dtype}: {advice}')
        return [given[name] for name in expected]

    @functools.cached_property
    def channels(self) -> Channels:
        """The channels of what it computes, found on one image where it runs on one."""
        shape = (1, *self.input_shape[1:])
        try:
            traced = self.traced(shape, self.dtype)
        except UserError:  # it does not run on one image
            shape = self.input_shape
            traced = self.traced(shape, self.dtype)
        return find_channels(traced.program, traced.recorder, shape)

    def has_single_value_norms(self) -> bool:
        """Return whether a batch norm has one value of each image for a channel, as behind a linear layer.

        Of a batch of one image it makes its shift, whatever the image. One of an unknown form counts as none.
        """
        images = 2
        try:
            norms = self.traced((images, *self.input_shape[1:]), jnp.dtype(jnp.float32)).structure.norms
        except DependsOnBatch:
            return False
        return images in (math.prod(norm.shape[axis] for axis in norm.axes) for norm in norms)

    def compiled(self, function: Callable[..., Any], *static: Any) -> Callable[..., Any]:
        """Return `function(*static, ...)`, compiled; the same object at every call, so it compiles once.

        It lives as long as this model.

        Args:
          function: of a module, or a method of the model: one that is equal at the next call.
          static: its first arguments, hashable; the others are pytrees of arrays.
        """
        key = (function, *static)
        if key not in self._compiled:
            self._compiled[key] = jax.jit(functools.partial(function, *static))
        return self._compiled[key]

    def quantizer(self, policy: Policy, scheme: Scheme = QAT) -> FakeQuantizer:
        """Return what rounds the weights and activations of this model to a policy's bits.

        Args:
          policy: the bits; its names and rules are for the names of weights in `layers`.
          scheme: how grids are found.

        Raises:
          UserError: the policy is of another model.
        """
        check_scheme(scheme)
        return FakeQuantizer(resolve(policy, self.graph), scheme)

    def initial_params(self, seed: int = 0) -> Any:
        """Make the parameters as the model starts with them, a pytree as `params`.

        seed: of a Linen module's `init`. Other models came with their parameters.

        Raises:
          UserError: they are not known, as the model came with shapes only, or are not finite; a seed that is
            no integer from 0.
        """
        values = self.initial_values(variable_names(self.params), seed)
        return map_named(lambda name, _: values[name], self.params)

    @jax.ensure_compile_time_eval()
    def initial_values(self, names: Collection[str], seed: int = 0) -> dict[str, Any]:
        """Make some of the parameters as the model starts with them, by name; as `initial_params`."""
        if self.initial is None:
            raise UserError(
                f'model {self.name!r} came with the shapes of its parameters only: give initial values, too'
            )
        bounds.check(seed=seed)
        values = self.initial(seed, names)
        for name, value in values.items():
            if not jnp.all(jnp.isfinite(value)):
                raise UserError(
                    f'parameter {name!r} of model {self.name!r} starts with values that are no numbers: give '
                    'finite ones'
                )
        return values


def rewriter(sites: Mapping[int, Site], quantizer: Quantizer | None) -> Rewrite:
    """Return what passes the weight and the activation of each layer of a program through a quantizer.

    Raises:
      UserError: it is something else, such as a policy.
    """
    if quantizer is not None and not isinstance(quantizer, Quantizer):
        raise UserError(
            f'quantizer is {shown(quantizer)}: expected what model.quantizer(policy, scheme) gives'
        )

    def rewrite(k: int, operands: list[Any], values: dict[int, Any]) -> list[Any]:
        if quantizer is not None and (site := sites.get(k)):
            w, activation = operands[site.weight], operands[site.activation]
            whole = activation if site.whole is None else values[site.whole]
            quantized = quantizer.weight(site.layer.parameter, site.layout.to_tensor(w))
            operands[site.weight] = site.layout.to_operand(quantized)
            operands[site.activation] = quantizer.activation(site.reader, activation, whole)
        return operands

    return rewrite


def capturer(sites: Mapping[int, Site], capture: dict[str, Array] | None) -> Callable[[int, Any], None]:
    """Return what keeps the result of each layer of a program in a dict, by the layer's name; None: nothing.

    Raises:
      UserError: it is something else, such as a list.
    """
    if capture is not None and not isinstance(capture, dict):
        raise UserError(
            f'capture is {shown(capture)}: expected a dict, which gets the result of each layer by its name'
        )

    def seen(k: int, result: Any) -> None:
        if capture is not None and k in sites:
            capture[sites[k].layer.name] = result

    return seen
