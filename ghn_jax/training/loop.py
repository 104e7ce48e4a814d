"""The course of a training run: its steps, and all that is due between them."""

import collections
import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax

from ghn_jax.assembly.memory import KNOBS, is_out_of_memory
from ghn_jax.assembly.mesh import local
from ghn_jax.assembly.network_batch import Networks
from ghn_jax.base import processes
from ghn_jax.base.errors import NotFinite, Stopped, UserError
from ghn_jax.cnn.program import Program
from ghn_jax.config import RunConfig
from ghn_jax.runs.checkpoint import Checkpoints
from ghn_jax.runs.run import best, validated
from ghn_jax.training.preemption import Stopping
from ghn_jax.training.run_logger import BAD_NETWORKS, Journal, Silent
from ghn_jax.training.running_means import Window
from ghn_jax.training.step import TrainState

if TYPE_CHECKING:
    from ghn_jax.training.train import Preparation, Stepper


class Course:
    """The steps of a run, one after another, with all that is due after each.

    The host is one step ahead of the device, no more: that keeps the device busy, and a signal does not wait
    for long. A checkpoint is written before whatever may take minutes (compiling a program, validating), so
    that a signal may end that at once. What is due after a step is a function of its number: a run that goes
    on writes what it would have written.
    """

    def __init__(
        self,
        config: RunConfig,
        run_step: 'Stepper',
        networks: 'Preparation',
        validate: Callable[[Any], dict[str, float]],
        checkpoints: Checkpoints,
        journal: Journal | Silent,
        meta: Callable[..., dict],
        stopping: Stopping,
    ):
        self.config, self.run_step, self.networks, self.validate = config, run_step, networks, validate
        self.checkpoints, self.journal, self.meta, self.stopping = checkpoints, journal, meta, stopping
        self.begun: collections.deque[tuple[int, dict[str, jax.Array]]] = collections.deque()
        self.best: tuple[int, float] | None = None

    def run(self, state: TrainState, window: Window, start: int, stop: int) -> TrainState:
        """The state after step `stop`, from that after step `start`."""
        c, self.window = self.config, window
        validations = processes.from_first(lambda: self.journal.validations())
        self.best = best(tuple(v) for v in validations)
        self.checkpoints.best = self.best and self.best[0]
        if self._validates(start) and start not in dict(validations):  # the run before was stopped in it
            self._validate(start, state)
        with contextlib.closing(self.networks.ahead(start, stop)) as ahead:
            for step, (program, batch) in zip(range(start, stop), ahead):
                state, values = self._begin(program, state, batch, step, saved=start)
                done, stopped = step + 1, self.stopping.agreed()
                self.begun.append((done, values))
                logged = done % c.log_every_steps == 0 or done == c.train.steps
                self._finish(0 if logged or step == start else 1)
                self.journal.step(done, self.window.means() if logged or step == start else {})
                if logged:
                    self._log(done)
                validates = self._validates(done)
                if validates or stopped or done % c.save_every_steps == 0 or done == stop:
                    self._save(done, state)
                if stopped and (validates or done < stop):
                    raise Stopped(f'step {done} of {c.train.steps} is saved: start again to go on')
                if validates:
                    self._validate(done, state)
        return state

    def _begin(
        self, program: Program, state: TrainState, batch: Networks, step: int, *, saved: int
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Tells the device to do a step. Where that compiles a program, all is saved before."""
        new = self.run_step.is_new(program)
        if new and step > saved:
            self._save(step, state)
            self.checkpoints.wait()
        with self.stopping.at_once() if new else contextlib.nullcontext(), naming_memory():
            out = self.run_step(program, state, batch, step)
        self.stopping.unsaved = True
        return out

    def _finish(self, left: int) -> None:
        """Waits for all steps begun but the last `left`, and takes their values in."""
        while len(self.begun) > left:
            done, values = self.begun.popleft()
            with naming_memory():
                values = jax.device_get(values)
            self.window.add(values)
            self.journal.faults(done, values['faults'], bool(values['skipped']), self.networks.policies)

    def _log(self, done: int) -> None:
        window, self.window = self.window, Window()
        self.journal.log(done, window)
        if window.share_not_finite() > self.config.max_not_finite:
            self.journal.flush()
            self.checkpoints.wait()
            good = self.checkpoints.latest_step()
            raise NotFinite(
                f'{window.not_finite} of the {window.networks} networks until step {done} had a loss or a '
                f'gradient that is not finite, more than max_not_finite={self.config.max_not_finite}; '
                f'{"there is no checkpoint yet" if good is None else f"the last good checkpoint is {good}"}; '
                f'{BAD_NETWORKS} lists them, `python -m ghn_jax.replay --workdir={self.checkpoints.workdir}` '
                'shows one'
            )

    def _save(self, done: int, state: TrainState) -> None:
        self._finish(0)
        self.journal.flush()
        saved = {'params': state.params, 'opt_state': state.opt_state}
        self.checkpoints.save(done, saved, self.meta(done, window=self.window.saved()))

    def _validates(self, done: int) -> bool:
        every = self.config.eval.every_steps
        return bool(every and done and (done % every == 0 or done == self.config.train.steps))

    def _validate(self, done: int, state: TrainState) -> None:
        self.checkpoints.wait()
        self.run_step.give_back()  # networks of all families are validated
        with self.stopping.at_once(), naming_memory():
            values = self.validate(local(state.params))
        self.journal.validation(done, values)
        new = (done, values[validated(self.config)])
        self.best = best([new] if self.best is None else [self.best, new])
        self.checkpoints.best = self.best and self.best[0]


@contextlib.contextmanager
def naming_memory() -> Iterator[None]:
    """Memory that is not there becomes a UserError that names the knobs."""
    try:
        yield
    except UserError:
        raise
    except Exception as e:
        if not is_out_of_memory(e):
            raise
        raise UserError(f'there is not enough memory: {KNOBS}') from e
