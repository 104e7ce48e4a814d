"""Checkpoints of a run: the whole training state and a JSON record beside it, written in the background.

`workdir/checkpoints/<step>/` holds two Orbax items: `state` (any pytree of arrays, typed keys too) and `meta`
(what is not an array: the configuration, versions). A step's folder gets its name by a rename when all of it
is written, so a process killed in the middle leaves the step before it as the newest. The processes of a run
write one checkpoint together, into a folder that all of them see.
"""

import os
import pathlib
import shutil
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from ghn_jax import processes
from ghn_jax.errors import UserError

_FORMAT = 'ghn_jax checkpoint 1'  # counts up when an old checkpoint can no longer be read
T = TypeVar('T')


class Checkpoints:
    """The checkpoints of one run directory; reading makes and changes nothing.

    Several processes may read while one trains. Those that train together call everything alike, in the same
    order. `with` waits for the last save and closes.
    """

    def __init__(self, workdir: str | os.PathLike, *, keep: int = 3):
        self.workdir = pathlib.Path(workdir).absolute()
        self.folder = self.workdir / 'checkpoints'
        self.keep = keep
        self._writer: ocp.CheckpointManager | None = None
        self._damaged: set[int] = set()

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def steps(self) -> list[int]:
        """The steps with a finished checkpoint, ascending; [] where there is none."""
        return sorted(ocp.utils.checkpoint_steps(self.folder)) if self.folder.is_dir() else []

    def latest_step(self) -> int | None:
        """The newest finished step, or None."""
        return max(self.steps(), default=None)

    def save(self, step: int, state: Any, meta: dict, *, wait: bool = False) -> None:
        """Saves in the background; on return `state` may be donated or overwritten.

        A step that is saved already stays as it is. The oldest go when there are more than `keep`. `meta` is
        JSON; strings belong there.
        """
        if self._writer is None:
            if processes.is_first():
                for damaged in self._damaged:  # in the way of a new save, and the newest to the next reader
                    shutil.rmtree(self.folder / str(damaged), ignore_errors=True)
                self.folder.mkdir(parents=True, exist_ok=True)
            processes.barrier('checkpoints')
            self._writer = ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=self.keep, enable_async_checkpointing=True, cleanup_tmp_directories=True
                ),
            )
        if step not in self._writer.all_steps():
            items = ocp.args.Composite(
                state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave({'format': _FORMAT, 'meta': meta})
            )
            self._writer.save(step, args=items, force=True)
        if wait:
            self.wait()

    def restore(self, like: Any) -> tuple[Any, dict]:
        """(state, meta) of the newest step that can be read, on the devices and in the shardings of `like`.

        `like` is a state of the same structure: arrays or ShapeDtypeStructs. Raises UserError if there is no
        checkpoint, if it is not ours, or if a leaf's name, shape or dtype differs.
        """
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.PyTreeRestore(like, restore_args=ocp.checkpoint_utils.construct_restore_args(like))

        def read(step: int, manager: Any) -> tuple[Any, dict]:
            meta = self._meta(step, manager)
            self._check_same(step, like)
            return manager.restore(step, args=ocp.args.Composite(state=args)).state, meta

        return self._newest(read)

    def restore_meta(self) -> dict:
        """The meta of the newest step that can be read; UserError as for `restore`."""
        return self._newest(self._meta)

    def restore_params(self, key: str = 'params') -> tuple[Any, dict]:
        """(state's `key` as nested dicts of numpy arrays, meta), and nothing else of the state is read.

        UserError as for `restore`.
        """

        def read(step: int, manager: Any) -> tuple[Any, dict]:
            meta = self._meta(step, manager)
            tree = self._saved_tree(step)
            if not isinstance(tree, dict) or key not in tree:
                raise UserError(f'{self.folder / str(step)} holds no {key!r}: train with this version')
            args = ocp.args.PyTreeRestore(
                {key: tree[key]},
                restore_args={
                    key: jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree[key])
                },
                partial_restore=True,
            )
            return manager.restore(step, args=ocp.args.Composite(state=args)).state[key], meta

        return self._newest(read)

    def wait(self) -> None:
        """Returns when the last save is on disk; raises what went wrong in the background."""
        if self._writer is not None:
            self._writer.wait_until_finished()

    def close(self) -> None:
        """Waits, and lets the background threads go; a later `save` starts them again."""
        if self._writer is not None:
            self._writer.wait_until_finished()
            self._writer.close()
            self._writer = None

    def _newest(self, read: Callable[[int, Any], T]) -> T:
        """What read(step) gives for the newest step where it works; steps where it does not are reported."""
        self.wait()
        steps = self.steps()
        if not steps:
            raise UserError(
                f'no checkpoint in {self.workdir}: train first, as in '
                f'`python -m ghn_jax.train --config=configs/quickstart.py --workdir={self.workdir}`'
            )
        level = logging.get_verbosity()
        logging.set_verbosity(logging.FATAL)  # Orbax reports what we report ourselves
        manager = ocp.CheckpointManager(self.folder, options=ocp.CheckpointManagerOptions(read_only=True))
        try:
            for step in reversed(steps):
                try:
                    return read(step, manager)
                except UserError:
                    raise
                except Exception as e:  # Orbax raises bare Exceptions for damaged files
                    reason = ' '.join(str(e).split())[:200] or type(e).__name__
                    print(f'checkpoint {self.folder / str(step)} cannot be read ({reason})', file=sys.stderr)
                    self._damaged.add(step)
        finally:
            manager.close()
            logging.set_verbosity(level)
        raise UserError(
            f'none of the checkpoints {steps} in {self.folder} can be read: '
            'they are damaged or not of ghn_jax; give another --workdir'
        )

    def _meta(self, step: int, manager: Any) -> dict:
        record = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
        if not isinstance(record, dict) or record.get('format') != _FORMAT:
            folder = self.folder / str(step)
            raise UserError(f'{folder} was not written by this version of ghn_jax: give another --workdir')
        return record['meta']

    def _saved_tree(self, step: int) -> Any:
        metadata = ocp.PyTreeCheckpointer().metadata(self.folder / str(step) / 'state').item_metadata
        if metadata is None:
            raise ValueError('its metadata are damaged')
        return metadata.tree

    def _check_same(self, step: int, like: Any) -> None:
        # Orbax raises for another shape or structure, in many lines, and casts another dtype silently.
        saved, wanted = _leaves(self._saved_tree(step)), _leaves(like)
        for name in sorted(saved.keys() | wanted.keys()):
            if saved.get(name) != wanted.get(name):
                raise UserError(
                    f'{self.folder / str(step)}: {name} is {saved.get(name, "absent")}, expected '
                    f'{wanted.get(name, "none")}: the config is not the one it was trained with; '
                    'give that config or another --workdir'
                )


def _leaves(tree: Any) -> dict[str, str]:
    """'params/decoder/kernel' -> 'float32[3, 4]' for every array of the tree."""
    out = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        shape, dtype = tuple(leaf.shape), leaf.dtype
        if jnp.issubdtype(dtype, jax.dtypes.prng_key):  # saved as its data
            data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(shape, dtype))
            shape, dtype = data.shape, data.dtype
        out[jax.tree_util.keystr(path, simple=True, separator='/')] = f'{np.dtype(dtype)}{list(shape)}'
    return out
