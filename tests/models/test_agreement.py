"""A traced network of DeepNets gives the executor's logits, by both protocols and in every scheme."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ghn_jax
from ghn_jax.assembly.workspace import Workspace
from ghn_jax.cnn import executor
from ghn_jax.cnn.building import build_program
from ghn_jax.cnn.packing import BLOCK
from ghn_jax.cnn.tables import RunnableNetwork
from ghn_jax.cnn.weight_quantization import quantize_weights
from ghn_jax.datasets.augment import normalize
from ghn_jax.evaluation import protocol
from ghn_jax.evaluation.selection import ImageBatches
from ghn_jax.models.folding import calibrate
from ghn_jax.models.quantizer import FakeQuantizer
from ghn_jax.networks.counts import count_parameters
from ghn_jax.networks.spec import NetworkSpec
from ghn_jax.quant import oracle
from ghn_jax.quant.policy import TERNARY, Policy, parse_bits
from ghn_jax.quant.scheme import ACTIVATION_RANGES, GRANULARITIES, QAT, WEIGHT_RANGES, Scheme
from tests.cnn.networks import random_images, random_parameters, small_network

FIXED = protocol.Protocol(batch_norm='calibrated', ranges='calibrated')
CALIBRATION_BATCHES = 4


class Executor:
    """Networks of one program. batches: uint8 [K, N, H, H, 3], the first of them for calibration."""

    def __init__(self, specs: Sequence[NetworkSpec], batches: ImageBatches, scheme: Scheme):
        self.images, self.scheme = batches, scheme
        _, count, size = batches.images.shape[:3]
        self.program = build_program(specs, image_size=size, max_params=max(map(count_parameters, specs)))
        first = batches._replace(images=batches.images[:CALIBRATION_BATCHES], labels=None)
        self.measure = protocol.make_measure(self.program, None, first, scheme)
        tapes = executor.make_tapes(self.program, count, train=False)
        self.tapes, floats = tapes, self.program.capacity.blocks * BLOCK
        self.workspace = lambda: Workspace(jax.tree.map(jnp.copy, tapes), jnp.zeros(1), jnp.zeros(floats))

        @jax.jit
        def forward(network, x):
            weights, tables, bits, _ = network
            rounded, _ = quantize_weights(
                weights, tables, bits.weights, jnp.zeros_like(weights), scheme=scheme
            )
            return executor.forward(self.program, network._replace(weights=rounded), x, tapes, scheme=scheme)[
                0
            ]

        self._forward = forward

    def logits(self, spec, params, policy: Policy, how: protocol.Protocol) -> np.ndarray:
        """[K * N, classes]"""
        layout = self.program.layout(spec)
        bits = self.program.bits(layout, policy)
        network = RunnableNetwork(self.program.pack(layout, params), layout.tables, bits)
        if how.calibrates:
            moments, workspace = protocol.statistics(how, self.measure, layout, network, self.workspace())
            network, _, _ = protocol.prepare(how, self.measure, layout, network, moments, workspace)
        return np.concatenate([self._forward(network, x) for x in normalised(self.images)])


def normalised(batches: ImageBatches) -> list[jax.Array]:
    return [normalize(x, batches.mean, batches.std) for x in batches.images]


def model_logits(spec, params, policy: Policy, how: protocol.Protocol, batches: ImageBatches, scheme):
    x = normalised(batches)
    model = ghn_jax.trace(spec, (1, *x[0].shape[1:]))
    if how.calibrates:
        batches = x[:CALIBRATION_BATCHES]
        arrays = calibrate(model, params, batches, policy, scheme=scheme, batch_norm=how.batch_norm)
        apply = lambda c, x: c.apply(x, c.quantizer(policy, scheme))
    else:
        arrays, quantizer = params, model.quantizer(policy, scheme)
        apply = lambda params, x: model.apply(params, x, quantizer)
    apply = jax.jit(apply)
    return np.concatenate([apply(arrays, batch) for batch in x])


class Difference(NamedTuple):
    """largest: of logits, as a share of the largest logit.   agreement: share of equal predictions."""

    largest: float
    agreement: float

    @classmethod
    def of(cls, found: np.ndarray, expected: np.ndarray) -> 'Difference':
        same = found.argmax(1) == expected.argmax(1)
        return cls(float(np.abs(found - expected).max() / np.abs(expected).max()), float(same.mean()))


def pixels(batches: int, size: int = 16) -> ImageBatches:
    images = np.clip(random_images(8 * batches, 0, size=size) * 60 + 128, 0, 255).astype('uint8')
    half = np.float32([0.5, 0.5, 0.5])
    return ImageBatches(images.reshape(batches, 8, size, size, 3), None, half, half / 2)


SPEC = small_network([('max_pool_3x3', 0), ('conv_1x1', 1)], n_cells=1, C=16, stem_type=1)


@pytest.mark.parametrize('how', [protocol.PAPERS, FIXED], ids=['batch', 'calibrated'])
def test_the_logits_in_float_are_the_executors(how, quick_reference):
    batches, params = pixels(CALIBRATION_BATCHES + 1), random_parameters(SPEC, 0)
    expected = Executor([SPEC], batches, QAT).logits(SPEC, params, Policy(), how)
    found = model_logits(SPEC, params, Policy(), how, batches, QAT)
    assert Difference.of(found, expected).largest < 1e-5


@pytest.mark.slow
def test_on_unseen_networks_and_1700_images_logits_and_predictions_are_the_executors(quick_reference):
    """Of a trained hypernetwork. Rounded values lie on grids: what differs by 1e-7 before may differ by a
    whole level behind, so that it is the predictions that are compared there. How many values lie on a border
    is a matter of the weights: by `zoo:digits-bits` 99.46 % agree at W4/A4, calibrated."""
    hypernetwork = ghn_jax.load('zoo:digits-adam')
    data = hypernetwork.load_data()
    pixels = np.concatenate([data.train.images, data.val.images, data.test.images])
    K = len(pixels) // 60
    batches = ImageBatches(pixels[: 60 * K].reshape(K, 60, 16, 16, 3), None, data.mean, data.std)
    specs = [hypernetwork.space.sample('test', seed=0, index=index) for index in range(3)]
    run, total = Executor(specs, batches, hypernetwork.scheme), {}
    for spec, bits, how in itertools.product(specs, ('float', 'w8a8', 'w4a4'), (protocol.PAPERS, FIXED)):
        policy = hypernetwork.used(parse_bits(bits))
        params = hypernetwork.predict(spec, policy)
        expected = run.logits(spec, params, policy, how)
        found = model_logits(spec, params, policy, how, batches, hypernetwork.scheme)
        total.setdefault((bits, how.batch_norm), []).append(Difference.of(found, expected))
        print(spec.name, bits, how.batch_norm, total[bits, how.batch_norm][-1], flush=True)
    for (bits, how), each in total.items():
        largest, agreement = max(d.largest for d in each), float(np.mean([d.agreement for d in each]))
        assert agreement >= (0.999 if bits == 'float' else 0.995), (bits, how)
        assert bits != 'float' or largest < 1e-5, (bits, how)


WEIGHT_SCHEMES = [
    Scheme('qat', granularity=granularity, symmetric=symmetric, weight_range=weight_range)
    for granularity, symmetric, weight_range in itertools.product(GRANULARITIES, (False, True), WEIGHT_RANGES)
]
ACTIVATION_SCHEMES = [
    Scheme('qat', activation_range=activation_range, activation_clip=clip)
    for activation_range, clip in itertools.product(ACTIVATION_RANGES, (1.0, 0.5))
]
WIDTHS = (8, 4, 2, 1, TERNARY)


def in_quick(widths: Sequence[int]) -> list:
    """Every scheme at one of the widths, in the slow suite at all of them."""
    of_schemes = enumerate(itertools.product((*WEIGHT_SCHEMES, *ACTIVATION_SCHEMES), widths))
    slow = lambda k: k % len(widths) != (k // len(widths)) % len(widths)
    return [pytest.param(*case, marks=[pytest.mark.slow] * slow(k)) for k, case in of_schemes]


@pytest.mark.parametrize('scheme, bits', in_quick(WIDTHS))
def test_a_layer_rounds_as_the_oracle_of_every_scheme_does(scheme, bits, quick_reference):
    r = np.random.default_rng(0)
    w, x = (r.normal(size=shape).astype(np.float32) + 0.1 for shape in ((6, 3, 3, 3), (4, 8, 8, 3)))
    quantizer = FakeQuantizer({'w': (bits, 32), 'x': (32, bits)}, scheme)
    if scheme in WEIGHT_SCHEMES:
        found, expected = quantizer.weight('w', w), oracle.quantize_weight(w, bits, scheme)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    if scheme in ACTIVATION_SCHEMES and bits != TERNARY:
        found, expected = quantizer.activation('x', x, x), oracle.quantize_activation(x, bits, scheme)
        np.testing.assert_allclose(found, expected, atol=1e-6)
