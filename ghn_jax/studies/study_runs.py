"""The runs of a study: one config, changed as each strategy says, with each seed."""

import dataclasses
import os
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from ghn_jax import config as configs
from ghn_jax.base import jsonfile, paths
from ghn_jax.base.bounds import BOUNDS
from ghn_jax.base.errors import FieldError, UserError, of_field, shown
from ghn_jax.config import RunConfig
from ghn_jax.quant.strategy import strategy_of

_MAX_SEED = BOUNDS['seed'][1]
_TASK = ('dataset', 'data_dir', 'image_size', 'space')  # on which images and networks runs are scored


@dataclasses.dataclass(frozen=True)
class StudyRun:
    """A run of a study.

    Attributes:
      name: of its directory, `STRATEGY` or `STRATEGY.seedK`.
      strategy: the name of its strategy.
      config: with the strategy's changes.
    """

    name: str
    strategy: str
    config: RunConfig


def read_strategies(path: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """Read the strategies of a JSON file, or of one of `configs/` by its name, in its order.

    Raises UserError if it is not what it should be.
    """
    expected = 'give a JSON object {"name": {"mode": "qat", ..}, ..}'
    file = paths.find(path, 'strategies', '.json')
    with of_field('strategies'):
        strategies = jsonfile.read(file, 'file', expected)
    if not isinstance(strategies, dict) or not strategies:
        raise FieldError('strategies', f'={path} is no object with strategies: {expected}')
    for name, changes in strategies.items():
        if not re.fullmatch(r'\w[\w.+-]*', name):
            raise FieldError(
                'strategies', f'={path}: {shown(name)} is no name for a directory: use letters, digits, _.+-'
            )
        if not isinstance(changes, dict):
            raise FieldError(
                'strategies', f'={path}: {name!r} is {shown(changes)}, expected an object of config keys'
            )
    return strategies


def parse_seeds(values: Sequence[str]) -> tuple[int, ...]:
    """Return the seeds as numbers. Raises FieldError unless they are different, from 0 to 2**31 - 1."""
    fit = all(value.isdecimal() and len(value) <= 10 and int(value) <= _MAX_SEED for value in values)
    if not fit or len({int(value) for value in values}) < len(values):
        given = shown(','.join(values))
        raise FieldError(
            'seeds', f'={given}: expected different numbers from 0 to {_MAX_SEED}, such as 0,1,2'
        )
    return tuple(map(int, values))


def seed_of(name: str, strategies: Collection[str]) -> int | None:
    """Return the seed in the name of a directory, if it is that of a run of one of these with a seed."""
    strategy, found, seed = name.rpartition('.seed')
    if not found or strategy not in strategies or not re.fullmatch(r'0|[1-9]\d{0,9}', seed):
        return None
    return int(seed) if int(seed) <= _MAX_SEED else None


def make_runs(
    config: RunConfig | ConfigDict, strategies: Mapping[str, Mapping[str, Any]], seeds: Sequence[int] = ()
) -> list[StudyRun]:
    """Make the runs in the order of the strategies, each with all seeds; () leaves the seed to the config.

    Raises:
      UserError: keys or values that a strategy cannot change; a strategy with a seed of its own, and `seeds`.
    """
    config = configs.freeze(config)
    if not seeds:
        return [StudyRun(name, name, _changed(config, name, changes)) for name, changes in strategies.items()]
    study_runs = []
    for name, changes in strategies.items():
        if 'seed' in changes:
            raise FieldError('seeds', f': strategy {name!r} has a seed of its own: leave one out')
        for seed in seeds:
            study_runs.append(
                StudyRun(f'{name}.seed{seed}', name, _changed(config, name, {**changes, 'seed': seed}))
            )
    return study_runs


def _changed(config: RunConfig, name: str, changes: Mapping[str, Any]) -> RunConfig:
    """The config with a strategy's changes: keys of `config.quant`, or of the whole config."""
    of_the_whole = [field.name for field in dataclasses.fields(config)]
    try:
        for key, value in changes.items():
            full = key if '.' in key or key in of_the_whole else f'quant.{key}'
            changed = configs.replace(config, full, value)
            root = full.split('.')[0]
            if root in _TASK and getattr(changed, root) != getattr(config, root):
                raise UserError(
                    f'it changes {full}: all strategies of a study are scored on the same networks and '
                    'images; set it in the config, for all'
                )
            config = changed
        strategy_of(config)
    except UserError as e:
        raise UserError(f'strategy {name!r}: {e}') from None
    return config
