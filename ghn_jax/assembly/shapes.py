"""The arguments of compiled functions as shapes, placed on devices as `mesh` places the arrays.

A program is compiled from them alone, for devices that are here or not.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from ghn_jax.assembly.mesh import REPLICATED, over_devices, specs_of
from ghn_jax.assembly.network_batch import Networks
from ghn_jax.assembly.workspace import Workspace, make_workspace
from ghn_jax.base import backends
from ghn_jax.cnn.program import Program


@dataclasses.dataclass(frozen=True)
class Placing:
    """Devices that run a function together.

    Attributes:
      devices: all of them; one where there is no mesh.
      mesh: over them; None for one device.
    """

    devices: Sequence[Any]
    mesh: Mesh | None = None

    def shapes(self, tree: Any, spec: PartitionSpec = REPLICATED) -> Any:
        """Return the shapes of a tree of arrays, or of shapes, spread by `spec` (`mesh.replicate`)."""
        return jax.tree.map(functools.partial(self._shape, spec), tree)

    def networks(self, networks: Networks) -> Networks:
        """Return the shapes of a whole meta-batch (`mesh.place_networks`)."""
        if self.mesh is None:
            return self.shapes(networks)
        n_waves = np.repeat(networks.graphs.n_waves, self.mesh.shape['networks'])
        networks = networks._replace(graphs=networks.graphs._replace(n_waves=n_waves))
        return jax.tree.map(self._shape, specs_of(networks), networks)

    def workspace(
        self, program: Program, batch: int, dtype: Any = jnp.float32, *, train: bool = True
    ) -> Workspace:
        """Return the shapes of the devices' workspaces (`mesh.make_workspaces`), for their backend."""
        part = batch // (self.mesh.shape['images'] if self.mesh else 1)
        with backends.built_for(self.devices[0].platform):
            shapes = jax.eval_shape(lambda: make_workspace(program, part, dtype, train=train))
        if self.mesh is None:
            return self.shapes(shapes)
        count, spec = self.mesh.size, over_devices(self.mesh)
        longer = lambda x: jax.ShapeDtypeStruct((x.shape[0] * count, *x.shape[1:]), x.dtype)
        return self.shapes(jax.tree.map(longer, shapes), spec)

    def _shape(self, spec: PartitionSpec, x: Any) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(self.mesh, spec) if self.mesh else SingleDeviceSharding(self.devices[0])
        weak = getattr(x, 'weak_type', False)
        return jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=sharding, weak_type=weak)
