"""The lines that a training run prints: what a person wants to know, on less than the width of a terminal.

    step  20/700   loss 2.311   accuracy 12.5 %   43.1 networks/s   02:31 left
    step 100/700   validation: 31.2 % in float, 30.8 % in w4a4

Files hold all values, see `ghn_jax.runs.metrics`.
"""

from collections.abc import Mapping

from tqdm import tqdm

from ghn_jax.runs.run import VALIDATION


def training_line(
    step: int,
    steps: int,
    means: Mapping[str, float],
    *,
    meta_batch: int,
    averaged: int,
    networks_per_sec: float | None = None,
    seconds_left: float | None = None,
) -> str:
    """Return a line that says how training went since the line before; of faults only if there are any.

    Args:
      step: how many steps are done, of `steps`.
      means: over the steps since the line before: 'loss', 'accuracy' (a share), 'skipped' and 'not_finite'
        (how many, for each step).
      meta_batch: networks of a step.
      averaged: the number of steps that the means are of.
      networks_per_sec, seconds_left: None where they are not known yet.
    """
    parts = [f'loss {means["loss"]:.3f}', f'accuracy {100 * means["accuracy"]:.1f} %']
    if networks_per_sec is not None:
        parts.append(f'{networks_per_sec:.3g} networks/s')
    if seconds_left is not None:
        parts.append(f'{tqdm.format_interval(seconds_left)} left')
    for name, fault, of in (
        ('not_finite', 'networks not finite', averaged * meta_batch),
        ('skipped', 'steps skipped', averaged),
    ):
        if count := round(means[name] * averaged):
            parts.append(f'{count} of {of} {fault}')
    return '   '.join([_step(step, steps), *parts])


def validation_line(step: int, steps: int, values: Mapping[str, float]) -> str:
    """Return a line that says what a validation gave. values: shares, by `VALIDATION` and the bits."""
    named = [(name.removeprefix(VALIDATION), value) for name, value in values.items()]
    shown = [f'{100 * value:.1f} % in {_bits(name)}' for name, value in named]
    return f'{_step(step, steps)}   validation: {", ".join(shown)}'


def _step(step: int, steps: int) -> str:
    return f'step {step:{len(str(steps))}}/{steps}'


def _bits(name: str) -> str:
    return 'float' if name == 'w32a32' else name
