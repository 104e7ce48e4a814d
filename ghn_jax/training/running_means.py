"""Means over the steps between two rows of metrics; a checkpoint carries them, so no stop cuts a mean.

Axes: M networks of a meta-batch.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ghn_jax.training.step import FINE


class RunningMeans:
    """Sums of the values of the steps since the last row.

    Sums are float64 in the order of the steps, and JSON keeps them exactly: the means of a run that was
    stopped in between are those of one that was not.
    """

    def __init__(self, saved: Mapping[str, Any] | None = None):
        saved = saved or {}
        self._sums: dict[str, float] = dict(saved.get('sums', {}))
        self._counts: dict[str, int] = dict(saved.get('counts', {}))
        self.steps: int = saved.get('steps', 0)
        self.networks: int = saved.get('networks', 0)
        self.not_finite: int = saved.get('not_finite', 0)

    def add(self, values: Mapping[str, Any]) -> None:
        """Add the values of one step of `step.train_step`, on the host; what is not finite is left out.

        values: scalars by name; `faults`, int32 [M]; `skipped`, 0 or 1.
        """
        faults = np.asarray(values['faults'])
        self.steps += 1
        self.networks += len(faults)
        self.not_finite += len(faults) if values['skipped'] else int(np.sum(faults != FINE))
        for name, value in values.items():
            if name != 'faults' and math.isfinite(value):
                self._sums[name] = self._sums.get(name, 0.0) + float(value)
                self._counts[name] = self._counts.get(name, 0) + 1
            elif name != 'faults':
                self._counts.setdefault(name, 0)

    def means(self) -> dict[str, float]:
        """Give the means by name, nan where no step had a finite value; `not_finite`: networks left out."""
        means = {
            name: self._sums[name] / count if count else math.nan for name, count in self._counts.items()
        }
        return means | {'not_finite': self.not_finite / max(self.steps, 1)}

    def share_not_finite(self) -> float:
        """Give the share of the networks that had no part in an update."""
        return self.not_finite / max(self.networks, 1)

    def saved(self) -> dict[str, Any]:
        """Give the sums as JSON, for `RunningMeans(saved)`."""
        return {
            'sums': self._sums, 'counts': self._counts, 'steps': self.steps,
            'networks': self.networks, 'not_finite': self.not_finite,
        }  # fmt: skip
