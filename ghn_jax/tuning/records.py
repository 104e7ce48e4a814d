"""What a folder keeps of each training: a record once it is done, its state while it goes on."""

import dataclasses
import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax.base import files, jsonfile
from ghn_jax.base.digests import leaf_types
from ghn_jax.base.errors import UserError
from ghn_jax.base.paths import Place

_ABOUT = '__about__'  # the array with what is said of a state


@dataclasses.dataclass(frozen=True)
class TrainingRecord:
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
        """Where a training that is not done goes on."""
        return self.folder / f'{self.name}.state.npz'

    def read(self) -> dict[str, Any] | None:
        """Return what a training came to, None as long as it is not done.

        Raises:
          UserError: it was done with other settings, or the record cannot be read.
        """
        if not files.exists(self.file):
            return None
        done = jsonfile.read(self.file, 'record', 'delete it, and that training is done again')
        self._check(done.pop('settings', None), self.file)
        return done

    def write(self, done: Mapping[str, Any]) -> None:
        """Keep what a training came to, in JSON's types; its state is not needed any more."""
        files.write_json(self.file, {**done, 'settings': self.settings})
        self.state.unlink(missing_ok=True)

    def write_state(self, state: Any, history: Mapping[str, Any]) -> None:
        """Keep where a training is, a pytree of arrays, and what it came to so far, in JSON's types."""
        leaves = jax.device_get(jax.tree.leaves(state))
        arrays: dict[str, Any] = dict(zip(leaf_types(state), leaves, strict=True))
        arrays[_ABOUT] = np.array(json.dumps({'settings': dict(self.settings), 'history': history}))
        data = io.BytesIO()
        np.savez(data, **arrays)
        files.write(self.state, data.getvalue())

    def read_state(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """Return what `write_state` has kept, to the bit and on the device; None where there is nothing.

        like: a state of the shapes and types to be read, of arrays or `jax.ShapeDtypeStruct`.

        Raises:
          UserError: it is of another training, or one with other settings, or cannot be read.
        """
        if not files.exists(self.state):
            return None
        path, types = self.state, leaf_types(like)
        try:
            with files.opened(path) as file, np.load(io.BytesIO(file.read()), allow_pickle=False) as data:
                arrays = {name: data[name] for name in data.files}
            about = json.loads(str(arrays.pop(_ABOUT)))
            for name, leaf in zip(types, jax.tree.leaves(like)):
                if name in arrays and arrays[name].dtype.kind == 'V':  # npz knows no bfloat16
                    arrays[name] = arrays[name].view(leaf.dtype)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
            raise UserError(
                f'{path} cannot be read ({e}): delete it, and that training begins anew'
            ) from None
        if {name: f'{a.dtype}{list(a.shape)}' for name, a in arrays.items()} != types:
            raise UserError(f'{path} is of another training: delete it, or give another folder')
        self._check(about.get('settings'), path)
        leaves = [jnp.asarray(arrays[name]) for name in types]
        return jax.tree.unflatten(jax.tree.structure(like), leaves), about['history']

    def _check(self, settings: Any, file: Place) -> None:
        """Raise UserError where a file is of a training with other settings."""
        theirs = settings if isinstance(settings, dict) else {}
        if differing := sorted(key for key, value in self.settings.items() if theirs.get(key) != value):
            raise UserError(
                f'{file} is of a training with other settings ({", ".join(differing)} differ): give another '
                'folder'
            )
