"""Training for the minutes that are left, from a packed run to a packed run."""

import os
import shutil
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from ghn_jax.base.errors import Stopped
from ghn_jax.base.jsonlines import read_jsonl
from ghn_jax.bringup.settings import METRICS, STATE, Settings
from ghn_jax.training.preemption import Stopping
from ghn_jax.training.train import train

_RESERVE = 0.15
"""Of the time, for finishing a step, saving and packing."""


def train_for(settings: Settings, seconds: float) -> dict[str, Any]:
    """Train until the time is nearly over or the run is done; leave the packed run and its metrics.

    The pack is replaced with each checkpoint; a training that is ended before its first step leaves none.

    Raises:
      UserError: as `train`.
    """
    start = time.monotonic()
    stopping = Stopping()
    stopping.listen()
    timer = threading.Timer(seconds * (1 - _RESERVE), os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    pack, metrics = settings.out / STATE, settings.out / METRICS
    with tempfile.TemporaryDirectory() as folder:
        workdir, ended = Path(folder) / 'run', 'the run is done'
        try:
            train(settings.config, workdir, stopping=stopping, pack=pack, unpack=settings.unpack or None)
        except Stopped as e:
            ended = str(e)
        finally:
            timer.cancel()
        shutil.copyfile(workdir / 'metrics.jsonl', metrics)
    rows = read_jsonl(metrics)
    return {
        'ended': ended, 'metrics_rows': len(rows), 'last': rows[-1] if rows else None, 'pack': STATE,
        'pack_bytes': pack.stat().st_size if pack.is_file() else 0, 'seconds': time.monotonic() - start,
    }  # fmt: skip
