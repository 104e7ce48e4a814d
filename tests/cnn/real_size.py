"""Figures of a network at real size: 64 images of 32 x 32 pixels, 65,536 rows to the sums of a norm.

python -m tests.cnn.real_size TYPE FILE.npz     float32 or float64, by the compiler that the environment sets
"""

import functools
import sys

import jax
import numpy as np

from ghn_jax.assembly.workspace import Workspace
from ghn_jax.cnn import executor
from ghn_jax.cnn.building import build_program
from ghn_jax.cnn.deploy import observer
from ghn_jax.cnn.packing import BLOCK
from ghn_jax.cnn.tables import RunnableNetwork
from ghn_jax.evaluation import device
from ghn_jax.evaluation.selection import ImageBatches
from ghn_jax.networks.counts import count_parameters
from tests.cnn.comparison import FLOAT, Executor, Inputs
from tests.cnn.networks import random_parameters, small_network

BATCH, SIZE = 64, 32
# Where a sum over all pixels stands: norms, after a convolution and after two kinds of pools; ranges.
NETWORK = small_network([('conv_3x3', 0), ('avg_pool_3x3', 1)], C=16, n_cells=2)


def figures(dtype: str) -> dict[str, np.ndarray]:
    """Loss, logits, gradients; moments of what is normalised and ranges of activations; predicted classes."""
    program = build_program([NETWORK], image_size=SIZE, max_params=count_parameters(NETWORK))
    layout, params = program.layout(NETWORK), random_parameters(NETWORK, 0, dtype)
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (1, BATCH, SIZE, SIZE, 3)).astype('uint8')
    labels = random.integers(0, 10, (1, BATCH)).astype('int32')
    mean, std = np.full(3, 0.4, dtype), np.full(3, 0.3, dtype)
    images = ((pixels[0] / 255 - mean) / std).astype(dtype)
    trained = Executor(program, batch=BATCH, dtype=dtype, options={})(
        NETWORK, Inputs(params, images, labels[0]), FLOAT
    )
    found = {'loss': trained.loss, 'logits': trained.logits}
    found |= {f'gradient {name}': g for name, g in trained.gradients.items()}

    bits = program.bits(layout, FLOAT)
    network = RunnableNetwork(program.pack(layout, params, dtype), layout.tables, bits)
    batches = ImageBatches(pixels, labels, mean, std)
    floats = np.zeros(program.capacity.blocks * BLOCK, dtype)
    workspace = Workspace(executor.make_tapes(program, BATCH, dtype, train=False), floats[:1], floats)
    top1, _, predicted, _ = jax.jit(functools.partial(device.score, program))(network, batches, workspace)
    found |= {'top1': np.asarray(top1), 'predicted': np.asarray(predicted)[0], 'labels': labels[0]}

    index = observer.make_index(program, layout)
    wanted = observer.make_wanted(program, moments=True, activations=True, noise=True)
    measure = jax.jit(functools.partial(device.measure, program))
    seen, _ = measure(network, batches, index, wanted, workspace)
    rows = [r for r, i in enumerate(layout.instructions) if type(i.op).__name__ == 'Norm']
    used = sorted({n for n in np.unique(index.rows) if n < program.capacity.tensors - 1})
    found |= {f'{k} of norms': np.asarray(v)[0, rows] for k, v in seen.moments._asdict().items()}
    ranges = ('lo', 'hi', 'signal')
    return found | {f'{k} of activations': np.asarray(getattr(seen.activations, k))[0, used] for k in ranges}


if __name__ == '__main__':
    jax.config.update('jax_enable_x64', sys.argv[1] == 'float64')
    np.savez(sys.argv[2], **figures(sys.argv[1]))
