"""What a run tells and leaves behind, step by step: metrics, the networks that failed, a progress bar.

Process 0 of a run keeps one; the others are `Silent`.
"""

import contextlib
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ghn_jax.assembly.memory import usage
from ghn_jax.assembly.network_batch import draw
from ghn_jax.base.jsonlines import Records, read_jsonl
from ghn_jax.config import RunConfig
from ghn_jax.networks.spaces import Space
from ghn_jax.networks.spec import NetworkSpec
from ghn_jax.quant.policy import Policy
from ghn_jax.runs.metrics import Metrics, Progress
from ghn_jax.training.running_means import Window
from ghn_jax.training.step import BAD_GRADIENT, BAD_LOSS, FINE

Policies = Callable[[int, Sequence[NetworkSpec]], list[Policy]]
BAD_NETWORKS = 'bad_networks.jsonl'
_WHAT = {FINE: 'update', BAD_GRADIENT: 'gradient', BAD_LOSS: 'loss'}  # FINE: the update of all was not finite
_SHOWN = ('loss', 'accuracy')  # beside the progress bar


class Journal:
    """The files of a run, from `start` on; see `records` for what a run before has written beyond it.

    validated: the name of the value by which validations are compared.
    """

    def __init__(
        self, workdir: str | os.PathLike, config: RunConfig, space: Space, start: int, *, validated: str
    ):
        self.config, self.space, self.validated = config, space, validated
        self._files = contextlib.ExitStack()
        self._metrics = self._files.enter_context(Metrics(workdir, start))
        self._bad = Records(pathlib.Path(workdir) / BAD_NETWORKS, start)
        self._files.callback(self._bad.close)
        self._progress = self._files.enter_context(
            Progress(config.train.steps, initial=start, desc='train', window=2)
        )
        self._rows = [row for row in read_jsonl(pathlib.Path(workdir) / 'metrics.jsonl') if validated in row]

    def __enter__(self) -> 'Journal':
        return self

    def __exit__(self, *exc: Any) -> None:
        self._files.close()

    def validations(self) -> list[tuple[int, float]]:
        """(step, value) of all of them so far."""
        return [(row['step'], row[self.validated]) for row in self._rows if row[self.validated] is not None]

    def step(self, done: int, shown: dict[str, float]) -> None:
        """A step has begun; `shown`: the means, where the device has finished it."""
        networks = self.config.train.meta_batch
        self._progress.update(
            1, networks=networks, images=networks * self.config.train.batch_size, finished=bool(shown),
            **{k: shown[k] for k in _SHOWN if k in shown},
        )  # fmt: skip

    def log(self, done: int, window: Window) -> None:
        """A row of means, and beside it the rates and what the process holds."""
        rates = {f'time/{k}': v for k, v in self._progress.rates().items()}
        means = {f'train/{k}': v for k, v in window.means().items()}
        self._metrics.write(done, means, rates | usage())

    def validation(self, done: int, values: dict[str, float]) -> None:
        """A row of a validation, whose time does not count for the rates."""
        self._metrics.write(done, values)
        self._progress.restart_clock()

    def faults(self, done: int, faults: np.ndarray, skipped: bool, policies: Policies) -> None:
        """Writes down the networks of the step that became the `done`-th that had no part in an update.

        faults [M]: of `steps.train_step`. policies: (step, specs) -> what they were trained with. One row
        each, `replay` reads it.
        """
        if not skipped and np.all(faults == FINE):
            return
        c = self.config
        specs = draw(self.space, c.seed, done - 1, c.train.meta_batch)
        bits = [str(policy) for policy in policies(done - 1, specs)]
        for i, fault in enumerate(faults.tolist()):
            if skipped or fault != FINE:
                row = {'step': done, 'seed': c.seed, 'network': i, 'what': _WHAT[fault], 'bits': bits[i]}
                self._bad.write(row | {'spec': specs[i].to_dict()})

    def flush(self) -> None:
        """Returns when all is on the disk."""
        self._metrics.flush()
        self._bad.flush()


class Silent:
    """In the place of a `Journal` where another process of the run keeps it."""

    def __enter__(self) -> 'Silent':
        return self

    def __exit__(self, *exc: Any) -> None:
        pass

    def step(self, done: int, shown: dict[str, float]) -> None:
        pass

    def log(self, done: int, window: Window) -> None:
        pass

    def validation(self, done: int, values: dict[str, float]) -> None:
        pass

    def faults(self, done: int, faults: np.ndarray, skipped: bool, policies: Policies) -> None:
        pass

    def flush(self) -> None:
        pass
