"""What the commands share about a run: its space, its data, its hypernetwork, read from a config or a
checkpoint.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import jax

from ghn_jax import config as configs
from ghn_jax.base import cache, environment, executables, paths
from ghn_jax.base.errors import FieldError, UserError, prefixed, shown
from ghn_jax.base.jsonlines import read_jsonl
from ghn_jax.config import HypernetworkConfig, RunConfig, SpaceConfig
from ghn_jax.datasets.load import Dataset, load
from ghn_jax.hypernet.ghn import GHN, GHNConfig
from ghn_jax.networks.size import IMAGE_SIZE
from ghn_jax.networks.spaces import Space, make_space
from ghn_jax.quant.policy import parse_bits
from ghn_jax.runs.checkpoint import Checkpoints, Vanished

# Keys that may change when a run goes on; all others make it another run.
FREE_KEYS = (
    'data_dir', 'log_every_steps', 'save_every_steps', 'keep_checkpoints', 'keep_every_steps',
    'save_in_background', 'max_not_finite', 'eval', 'devices',
)  # fmt: skip
_ATTEMPTS = 10  # to read the best checkpoint while training replaces it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A checkpoint opened for use. step: training steps done. meta: what `run_meta` gave when it was
    saved.
    """

    config: RunConfig
    ghn: GHN
    params: Any
    step: int
    meta: dict


def load_run(workdir: str | os.PathLike, step: str = 'latest') -> Run:
    """A checkpoint of a run directory, made by `train` or by `convert`.

    step: 'latest' is the newest that can be read; 'best' that which validated best; or a number.

    Raises:
      UserError: no such checkpoint, or one that is not ours; that of a number was deleted meanwhile.
    """
    workdir = paths.local(workdir, 'workdir')
    with Checkpoints(workdir) as checkpoints:
        if step == 'best':
            params, meta = _restore_best(workdir, checkpoints)
        elif step == 'latest':
            params, meta = checkpoints.restore_params()
        elif step.isdecimal() and len(step) <= 10:
            params, meta = checkpoints.restore_params(step=int(step))
        else:
            raise FieldError('step', f'={shown(step)}: expected latest, best or a number')
    config, ghn, done = read_meta(meta, workdir)
    return Run(config=config, ghn=GHN(ghn), params=params, step=done, meta=meta)


def read_meta(meta: Any, workdir: str | os.PathLike) -> tuple[RunConfig, GHNConfig, int]:
    """(config, that of the hypernetwork, step) from what a checkpoint says about itself. Raises UserError."""
    try:
        ghn, step = GHNConfig.from_dict(meta['ghn']), int(meta['step'])
        return configs.from_json(meta['config']), ghn, step
    except (KeyError, TypeError, ValueError) as e:
        if isinstance(e, UserError):
            raise UserError(f'the checkpoint in {workdir} cannot be used: {e}') from None
        raise UserError(f'the checkpoint in {workdir} lacks {e}: train again with this version') from None


def validated(config: RunConfig) -> str:
    """The name of the metric by which validations are compared: top-1 in the bits trained in."""
    return f'val/top1_{parse_bits("float" if config.quant.mode == "float" else config.quant.bits)}'


def best(validations: Iterable[tuple[int, float]]) -> tuple[int, float] | None:
    """That of the largest value, the first of equal ones, of (step, value)."""
    return max(validations, key=lambda v: (v[1], -v[0]), default=None)


def _restore_best(workdir: pathlib.Path, checkpoints: Checkpoints) -> tuple[Any, dict]:
    for _ in range(_ATTEMPTS):
        step = _best_step(workdir, checkpoints)
        try:
            return checkpoints.restore_params(step=step)
        except Vanished:
            continue  # a later one validated better
    raise FieldError('step', f'=best: {workdir} has a new best step at each attempt to read it: try again')


def _best_step(workdir: pathlib.Path, checkpoints: Checkpoints) -> int:
    name = validated(configs.from_json(checkpoints.restore_meta()['config']))
    rows = read_jsonl(workdir / 'metrics.jsonl')
    found = best((row['step'], row[name]) for row in rows if row.get(name) is not None)
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
    """What a checkpoint says about itself, as JSON. kind: 'train' or 'converted'. window: of `Window`."""
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


