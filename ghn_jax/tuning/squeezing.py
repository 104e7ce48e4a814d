"""Widening and squeezing (arXiv 2002.00555): more channels at few bits, then only as many as are worth it.

A low-bit network with more channels than its original is trained through quantization, with an l1 penalty on
the scale of each channel. Between passes the channels with the least scales are removed, until the rest
costs as many bit operations (BOPs) as the original, or a multiple. The paper says what is done and not with
which numbers; penalty, schedule and order of removal here are those of network slimming (arXiv 1708.06519)
and our own.

A folder has, for each training, what that of `finetune` has: NAME.safetensors, runs/NAME.json and, while it
goes on, runs/NAME.state.npz; and NETWORK.widened.json, the architecture that the parameters are for.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ghn_jax.base import files, lock
from ghn_jax.base.errors import FieldError
from ghn_jax.base.paths import Place
from ghn_jax.datasets.load import Dataset
from ghn_jax.hypernet.policy_features import resolve
from ghn_jax.quant.policy import Policy
from ghn_jax.quant.scheme import QAT, Scheme
from ghn_jax.runs.progress import Progress
from ghn_jax.tuning import comparison_table
from ghn_jax.tuning.finetune import check_batches, check_models
from ghn_jax.tuning.images import TuningImages
from ghn_jax.tuning.initialization import Start
from ghn_jax.tuning.removal import Removal, least_cost
from ghn_jax.tuning.scoring import Accuracy
from ghn_jax.tuning.squeeze_training import KINDS, SqueezeSpec, SqueezeTask, Squeezing
from ghn_jax.tuning.training import Trainer, TrainingState, cross_entropy, trainer_of_loss
from ghn_jax.tuning.widening import Pair


def squeeze(
    pairs: Sequence[Pair],
    start: Start,
    spec: SqueezeSpec,
    out: Place,
    *,
    dataset: Dataset,
    scheme: Scheme = QAT,
    used: Callable[[Policy], Policy] = lambda policy: policy,
) -> dict[str, Any]:
    """Widen networks, train them, and remove channels until they cost what they may.

    What is done already in the folder is not done again.

    Args:
      pairs: traced, of as many classes as the data have, each with a name of its own.
      start: where trainings begin.
      spec: what is trained.
      out: the folder of the trained parameters.
      dataset: its training images are trained on, its test images scored.
      scheme: how tensors are quantized.
      used: a policy -> the one that is used for it, as `Hypernetwork.used`.

    Returns:
      A table: `columns` and `rows`, with `about`, `notes` and `runs`: of each training its scores, its BOPs
      and its file.

    Raises:
      UserError: models that are not for these data, a policy of another model, a cost that cannot be met, a
        folder of other trainings.
    """
    for models in ([pair.original for pair in pairs], [pair.wide for pair in pairs]):
        check_models(models, dataset)
        check_batches(models, batch_size=spec.training.batch_size, eval_batch_size=spec.eval_batch_size)
    begin = time.perf_counter()
    images = TuningImages.of(dataset, batch_size=spec.eval_batch_size, num_images=spec.num_images)
    tasks = list(_tasks(pairs, spec, images, scheme, used))
    total = sum(task.trainer.steps * len(spec.seeds) for task in tasks)
    with lock.holding(out), Progress(total, desc='squeeze') as progress:
        (out / 'runs').mkdir(exist_ok=True)
        for pair in pairs:
            if pair.spec is not None:
                files.write(out / f'{pair.name}.widened.json', pair.spec.to_json())
        runs = [task.run(start, seed, out, progress) for task in tasks for seed in spec.seeds]
    before = {'networks': ', '.join(pair.name for pair in pairs), 'from': start.name}
    after = {'cost': spec.cost, 'penalty': spec.penalty}
    about = images.about(spec.training, spec.seeds, before=before, after=after)
    about['seconds'] = round(time.perf_counter() - begin, 1)
    return {'title': 'Widening and squeezing', 'about': about, **table(runs), 'notes': [_NOTE], 'runs': runs}


def table(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the table of trainings: `columns`, and `rows`, one for each network, bit-width and kind."""
    marks = list(runs[0]['scores'])
    rows: list[list[Any]] = []
    of = lambda run: (run['network'], run['bits'], run['kind'])
    for key, members in comparison_table.grouped(runs, of).items():
        left, bops, cost = (np.mean([run[what] for run in members]) for what in ('left', 'bops', 'cost'))
        channels = f'{left:.0f} of {members[0]["channels"]}'
        row = [*key, len(members), channels, f'{bops / 1e6:.2f}', f'{cost:.2f}']
        scores = [[(run['network'], run['scores'][mark]) for run in members] for mark in marks]
        rows.append([*row, *map(comparison_table.mean, scores)])
    columns = ['network', 'bits', 'kind', 'seeds', 'channels left', 'MBOPs', 'cost']
    return {'columns': [*columns, *(f'top-1, {mark}' for mark in marks)], 'rows': rows}


