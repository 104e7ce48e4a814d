"""The loop of one training: taken up where it was stopped, scored on its way."""

import math
import time
from collections.abc import Callable, Collection
from typing import Any

from ghn_jax.runs.progress import Progress
from ghn_jax.tuning.records import TrainingRecord
from ghn_jax.tuning.training import Trainer, TrainingImages, TrainingState

SAVE_SECONDS = 30.0
"""Between two saves of a state: what a training that is killed loses."""

_SYNC = 10  # steps that are sent to the device before its answer is waited for


def fit(
    trainer: Trainer,
    images: TrainingImages,
    state: TrainingState,
    record: TrainingRecord,
    *,
    marks: Collection[int],
    score: Callable[[TrainingState], Any],
    progress: Progress,
    between: Callable[[TrainingState, int], TrainingState] = lambda state, epoch: state,
) -> tuple[TrainingState, dict[str, Any]]:
    """Train, from where the record's state says it is or from the beginning.

    A training that is killed and taken up again ends in the same numbers, to the bit, as one that never
    stopped.

    Args:
      trainer: compiled for these images.
      images: that are trained on.
      state: the first one; it is used up.
      record: of the training; its state is written while training goes on.
      marks: after which passes the state is scored; 0: before the first.
      score: of a state, in JSON's types.
      progress: counts the steps.
      between: (state, number of the pass) -> the state that the pass begins with.

    Returns:
      The last state, and a history: `loss`, the mean of each pass, None where it is not finite; `scores`, by
      mark as a string.

    Raises:
      UserError: the state is of a training with other settings, or cannot be read or written.
    """
    state, history = record.read_state(state) or (state, {'loss': [], 'scores': {}})
    done, saved, order = int(state.step), time.monotonic(), None
    progress.update(done)
    while True:
        epoch, place = divmod(done, trainer.steps_per_epoch)
        if place == 0:
            order = None
            if len(history['loss']) < epoch:
                loss = float(state.loss) / trainer.steps_per_epoch
                history['loss'].append(loss if math.isfinite(loss) else None)
            if epoch in marks and str(epoch) not in history['scores']:
                history['scores'][str(epoch)] = score(state)
        if epoch == trainer.epochs:
            return state, history
        if order is None:
            state = between(state, epoch) if place == 0 else state
            order = trainer.order(state.seed, epoch)
        count = min(_SYNC, trainer.steps_per_epoch - place)
        for _ in range(count):
            state = trainer.step(state, order, images)
        done += count
        progress.update(count, images=count * trainer.batch_size, loss=float(state.loss) / (place + count))
        if time.monotonic() - saved > SAVE_SECONDS:
            record.write_state(state, history)
            saved = time.monotonic()
