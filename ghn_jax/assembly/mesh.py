"""The devices of a run as a mesh of networks x images, and arrays placed on it.

Each row of the mesh takes networks of its own; the devices of a row share the images of each. All processes
call these functions alike. A mesh of None is one device: nothing is spread and no collective compiled.

Axes: M networks of the meta-batch | D devices.
"""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ghn_jax.assembly.network_batch import Networks
from ghn_jax.assembly.workspace import Workspace, make_workspace
from ghn_jax.base.collectives import Axes
from ghn_jax.base.errors import FieldError
from ghn_jax.cnn.program import Program
from ghn_jax.networks.graph_batch import GraphBatch

if TYPE_CHECKING:  # an edit of the config compiles no step anew (`base.source_files`)
    from ghn_jax.config import RunConfig

REPLICATED = PartitionSpec()
OVER_NETWORKS = PartitionSpec('networks')
OVER_IMAGES = PartitionSpec('images')
OVER_DEVICES = PartitionSpec(('networks', 'images'))
_TABLES: Any = OVER_NETWORKS  # in the place of whole tables of arrays
_NETWORKS = Networks(
    graphs=GraphBatch(
        primitive=OVER_NETWORKS,
        shape=OVER_NETWORKS,
        distance=OVER_NETWORKS,
        waves=PartitionSpec(None, 'networks'),
        n_waves=OVER_NETWORKS,  # a scalar for each device: its own networks' largest
        n_node=OVER_NETWORKS,
        weight_bits=OVER_NETWORKS,
        activation_bits=OVER_NETWORKS,
    ),
    decoder=_TABLES,
    sources=_TABLES,
    tables=_TABLES,
    bits=_TABLES,
)


def make_mesh(config: 'RunConfig') -> Mesh | None:
    """Make the mesh of a config over the devices of all processes; None for a single device.

    Raises:
      FieldError: the devices are fewer than asked for, or do not divide the work.
    """
    wanted = config.devices.per_process
    found = jax.local_device_count()
    if wanted > found:
        raise FieldError(
            'devices.per_process', f'={wanted}: there are {found} devices here; 0 takes all of them'
        )
    return arrange(config, of_each_process(jax.devices(), wanted))


def of_each_process(devices: Sequence[Any], count: int) -> list[Any]:
    """Return the first `count` devices of each process, 0: all, process by process."""
    chosen = []
    for process in sorted({device.process_index for device in devices}):
        own = [device for device in devices if device.process_index == process]
        chosen += own[: count or None]
    return chosen


def arrange(config: 'RunConfig', devices: Sequence[Any]) -> Mesh | None:
    """Make the mesh of a config over these devices, here or not; None for a single one.

    Raises:
      FieldError: they do not divide the work.
    """
    images = config.devices.images
    if len(devices) % images:
        raise FieldError(
            'devices.images', f'={images} does not divide the {len(devices)} devices: give a divisor'
        )
    rows = len(devices) // images
    if config.train.meta_batch % rows:
        raise FieldError(
            'train.meta_batch',
            f'={config.train.meta_batch} does not divide among {rows} groups of '
            f'devices ({len(devices)} devices, {images} for each network): give a multiple of {rows}, or '
            'fewer devices with devices.per_process',
        )
    if config.train.batch_size % images:
        raise FieldError(
            'train.batch_size',
            f'={config.train.batch_size} does not divide among '
            f'devices.images={images} devices: give a multiple',
        )
    return mesh_of(devices, images)


def mesh_of(devices: Sequence[Any], images: int) -> Mesh | None:
    """Make a mesh; the devices of one network are neighbours in the order given. None for one device."""
    if len(devices) == 1:
        return None
    return Mesh(np.array(devices).reshape(-1, images), ('networks', 'images'))


def axes_of(mesh: Mesh | None) -> Axes | None:
    """Return the axes that a step reduces over. No axis of images where each network has one device."""
    if mesh is None:
        return None
    return Axes('networks', 'images' if mesh.shape['images'] > 1 else None)


def about_exchanges(mesh: Mesh | None) -> str:
    """Say, in a line, what has not run yet of how the devices of a network exchange values; '' on CPUs.

    They do so in loops and branches that the devices of other networks do not take: how long a loop is and
    which branch is taken depends on the network, so nothing in there is the same for all.
    """
    images = mesh.shape['images'] if mesh else 1
    if images == 1 or not mesh or mesh.devices.flat[0].platform == 'cpu':
        return ''
    return (
        f'devices.images={images}: the {images} devices of a network exchange values in branches that others '
        'do not take; it compiles for TPUs and is right on simulated devices, but has not run on any '
        'accelerator: compare the first losses with those of devices.images=1'
    )


def own_networks(mesh: Mesh | None, meta_batch: int) -> slice:
    """Return which networks of the meta-batch this process prepares."""
    if mesh is None:
        return slice(0, meta_batch)
    own = [
        i for i, row in enumerate(mesh.devices) if any(d.process_index == jax.process_index() for d in row)
    ]
    each = meta_batch // len(mesh.devices)
    return slice(own[0] * each, (own[-1] + 1) * each)


