"""What a run logs, step by step: metrics, the networks that failed, a progress bar.

Process 0 of a run writes the files; the others are silent. Axes: M networks of a meta-batch.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from ghn_jax.assembly.memory import usage
from ghn_jax.base import paths
from ghn_jax.base.jsonlines import Records, read_jsonl
from ghn_jax.config import RunConfig
from ghn_jax.networks.spaces import Space
from ghn_jax.networks.spec import NetworkSpec
from ghn_jax.quant.policy import Policy
from ghn_jax.runs.metrics import Metrics
from ghn_jax.runs.progress import Progress
from ghn_jax.training.log_lines import training_line, validation_line
from ghn_jax.training.running_means import RunningMeans
from ghn_jax.training.sampling import networks_of
from ghn_jax.training.step import BAD_GRADIENT, BAD_LOSS, FINE

Policies = Callable[[int, Sequence[NetworkSpec]], list[Policy]]
BAD_NETWORKS = 'bad_networks.jsonl'
_WHAT = {FINE: 'update', BAD_GRADIENT: 'gradient', BAD_LOSS: 'loss'}  # FINE: the update of all was not finite
_SHOWN = ('loss', 'accuracy')  # beside the progress bar


class RunLogger(Protocol):
    """What the loop of a run reports to."""

    def validations(self) -> list[tuple[int, float]]:
        """Give (step, value) of all validations so far."""
        ...

    def step(self, done: int, shown: dict[str, float]) -> None:
        """Note that a step has begun; `shown`: the means, where the device has finished it."""
        ...

    def log(self, done: int, means: RunningMeans) -> None:
        """Write a row of means, and beside it the rates and what the process holds."""
        ...

    def validation(self, done: int, values: dict[str, float]) -> None:
        """Write a row of a validation, whose time does not count for the rates."""
        ...

    def faults(self, done: int, faults: np.ndarray, skipped: bool, policies: Policies) -> None:
        """Write down the networks that had no part in the update of the `done`-th step.

        Args:
          done: the step's number, from 1.
          faults: int32 [M], of `step.train_step`.
          skipped: whether no network had a part in it.
          policies: (step, specs) -> what the networks were trained with.
        """
        ...

    def flush(self) -> None:
        """Return when all is on the disk."""
        ...


class FileLogger:
    """The files of a run, from `start` on; see `jsonlines` for what a run before has written beyond it.

    metric: the name of the value by which validations are compared.
    """

    def __init__(
        self, workdir: str | os.PathLike, config: RunConfig, space: Space, start: int, *, metric: str
    ):
        self.config, self.space, self.metric = config, space, metric
        self._files = contextlib.ExitStack()
        workdir = paths.place(workdir, 'workdir')
        self._metrics = self._files.enter_context(Metrics(workdir, start))
        self._bad = Records(workdir / BAD_NETWORKS, start)
        self._files.callback(self._bad.close)
        self._progress = self._files.enter_context(
            Progress(config.train.steps, initial=start, desc='train', marks=2)
        )
        self._rows = [row for row in read_jsonl(workdir / 'metrics.jsonl') if metric in row]

    def __enter__(self) -> 'FileLogger':
        return self

    def __exit__(self, *exc: Any) -> None:
        self._files.close()

    def validations(self) -> list[tuple[int, float]]:
        return [(row['step'], row[self.metric]) for row in self._rows if row[self.metric] is not None]

    def step(self, done: int, shown: dict[str, float]) -> None:
        networks = self.config.train.meta_batch
        self._progress.update(
            1, networks=networks, images=networks * self.config.train.batch_size, finished=bool(shown),
            **{k: shown[k] for k in _SHOWN if k in shown},
        )  # fmt: skip

    def log(self, done: int, means: RunningMeans) -> None:
        rates = {f'time/{k}': v for k, v in self._progress.rates().items()}
        values = means.means()
        self._metrics.write(done, {f'train/{k}': v for k, v in values.items()}, rates | usage())
        train = self.config.train
        self._progress.say(
            training_line(
                done, train.steps, values, meta_batch=train.meta_batch, averaged=means.steps,
                networks_per_sec=rates.get('time/networks_per_sec'),
                seconds_left=self._progress.seconds_left(),
            )
        )  # fmt: skip

    def validation(self, done: int, values: dict[str, float]) -> None:
        self._metrics.write(done, values)
        self._progress.say(validation_line(done, self.config.train.steps, values))
        self._progress.restart_clock()

    def faults(self, done: int, faults: np.ndarray, skipped: bool, policies: Policies) -> None:
        """Write one row for each of them; `replay` reads it."""
        if not skipped and np.all(faults == FINE):
            return
        c = self.config
        specs = networks_of(c, self.space, done - 1)
        bits = [str(policy) for policy in policies(done - 1, specs)]
        for i, fault in enumerate(faults.tolist()):
            if skipped or fault != FINE:
                row = {'step': done, 'seed': c.seed, 'network': i, 'what': _WHAT[fault], 'bits': bits[i]}
                self._bad.write(row | {'spec': specs[i].to_dict()})

    def flush(self) -> None:
        self._metrics.flush()
        self._bad.flush()


class SilentLogger:
    """Logs nothing: another process of the run does."""

    def __enter__(self) -> 'SilentLogger':
        return self

    def __exit__(self, *exc: Any) -> None:
        pass

    def validations(self) -> list[tuple[int, float]]:
        return []

    def step(self, done: int, shown: dict[str, float]) -> None:
        pass

    def log(self, done: int, means: RunningMeans) -> None:
        pass

    def validation(self, done: int, values: dict[str, float]) -> None:
        pass

    def faults(self, done: int, faults: np.ndarray, skipped: bool, policies: Policies) -> None:
        pass

    def flush(self) -> None:
        pass
