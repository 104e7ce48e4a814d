"""The optimizer of a run."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import optax
import optax.contrib

if TYPE_CHECKING:  # an edit of the config compiles no step anew (`base.source_files`)
    from ghn_jax.config import RunConfig

_MUON_RMS = 0.2  # of a matrix's update, in learning rates: about that of Adam (arXiv 2502.16982)


def make_optimizer(config: 'RunConfig') -> optax.GradientTransformation:
    """Make the optimizer that the config names, after clipping by the global norm.

    'adam' is Adam with L2 regularisation, as GHN-2 (arXiv 2110.13100); 'adamw' is AdamW (arXiv 1711.05101);
    'muon' orthogonalises the momentum of each matrix (K. Jordan 2024; scaled as in arXiv 2502.16982), and is
    AdamW with Nesterov's momentum for embeddings and biases.

    config: of a run; `config.train` says all. Equal settings give the same object.
    """
    t = config.train
    return _optimizer(
        name=t.optimizer,
        schedule=t.schedule,
        steps=t.steps,
        warmup_steps=t.warmup_steps,
        learning_rate=t.learning_rate,
        weight_decay=t.weight_decay,
        clip_norm=t.clip_norm,
        rates=(t.decoder_rate, t.gnn_rate, t.embedding_rate),
    )


@functools.cache  # one object for equal settings, so that compiled steps are found again
def _optimizer(
    *, name: str, schedule: str, steps: int, warmup_steps: int, learning_rate: float, weight_decay: float,
    clip_norm: float, rates: tuple[float, float, float],
) -> optax.GradientTransformation:  # fmt: skip
    parts: list[optax.GradientTransformation]
    rate = _schedule(schedule, steps, warmup_steps, learning_rate)
    if name == 'adam':
        parts = [optax.add_decayed_weights(weight_decay), optax.adam(rate)]
    elif name == 'adamw':
        parts = [optax.adamw(rate, weight_decay=weight_decay)]
    else:
        muon = optax.contrib.muon(
            rate, weight_decay=weight_decay, adam_weight_decay=weight_decay, consistent_rms=_MUON_RMS,
            muon_weight_dimension_numbers=_matrices,
        )  # fmt: skip
        parts = [muon]
    if rates != (1, 1, 1):
        parts.append(_by_part(*rates))
    return optax.chain(optax.clip_by_global_norm(clip_norm), *parts)


def _schedule(name: str, steps: int, warmup_steps: int, learning_rate: float) -> Callable[[Any], Any]:
    if name == 'step':
        drops = {max(1, steps * 2 // 3): 0.1, max(2, steps * 5 // 6): 0.1}
        rate = optax.piecewise_constant_schedule(learning_rate, drops)
    elif name == 'cosine':
        rate = optax.cosine_decay_schedule(learning_rate, max(1, steps))
    else:
        rate = optax.constant_schedule(learning_rate)
    warmup = optax.linear_schedule(0.0, 1.0, warmup_steps) if warmup_steps else lambda step: 1.0
    return lambda step: warmup(step) * rate(step)


def _by_part(decoder: float, gnn: float, embedding: float) -> optax.GradientTransformation:
    """Scale the updates of each part of a hypernetwork."""
    scales = {'decoder': decoder, 'gnn': gnn, 'norm': gnn, 'embedding': embedding, 'bits': embedding}

    def scaled(updates: Any, params: Any) -> Any:
        return {part: jax.tree.map(lambda u, s=scales[part]: u * s, u) for part, u in updates.items()}

    return optax.stateless(scaled)


def _matrices(params: Any) -> Any:
    """Which axes of each parameter make a matrix, for Muon; None of those that are none."""

    def axes(path: Any, leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:
        name = path[-1].key
        if 'kernel' not in name:
            return None
        # [positions of a kernel, in, out], [layers, in, out]: a matrix for each.
        if name == 'fc_kernel' or any(part.key == 'layers' for part in path):
            return optax.contrib.MuonDimensionNumbers(1, 2)
        return optax.contrib.MuonDimensionNumbers(0, tuple(range(1, leaf.ndim)))

    return jax.tree_util.tree_map_with_path(axes, params)
