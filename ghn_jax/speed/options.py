"""What a measurement is asked for."""

import dataclasses
from typing import Any

from ghn_jax.networks.spec import NetworkSpec

MODES = ('float', 'qat')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Everything a measurement may ask for; each takes what it needs.

    specs: networks to time.   modes: of MODES.   meta_batch: networks in a training step.
    batch_size: images in a batch.   num_images: to score each network on.
    """

    specs: tuple[NetworkSpec, ...] = ()
    modes: tuple[str, ...] = MODES
    meta_batch: int = 8
    batch_size: int = 64
    num_images: int = 1024


Row = dict[str, Any]  # one measurement as JSON: 'what', 'mode', figures; see `clock.row`
