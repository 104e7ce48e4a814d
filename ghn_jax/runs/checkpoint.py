"""Checkpoints of a run: the whole training state and a JSON record beside it, written in the background.

`workdir/checkpoints/<step>/` holds two Orbax items: `state` (any pytree of arrays, typed keys too) and `meta`
(what is not an array: the configuration, versions; and a digest of every array, for Orbax reads an array with
a flipped bit without a word). A step's folder gets its name by a rename when all of it is written, so a
process killed in the middle leaves the step before it as the newest. The processes of a run write one
checkpoint together, into a folder that all of them see.

What cannot be read is never deleted: it is moved to `workdir/damaged/` when a new checkpoint is saved.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from ghn_jax.base import files, paths, processes
from ghn_jax.base.digests import array_digests, check_arrays, check_types, json_digest
from ghn_jax.base.errors import UserError, one_line
from ghn_jax.base.paths import Place

_FORMAT = 'ghn_jax checkpoint 1'  # counts up when an old checkpoint can no longer be read
_COMMITTED = 'commit_success.txt'  # which Orbax writes last where it cannot rename
_ATTEMPTS = 50  # to read while training replaces what is read
_PATIENCE = 10  # tenths of a second to wait for the next file of a deletion
T = TypeVar('T')


class Vanished(UserError):
    """A checkpoint was deleted while it was read: training keeps the newest ones only."""


class Checkpoints:
    """The checkpoints of one run directory; reading makes and changes nothing.

    Several processes may read while one trains: what it deletes meanwhile is no damage to them, and they read
    what is then the newest. Those that train together call everything alike, in the same order. `with` waits
    for the last save and closes.

    keep: the newest ones stay. keep_every: so do those of multiples of it; 0 is none. background: whether
    `save` returns before all is on the disk.
    """

    def __init__(
        self, workdir: str | os.PathLike, *, keep: int = 3, keep_every: int = 0, background: bool = True
    ):
        self.workdir = paths.absolute(workdir, 'workdir')
        self.folder = self.workdir / 'checkpoints'
        self.keep, self.keep_every, self.background = keep, keep_every, background
        self._best: int | None = None
        self._writer: ocp.CheckpointManager | None = None
        self._damaged: set[int] = set()
        self._verbosity = logging.get_verbosity()

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def steps(self) -> list[int]:
        """Return the steps with a finished checkpoint, ascending."""
        before = []
        for _ in range(_ATTEMPTS):
            names = [name for name in files.names(self.folder) if name.isdecimal()]
            steps = sorted(int(name) for name in names if _is_whole(self.folder / name))
            if steps or names == before:
                return steps
            before = names  # deleted by now, and there are newer ones; or never whole
        return []

    def latest_step(self) -> int | None:
        """Return the newest finished step; None where there is none."""
        return max(self.steps(), default=None)

    def save(self, step: int, state: Any, meta: dict, *, best: int | None = None, wait: bool = False) -> None:
        """Save a checkpoint in the background; on return `state` may be donated or overwritten.

        A step that is saved already stays as it is. meta: JSON; strings belong there. best: a step whose
        checkpoint stays, however many come after it. wait: return only when all is on disk.

        Raises:
          UserError: it cannot be written, or the one before could not.
        """
        self._best = best
        with self._writing():
            if self._writer is None:
                self._writer = self._open()
            if step not in self._writer.all_steps():
                record = {'meta': meta, 'digests': array_digests(state)}
                items = ocp.args.Composite(
                    state=ocp.args.PyTreeSave(state),
                    meta=ocp.args.JsonSave({'format': _FORMAT, 'digest': json_digest(record), **record}),
                )
                self._writer.save(step, args=items, force=True)
        if wait:
            self.wait()

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any = None) -> list[bool]:
        """Return which checkpoints stay, as an Orbax `PreservationPolicy` does."""
        newest = [info.step for info in checkpoints][-self.keep :]
        return [
            info.step in newest
            or info.step == self._best
            or (self.keep_every > 0 and info.step % self.keep_every == 0)
            for info in checkpoints
        ]

    def restore(self, like: Any, *, step: int | None = None) -> tuple[Any, dict]:
        """Return (state, meta) of the newest step that can be read, placed on devices as `like` is.

        `like` is a state of the same structure: arrays or ShapeDtypeStructs. step: of this one, and of no
        other.

        Raises:
          UserError: no checkpoint, one that is not ours, or another name, shape or dtype of a leaf; Vanished:
            training deleted that of `step` while it was read.
        """
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.PyTreeRestore(like, restore_args=ocp.checkpoint_utils.construct_restore_args(like))

        def read(step: int, manager: Any) -> tuple[Any, dict]:
            record = self._record(step, manager)
            check_types(self._saved_tree(step), like, self.folder / str(step))
            state = manager.restore(step, args=ocp.args.Composite(state=args)).state
            check_arrays(state, record.get('digests'))
            return state, record['meta']

        return self._newest(read, step)

    def restore_meta(self) -> dict:
        """Return the meta of the newest step that can be read. Raises UserError as `restore`."""
        return self.restore_record()[0]

    def restore_record(self) -> tuple[dict, int]:
        """Return meta, and a digest of it and of every array, of the newest step whose record can be read.

        Two checkpoints have one digest only if they are the same. Raises UserError as `restore`.
        """
        record = self._newest(self._record)
        return record['meta'], _record_digest(record)

    def restore_params(self, *keys: str, step: int | None = None) -> tuple[Any, dict]:
        """Return a part of the state, as nested dicts of NumPy arrays, and meta; nothing else is read.

        keys: of the part, the first that the state has; by default 'params'. step: of this one, and of no
        other. Raises UserError as `restore`.
        """

        def read(step: int, manager: Any) -> tuple[Any, dict]:
            record = self._record(step, manager)
            tree = self._saved_tree(step)
            wanted = keys or ('params',)
            key = next((key for key in wanted if isinstance(tree, dict) and key in tree), None)
            if key is None:
                raise UserError(f'{self.folder / str(step)} holds no {wanted[0]!r}: train with this version')
            args = ocp.args.PyTreeRestore(
                {key: tree[key]},
                restore_args={
                    key: jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree[key])
                },
                partial_restore=True,
            )
            state = manager.restore(step, args=ocp.args.Composite(state=args)).state
            check_arrays({key: state[key]}, record.get('digests'))
            return state[key], record['meta']

        return self._newest(read, step)

    def wait(self) -> None:
        """Return when the last save is on disk. Raises UserError as `save`."""
        if self._writer is not None:
            with self._writing():
                self._writer.wait_until_finished()

    def close(self) -> None:
        """Wait for the last save, and end the background threads; a later `save` starts them again."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            with self._writing():
                try:
                    writer.wait_until_finished()
                finally:
                    writer.close()
                    logging.set_verbosity(self._verbosity)

    def _open(self) -> ocp.CheckpointManager:
        if processes.is_first():
            for step in sorted(self._damaged):  # in the way of a new save, and the newest to the next reader
                self._put_aside(step)
            self.folder.mkdir(parents=True, exist_ok=True)
        processes.barrier('checkpoints')
        # Of a failure in the background Orbax tells at once, in many lines; it is raised, and ours is one.
        self._verbosity = logging.get_verbosity()
        if self._verbosity < logging.INFO:  # more was not asked for
            logging.set_verbosity(logging.FATAL)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self,
            enable_async_checkpointing=self.background,
            cleanup_tmp_directories=True,
        )
        return ocp.CheckpointManager(self.folder, options=options)

    def _put_aside(self, step: int) -> None:
        aside = self.workdir / 'damaged'
        aside.mkdir(exist_ok=True)
        taken = len([name for name in files.names(aside) if name.startswith(str(step))])
        files.move(self.folder / str(step), aside / (f'{step}.{taken}' if taken else str(step)))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as e:  # Orbax raises what the file system does, or bare Exceptions around it
            whole = self.latest_step()
            last = 'there is none yet' if whole is None else f'the last whole one is that of step {whole}'
            raise UserError(
                f'no checkpoint can be written in {self.folder} ({_reason(e)}); {last}: make room, or make '
                'the directory writable, and start again'
            ) from None

    def _newest(self, read: Callable[[int, Any], T], only: int | None = None) -> T:
        """Return read(step, manager) for the newest step where it works, or for `only`; report damaged ones.

        Raises:
          UserError: there is none. Vanished: `only` is deleted meanwhile.
        """
        self.wait()
        for _ in range(_ATTEMPTS):
            steps = self._steps_to_read(only)
            try:
                for step in reversed(steps):
                    if step not in self._damaged:  # reported before
                        try:
                            return self._read(step, read, steps[-1] if only is None else None)
                        except UserError:
                            raise
                        except Exception as e:  # Orbax raises bare Exceptions for damaged files
                            where = self.folder / str(step)
                            print(f'checkpoint {where} cannot be read ({_reason(e)})', file=sys.stderr)
                            self._damaged.add(step)
            except Vanished:
                if only is not None:
                    raise
                continue
            raise UserError(
                f'none of the checkpoints {steps} in {self.folder} can be read: '
                'they are damaged or not of ghn_jax; give another workdir'
            )
        raise UserError(
            f'the checkpoints in {self.folder} are replaced faster than they can be read: try again, or '
            'train with a larger keep_checkpoints'
        )

    def _steps_to_read(self, only: int | None) -> list[int]:
        steps = self.steps()
        if not steps:
            raise UserError(
                f'no checkpoint in {self.workdir}: train first, as in '
                f'`python -m ghn_jax.train --config=quickstart --workdir={self.workdir}`'
            )
        if only is not None and only not in steps:
            raise UserError(f'{self.folder} has no checkpoint of step {only}: choose from {steps}')
        return steps if only is None else [only]

    def _read(self, step: int, read: Callable[[int, Any], T], newest: int | None) -> T:
        """Return read(step, manager). Raises Vanished where the checkpoint is deleted meanwhile."""
        try:
            with self._reader() as manager:
                return read(step, manager)
        except Exception:
            before = files.tree(self.folder / str(step))
        try:
            with self._reader() as manager:
                return read(step, manager)
        except Exception:
            if not self._is_being_deleted(step, before, newest):
                raise
        raise Vanished(
            f'the checkpoint of step {step} in {self.folder} was deleted while it was read: training keeps '
            f'the newest ones; choose from {self.steps()}'
        )

    def _is_being_deleted(self, step: int, before: set[str], newest: int | None) -> bool:
        """Return whether a checkpoint that cannot be read is being deleted, and not damaged.

        Then its files become fewer than `before`, or there is a checkpoint newer than `newest`, which can be
        read in its place; None: no other can.
        """
        now = lambda: files.tree(self.folder / str(step))
        if newest is not None:
            return now() != before or not before or max(self.steps(), default=newest) > newest
        for _ in range(_PATIENCE):
            if not before or now() != before:
                return True
            time.sleep(0.1)
        return False

    @contextlib.contextmanager
    def _reader(self) -> Iterator[ocp.CheckpointManager]:
        level = logging.get_verbosity()
        logging.set_verbosity(logging.FATAL)  # Orbax reports what we report ourselves
        try:
            options = ocp.CheckpointManagerOptions(read_only=True)
            with ocp.CheckpointManager(self.folder, options=options) as manager:
                yield manager
        finally:
            logging.set_verbosity(level)

    def _record(self, step: int, manager: Any) -> dict:
        record = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
        if not isinstance(record, dict) or record.get('format') != _FORMAT:
            folder = self.folder / str(step)
            raise UserError(f'{folder} was not written by this version of ghn_jax: give another workdir')
        digest = record.get('digest')  # absent in checkpoints from before there were digests
        if digest is not None and digest != _record_digest(record):
            raise ValueError('its record was changed after it was written')
        return record

    def _saved_tree(self, step: int) -> Any:
        metadata = ocp.PyTreeCheckpointer().metadata(self.folder / str(step) / 'state').item_metadata
        if metadata is None:
            raise ValueError('its metadata are damaged')
        return metadata.tree


def _is_whole(folder: Place) -> bool:
    """Whether a step is finished: a folder has its name then, in a bucket it has an object that says so."""
    return files.is_file(folder / _COMMITTED) if paths.in_bucket(folder) else files.is_folder(folder)


def _reason(error: Exception) -> str:
    for cause in ('No space left on device', 'Read-only file system', 'Permission denied'):
        if cause in str(error):  # in the middle of many lines
            return cause
    return one_line(error) or type(error).__name__


def _record_digest(record: dict) -> int:
    return json_digest({key: record.get(key) for key in ('meta', 'digests')})