def make_space_of(config: RunConfig) -> Space:
    """The space of networks that a config describes. () leaves a rule to the space.

    Raises:
      UserError: an unknown space or op, rules of no use, flattened heads or msa for images of another size
        than 32.
    """
    keys = [field.name for field in dataclasses.fields(SpaceConfig) if field.name != 'name']
    fields = {key: value for key in keys if (value := getattr(config.space, key)) != ()}
    with prefixed('space.'):
        max_steps_deep = min(config.space.max_steps, make_space(config.space.name).max_steps_deep)
        space = make_space(config.space.name, max_steps_deep=max_steps_deep, **fields)
    for key, multiple in (('channels', 16), ('fc_dims', 8)):
        if odd := [value for value in getattr(space, key) or () if value % multiple]:
            raise FieldError(
                f'space.{key}', f' has {odd[0]}: the executor runs multiples of {multiple}; give these'
            )
    if config.image_size != IMAGE_SIZE and 'msa' in space.ops:
        others = tuple(op for op in space.ops if op != 'msa')
        raise FieldError(
            'image_size',
            f'={config.image_size}: networks with msa are for {IMAGE_SIZE} pixels; set space.ops="{others}"',
        )
    if config.image_size != IMAGE_SIZE and space.flat_head_share:
        raise FieldError(
            'image_size',
            f'={config.image_size}: networks with flattened heads are defined for {IMAGE_SIZE} pixels; '
            'set space.flat_head_share=0',
        )
    return space


def load_data(config: RunConfig) -> Dataset:
    """The data set of a config. Raises UserError where it is absent."""
    return load(
        config.dataset, data_dir=config.data_dir or None, image_size=config.image_size, seed=config.seed
    )


def make_ghn(config: RunConfig, num_classes: int) -> GHN:
    """The hypernetwork of a config. Raises UserError for impossible fields."""
    keys = [field.name for field in dataclasses.fields(HypernetworkConfig)]
    with prefixed('ghn.'):
        return GHN(GHNConfig(num_classes=num_classes, **{key: getattr(config.ghn, key) for key in keys}))


def params_of(workdir: str, ghn: GHN, fresh: dict[str, Any]) -> dict[str, Any]:
    """The parameters of another run's newest checkpoint, for training to begin with.

    fresh: parameters of `ghn`. What that run lacks is taken from them: the tables of bits of a GHN that is
    told the bits, which are 0, so that it predicts what the other one did.

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


def differing_keys(a: RunConfig, b: RunConfig, free: tuple[str, ...]) -> list[str]:
    """Dotted keys whose values differ, those in `free` (or below them) left out."""

    def flat(values, prefix=''):
        for key, value in values.items():
            if isinstance(value, dict):
                yield from flat(value, f'{prefix}{key}.')
            else:
                yield prefix + key, value

    left, right = (dict(flat(json.loads(configs.to_json(c)))) for c in (a, b))
    differing = [k for k in left if left[k] != right.get(k)]
    return [k for k in differing if not any(k == f or k.startswith(f'{f}.') for f in free)]


def start(parts_of_cpu: int = 1) -> None:
    """Makes JAX ready, once for a process: its cache of programs, and its devices.

    Raises:
      UserError: JAX_PLATFORMS asks for devices that are not there.
    """
    enable_compilation_cache()
    divide_cpu(parts_of_cpu)
    environment.start_devices()


def divide_cpu(parts: int) -> None:
    """Makes a CPU so many devices, each with work of its own; to be called before JAX knows its devices.

    Much of a step runs on one core, whatever its size: two devices keep two cores busy, and take twice the
    memory.
    """
    if parts > 1:  # one needs nothing said, and leaves XLA_FLAGS its word
        jax.config.update('jax_num_cpu_devices', parts)


def enable_compilation_cache() -> None:
    """Keeps compiled programs on disk, in `cache.folder()`.

    A program takes a minute or more to compile on a CPU, and most runs need the same few.
    """
    if folder := cache.folder():
        executables.drop_torn(folder)
        jax.config.update('jax_compilation_cache_dir', str(folder))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 1.0)
