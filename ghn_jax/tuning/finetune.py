"""Fine-tuning through quantization: networks trained from several initialisations, at an equal budget.

A training is one network, at one bit-width, from one initialisation, with one seed. Its folder has, for each:

    NAME.safetensors      the moving average of the parameters, as the model has them, not rounded
    runs/NAME.json        its scores, once it is done
    runs/NAME.state.npz   where it is, while it goes on: stopped and taken up again it is as if never stopped
"""

import dataclasses
import functools
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

import ghn_jax
from ghn_jax.base import bounds, files, jsonfile, lock
from ghn_jax.base.digests import json_digest
from ghn_jax.base.errors import FieldError, UserError
from ghn_jax.base.paths import Place
from ghn_jax.datasets.load import Dataset
from ghn_jax.evaluation.evaluation_spec import BATCH_SIZE
from ghn_jax.evaluation.selection import image_batches
from ghn_jax.hypernet.policy_features import resolve
from ghn_jax.models.model import Model
from ghn_jax.models.sources import variable_names
from ghn_jax.quant.policy import Policy
from ghn_jax.quant.scheme import QAT, Scheme
from ghn_jax.runs.metrics import Progress
from ghn_jax.runs.model_parameters import write_params
from ghn_jax.tuning import comparison
from ghn_jax.tuning.initialization import Start
from ghn_jax.tuning.loop import check_settings, fit
from ghn_jax.tuning.scoring import CalibratedScorer, Scorer, normalized
from ghn_jax.tuning.training import Trainer, TrainingImages, TrainingSpec, make_trainer

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
      batch_norm: 'batch', or 'calibrated': scored by fixed statistics and ranges as well.
      eval_batch_size: test images of a batch, whose statistics batch norms use.
      num_images: test images; 0: all.
      calibration_batches: of training images, the first ones, of eval_batch_size.
    """

    policies: tuple[Policy, ...]
    training: TrainingSpec
    seeds: tuple[int, ...] = (0,)
    batch_norm: str = 'batch'
    eval_batch_size: int = BATCH_SIZE
    num_images: int = 0
    calibration_batches: int = 4

    def __post_init__(self) -> None:
        bounds.check(
            batch_size=self.eval_batch_size,
            num_images=self.num_images,
            calibration_batches=self.calibration_batches,
        )
        if self.batch_norm not in comparison.KINDS:
            raise FieldError('batch_norm', f'={self.batch_norm}: expected batch or calibrated')


@dataclasses.dataclass(frozen=True)
class _Run:
    """One training. settings: all that its result depends on, in JSON's types."""

    model: Model
    policy: Policy
    start: Start
    seed: int
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f'{self.model.name}.{self.policy}.{self.start.name}.seed{self.seed}'


