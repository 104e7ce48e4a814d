"""What a folder keeps of each training: a record once it is done, its state while it goes on."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ghn_jax.base import files, jsonfile
from ghn_jax.base.errors import UserError
from ghn_jax.base.paths import Place


@dataclasses.dataclass(frozen=True)
class Record:
    """The record NAME.json of a training, and NAME.state.npz, where the training is.

    Attributes:
      folder: of both; it exists.
      name: of the training.
      settings: all that its result depends on, in JSON's types.
    """

    folder: Place
    name: str
    settings: Mapping[str, Any]

    @property
    def file(self) -> Place:
        """The record: what the training came to, and its settings."""
        return self.folder / f'{self.name}.json'

    @property
    def state(self) -> Place:
        """Where a training that is not done goes on (`loop.fit`)."""
        return self.folder / f'{self.name}.state.npz'

    def read(self) -> dict[str, Any] | None:
        """Return what a training came to, None as long as it is not done.

        Raises:
          UserError: it was done with other settings, or the record cannot be read.
        """
        if not files.exists(self.file):
            return None
        done = jsonfile.read(self.file, 'record', 'delete it, and that training is done again')
        check_settings(self.settings, done.pop('settings', None), self.file)
        return done

    def write(self, done: Mapping[str, Any]) -> None:
        """Keep what a training came to, in JSON's types; its state is not needed any more."""
        files.write_json(self.file, {**done, 'settings': self.settings})
        self.state.unlink(missing_ok=True)


def check_settings(settings: Mapping[str, Any], theirs: Any, file: Place) -> None:
    """Raise UserError where a file is of a training with other settings."""
    theirs = theirs if isinstance(theirs, dict) else {}
    if differing := sorted(key for key, value in settings.items() if theirs.get(key) != value):
        raise UserError(
            f'{file} is of a training with other settings ({", ".join(differing)} differ): give another '
            'folder'
        )
