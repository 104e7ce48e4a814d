"""A network that is trained for a minute on CIFAR-10, in onnxruntime beside the calibrated evaluation."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn

from ghn_jax.datasets import load as data
from ghn_jax.export import to_quantized_onnx
from ghn_jax.export.runtime_comparison import compare
from ghn_jax.models.folding import calibrate
from ghn_jax.models.tracing import trace
from ghn_jax.quant.policy import parse_bits

pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytestmark = pytest.mark.slow
FLOAT_STEPS, ROUNDED_STEPS, BATCH = 200, 100, 64
BITS = {'w8a8': 0.99, 'w4a8': 0.99, 'w2a2': 0.98}


class Net(nn.Module):
    """Residual blocks that begin at half the size, so that a minute of a CPU is enough."""

    @nn.compact
    def __call__(self, x, train: bool = True):
        def layer(x, width, stride=1):
            x = nn.Conv(width, (3, 3), stride, use_bias=False)(x)
            return nn.BatchNorm(use_running_average=not train)(x)

        x = layer(x, 16, 2)
        for width, stride in ((16, 1), (32, 2), (64, 2)):
            x = layer(nn.relu(x), width, stride)
            x = x + layer(nn.relu(x), width)
        return nn.Dense(10)(nn.relu(x).mean((1, 2)))


class Trained:
    """The network in float and, trained on from there through rounding, at W2/A2."""

    def __init__(self, folder: str):
        self.data = data.load('cifar10', data_dir=folder)
        self.model = trace(Net(), (1, 32, 32, 3))
        count = (FLOAT_STEPS + ROUNDED_STEPS) * BATCH
        images, labels = self.data.normalized('train', count), self.data.train.labels[:count]
        self.batches = [(images[i : i + BATCH], labels[i : i + BATCH]) for i in range(0, count, BATCH)]
        self.of_float = self.train(self.model.initial_params(), 'float', self.batches[:FLOAT_STEPS])

    @functools.cached_property
    def of_2_bits(self) -> Any:
        return self.train(self.of_float, 'w2a2', self.batches[FLOAT_STEPS:])

    def train(self, params: Any, bits: str, batches: Any) -> Any:
        quantizer, adam = self.model.quantizer(parse_bits(bits)), optax.adam(2e-3)

        @jax.jit
        def step(params, state, x, y):
            def loss(params):
                logits = self.model.apply(params, x, quantizer)
                return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

            updates, state = adam.update(jax.grad(loss)(params), state)
            return optax.apply_updates(params, updates), state

        state = adam.init(params)
        for x, y in batches:
            params, state = step(params, state, x, y)
        return jax.device_get(params)


@pytest.fixture(scope='module')
def trained(shared):
    folder = shared / 'tfds'
    if not folder.is_dir():
        pytest.skip('../shared/tfds absent: this test needs CIFAR-10 beside the repository')
    return Trained(str(folder))


@pytest.mark.parametrize('bits', BITS)
def test_on_4000_test_images_onnxruntime_is_as_good_as_the_calibrated_evaluation(trained, bits):
    policy, of = parse_bits(bits), trained.of_2_bits if bits == 'w2a2' else trained.of_float
    batches = [jnp.asarray(x) for x, _ in trained.batches[:4]]
    calibrated = calibrate(trained.model, of, batches, policy, batch_norm='calibrated')
    quantizer = calibrated.quantizer(policy)
    apply = functools.partial(jax.jit(lambda arrays, x: arrays.apply(x, quantizer)), calibrated)
    # Of 1,000, the four that are in another class may all be right in one of the two: 0.4 points.
    found = compare(to_quantized_onnx(calibrated, quantizer), apply, trained.data, 4000)
    print(bits, found)
    assert found.images == {'test': 4000, 'val': 0, 'train': 0} and found.top1[1] > 0.15
    assert abs(found.top1[0] - found.top1[1]) <= 0.003 and found.agreement >= BITS[bits], found