_NOTE = (
    'Cost is BOPs over those of the original at the same bits. Top-1 in percent after so many passes over '
    'the training images, run at the bits of the training. Mean ± standard error over seeds.'
)


def _tasks(
    pairs: Sequence[Pair],
    spec: SqueezeSpec,
    images: TuningImages,
    scheme: Scheme,
    used: Callable[[Policy], Policy],
) -> Iterator[SqueezeTask]:
    """Yield each network at each bit-width, of each kind; those of one model share its programs."""
    settings = {
        'training': dataclasses.asdict(spec.training),
        'scheme': dataclasses.asdict(scheme),
        'scoring': [spec.eval_batch_size, images.test.count],
        'images': images.identity,
    }
    for pair in pairs:
        for policy in spec.policies:
            bits, policy = str(policy), used(policy)
            narrow, wide = (Removal.of(m, resolve(policy, m.graph)) for m in (pair.original, pair.wide))
            original = narrow.cost(narrow.all())
            if 'squeezed' in spec.kinds:
                whole, least = wide.cost(wide.all()) / original, least_cost(wide) / original
                _check_cost(pair.name, spec.cost, whole, least)
            for removal, of_kinds in ((narrow, KINDS[:1]), (wide, KINDS[1:])):
                kinds = [kind for kind in spec.kinds if kind in of_kinds]
                if not kinds:
                    continue
                trainer, score = _programs(removal, policy, scheme, spec, images)
                of_model = settings | {'bits': policy.to_dict(), 'model': removal.model.digest}
                for kind in kinds:
                    of_task, most = of_model | {'kind': kind}, math.inf
                    if kind == 'squeezed':
                        of_task |= {'squeezing': [spec.cost, spec.penalty]}
                        most = spec.cost * original
                    yield SqueezeTask(
                        pair.name, kind, bits, policy, removal, original, most, spec, images, trainer, score,
                        of_task,
                    )  # fmt: skip


def _programs(
    removal: Removal, policy: Policy, scheme: Scheme, spec: SqueezeSpec, images: TuningImages
) -> tuple[Trainer, Callable[[Any], float]]:
    """Return what trains a model and what scores it; masks and penalty are arguments of the program."""
    model = removal.model
    quantizer = model.quantizer(policy, scheme)
    free = ~removal.channels.kept

    def loss(params: Any, state: TrainingState, x: Array, labels: Array) -> Array:
        fixed: Squeezing = state.fixed
        left = jax.tree.map(jnp.multiply, params, fixed.masks)
        scales = jnp.sum(jnp.where(fixed.alive & free, removal.scales(left), 0))
        return cross_entropy(model.apply(left, x, quantizer), labels) + fixed.penalty * scales

    trainer = trainer_of_loss(loss, spec.training, images.dataset)
    return trainer, Accuracy(lambda params, x: model.apply(params, x, quantizer), images.test)


def _check_cost(name: str, cost: float, wide: float, least: float) -> None:
    if not least <= cost <= wide:
        raise FieldError(
            'cost',
            f'={cost:g}: {name!r} costs {wide:.3f} of the original with all its channels and {least:.3f} '
            'with the fewest that every layer keeps: give a number between',
        )
