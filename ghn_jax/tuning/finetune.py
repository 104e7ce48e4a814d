"""Fine-tuning through quantization: networks trained from several initialisations, at an equal budget.

A training is one network, at one bit-width, from one initialisation, with one seed. Its folder has, for each:

    NAME.safetensors      the moving average of the parameters, as the model has them, not rounded; with fixed
                          statistics, or weights that are searched, a folder NAME, of a quantized network
                          (`calibrated_file`)
    runs/NAME.json        its scores, once it is done
    runs/NAME.state.npz   where it is, while it goes on: stopped and taken up again it is as if never stopped
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ghn_jax
from ghn_jax.base import files, lock
from ghn_jax.base.errors import FieldError, UserError
from ghn_jax.base.fields import bounded, check_declared, choice
from ghn_jax.base.paths import Place, is_file_name
from ghn_jax.datasets.load import Dataset
from ghn_jax.evaluation.evaluation_spec import BATCH_SIZE
from ghn_jax.evaluation.model_evaluation import check_data, one_value
from ghn_jax.hypernet.policy_features import resolve
from ghn_jax.models.model import Model
from ghn_jax.quant.policy import Policy
from ghn_jax.quant.scheme import QAT, Scheme
from ghn_jax.runs.progress import Progress
from ghn_jax.tuning import comparison_table
from ghn_jax.tuning.images import TuningImages
from ghn_jax.tuning.initialization import Start
from ghn_jax.tuning.loop import fit
from ghn_jax.tuning.method import Method, Setup
from ghn_jax.tuning.records import TrainingRecord
from ghn_jax.tuning.slb import SearchSpec
from ghn_jax.tuning.slb_method import Slb, searched_names
from ghn_jax.tuning.straight_through import StraightThrough
from ghn_jax.tuning.training import TrainingSpec

STATISTICS = ('batch', 'calibrated', 'fixed')
_CALIBRATION_BATCHES = 4  # of training images, the first ones, as large as those that are scored
_NOTE = (
    'Top-1 in percent after so many passes over the training images, run in float and at the bits of the '
    'training. Mean ± standard error over networks, each the mean of its seeds; of one network, over seeds.'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneSpec:
    """What is trained, and how it is scored.

    Attributes:
      policies: the bits; each is a training of its own.
      training: the budget, equal for all.
      seeds: of random parameters, and of the order of the images.
      batch_norm: statistics are those of each batch ('batch'); and scores by calibrated statistics and ranges
        stand beside ('calibrated'); or statistics are calibrated before training, with rounded weights and
        activations, and the network is trained and scored with these ('fixed').
      eval_batch_size: test images of a batch, whose statistics batch norms use.
      num_images: test images; 0: all.
      search: weights of few bits are searched (`slb_method`) as this says; None: all are rounded
        straight-through.
      marks: passes after which networks are scored beside those of the table.

    Raises:
      FieldError: a number out of its bounds, or other statistics; fixed ones for a search.
    """

    policies: tuple[Policy, ...]
    training: TrainingSpec
    seeds: tuple[int, ...] = (0,)
    batch_norm: str = choice('batch', STATISTICS)
    eval_batch_size: int = bounded('batch_size', BATCH_SIZE)
    num_images: int = bounded('num_images', 0)
    search: SearchSpec | None = None
    marks: tuple[int, ...] = ()

    @property
    def keeps_calibrated(self) -> bool:
        """Whether what is kept are quantized networks with statistics of their own, not parameters."""
        return self.search is not None or self.batch_norm == 'fixed'

    @property
    def scored(self) -> tuple[int, ...]:
        """After which passes networks are scored."""
        return tuple(sorted({*comparison_table.marks(self.training.epochs), *self.marks}))

    def __post_init__(self) -> None:
        check_declared(self)
        if self.search and self.batch_norm == 'fixed':
            raise FieldError(
                'batch_norm', '=fixed: slb estimates statistics with the weights it has found: give another'
            )


def finetune(
    models: Sequence[Model],
    starts: Sequence[Start],
    spec: FinetuneSpec,
    out: Place,
    *,
    dataset: Dataset,
    scheme: Scheme = QAT,
    used: Callable[[Policy], Policy] = lambda policy: policy,
    sources: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, Any]:
    """Train networks from each of several initialisations, and compare their accuracy.

    What is done already in the folder is not done again.

    Args:
      models: traced, of as many classes as the data have, each with a name of its own.
      starts: where they begin.
      spec: what is trained.
      out: the folder of the trained parameters.
      dataset: its training images are trained on, its test images scored.
      scheme: how tensors are quantized.
      used: a policy -> the one that is used for it, as `Hypernetwork.used`.
      sources: by the name of a model how it is made (`calibrated_file`), for fixed statistics.

    Returns:
      As `comparison_table.compare`, with `about`, `notes` and `runs`: of each training its scores and file.

    Raises:
      UserError: models that are not for these data, a policy of another model, a folder of other trainings.
    """
    check_models(models, dataset)
    if spec.batch_norm != 'fixed':
        check_batches(models, batch_size=spec.training.batch_size, eval_batch_size=spec.eval_batch_size)
    sources = sources or {}
    for model in models:
        if spec.keeps_calibrated and model.name not in sources:
            raise FieldError('sources', f' has no {model.name!r}: say how it is made, to keep it folded')
        for policy in spec.policies:
            if spec.search:
                searched_names(used(policy), model)
            else:
                resolve(used(policy), model.graph)
    begin, images = time.perf_counter(), _images(dataset, spec)
    total = images.steps(spec.training) * len(models) * len(spec.policies) * len(starts) * len(spec.seeds)
    with lock.holding(out), Progress(total, desc='finetune') as progress:
        (out / 'runs').mkdir(exist_ok=True)
        runs = [
            _train(method, start, seed, spec, out, progress)
            for method in _methods(models, spec, images, scheme, used, sources)
            for start in starts
            for seed in spec.seeds
        ]
    about = _about(models, spec, images) | {'seconds': round(time.perf_counter() - begin, 1)}
    result = {'title': 'Fine-tuning through quantization', 'about': about}
    return result | comparison_table.compare(runs, spec.training.epochs) | {'notes': [_NOTE], 'runs': runs}


def check_models(models: Sequence[Model], dataset: Dataset) -> None:
    """Raise UserError for models that are not for a data set, and for names that make no files."""
    for model in models:
        check_data(model, dataset)
    names = [model.name for model in models]
    for name in names:
        if not is_file_name(name) or names.count(name) > 1:
            raise UserError(f'network {name!r} has no name for files of its own: give it another')


def check_batches(models: Sequence[Model], **sizes: int) -> None:
    """Raise FieldError where batches of a size, by its field, leave a batch norm a single value."""
    for model in models:
        for field, size in sizes.items():
            if why := one_value(model, size):
                raise FieldError(field, f'={size}: {why}')


def _methods(
    models: Sequence[Model],
    spec: FinetuneSpec,
    images: TuningImages,
    scheme: Scheme,
    used: Callable[[Policy], Policy],
    sources: Mapping[str, Mapping[str, str]],
) -> Iterator[Method]:
    """Yield the method for each network at each bit-width."""
    policies = {str(policy): used(policy) for policy in spec.policies}
    for model in models:
        setup = Setup(
            model=model,
            images=images,
            training=spec.training,
            scheme=scheme,
            statistics=spec.batch_norm,
            source=sources.get(model.name),
        )
        if spec.search:
            yield from Slb.of_each(setup, policies, spec.search)
        else:
            yield from StraightThrough.of_each(setup, policies)


def _train(
    method: Method, start: Start, seed: int, spec: FinetuneSpec, out: Place, progress: Progress
) -> dict[str, Any]:
    """Do a training, or what is left of it, and keep its parameters; return its record."""
    bits, model, images, trainer = method.bits, method.setup.model, method.setup.images, method.trainer
    name = f'{model.name}.{bits}.{start.name}.seed{seed}'
    kept = out / (name if spec.keeps_calibrated else f'{name}.safetensors')
    settings = _settings(method, spec) | {'seed': seed, 'from': start.about}
    record = TrainingRecord(out / 'runs', name, settings)
    if (done := record.read()) and files.exists(kept):
        progress.update(trainer.steps)
        return done
    state, history = fit(
        trainer,
        images.train,
        method.begin(start.params(model, method.policy, seed), seed),
        record,
        marks=spec.scored,
        score=method.score,
        progress=progress,
    )
    metadata = {
        'bits': bits,
        'finetuned_from': start.name,
        'seed': str(seed),
        'epochs': str(trainer.epochs),
        'dataset': images.dataset.name,
        'ghn_jax': ghn_jax.__version__,
    }
    method.keep(kept, state, metadata)
    done = {'network': model.name, 'bits': bits, 'init': start.name, 'seed': seed}
    done |= {'file': kept.name, **history}
    record.write(done)
    return done


def _settings(method: Method, spec: FinetuneSpec) -> dict[str, Any]:
    """Return all that a result depends on beside the start and the seed, in JSON's types."""
    images = method.setup.images
    return {
        'training': dataclasses.asdict(spec.training),
        'search': dataclasses.asdict(spec.search) if spec.search else None,
        'scheme': dataclasses.asdict(method.setup.scheme),
        'scoring': [spec.batch_norm, spec.eval_batch_size, images.test.count, len(images.calibration)],
        'passes': list(spec.scored),
        'images': images.identity,
        'model': method.setup.model.digest,
        'bits': method.policy.to_dict(),
    }


def _images(dataset: Dataset, spec: FinetuneSpec) -> TuningImages:
    is_calibrated = spec.keeps_calibrated or spec.batch_norm != 'batch'
    return TuningImages.of(
        dataset,
        batch_size=spec.eval_batch_size,
        num_images=spec.num_images,
        calibration_batches=_CALIBRATION_BATCHES if is_calibrated else 0,
        filled=spec.batch_norm == 'fixed',
    )


def _about(models: Sequence[Model], spec: FinetuneSpec, images: TuningImages) -> dict[str, Any]:
    calibration = sum(map(len, images.calibration))
    before = {'networks': ', '.join(model.name for model in models)}
    before |= {'search': dataclasses.asdict(spec.search)} if spec.search else {}
    after = {'statistics': spec.batch_norm} | ({'calibration images': calibration} if calibration else {})
    return images.about(spec.training, spec.seeds, before=before, after=after)
