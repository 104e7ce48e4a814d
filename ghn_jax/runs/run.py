"""Runs: a checkpoint opened for use, and what it says about itself."""

import dataclasses
import functools
import os
import sys
from collections.abc import Iterable
from typing import Any

import jax

from ghn_jax import config as configs
from ghn_jax.base import paths
from ghn_jax.base.errors import FieldError, UserError, shown
from ghn_jax.base.jsonlines import read_jsonl
from ghn_jax.base.paths import Place
from ghn_jax.config import ImagesConfig, RunConfig, SpaceConfig
from ghn_jax.datasets.load import Dataset, read_sizes
from ghn_jax.hypernet.ghn import GHN, GHNConfig
from ghn_jax.quant.policy import parse_bits
from ghn_jax.runs import zoo
from ghn_jax.runs.checkpoint import Checkpoints, Vanished
from ghn_jax.runs.task import load_data, make_ghn

_USED = 'ema', 'params'  # a run is used with the average of its parameters, where it has one
VALIDATION = 'val/top1_'
"""Begins the name of a validation's metric; the name of the bits follows."""
_ATTEMPTS = 10  # to read the best checkpoint while training replaces it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A checkpoint opened for use.

    Attributes:
      config: of the run.
      ghn: the hypernetwork.
      params: its parameters, nested dicts of arrays; None: there is no hypernetwork, but a data set alone.
      step: training steps done.
      meta: what `run_meta` gave when it was saved.
    """

    config: RunConfig
    ghn: GHN
    params: Any
    step: int
    meta: dict

    @property
    def images_digest(self) -> int | None:
        """That of the images it was trained on (`Dataset.digest`); None where that is not known."""
        return self.meta.get('dataset', {}).get('digest')

    def load_images(self) -> Dataset:
        """Read the data set; say on the screen where it is not what the hypernetwork was trained on.

        Raises:
          UserError: it is absent or damaged.
        """
        dataset = load_data(self.config)
        if self.images_digest not in (None, dataset.digest):
            _warn_once(
                f'warning: {self.config.dataset} has other images or labels than the run was trained on: put '
                'those back, or take what follows for a result on these'
            )
        return dataset


@functools.cache  # commands read the images several times
def _warn_once(text: str) -> None:
    print(text, file=sys.stderr)


def load_run(
    workdir: str | os.PathLike, step: str = 'latest', *, data_dir: str | os.PathLike | None = None
) -> Run:
    """Load a checkpoint of a run directory, of `train` or `convert`, or one that comes with the package.

    Args:
      workdir: the run directory, or `zoo:NAME`.
      step: 'latest' is the newest that can be read; 'best' that which validated best; or a number. The zoo
        has one of each run.
      data_dir: the folder of its images (`datasets.load.load`); None: where training found them.

    Raises:
      UserError: no such checkpoint, or one that is not ours; that of a number was deleted meanwhile.
    """
    if step not in ('latest', 'best') and not (step.isdecimal() and len(step) <= 10):
        raise FieldError('step', f'={shown(step)}: expected latest, best or a number')
    if (name := paths.zoo_name(workdir)) is not None:
        params, meta = _of_zoo(name, step)
    else:
        workdir = paths.place(workdir, 'workdir')
        params, meta = _restore(workdir, step)
    config, ghn, done = read_meta(meta, workdir)
    if data_dir is not None:
        folder = os.fspath(data_dir) if isinstance(data_dir, os.PathLike) else data_dir
        config = dataclasses.replace(config, data_dir=folder)
    return Run(config=config, ghn=GHN(ghn), params=params, step=done, meta=meta)


def run_of_images(dataset: str, *, data_dir: str | None, image_size: int) -> Run:
    """Make what stands for a run where there is none: images, and default grids. Nothing is predicted by it.

    Args: as of `datasets.load.load`.

    Raises:
      UserError: no such data set, or an image size that is too small or too large.
    """
    classes = read_sizes(dataset, data_dir=data_dir).num_classes
    space = SpaceConfig(num_classes=classes, flat_head_share=0.0)
    config = ImagesConfig(dataset=dataset, data_dir=data_dir or '', image_size=image_size, space=space)
    return Run(config=config, ghn=make_ghn(config), params=None, step=0, meta={'kind': 'images'})


def read_meta(meta: Any, workdir: str | os.PathLike) -> tuple[RunConfig, GHNConfig, int]:
    """Return (config, that of the hypernetwork, step) from what a checkpoint says about itself.

    Raises:
      UserError: it was not written by this version, or is of something else.
    """
    try:
        ghn, step = GHNConfig.from_dict(meta['ghn']), int(meta['step'])
        return configs.from_json(meta['config']), ghn, step
    except (KeyError, TypeError, ValueError) as e:
        if isinstance(e, UserError):
            raise UserError(f'the checkpoint in {workdir} cannot be used: {e}') from None
        raise UserError(f'the checkpoint in {workdir} lacks {e}: train again with this version') from None


def validation_metric(config: RunConfig) -> str:
    """Return the name of the metric by which validations are compared: top-1 in the bits trained in."""
    return f'{VALIDATION}{parse_bits("float" if config.quant.mode == "float" else config.quant.bits)}'


def best_validation(validations: Iterable[tuple[int, float]]) -> tuple[int, float] | None:
    """Return the (step, value) with the largest value, the first of equal ones; None of none."""
    return max(validations, key=lambda v: (v[1], -v[0]), default=None)


def _of_zoo(name: str, step: str) -> tuple[Any, dict]:
    params, meta = zoo.read_entry(name)
    if step.isdecimal() and int(step) != meta['step']:
        raise FieldError('step', f'={step}: {paths.ZOO}{name} is of step {meta["step"]}')
    return params, meta


def _restore(workdir: Place, step: str) -> tuple[Any, dict]:
    with Checkpoints(workdir) as checkpoints:
        if step == 'best':
            return _restore_best(workdir, checkpoints)
        return checkpoints.restore_params(*_USED, step=None if step == 'latest' else int(step))


def _restore_best(workdir: Place, checkpoints: Checkpoints) -> tuple[Any, dict]:
    for _ in range(_ATTEMPTS):
        step = _best_step(workdir, checkpoints)
        try:
            return checkpoints.restore_params(*_USED, step=step)
        except Vanished:
            continue  # a later one validated better
    raise FieldError('step', f'=best: {workdir} has a new best step at each attempt to read it: try again')


def _best_step(workdir: Place, checkpoints: Checkpoints) -> int:
    name = validation_metric(configs.from_json(checkpoints.restore_meta()['config']))
    rows = read_jsonl(workdir / 'metrics.jsonl')
    found = best_validation((row['step'], row[name]) for row in rows if row.get(name) is not None)
    if found is None:
        raise FieldError('step', f'=best: {workdir} has no validation yet ({name}): take latest')
    return found[0]


def run_meta(
    config: RunConfig,
    ghn: GHNConfig,
    step: int,
    *,
    kind: str,
    dataset: dict | None = None,
    window: dict | None = None,
    num_devices: int = 1,
) -> dict:
    """Return what a checkpoint says about itself, as JSON.

    kind: 'train' or 'converted'. window: of `RunningMeans.saved`.
    """
    return {
        'kind': kind,
        'step': step,
        'config': configs.to_json(config),
        'ghn': ghn.to_dict(),
        'dataset': dataset or {},
        'window': window or {},
        'jax': jax.__version__,
        'devices': num_devices,
    }


def params_of(workdir: str, ghn: GHN, fresh: dict[str, Any]) -> dict[str, Any]:
    """Load the parameters of another run's newest checkpoint, for training to begin with.

    Args:
      workdir: of the other run.
      ghn: the hypernetwork to be trained.
      fresh: parameters of `ghn`. What the other run lacks is taken from them: the tables of bits, which are
        0, so that it predicts what the other one did.

    Raises:
      UserError: no run there, or one of another hypernetwork.
    """
    run = load_run(workdir)
    theirs, ours = run.ghn.config.to_dict(), ghn.config.to_dict()
    theirs['bits'] |= ours['bits']
    for name, value in ours.items():
        if theirs[name] != value:
            raise FieldError(
                'init_from',
                f'={workdir} has a hypernetwork with {name}={theirs[name]}, this run has {name}={value}: '
                'give the same config.ghn, and data of as many classes',
            )
    return fresh | run.params
