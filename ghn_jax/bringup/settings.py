"""What the parts of a first hour are asked for; it crosses from one process to another as JSON."""

import dataclasses
import json
import pathlib

from ghn_jax import config as configs
from ghn_jax.config import RunConfig

STATE = 'state.pack'  # in the folder of results: the run, packed with each checkpoint
METRICS = 'metrics.jsonl'
PROFILE = 'profile.trace.json.gz'
LARGEST = 16 * 2**20
"""Bytes of a file among the results: what is larger is left out, and the part says so."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What every part may read.

    Attributes:
      config: of the run that is measured and trained.
      out: the folder of results.
      train: whether to train, too.
      unpack: the packed run that the training goes on with; '' is none.
      executables: the folder of programs compiled ahead; '' is none.
      golden: that of the published GHN-2's numbers; '' is none.
    """

    config: RunConfig
    out: pathlib.Path
    train: bool = False
    unpack: str = ''
    executables: str = ''
    golden: str = ''

    def to_json(self) -> str:
        """Return the settings as JSON."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return json.dumps(fields | {'config': configs.to_json(self.config)}, default=str)


def from_json(text: str) -> Settings:
    """Return the settings that `Settings.to_json` wrote."""
    fields = json.loads(text)
    read = {'out': pathlib.Path(fields['out']), 'config': configs.from_json(fields['config'])}
    return Settings(**fields | read)
