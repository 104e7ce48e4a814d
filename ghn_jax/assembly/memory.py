"""Memory: what a program will take, told before it is compiled, and what this process takes.

Linux promises memory that is not there and ends the process when it is used: the estimate is the only
warning. It counts the buffers that are known beforehand, so it is a lower bound; XLA adds its own.
"""

import pathlib
from collections.abc import Iterable
from typing import Any

import jax
import psutil
from jax.sharding import Mesh

from ghn_jax.assembly.network_batch import tile_shapes
from ghn_jax.assembly.workspace import make_workspace
from ghn_jax.base import counters
from ghn_jax.base.errors import UserError
from ghn_jax.cnn.program import Program
from ghn_jax.cnn.tape_layout import array_bytes
from ghn_jax.config import RunConfig

KNOBS = (
    'take a smaller train.batch_size, narrower networks (space.channels), '
    'train.dtype=bfloat16, or fewer parts of a CPU (devices.cpu=1) in the config'
)
# Of a container, by cgroup 2 and 1: its limit, its use, and what of that are files kept in case they are read
# again, which Linux drops where memory is wanted.
_CGROUPS = (
    (pathlib.Path('/sys/fs/cgroup'), 'memory.max', 'memory.current', 'inactive_file'),
    (
        pathlib.Path('/sys/fs/cgroup/memory'), 'memory.limit_in_bytes', 'memory.usage_in_bytes',
        'total_inactive_file',
    ),
)  # fmt: skip


def tree_bytes(tree: Any) -> int:
    """Return the bytes that a tree of arrays, or of their shapes, takes on the device."""
    return sum(array_bytes(x.shape, x.dtype) for x in jax.tree.leaves(tree))


def program_bytes(program: Program, config: RunConfig, mesh: Mesh | None) -> int:
    """Return the bytes that training with a program takes on one device, at least.

    Its workspace, and the hypernetwork's tiles of a network with their gradients.
    """
    batch = config.train.batch_size // (mesh.shape['images'] if mesh else 1)
    workspace = jax.eval_shape(lambda: make_workspace(program, batch, config.train.dtype))
    return tree_bytes(workspace) + 2 * tree_bytes(tile_shapes(program, config.program.max_nodes))


def free_bytes(mesh: Mesh | None) -> int:
    """Return the bytes that each of this process's devices of the mesh may still take."""
    own = [d for d in (mesh.devices.flat if mesh else jax.local_devices()[:1]) if _is_own(d)]
    if own[0].platform != 'cpu':
        stats = own[0].memory_stats() or {}
        return stats['bytes_limit'] - stats['bytes_in_use'] if 'bytes_limit' in stats else 2**62
    return min(psutil.virtual_memory().available, _container_free()) // len(own)


def check(program: Program, config: RunConfig, mesh: Mesh | None, free: int) -> None:
    """Raise UserError if a program takes more than `free` bytes of a device, by the names of the knobs."""
    needed = program_bytes(program, config, mesh)
    if needed > free:
        channels = max(c for _, c in program.tape_shapes)
        raise UserError(
            f'networks of up to {channels} channels take at least {needed / 2**30:.2f} GiB of a device, of '
            f'which {free / 2**30:.2f} GiB are free: {KNOBS}'
        )


def check_scoring(programs: Iterable[Program], batch_size: int, mesh: Mesh | None = None) -> None:
    """Raise UserError if scoring batches takes more of a device than is free, by the name of the knob."""
    free = free_bytes(mesh)
    for program in programs:
        workspace = jax.eval_shape(lambda p=program: make_workspace(p, batch_size, train=False))
        needed = tree_bytes(workspace) + tree_bytes(workspace.quantized)  # the weights before rounding, too
        if needed > free:
            channels = max(c for _, c in program.tape_shapes)
            raise UserError(
                f'networks of up to {channels} channels take at least {needed / 2**30:.1f} GiB for batches '
                f'of {batch_size} images, and {free / 2**30:.1f} GiB are free: give a smaller batch_size, '
                'or networks with a smaller C or fewer cells'
            )


def is_out_of_memory(error: Exception) -> bool:
    """Return whether XLA, or the system, had no memory to give."""
    return isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error)


def usage() -> dict[str, float]:
    """Return what this process holds: resident memory (MiB), open files, threads, programs compiled."""
    counters.start_counting()
    process = psutil.Process()
    with process.oneshot():
        return {
            'machine/resident_mib': process.memory_info().rss / 2**20,
            'machine/open_files': process.num_fds(),
            'machine/threads': process.num_threads(),
            'machine/compilations': counters.compilations(),
        }


def _is_own(device: jax.Device) -> bool:  # pyright: ignore[reportInvalidTypeForm]
    return device.process_index == jax.process_index()


def _container_free() -> int:
    for folder, limit, used, kept in _CGROUPS:
        try:
            limit, used, statistics = ((folder / name).read_text() for name in (limit, used, 'memory.stat'))
            counts = dict(line.split() for line in statistics.splitlines())
            return int(limit) - int(used) + int(counts.get(kept, 0))
        except (OSError, ValueError):  # none, or 'max'
            continue
    return 2**62
