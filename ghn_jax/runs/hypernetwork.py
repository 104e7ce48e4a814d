"""A trained hypernetwork, loaded from its run directory: what it predicts, and what it was trained on."""

import dataclasses
import os
from typing import Any, overload

import jax
import numpy as np

from ghn_jax.base.errors import UserError, shown
from ghn_jax.datasets.load import Dataset
from ghn_jax.hypernet.policy_features import resolve
from ghn_jax.hypernet.predict import check_network, predict_weights
from ghn_jax.models.model import Model
from ghn_jax.models.weights import predict_model, unknown_parameters
from ghn_jax.networks.ops import primitives_of
from ghn_jax.networks.spaces import Space
from ghn_jax.networks.spec import NetworkSpec
from ghn_jax.quant.policy import Policy, check_policy
from ghn_jax.quant.scheme import Scheme
from ghn_jax.quant.strategy import Strategy, strategy_of
from ghn_jax.runs.run import Run, load_run
from ghn_jax.runs.task import check_data_dir, make_space_of


@dataclasses.dataclass(frozen=True)
class Hypernetwork:
    """A hypernetwork with its parameters, and the run that they come from.

    Attributes:
      run: the opened checkpoint: its config, the Flax module and its parameters.
    """

    run: Run

    @property
    def config(self) -> Any:
        """The configuration of the run; `ghn_jax.config` describes every key."""
        return self.run.config

    @property
    def step(self) -> int:
        """Training steps done."""
        return self.run.step

    @property
    def space(self) -> Space:
        """The space whose networks it was trained on; `space.sample('test', seed, index)` is one of them."""
        return make_space_of(self.run.config)

    @property
    def scheme(self) -> Scheme:
        """How networks are quantized when they are used: what `quantize` and `run` take as `scheme`."""
        return self._strategy.scheme.when_used()

    def used(self, policy: Policy) -> Policy:
        """Return the policy as this run uses it: first and last layer at the run's own width, if it has one.

        `evaluate` does this by itself. Do it before `quantize` and `run`, which know no run.
        """
        check_policy(policy)
        return self._strategy.used(policy)

    @overload
    def predict(self, network: NetworkSpec, policy: Policy | None = None) -> dict[str, np.ndarray]: ...

    @overload
    def predict(self, network: Model, policy: Policy | None = None) -> Any: ...

    @jax.ensure_compile_time_eval()  # in a function that JAX traces, too: the weights are constants there
    def predict(self, network: NetworkSpec | Model, policy: Policy | None = None) -> Any:
        """Predict the weights of one network; they are not rounded.

        Args:
          network: the architecture or a traced model, of as many classes as the hypernetwork predicts.
          policy: what a hypernetwork that is conditioned on the bits predicts weights for; None: float.
            Others predict the same weights for all policies.

        Returns:
          Of a model, its parameters: a pytree of arrays as `Model.params`. Of a spec, every tensor that the
          logits depend on, float32, by DeepNets-1M's parameter names, in PyTorch's layouts: convolutions
          [out, in, height, width] (depthwise: in is 1), linear weights [out, in], positional encodings
          [1, channels, height, width], norms and biases [channels].

        Raises:
          UserError: neither a model nor a network; one of another number of classes, with larger kernels
            than are predicted, with nodes of a kind that was not in training (where a model is traced with
            unsupported='keep', its parameters there stay as initialised) or with a head for images of
            another size; a policy that does not fit it.
        """
        ghn, params, used = self.run.ghn, self.run.params, self.used(policy or Policy())
        if params is None:
            raise UserError('there is no hypernetwork, but images alone: give parameters, or a run')
        if isinstance(network, Model):
            widths = resolve(used, network.graph)
            return predict_model(ghn, params, network, widths, primitives=primitives_of(self.space.ops))[0]
        if not isinstance(network, NetworkSpec):
            raise UserError(
                f'the network is {shown(network)}: expected a model of ghn_jax.trace, or a NetworkSpec'
            )
        check_network(network, ghn, self.run.config.image_size)
        return predict_weights(ghn, params, network, used)

    def unpredicted(self, model: Model) -> dict[str, str]:
        """Return the parameters of a model that this hypernetwork predicts nothing for: {name: why not}."""
        return model.kept | model.zeros | unknown_parameters(model, primitives_of(self.space.ops))

    def load_data(self) -> Dataset:
        """Read the data set of the run, as `Run.load_images`. Raises UserError: it is absent or damaged."""
        return self.run.load_images()

    @property
    def _strategy(self) -> Strategy:
        return strategy_of(self.run.config)


def load(
    workdir: str | os.PathLike,
    step: str | int = 'latest',
    *,
    data_dir: str | os.PathLike | None = None,
) -> Hypernetwork:
    """Load a hypernetwork from a run directory, of `ghn_jax.train` or `ghn_jax.convert`, or from the zoo.

    Args:
      workdir: the directory; training may go on in it meanwhile. `zoo:NAME` is a hypernetwork that comes with
        the package: `python -m ghn_jax.zoo` lists them.
      step: 'latest', the newest checkpoint that can be read; 'best', the one that validated best; a number.
      data_dir: the folder of its images (`load_dataset`); None: where training found them.

    Raises:
      UserError: no such checkpoint, or one of another version; a folder of images that lie in none.
    """
    run = load_run(workdir, str(step), data_dir=data_dir)
    check_data_dir(run.config.dataset, data_dir)
    return Hypernetwork(run)