def place_networks(mesh: Mesh | None, networks: Networks, meta_batch: int) -> Networks:
    """Place this process's networks (`own_networks`, numpy) as its part of those of all processes."""
    if mesh is None:
        return networks
    rows = networks.tables.n_blocks.shape[0] * len(mesh.devices) // meta_batch  # of the mesh, on this process
    n_waves = np.repeat(networks.graphs.n_waves, rows)
    networks = networks._replace(graphs=networks.graphs._replace(n_waves=n_waves))

    def place(spec: PartitionSpec, x: np.ndarray) -> jax.Array:
        shape = list(x.shape)
        axis = spec.index('networks')
        shape[axis] = shape[axis] * len(mesh.devices) // rows
        return _from_local(mesh, spec, x, shape)

    return jax.tree.map(
        lambda spec, part: jax.tree.map(lambda x: place(spec, x), part), _NETWORKS, networks,
        is_leaf=lambda x: isinstance(x, PartitionSpec),
    )  # fmt: skip


def replicate(mesh: Mesh | None, tree: Any, spec: PartitionSpec = REPLICATED) -> Any:
    """Place arrays that every process has whole, on all devices; with a `spec`, cut over them.

    Without a mesh they are on the first device, and said to be: what a step returns and what is restored is
    so, and JAX compiles anew for what is not.
    """
    if mesh is None:
        return jax.device_put(tree, jax.local_devices()[0])

    def place(x: Any) -> jax.Array:
        if hasattr(x, 'dtype') and jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place(jax.random.key_data(x)))
        sharding = NamedSharding(mesh, spec)
        if isinstance(x, jax.Array) and x.sharding == sharding:
            return x
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(place, tree)


def local_mesh(count: int) -> Mesh | None:
    """Make a mesh of this process's first `count` devices, 0: of all; None for one.

    Raises:
      UserError: fewer devices than that.
    """
    found = jax.local_devices()
    if not 0 <= count <= len(found):
        raise FieldError('devices', f'={count}: there are {len(found)} devices here; 0 takes all of them')
    return mesh_of(found[: count or len(found)], 1)


def to_local(tree: Any) -> Any:
    """Return replicated arrays as arrays of this process's first device."""
    return jax.tree.map(lambda x: x.addressable_data(0), tree)


def make_workspaces(
    mesh: Mesh | None, program: Program, batch: int, dtype: Any = jax.numpy.float32, *, train: bool = True
) -> Workspace:
    """Make workspaces for batches of `batch` images, one for each device: leading axes are D times as long.

    dtype: of the networks' values, see `executor`. train: with gradients; else without weights, too.
    """
    make = functools.partial(make_workspace, program, dtype=dtype, train=train)
    if mesh is None:
        return replicate(mesh, make(batch))
    part = batch // mesh.shape['images']
    shapes = jax.eval_shape(lambda: make(part))
    zeros = lambda: jax.tree.map(
        lambda x: jax.numpy.zeros((x.shape[0] * mesh.size, *x.shape[1:]), x.dtype), shapes
    )
    return jax.jit(zeros, out_shardings=NamedSharding(mesh, over_devices(mesh)))()


def over_devices(mesh: Mesh) -> PartitionSpec:
    """Return how workspaces are spread, as a step returns them.

    JAX drops axes of one device, and compiles anew where the names differ.
    """
    names = tuple(name for name in mesh.axis_names if mesh.shape[name] > 1)
    return PartitionSpec(names[0] if len(names) == 1 else names)


def specs_of(networks: Networks) -> Any:
    """Return how the arrays of a meta-batch are spread: a tree like it."""
    return jax.tree.map(
        lambda spec, part: jax.tree.map(lambda x: spec, part), _NETWORKS, networks,
        is_leaf=lambda x: isinstance(x, PartitionSpec),
    )  # fmt: skip


def spread(step: Callable, mesh: Mesh | None, specs: tuple[PartitionSpec, ...]) -> Callable:
    """Return step(state, networks, ...) -> (state, metrics, workspace) as run on each device of the mesh.

    State and metrics are replicated, networks and workspaces are each device's own; specs: of what comes
    after the networks.
    """
    if mesh is None:
        return step

    def on_device(state, networks, *rest):
        graphs = networks.graphs._replace(n_waves=networks.graphs.n_waves[0])
        return step(state, networks._replace(graphs=graphs), *rest)

    return on_each(on_device, mesh, (REPLICATED, _NETWORKS, *specs), (REPLICATED, REPLICATED, OVER_DEVICES))


def on_each(run: Callable, mesh: Mesh | None, inputs: Any, outputs: Any) -> Callable:
    """Return `run` as run on each device of the mesh, with its part of the arguments."""
    if mesh is None:
        return run
    # Not checked for replication: the executor's loops carry buffers that begin equal and end unequal.
    return jax.shard_map(run, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)


def _from_local(mesh: Mesh, spec: PartitionSpec, x: np.ndarray, shape: list[int]) -> jax.Array:
    return jax.make_array_from_process_local_data(NamedSharding(mesh, spec), x, tuple(shape))
