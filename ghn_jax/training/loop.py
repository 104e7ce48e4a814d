"""The loop of a training run: its steps, and all that is due between them."""

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax

from ghn_jax.assembly.memory import KNOBS, is_out_of_memory
from ghn_jax.assembly.mesh import to_local
from ghn_jax.assembly.network_batch import Networks
from ghn_jax.base import processes
from ghn_jax.base.errors import NotFinite, Stopped, UserError
from ghn_jax.cnn.program import Program
from ghn_jax.config import RunConfig
from ghn_jax.runs.checkpoint import Checkpoints
from ghn_jax.runs.run import best_validation, validation_metric
from ghn_jax.training.preemption import Stopping
from ghn_jax.training.run_logger import BAD_NETWORKS, RunLogger
from ghn_jax.training.running_means import RunningMeans
from ghn_jax.training.sampling import Preparation
from ghn_jax.training.state import saved_part
from ghn_jax.training.step import TrainState
from ghn_jax.training.stepper import Stepper


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopParts:
    """What a loop drives.

    Attributes:
      validate: parameters of the GHN -> values by name.
      meta: (step, window=the means under way) -> what a checkpoint says about itself.
      stopping: whether a signal has come.
      pack: (what a checkpoint holds, its meta) -> nothing; it writes them, with the run's records, into one
        file.
    """

    config: RunConfig
    stepper: Stepper
    networks: Preparation
    validate: Callable[[Any], dict[str, float]]
    checkpoints: Checkpoints
    logger: RunLogger
    meta: Callable[..., dict[str, Any]]
    stopping: Stopping
    pack: Callable[[Any, dict[str, Any]], None] | None = None


class Loop:
    """The steps of a run, one after another, with all that is due after each.

    The host is one step ahead of the device, no more: that keeps the device busy, and a signal does not wait
    for long. A checkpoint is written before whatever may take minutes (compiling a program, validating), so
    that a signal may end that at once. What is due after a step is a function of its number: a run that goes
    on writes what it would have written.
    """

    def __init__(self, parts: LoopParts, means: RunningMeans):
        """Make a loop that goes on with the means that a checkpoint left, or with empty ones."""
        self._parts, self._means = parts, means
        self._begun: collections.deque[tuple[int, dict[str, jax.Array]]] = collections.deque()
        self._best: tuple[int, float] | None = None  # step and value of the best validation so far

    def run(self, state: TrainState, start: int, stop: int) -> TrainState:
        """Go on from the state after step `start`; return that after step `stop`.

        Raises:
          UserError: memory or disk that is not enough; NotFinite: too many networks that are not finite.
          Stopped: a signal has come; all is saved.
        """
        p, c = self._parts, self._parts.config
        validations = processes.from_first(p.logger.validations)
        self._best = best_validation((step, value) for step, value in validations)
        if start:
            self._pack(start, state)
        if self._validates(start) and start not in dict(validations):  # the run before was stopped in it
            self._validate(start, state)
        with contextlib.closing(p.networks.ahead(start, stop)) as ahead:
            for step, (program, batch) in zip(range(start, stop), ahead):
                state, values = self._begin(program, state, batch, step, saved=start)
                done, stopped = step + 1, p.stopping.agreed()
                self._begun.append((done, values))
                logged = done % c.log_every_steps == 0 or done == c.train.steps
                self._finish(0 if logged or step == start else 1)
                p.logger.step(done, self._means.means() if logged or step == start else {})
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
        """Tell the device to do a step. Where that compiles a program, all is saved before."""
        p = self._parts
        new = p.stepper.is_new(program)
        if new and step > saved:
            self._save(step, state)
            p.checkpoints.wait()
        with p.stopping.at_once() if new else contextlib.nullcontext(), naming_memory():
            out = p.stepper(program, state, batch, step)
        p.stopping.protect_steps()
        return out

    def _finish(self, left: int) -> None:
        """Wait for all steps begun but the last `left`, and add their values to the means."""
        while len(self._begun) > left:
            done, values = self._begun.popleft()
            with naming_memory():
                values = jax.device_get(values)
            self._means.add(values)
            policies = self._parts.networks.policies
            self._parts.logger.faults(done, values['faults'], bool(values['skipped']), policies)

    def _log(self, done: int) -> None:
        """Log the means and begin new ones; end the run if too many networks were not finite."""
        p = self._parts
        means, self._means = self._means, RunningMeans()
        p.logger.log(done, means)
        if means.share_not_finite() > p.config.max_not_finite:
            p.logger.flush()
            p.checkpoints.wait()
            good = p.checkpoints.latest_step()
            raise NotFinite(
                f'{means.not_finite} of the {means.networks} networks until step {done} had a loss or a '
                f'gradient that is not finite, more than max_not_finite={p.config.max_not_finite}; '
                f'{"there is no checkpoint yet" if good is None else f"the last good checkpoint is {good}"}; '
                f'{BAD_NETWORKS} lists them, `python -m ghn_jax.replay --workdir={p.checkpoints.workdir}` '
                'shows one'
            )

    def _save(self, done: int, state: TrainState) -> None:
        p = self._parts
        self._finish(0)
        p.logger.flush()
        best_step = self._best[0] if self._best else None
        meta = p.meta(done, window=self._means.saved())
        p.checkpoints.save(done, saved_part(state), meta, best=best_step)
        self._pack(done, state)

    def _pack(self, done: int, state: TrainState) -> None:
        if self._parts.pack:
            self._parts.logger.flush()
            self._parts.pack(saved_part(to_local(state)), self._parts.meta(done, window=self._means.saved()))

    def _validates(self, done: int) -> bool:
        every = self._parts.config.eval.every_steps
        return bool(every and done and (done % every == 0 or done == self._parts.config.train.steps))

    def _validate(self, done: int, state: TrainState) -> None:
        p = self._parts
        p.checkpoints.wait()
        p.stepper.give_back()  # networks of all families are validated
        with p.stopping.at_once(), naming_memory():
            values = p.validate(to_local(state.used))
        p.logger.validation(done, values)
        new = (done, values[validation_metric(p.config)])
        self._best = best_validation([new] if self._best is None else [self._best, new])
        self._pack(done, state)


@contextlib.contextmanager
def naming_memory() -> Iterator[None]:
    """Turn memory that is not there into a UserError that names the knobs."""
    try:
        yield
    except UserError:
        raise
    except Exception as e:
        if not is_out_of_memory(e):
            raise
        raise UserError(f'there is not enough memory: {KNOBS}') from e
