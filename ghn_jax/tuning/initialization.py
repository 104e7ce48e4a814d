"""Where the training of one network begins: random parameters, predicted ones, or those of a file.

A random weight is drawn as the tensor that a hypernetwork would predict, (out, in / groups, height, width) or
(out, in), and put into the model's own layout, so it does not depend on how the model is written. Norms begin
with scale 1 and shift 0, biases with 0.
"""

import dataclasses
import os
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn import initializers

from ghn_jax.base import paths
from ghn_jax.base.digests import array_digests, json_digest
from ghn_jax.base.errors import FieldError
from ghn_jax.hypernet.policy_features import resolve
from ghn_jax.models.model import Model
from ghn_jax.models.weights import check_model, predict_model, to_params
from ghn_jax.networks.ops import primitives_of
from ghn_jax.quant.policy import Policy
from ghn_jax.runs.hypernetwork import Hypernetwork
from ghn_jax.runs.model_parameters import read_params

Initializer = Callable[[Array, tuple[int, ...]], Array]
"""(key, shape of a weight, output channels first) -> float32 of that shape."""

_POSITIONS = 0.02  # standard deviation of position encodings, as in ViT (arXiv 2010.11929)
_AXES = {'in_axis': 1, 'out_axis': 0}


def _uniform(r: float) -> Initializer:
    """Return what draws from U(-r, r)."""
    return lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -r, r)


NAIVE_RANGES = (0.005, 0.05, 0.5)
"""Of initialisers with one range for every layer, whatever its size (arXiv 2011.14578 compares with them)."""

RANDOM: dict[str, Initializer] = {
    # N(0, 2 / fan_in): arXiv 1502.01852, eq. 10; and a uniform distribution of that variance.
    'he': initializers.variance_scaling(2.0, 'fan_in', 'normal', **_AXES),
    'he_uniform': initializers.variance_scaling(2.0, 'fan_in', 'uniform', **_AXES),
    # U(-a, a), a = sqrt(6 / (fan_in + fan_out)): Glorot and Bengio 2010, eq. 16; and a normal one likewise.
    'glorot': initializers.variance_scaling(1.0, 'fan_avg', 'uniform', **_AXES),
    'glorot_normal': initializers.variance_scaling(1.0, 'fan_avg', 'normal', **_AXES),
    # Rows of an orthogonal matrix [out, rest], times sqrt(2) for the ReLUs: arXiv 1312.6120.
    'orthogonal': initializers.orthogonal(scale=2**0.5, column_axis=0),
    **{f'uniform_{r}': _uniform(r) for r in NAIVE_RANGES},
    **{f'normal_{r}': initializers.normal(r) for r in NAIVE_RANGES},
}
"""Random initialisers by name; of the naive ones the number is the bound, or the standard deviation."""
PREDICTED = 'predicted'


def random_params(model: Model, initializer: Initializer, seed: int) -> Any:
    """Draw parameters for a model.

    Args:
      model: traced.
      initializer: of weights: one of `RANDOM`, or any other.
      seed: of all that is drawn; each tensor has a key of its own.

    Returns:
      A pytree of NumPy arrays as `model.params`. Parameters that no graph describes (`Model.kept`) stay as
      the model initialises them.

    Raises:
      UserError: no initial values for parameters that are kept.
    """
    key, tensors = jax.random.key(seed), {}
    for i, p in enumerate(model.graph.parameters):
        if model.graph.nodes[p.node].primitive == 'pos_enc':
            value = _POSITIONS * jax.random.normal(jax.random.fold_in(key, i), p.shape)
        elif len(p.shape) > 1:
            value = initializer(jax.random.fold_in(key, i), p.shape)
        else:
            value = np.full(p.shape, 1 - p.row, np.float32)  # row 0 is a scale, row 1 a shift or a bias
        tensors[p.name] = np.asarray(value)
    return to_params(model, tensors, model.kept)


@dataclasses.dataclass(frozen=True)
class Start:
    """An initialisation.

    Attributes:
      name: in tables and files.
      about: tells it from other initialisations of the same name.
      params: (model, policy as it is used, seed) -> a pytree as `model.params`.
    """

    name: str
    about: str
    params: Callable[[Model, Policy, int], Any]


def check_starts(names: Sequence[str], *, predicted: bool) -> None:
    """Raise FieldError for names of initialisations that `parse_starts` does not take.

    predicted: whether there is a hypernetwork.
    """
    choices = f'{PREDICTED}, {", ".join(RANDOM)}'
    if not names:
        raise FieldError('init', f' is empty: expected of {choices}, or files')
    for name in names:
        if name == PREDICTED:
            if not predicted:
                raise FieldError(
                    'init', f'={PREDICTED}: there is no hypernetwork: give workdir=RUN or zoo:NAME'
                )
        elif name not in RANDOM and not paths.local(name, 'init').is_file():
            raise FieldError('init', f'={name}: expected {choices}, or a file of parameters')


def parse_starts(
    names: Sequence[str], models: Sequence[Model], hypernetwork: Hypernetwork | None
) -> tuple[Start, ...]:
    """Return initialisations by name: 'predicted', those of `RANDOM`, or a file of parameters.

    Args:
      names: without repetitions.
      models: that are to begin there.
      hypernetwork: that predicts them; None, or one of images alone: there is none.

    Raises:
      UserError: an unknown name, 'predicted' without a hypernetwork, parameters or a hypernetwork of other
        models.
    """
    check_starts(names, predicted=hypernetwork is not None and hypernetwork.run.params is not None)
    starts = []
    for name in dict.fromkeys(names):
        if name == PREDICTED and hypernetwork is not None:
            starts.append(_predicted(models, hypernetwork))
        elif name in RANDOM:
            starts.append(_random(name))
        else:
            starts.append(_of_file(name, models))
    if len({start.name for start in starts}) < len(starts):
        raise FieldError('init', f'={",".join(names)}: two of them have one name: rename a file')
    return tuple(starts)


def _predicted(models: Sequence[Model], hypernetwork: Hypernetwork) -> Start:
    run, met = hypernetwork.run, primitives_of(hypernetwork.space.ops)
    for model in models:
        check_model(model, run.ghn, met)

    def params(model: Model, policy: Policy, seed: int) -> Any:
        return predict_model(run.ghn, run.params, model, resolve(policy, model.graph), primitives=met)[0]

    digest = json_digest(array_digests(run.params))
    return Start(PREDICTED, f'step {run.step}, {digest:08x}', params)


def _random(name: str) -> Start:
    return Start(name, name, lambda model, policy, seed: random_params(model, RANDOM[name], seed))


def _of_file(name: str, models: Sequence[Model]) -> Start:
    path = paths.local(name, 'init')
    if len(models) > 1:
        raise FieldError('init', f'={name} is of one network, {len(models)} are given: give one network')
    params = read_params(models[0], path)
    digest = zlib.crc32(path.read_bytes())
    return Start(path.stem, f'{os.fspath(path.name)} {digest:08x}', lambda model, policy, seed: params)
