"""Checkpoints of a run: the whole training state and a JSON record beside it, written in the background.

`workdir/checkpoints/<step>/` holds two Orbax items: `state` (any pytree of arrays, typed keys too) and `meta`
(what is not an array: the configuration, versions; and a digest of every array, for Orbax reads an array with
a flipped bit without a word). A step's folder gets its name by a rename when all of it is written, so a
process killed in the middle leaves the step before it as the newest. The processes of a run write one
checkpoint together, into a folder that all of them see.

What cannot be read is never deleted: it is moved to `workdir/damaged/` when a new checkpoint is saved.
"""

import contextlib
import json
import os
import pathlib
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
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

    keep: the newest ones stay. keep_every: so do those of multiples of it; 0 is none. `best`, an attribute:
    so does that of this step. background: whether `save` returns before all is on the disk.
    """

    def __init__(
        self, workdir: str | os.PathLike, *, keep: int = 3, keep_every: int = 0, background: bool = True
    ):
        self.workdir = pathlib.Path(workdir).absolute()
        self.folder = self.workdir / 'checkpoints'
        self.keep, self.keep_every, self.background = keep, keep_every, background
        self.best: int | None = None
        self._writer: ocp.CheckpointManager | None = None
        self._damaged: set[int] = set()
        self._verbosity = logging.get_verbosity()

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

        A step that is saved already stays as it is. `meta` is JSON; strings belong there.

        Raises:
          UserError: it cannot be written, or the one before could not.
        """
        with self._writing():
            if self._writer is None:
                self._writer = self._open()
            if step not in self._writer.all_steps():
                record = {'meta': meta, 'digests': _digests(state)}
                items = ocp.args.Composite(
                    state=ocp.args.PyTreeSave(state),
                    meta=ocp.args.JsonSave({'format': _FORMAT, 'digest': _digest_json(record), **record}),
                )
                self._writer.save(step, args=items, force=True)
        if wait:
            self.wait()

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any = None) -> list[bool]:
        """Which checkpoints stay: as an Orbax `PreservationPolicy`."""
        newest = [info.step for info in checkpoints][-self.keep :]
        return [
            info.step in newest
            or info.step == self.best
            or (self.keep_every > 0 and info.step % self.keep_every == 0)
            for info in checkpoints
        ]

    def restore(self, like: Any, *, step: int | None = None) -> tuple[Any, dict]:
        """(state, meta) of the newest step that can be read, on the devices and in the shardings of `like`.

        `like` is a state of the same structure: arrays or ShapeDtypeStructs. step: of this one, and of no
        other. Raises UserError if there is no
        checkpoint, if it is not ours, or if a leaf's name, shape or dtype differs.
        """
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.PyTreeRestore(like, restore_args=ocp.checkpoint_utils.construct_restore_args(like))

        def read(step: int, manager: Any) -> tuple[Any, dict]:
            record = self._record(step, manager)
            self._check_same(step, like)
            state = manager.restore(step, args=ocp.args.Composite(state=args)).state
            _check_digests(state, record)
            return state, record['meta']

        return self._newest(read, step)

    def restore_meta(self) -> dict:
        """The meta of the newest step that can be read; UserError as for `restore`."""
        return self._newest(lambda step, manager: self._record(step, manager)['meta'])

    def restore_params(self, key: str = 'params', *, step: int | None = None) -> tuple[Any, dict]:
        """(state's `key` as nested dicts of numpy arrays, meta), and nothing else of the state is read.

        step: of this one, and of no other. UserError as for `restore`.
        """

        def read(step: int, manager: Any) -> tuple[Any, dict]:
            record = self._record(step, manager)
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
            state = manager.restore(step, args=ocp.args.Composite(state=args)).state
            _check_digests({key: state[key]}, record)
            return state[key], record['meta']

        return self._newest(read, step)

    def wait(self) -> None:
        """Returns when the last save is on disk; UserError as for `save`."""
        if self._writer is not None:
            with self._writing():
                self._writer.wait_until_finished()

    def close(self) -> None:
        """Waits, and lets the background threads go; a later `save` starts them again."""
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
        taken = len(list(aside.glob(f'{step}*')))
        os.rename(self.folder / str(step), aside / (f'{step}.{taken}' if taken else str(step)))

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
        """What read(step) gives for the newest step where it works; steps where it does not are reported."""
        self.wait()
        steps = self.steps()
        if not steps:
            raise UserError(
                f'no checkpoint in {self.workdir}: train first, as in '
                f'`python -m ghn_jax.train --config=quickstart --workdir={self.workdir}`'
            )
        if only is not None:
            if only not in steps:
                raise UserError(f'{self.folder} has no checkpoint of step {only}: choose from {steps}')
            steps = [only]
        level = logging.get_verbosity()
        logging.set_verbosity(logging.FATAL)  # Orbax reports what we report ourselves
        manager = ocp.CheckpointManager(self.folder, options=ocp.CheckpointManagerOptions(read_only=True))
        try:
            for step in reversed(steps):
                if step in self._damaged:  # said before
                    continue
                try:
                    return read(step, manager)
                except UserError:
                    raise
                except Exception as e:  # Orbax raises bare Exceptions for damaged files
                    where = self.folder / str(step)
                    print(f'checkpoint {where} cannot be read ({_reason(e)})', file=sys.stderr)
                    self._damaged.add(step)
        finally:
            manager.close()
            logging.set_verbosity(level)
        raise UserError(
            f'none of the checkpoints {steps} in {self.folder} can be read: '
            'they are damaged or not of ghn_jax; give another --workdir'
        )

    def _record(self, step: int, manager: Any) -> dict:
        record = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
        if not isinstance(record, dict) or record.get('format') != _FORMAT:
            folder = self.folder / str(step)
            raise UserError(f'{folder} was not written by this version of ghn_jax: give another --workdir')
        digest = record.get('digest')  # absent in checkpoints from before there were digests
        if digest is not None and digest != _digest_json({k: record[k] for k in ('meta', 'digests')}):
            raise ValueError('its record was changed after it was written')
        return record

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


def _reason(error: Exception) -> str:
    for cause in ('No space left on device', 'Read-only file system', 'Permission denied'):
        if cause in str(error):  # in the middle of many lines
            return cause
    return ' '.join(str(error).split())[:200] or type(error).__name__


def _digests(state: Any) -> dict[str, int]:
    """A digest of every array of a state, by the names that `_leaves` gives."""
    out = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            leaf = leaf.addressable_data(0)  # replicated: every process has all of it
        data = np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
        out[jax.tree_util.keystr(path, simple=True, separator='/')] = zlib.crc32(data)
    return out


def _digest_json(value: Any) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def _check_digests(state: Any, record: dict) -> None:
    saved = record.get('digests')
    if saved is None:
        return
    for name, digest in _digests(state).items():
        if saved.get(name) != digest:
            raise ValueError(f'{name} is not what was written')
