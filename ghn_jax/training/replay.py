"""A network of `bad_networks.jsonl` shown again: the step it failed in, and where it stops being finite.

The step is done again with the networks, images and keys it had, and the parameters of the checkpoint nearest
before it; `exact` trains from there up to it first. Then the network runs by itself, layer by layer, with the
plain reference: without dropout, and in mode noise without noise. On one device.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ghn_jax import config as configs
from ghn_jax.assembly.mesh import replicate
from ghn_jax.base.errors import FieldError, UserError
from ghn_jax.base.jsonlines import read_jsonl
from ghn_jax.base.paths import Place
from ghn_jax.cnn.reference import apply_reference
from ghn_jax.datasets.augment import halved_to, normalize
from ghn_jax.datasets.load import batch_indices
from ghn_jax.hypernet.predict import predict_weights
from ghn_jax.networks.graph import build_graph
from ghn_jax.networks.spec import NetworkSpec
from ghn_jax.quant.policy import Policy
from ghn_jax.quant.scheme import QAT, Scheme
from ghn_jax.quant.strategy import strategy_of
from ghn_jax.runs.checkpoint import Checkpoints
from ghn_jax.runs.task import check_data_dir, load_data, make_ghn, make_space_of
from ghn_jax.training.optimizer import make_optimizer
from ghn_jax.training.run_logger import BAD_NETWORKS
from ghn_jax.training.sampling import Preparation, networks_of
from ghn_jax.training.state import check_images, initial_state, restore_or_init
from ghn_jax.training.step import BAD_GRADIENT, BAD_LOSS, FINE
from ghn_jax.training.stepper import Stepper

_FAULTS = {FINE: 'finite', BAD_GRADIENT: 'gradient not finite', BAD_LOSS: 'loss not finite'}


def replay(workdir: Place, line: int, *, exact: bool = False, data_dir: str | None = None) -> Iterator[str]:
    """Do the step of a network that was not finite again; yield what there is to say, as lines of text.

    Args:
      workdir: of the run.
      line: of `bad_networks.jsonl`, from 1.
      exact: whether to train from the checkpoint before it up to the step first.
      data_dir: the folder of the images; None: where training found them.

    Raises:
      UserError: no such line, no checkpoint, images or a row that are not of this run.
    """
    rows = read_jsonl(workdir / BAD_NETWORKS, 'bad networks')
    if not 1 <= line <= len(rows):
        raise FieldError('line', f'={line}: {workdir / BAD_NETWORKS} has {len(rows)} lines')
    row = rows[line - 1]
    done, index = row['step'], row['network']
    with Checkpoints(workdir) as checkpoints:
        config = _config_of(checkpoints, data_dir)
        dataset = load_data(config)
        ghn, optimizer = make_ghn(config), make_optimizer(config)
        before = [step for step in checkpoints.steps() if step < done]
        # Without one before it: the parameters that training began with, where these are to be had exactly.
        if before or not exact:
            step = max(before, default=min(checkpoints.steps()))
            state, _ = restore_or_init(checkpoints, config, ghn, optimizer, images=dataset.digest, step=step)
        else:
            check_images(checkpoints.restore_meta(), dataset.digest, config, workdir)
            state = initial_state(config, ghn, optimizer)
    space = make_space_of(config)
    strategy = strategy_of(config)
    networks = Preparation(config, space, strategy)
    spec = networks_of(config, space, done - 1)[index]
    policy = strategy.policy_of(done - 1, index, build_graph(spec))
    if spec != NetworkSpec.from_dict(row['spec']):
        raise UserError(f'line {line} of {BAD_NETWORKS} is not of this run: its network is another one')
    run_step = Stepper(config, ghn, optimizer, dataset)
    yield f'network {index} of step {done}, trained with {row["bits"]}: {row["what"]} not finite'
    yield f'its spec: {spec.to_json()}'
    yield f'parameters: of step {int(state.step)}'
    if exact:
        for step, (program, batch) in zip(
            range(int(state.step), done - 1), networks.ahead(int(state.step), done - 1)
        ):
            state, _ = run_step(program, state, batch, step)
        yield f'trained from there to step {int(state.step)}'
    step = replicate(None, jnp.asarray(done - 1, jnp.int32))  # keys are those of the step
    state = state.replace(step=step)
    params = jax.device_get(state.params)  # the step takes the state
    program, batch = networks.step(done - 1)
    _, values = run_step(program, state, batch, done - 1)
    faults = [_FAULTS[int(fault)] for fault in values['faults']]
    yield f'the step again: {", ".join(f"network {i} {fault}" for i, fault in enumerate(faults))}'
    indices = batch_indices(config.seed, done - 1, config.train.batch_size, run_step.count)
    x = normalize(run_step.stream.images[indices], run_step.stream.mean, run_step.stream.std)
    x = halved_to(program.image_size, x)
    weights = predict_weights(ghn, params, spec, policy)
    yield from examine(spec, weights, x, run_step.stream.labels[indices], policy, strategy.scheme.when_used())


def _config_of(checkpoints: Checkpoints, data_dir: str | None) -> Any:
    """Return the config of a run, with the folder of its images where that is given."""
    config = configs.from_json(checkpoints.restore_meta()['config'])
    check_data_dir(config.dataset, data_dir)
    return config if data_dir is None else dataclasses.replace(config, data_dir=data_dir)


def examine(
    spec: NetworkSpec, weights: Mapping[str, np.ndarray], images: jax.Array, labels: jax.Array,
    policy: Policy, scheme: Scheme = QAT,
) -> Iterator[str]:  # fmt: skip
    """Yield where the values of a network stop being finite: in its weights, forward, or backward.

    Args:
      spec: the network.
      weights: its parameters by name, in the shapes of the spec.
      images: [N, H, H, 3], normalised (not augmented).
      labels: int [N].
      policy: how many bits each tensor has.
      scheme: how tensors are quantized.
    """
    bad = [name for name, w in weights.items() if not np.isfinite(w).all()]
    yield 'predicted weights: ' + (f'{bad[0]} and {len(bad) - 1} more are not finite' if bad else 'finite')

    def loss(weights: Mapping[str, jax.Array]) -> jax.Array:
        logits = apply_reference(spec, weights, images, policy=policy, scheme=scheme)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    names = list(weights)
    value, gradients = jax.jit(jax.value_and_grad(loss))({name: jnp.asarray(weights[name]) for name in names})
    yield f'loss: {float(value):.6g}'
    bad = [name for name in names if not np.isfinite(gradients[name]).all()]
    largest = max(float(jnp.max(jnp.abs(g))) for g in gradients.values())
    yield 'gradient: ' + (
        f'not finite in {len(bad)} of {len(names)} tensors, {bad[-1]} the last of them'
        if bad
        else f'finite, the largest is {largest:.3g}'
    )
    if np.isfinite(value):
        return
    asked = _Asked(weights)  # layer by layer: a compilation for each
    try:
        with jax.debug_nans(True), jax.debug_infs(True):
            apply_reference(spec, asked, images, policy=policy, scheme=scheme)
        yield 'forward: finite throughout, the loss is not'
    except FloatingPointError:
        yield f'forward: not finite from the layer of {asked.last} on'


class _Asked(Mapping):
    """Weights by name; knows which a layer asked for last."""

    def __init__(self, weights: Mapping[str, np.ndarray]):
        self.weights, self.last = weights, 'the images'

    def __getitem__(self, name: str) -> np.ndarray:
        self.last = name
        return self.weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)

    def values(self):
        return self.weights.values()  # asked for their types, not by a layer

    def items(self):
        return self.weights.items()
