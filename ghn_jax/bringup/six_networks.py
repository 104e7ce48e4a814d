"""Six networks on a few images: what a machine computes of them, small enough for a file.

Networks, images and policies are the same everywhere. A gradient has a million numbers, so of each tensor
only its norm and some projections on random signs are kept: the squared difference of two projections is, on
average, the squared difference of the tensors.
"""

import functools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax import config as configs
from ghn_jax.assembly.network_batch import Networks, prepare
from ghn_jax.assembly.workspace import make_workspace
from ghn_jax.base.backends import kernels_are_launches
from ghn_jax.base.digests import leaf_name
from ghn_jax.cnn import executor
from ghn_jax.cnn.building import build_program
from ghn_jax.cnn.packing import BLOCK
from ghn_jax.cnn.tables import RunnableNetwork
from ghn_jax.cnn.weight_quantization import quantize_weights
from ghn_jax.config import RunConfig
from ghn_jax.evaluation.device import predict_buffer
from ghn_jax.hypernet.ghn import GHN, GHNConfig, init_params
from ghn_jax.networks.counts import count_parameters
from ghn_jax.networks.spec import IMAGE_SIZE
from ghn_jax.quant.policy import parse_bits
from ghn_jax.quant.scheme import QAT
from ghn_jax.runs.task import make_space_of
from ghn_jax.training.sampling import draw
from ghn_jax.training.step import meta_gradients

COUNT = 6
_IMAGES = 16
_NODES = 256  # that the graphs are padded to
_PROJECTIONS = 6  # of each tensor of a gradient
_CHANGES = {
    'space.channels': (32,),
    'space.cells': (3, 5),
    'space.ops': ('skip_connect', 'max_pool_3x3', 'avg_pool_3x3', 'conv_1x1', 'sep_conv_3x3'),
    'space.ks': (3,),
    'space.C_mults': (1,),
    'space.fc_dims': (64,),
}
_SEED = 0  # with it the networks have both stems and all heads, and one has no normalisation

Digest = dict[str, list[float]]
"""Of each tensor: its norm, then its projections."""


def space_config() -> RunConfig:
    """Give the config of the networks."""
    config = RunConfig()
    for key, value in _CHANGES.items():
        config = configs.replace(config, key, value)
    return config


class NetworkOutputs(NamedTuple):
    """What one network gives: its loss, and a digest of the gradients by the hypernetwork's parameters."""

    loss: float
    gradients: Digest


class SixNetworks:
    """The networks with all that they run on."""

    def __init__(self):
        specs = draw(make_space_of(space_config()), _SEED, 0, COUNT)
        self.specs = specs
        self.program = build_program(
            specs,
            image_size=IMAGE_SIZE,
            max_params=max(map(count_parameters, specs)),
            joins_norms=kernels_are_launches(),
        )
        self.ghn = GHN(GHNConfig())
        self.params = init_params(self.ghn.config, jax.random.key(0))
        random = np.random.RandomState(0)  # the one generator of numpy whose numbers never change
        self.images = random.standard_normal((_IMAGES, IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.float32)
        self.labels = (np.arange(_IMAGES) % self.ghn.config.num_classes).astype(np.int32)

    def inputs(self) -> Digest:
        """Digest what everything is computed from: results can be compared only where it is the same."""
        return digest({'parameters': self.params, 'images': self.images})

    def prepared(self, bits: str) -> Iterator[Networks]:
        """Yield each network with its bits, made ready for the device."""
        for spec in self.specs:
            yield prepare(self.program, [spec], parse_bits(bits), max_nodes=_NODES)[0]

    def logits(self, bits: str) -> list[np.ndarray]:
        """Compute the logits [N, L] of each network, as evaluation does."""
        return [np.asarray(self._evaluate(self.params, n, self.images)) for n in self.prepared(bits)]

    @functools.cached_property
    def _evaluate(self) -> Callable[..., jax.Array]:
        program, floats = self.program, self.program.capacity.blocks * BLOCK

        def run(params, networks, images):
            weights = predict_buffer(self.ghn, params, networks, jnp.zeros(floats))
            tables, bits = (jax.tree.map(lambda a: a[0], t) for t in (networks.tables, networks.bits))
            rounded, _ = quantize_weights(weights, tables, bits.weights, jnp.zeros(floats), scheme=QAT)
            tapes = executor.make_tapes(program, _IMAGES, train=False)
            network = RunnableNetwork(rounded, tables, bits)
            return executor.forward(program, network, images, tapes, scheme=QAT)[0]

        return jax.jit(run)


class Training:
    """Losses and gradients by the code of the training step, without dropout.

    dtype: of the networks' values.
    """

    def __init__(self, six: SixNetworks, dtype: str):
        self.six = six
        self.workspace = make_workspace(six.program, _IMAGES, dtype)
        step = functools.partial(meta_gradients, six.program, six.ghn, scheme=QAT, dropout=0.0)
        self.step = jax.jit(step, donate_argnames='workspace')

    def __call__(self, networks: Networks) -> tuple[float, Any]:
        """Give the loss of one network and the gradients by the hypernetwork's parameters."""
        gradients, metrics, self.workspace = self.step(
            self.six.params, networks, self.six.images, self.six.labels, workspace=self.workspace,
            key=jax.random.key(1),
        )  # fmt: skip
        return float(metrics['loss'][0]), jax.device_get(gradients)

    def outputs(self, bits: str) -> list[NetworkOutputs]:
        """Give what each network computes at these bits."""
        computed = map(self, self.six.prepared(bits))
        return [NetworkOutputs(loss, digest(gradients)) for loss, gradients in computed]

    def repeats_itself(self, bits: str) -> bool:
        """Compute the first network twice: whether all numbers are the same to the bit."""
        networks = next(self.six.prepared(bits))
        once, twice = self(networks), self(networks)
        return once[0] == twice[0] and all(jax.tree.leaves(jax.tree.map(np.array_equal, once[1], twice[1])))


def digest(tree: Any) -> Digest:
    """Digest each tensor of a tree, by its path."""
    named = ((leaf_name(path), x) for path, x in jax.tree_util.tree_leaves_with_path(tree))
    return {name: _digest(name, x) for name, x in named}


def _digest(name: str, x: Any) -> list[float]:
    x = np.asarray(x, np.float64).ravel()
    random = np.random.RandomState(zlib.crc32(name.encode()))
    signs = random.randint(0, 2, (_PROJECTIONS, x.size), dtype=np.int8) * 2 - 1
    return [float(np.linalg.norm(x)), *(float(row @ x) for row in signs)]


def difference(a: Mapping[str, Sequence[float]], b: Mapping[str, Sequence[float]]) -> float:
    """Estimate |a - b| / |b| over all tensors of two digests; inf where they are of different tensors."""
    if set(a) != set(b):
        return float('inf')
    of = {k: np.asarray(a[k], np.float64) - np.asarray(b[k], np.float64) for k in b}
    squares = sum(float(np.mean(d[1:] ** 2)) for d in of.values())
    scale = sum(b[k][0] ** 2 for k in b)
    return float(np.sqrt(squares / scale)) if scale else float('inf')
