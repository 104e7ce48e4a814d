"""The compiled functions of an evaluation: predicting weights, scoring, and measuring, one network at a time.

Programs, hypernetworks, schemes and meshes are static and compared by value: one compilation for each.
Compiled programs are kept on disk, and each is loaded once in a process.
"""

import functools
from typing import Any

import jax
from jax import Array
from jax.sharding import Mesh

from ghn_jax.assembly.mesh import OVER_DEVICES, REPLICATED, axes_of, on_each
from ghn_jax.assembly.network_batch import Networks
from ghn_jax.assembly.workspace import Workspace
from ghn_jax.base.executables import KeptFunction
from ghn_jax.base.recipes import Recipe
from ghn_jax.cnn.deploy.observer import Index, Wanted
from ghn_jax.cnn.program import Program
from ghn_jax.cnn.tables import RunnableNetwork
from ghn_jax.evaluation import device
from ghn_jax.evaluation.device import Measured
from ghn_jax.evaluation.selection import ImageBatches
from ghn_jax.hypernet.ghn import GHN
from ghn_jax.quant.scheme import Scheme

_IMAGES = ImageBatches(OVER_DEVICES, OVER_DEVICES, REPLICATED, REPLICATED)  # how devices share batches


@functools.partial(jax.jit, static_argnames='ghn', donate_argnames='out')
def predict(params: Any, networks: Networks, out: Array, *, ghn: GHN) -> Array:
    """Compute `device.predict_buffer`; `out` is overwritten."""
    return device.predict_buffer(ghn, params, networks, out)


@functools.partial(jax.jit, static_argnames=('program', 'scheme', 'mesh'), donate_argnames='workspace')
def score(
    network: RunnableNetwork,
    images: ImageBatches,
    workspace: Workspace,
    *,
    program: Program,
    scheme: Scheme,
    mesh: Mesh | None = None,
) -> tuple[Array, Array, Array, Workspace]:
    """Compute `device.score`, by devices that share the batches, each with a workspace."""
    run = functools.partial(device.score, program, scheme=scheme, axes=axes_of(mesh))
    outputs = (REPLICATED, REPLICATED, OVER_DEVICES, OVER_DEVICES)
    return on_each(run, mesh, (REPLICATED, _IMAGES, OVER_DEVICES), outputs)(network, images, workspace)


@functools.partial(jax.jit, static_argnames=('program', 'scheme', 'mesh'), donate_argnames='workspace')
def measure(
    network: RunnableNetwork,
    images: ImageBatches,
    index: Index,
    wanted: Wanted,
    workspace: Workspace,
    *,
    program: Program,
    scheme: Scheme,
    mesh: Mesh | None = None,
) -> tuple[Measured, Workspace]:
    """Compute `device.measure`; each of several devices does all of it, for it takes little time."""
    run = functools.partial(device.measure, program, scheme=scheme)
    inputs = (REPLICATED, REPLICATED, REPLICATED, REPLICATED, OVER_DEVICES)
    on_devices = on_each(run, mesh, inputs, (REPLICATED, OVER_DEVICES))
    return on_devices(network, images, index, wanted, workspace)


def recipe_of_prediction(ghn: GHN) -> Recipe:
    """Return the recipe of `predict` for a hypernetwork."""
    return Recipe(function=predict, static={'ghn': ghn}, named=str(ghn))


def recipe_of(function: Any, program: Program, scheme: Scheme, mesh: Mesh | None) -> Recipe:
    """Return the recipe of `score` or `measure` for the networks of a program."""
    static = {'program': program, 'scheme': scheme, 'mesh': mesh}
    return Recipe(function=function, static=static, named=f'{program} {scheme} {mesh}')


@functools.cache
def predictor(ghn: GHN) -> KeptFunction:
    """Return `predict` for a hypernetwork: a function of (params, networks, out)."""
    return KeptFunction(recipe_of_prediction(ghn))


@functools.cache
def runner(function: Any, program: Program, scheme: Scheme, mesh: Mesh | None) -> KeptFunction:
    """Return `score` or `measure` for the networks of a program: a function of its other arguments."""
    return KeptFunction(recipe_of(function, program, scheme, mesh))
