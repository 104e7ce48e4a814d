"""A first hour: the part that finds out the platform, then the others, and one file of what all found."""

import json
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import ghn_jax
from ghn_jax import config as configs
from ghn_jax.base import files
from ghn_jax.bringup import parts, summary
from ghn_jax.bringup.runner import Record, run_parts
from ghn_jax.bringup.settings import Settings

RESULT, LOG = 'first_hour.json', 'log.txt'
_LEAST = 15.0  # seconds of a part while there are any: JAX alone takes some to start
_FIRST = 60.0  # of the first part, at most: where a device does not answer, no other will do better


def run_hour(settings: Settings, seconds: float, ended: Callable[[], bool]) -> dict[str, Any]:
    """Run all parts. `RESULT` in the folder of results is rewritten, whole, whenever there is more.

    Args:
      settings: of all parts.
      seconds: for all of it.
      ended: whether to end now.

    Returns:
      what `RESULT` holds at the end: {'minutes', 'config', 'parts': records of `runner.run_parts`,
      'best_flags': (name, speed beside none) or None}.

    Raises:
      UserError: the folder of results cannot be written.
      Ended: as `ended` said.
    """
    end = time.monotonic() + seconds
    result: dict[str, Any] = {
        'minutes': seconds / 60,
        'config': json.loads(configs.to_json(settings.config)),
        'parts': [],
        'best_flags': None,
    }
    before: list[Record] = []

    def record(records: Sequence[Record]) -> None:
        result['parts'] = [*before, *records]
        result['best_flags'] = summary.best_flags(result['parts'])
        files.write_json(settings.out / RESULT, result)

    with files.writing(settings.out):
        settings.out.mkdir(parents=True, exist_ok=True)
        (settings.out / LOG).unlink(missing_ok=True)
    _let_parts_import()
    with tempfile.TemporaryDirectory(prefix='first_hour-') as folder:
        places = {
            'folder': pathlib.Path(folder), 'log': settings.out / LOG, 'record': record, 'ended': ended,
        }  # fmt: skip
        before.extend(
            run_parts([parts.first(settings)], seconds=min(_FIRST, seconds / 4), least=_LEAST, **places)
        )
        platform = (before[0]['result'] or {}).get('platform', '')
        run_parts(
            parts.others(settings, platform, os.environ),
            seconds=end - time.monotonic(),
            least=_LEAST,
            **places,
        )
    return result


def _let_parts_import() -> None:
    """Let the processes of parts import this package, from wherever this one was started."""
    package = str(pathlib.Path(ghn_jax.__file__).parents[1])
    os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, (package, os.environ.get('PYTHONPATH'))))