def finetune(
    models: Sequence[Model],
    starts: Sequence[Start],
    spec: FinetuneSpec,
    out: Place,
    *,
    dataset: Dataset,
    scheme: Scheme = QAT,
    used: Callable[[Policy], Policy] = lambda policy: policy,
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

    Returns:
      As `comparison.compare`, with `about`, `notes` and `runs`: of each training its scores and its file.

    Raises:
      UserError: models that are not for these data, a policy of another model, a folder of other trainings.
    """
    check_models(models, dataset)
    for model in models:
        for policy in spec.policies:
            resolve(used(policy), model.graph)
    begin = time.perf_counter()
    tuner = _Tuner(spec, out, dataset, scheme, used)
    runs = list(_runs(models, starts, spec, tuner))
    if len({run.name for run in runs}) < len(runs):
        raise UserError('two trainings have one name: give each network and each file another name')
    with lock.holding(out), Progress(tuner.steps * len(runs), desc='finetune') as progress:
        done = [tuner.run(run, progress) for run in runs]
    result = comparison.compare(done, spec.training.epochs)
    result['about'] = tuner.about(models) | {'seconds': round(time.perf_counter() - begin, 1)}
    result['notes'] = [_NOTE]
    return result | {'title': 'Fine-tuning through quantization', 'runs': done}


def check_models(models: Sequence[Model], dataset: Dataset) -> None:
    """Raise UserError for models that are not for a data set, and for two of one name."""
    shape = dataset.train.images.shape[1:]
    for model in models:
        if model.classes != dataset.num_classes:
            raise UserError(
                f'model {model.name!r} has {model.classes} classes, {dataset.name} has '
                f'{dataset.num_classes}: give a model with {dataset.num_classes} outputs'
            )
        if model.input_shape[1:] != shape:
            raise UserError(
                f'model {model.name!r} is traced for images of shape {model.input_shape[1:]}, those of '
                f'{dataset.name} have {shape}: trace it for these'
            )
    names = [model.name for model in models]
    for name in names:
        if not name or '/' in name or '\0' in name or name.startswith('.') or names.count(name) > 1:
            raise UserError(f'network {name!r} has no name for files of its own: give it another')


def _runs(
    models: Sequence[Model], starts: Sequence[Start], spec: FinetuneSpec, tuner: '_Tuner'
) -> Iterator[_Run]:
    for model in models:
        tensors = dict(
            zip(variable_names(model.params), (list(a.shape) for a in jax.tree.leaves(model.params)))
        )
        for policy in spec.policies:
            for start in starts:
                for seed in spec.seeds:
                    own = {
                        'tensors': json_digest(tensors),
                        'bits': tuner.used(policy).to_dict(),
                        'seed': seed,
                    }
                    yield _Run(model, policy, start, seed, tuner.settings | own | {'from': start.about})


class _Tuner:
    """Trains and scores; what is compiled for a model and its bits serves the runs that follow each other."""

    def __init__(
        self,
        spec: FinetuneSpec,
        out: Place,
        dataset: Dataset,
        scheme: Scheme,
        used: Callable[[Policy], Policy],
    ):
        self.spec, self.out, self.dataset, self.scheme, self.used = spec, out, dataset, scheme, used
        size = spec.eval_batch_size
        self.scored = image_batches(dataset, dataset.test, batch_size=size, num_images=spec.num_images)
        self.calibration: list[Any] = []
        if spec.batch_norm == 'calibrated':
            count = spec.calibration_batches * size
            self.calibration = normalized(
                image_batches(dataset, dataset.train, batch_size=size, num_images=count)
            )
        self.images = TrainingImages.of(dataset)
        self.steps = spec.training.steps_per_epoch(len(dataset.train.labels)) * spec.training.epochs
        self._made: tuple[Any, Any] = (None, None)

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """What all trainings have in common."""
        spec, data = self.spec, self.dataset.train
        return {
            'training': dataclasses.asdict(spec.training),
            'scheme': dataclasses.asdict(self.scheme),
            'scoring': [spec.batch_norm, spec.eval_batch_size, self.scored.count, len(self.calibration)],
            'images': [self.dataset.name, list(data.images.shape), zlib.crc32(data.images.tobytes())],
        }

    def run(self, run: _Run, progress: Progress) -> dict[str, Any]:
        """Do a training, or what is left of it; return its record."""
        folder, parameters = self.out / 'runs', self.out / f'{run.name}.safetensors'
        record = folder / f'{run.name}.json'
        if files.exists(record) and files.exists(parameters):
            done = jsonfile.read(record, 'record', 'delete it, and that training is done again')
            check_settings(run.settings, done.pop('settings', None), record)
            progress.update(self.steps)
            return done
        folder.mkdir(parents=True, exist_ok=True)
        trainer, score = self._functions(run)
        params = run.start.params(run.model, self.used(run.policy), run.seed)
        state_file = folder / f'{run.name}.state.npz'
        state, history = fit(
            trainer,
            self.images,
            trainer.begin(params, run.seed),
            marks=comparison.marks(self.spec.training.epochs),
            score=score,
            file=state_file,
            settings=run.settings,
            progress=progress,
        )
        write_params(parameters, run.model, jax.device_get(state.average), self._metadata(run))
        done = {
            'network': run.model.name,
            'bits': str(run.policy),
            'init': run.start.name,
            'seed': run.seed,
            'file': parameters.name,
            **history,
        }
        files.write_json(record, done | {'settings': dict(run.settings)})
        state_file.unlink(missing_ok=True)
        return done

    def _functions(self, run: _Run) -> tuple[Trainer, Callable[[Any], dict[str, Any]]]:
        """Return what trains a model at these bits, and what scores its parameters."""
        key = run.model, run.policy
        if self._made[0] != key:
            model, policy = run.model, self.used(run.policy)
            quantizer = model.quantizer(policy, self.scheme)
            trainer = make_trainer(
                model.apply, quantizer, self.spec.training, len(self.dataset.train.labels),
                flip=self.dataset.flip,
            )  # fmt: skip
            names: dict[str, Policy] = {comparison.FLOAT: Policy(), str(run.policy): policy}
            quantizers = {name: model.quantizer(of, self.scheme) for name, of in names.items()}
            by_batch = Scorer(model.apply, quantizers, self.scored)
            fixed = CalibratedScorer(model, quantizers, self.scored, self.calibration)

            def score(params: Any) -> dict[str, Any]:
                scores = {'batch': by_batch(params)}
                return scores | ({'calibrated': fixed(jax.device_get(params))} if self.calibration else {})

            self._made = key, (trainer, score)
        return self._made[1]

    def _metadata(self, run: _Run) -> dict[str, str]:
        """What a file of parameters says."""
        return {
            'bits': str(run.policy),
            'finetuned_from': run.start.name,
            'seed': str(run.seed),
            'epochs': str(self.spec.training.epochs),
            'dataset': self.dataset.name,
            'ghn_jax': ghn_jax.__version__,
        }

    def about(self, models: Sequence[Model]) -> dict[str, Any]:
        """What is said below a table."""
        training = self.spec.training
        return {
            'dataset': self.dataset.name,
            **({'note': self.dataset.note} if self.dataset.note else {}),
            'image size': self.dataset.train.images.shape[1],
            'training images': len(self.dataset.train.labels),
            'test images': f'{self.scored.count} in batches of {self.spec.eval_batch_size}',
            'networks': ', '.join(model.name for model in models),
            'seeds': ', '.join(map(str, self.spec.seeds)),
            'epochs': training.epochs,
            'batch size': training.batch_size,
            'learning rate': training.learning_rate,
            'moving average': training.ema,
            'device': f'1 x {jax.devices()[0].device_kind}',
        }
