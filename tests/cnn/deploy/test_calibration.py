"""A calibrated network is the reference with the same statistics and ranges; it measures what that one sees.

In float64; policies quantize weights or activations, not both (see `test_executor`).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghn_jax.assembly.workspace import Workspace
from ghn_jax.cnn import executor, reference
from ghn_jax.cnn.building import build_program
from ghn_jax.cnn.deploy import calibration, observer
from ghn_jax.cnn.deploy.observer import RowMoments
from ghn_jax.cnn.instructions import Norm
from ghn_jax.cnn.reference import apply_reference, observe_reference
from ghn_jax.cnn.tables import RunnableNetwork
from ghn_jax.cnn.weight_quantization import quantize_weights
from ghn_jax.evaluation import device, protocol
from ghn_jax.evaluation.selection import ImageBatches
from ghn_jax.quant import Policy, Scheme
from ghn_jax.quant.grid import fake_quantize
from ghn_jax.quant.policy import TERNARY
from ghn_jax.quant.scheme import QAT
from tests.cnn.comparison import QUICK, relative_error
from tests.cnn.networks import random_images, random_parameters, small_network

SIZE, BATCH, BATCHES = 8, 4, 3
# All convolutions, strided and not; concatenations; both stems; two linear layers; flattened; not normalised.
SPECS = [
    small_network(
        [('sep_conv_3x3', 0), ('conv_7x1_1x7', 1), ('none', 0), ('skip_connect', 1)],
        [('skip_connect', 0), ('conv_7x1_1x7', 1), ('dil_conv_3x3', 2), ('conv_1x1', 1)],
        normal_concat=(2, 3), reduce_concat=(2, 3), C=16, fc_layers=2, fc_dim=24, stem_type=1,
        name='a',
    ),
    small_network([('conv_3x3', 0), ('avg_pool_3x3', 1)], C=16, norm=None, stem_type=1, name='b'),
    small_network([('max_pool_3x3', 0), ('conv_3x3', 1)], C=16, stem_pool=True, glob_avg=False, name='c'),
    small_network([('mbconv_3x3', 0), ('none', 1)], C=16, name='d'),
]  # fmt: skip
ACTIVATIONS, WEIGHTS = Policy(32, 3), Policy(3, 32)
MEAN, STD = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.25, 0.3])


@pytest.fixture(scope='module', autouse=True)
def float64(quick_reference):
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope='module')
def program():
    return build_program(SPECS, image_size=SIZE, max_params=1e6)


def pixels(seed, batches=BATCHES):
    """uint8 [batches, BATCH, SIZE, SIZE, 3], with structure."""
    images = random_images(batches * BATCH, seed, size=SIZE) * 60 + 128
    return np.clip(images, 0, 255).astype('uint8').reshape(batches, BATCH, SIZE, SIZE, 3)


def normalised(images):
    return (images / 255 - MEAN) / STD


def parameters(spec, seed=0):
    """Some scales are negative. Flattened heads get a first layer that fits the small images."""
    params = random_parameters(spec, seed, 'float64')
    for name, w in params.items():
        if name.endswith('.weight') and w.ndim == 1:
            w[::5] *= -1
    if not spec.glob_avg:
        params['classifier.0.weight'] = np.ascontiguousarray(
            params['classifier.0.weight'][:, :: (32 // SIZE) ** 2]
        )
    return params


class Runner:
    """`measure` as the protocol calls it, and logits; each compiled once."""

    def __init__(self, program, scheme=QAT):
        self.program, self.scheme = program, scheme
        self._measure = jax.jit(
            functools.partial(device.measure, program, scheme=scheme), compiler_options=QUICK
        )

        @functools.partial(jax.jit, compiler_options=QUICK)
        def logits(flat, tables, bits, x, workspace, ranges):
            quantized, _ = quantize_weights(flat, tables, bits.weights, workspace.quantized, scheme=scheme)
            buffers = workspace.executor
            network = RunnableNetwork(quantized, tables, bits, ranges)
            return executor.forward(program, network, x, buffers, scheme=scheme)[0]

        self._logits = logits
        buffers = executor.make_tapes(program, BATCH, jnp.float64, train=False)
        floats = jnp.zeros(program.capacity.blocks * 256)
        self.workspace = Workspace(buffers, jnp.zeros(1), floats)

    def measure(self, layout, network, wanted, workspace=None, images=None):
        index = observer.make_index(self.program, layout)
        wanted = wanted._replace(bounds=np.float32(wanted.bounds))  # of one type: nothing compiles anew
        images = pixels(1) if images is None else images
        measured, _ = self._measure(
            network, ImageBatches(images, None, MEAN, STD), index, wanted, self.workspace
        )
        return jax.device_get(measured), workspace

    __call__ = measure

    def logits(self, network, bits, x):
        return np.asarray(self._logits(*network[:2], bits, x, self.workspace, network.ranges))


@pytest.fixture(scope='module')
def runner(program):
    return Runner(program)


def quick(function):
    return jax.jit(function, compiler_options=QUICK)


def predicted(program, spec, policy=None):
    """(layout, network with parameters and the bits of a policy, parameters by name)."""
    layout, params = program.layout(spec), parameters(spec)
    flat, bits = program.pack(layout, params, np.float64), program.bits(layout, policy or Policy())
    return layout, RunnableNetwork(flat, layout.tables, bits), params


def everything(program, bounds=None):
    return observer.make_wanted(program, moments=True, activations=True, noise=True, bounds=bounds)


def own(instruction, statistics):
    """Mean and variance of what a norm's instruction reads, some channels of a wide tensor."""
    scale = instruction.pieces[0]
    channels = slice(scale.col, scale.col + scale.cols)
    return [values[channels] for values in statistics[scale.name.removesuffix('.weight')]]


@pytest.mark.parametrize('spec', SPECS, ids=lambda s: s.name)
def test_what_is_measured_is_what_the_reference_sees(runner, spec):
    layout, network, params = predicted(runner.program, spec, ACTIVATIONS)
    measured, _ = runner.measure(layout, network, everything(runner.program))
    observe = quick(functools.partial(observe_reference, spec, policy=ACTIVATIONS))
    for k, x in enumerate(pixels(1)[:2]):
        statistics, ranges = observe(params, normalised(x))
        norms = set()
        for r, instruction in enumerate(layout.instructions):
            if instruction.op == Norm() and spec.norm:
                norms.add(instruction.pieces[0].name.removesuffix('.weight'))
                mean, variance = own(instruction, statistics)
                np.testing.assert_allclose(measured.moments.mean[k, r, : len(mean)], mean, atol=1e-9)
                np.testing.assert_allclose(measured.moments.variance[k, r, : len(mean)], variance, rtol=1e-9)
        assert norms == statistics.keys()
        seen = measured.activations
        for name, (lo, hi) in ranges.items():
            t = layout.tensors[name]
            np.testing.assert_allclose((seen.lo[k, t], seen.hi[k, t]), (lo, hi), atol=1e-9, err_msg=name)
        second = {name for name in layout.tensors if 'conv_2' in name}  # reads what the first one does
        assert ranges.keys() == layout.tensors.keys() - second


def given(layout, statistics, ranges):
    """Moments and ranges as the executor's tables have them."""
    rows, tensors = len(layout.tables.rows), 64
    moments = RowMoments(np.zeros((rows, 128)), np.ones((rows, 128)))
    for r, instruction in enumerate(layout.instructions):
        if instruction.op == Norm() and statistics:
            for field, values in zip(moments, own(instruction, statistics)):
                field[r, : len(values)] = values
    lo, hi = np.zeros(tensors), np.zeros(tensors)
    for name, (low, high) in ranges.items():
        lo[layout.tensors[name]], hi[layout.tensors[name]] = low, high
    return moments, lo, hi


@pytest.mark.parametrize('spec', SPECS, ids=lambda s: s.name)
def test_a_calibrated_network_is_the_reference_with_its_statistics_and_ranges(runner, spec):
    layout, network, params = predicted(runner.program, spec)
    r = np.random.default_rng(0)
    # Of other images, and ranges so narrow that values are clipped on both sides.
    statistics, ranges = quick(functools.partial(observe_reference, spec))(params, normalised(pixels(2)[0]))
    ranges = {name: (0.6 * lo, r.uniform(0.4, 0.9) * hi) for name, (lo, hi) in ranges.items()}
    moments, lo, hi = given(layout, statistics, ranges)
    flat, tables = calibration.fold(layout, network.weights, moments)
    assert tables.has_norm == 0
    fixed = RunnableNetwork(
        flat, tables, None, observer.make_ranges(observer.make_index(runner.program, layout), lo, hi)
    )
    x = normalised(pixels(3)[0])
    for policy in (ACTIVATIONS, WEIGHTS):
        logits = runner.logits(fixed, runner.program.bits(layout, policy), x)
        fixes = {'statistics': statistics if spec.norm else None, 'ranges': ranges}
        expected = quick(functools.partial(apply_reference, spec, policy=policy))(params, x, **fixes)
        assert relative_error(logits, expected) < 1e-9, policy
    # It does not depend on the other images of the batch.
    bits = runner.program.bits(layout, Policy(8, 8))
    halves = np.concatenate([x[:2], x[:2]])
    np.testing.assert_allclose(runner.logits(fixed, bits, halves)[2:], runner.logits(fixed, bits, x)[:2])


OTHER = Scheme(
    'qat', granularity='channel', symmetric=True, activation_range='sigma', activation_clip=0.5
)  # fmt: skip


@pytest.fixture(scope='module')
def other_runner(program):
    return Runner(program, OTHER)


def test_so_is_one_of_another_scheme(program, other_runner):
    """Given ranges replace the scheme's, of activations."""
    spec, scheme, runner = SPECS[0], OTHER, other_runner
    layout, network, params = predicted(program, spec)
    observe = quick(functools.partial(observe_reference, spec, policy=Policy(), scheme=scheme))
    statistics, ranges = observe(params, normalised(pixels(2)[0]))
    moments, lo, hi = given(layout, statistics, ranges)
    flat, tables = calibration.fold(layout, network.weights, moments)
    fixed = observer.make_ranges(observer.make_index(program, layout), lo, hi)
    x = normalised(pixels(3)[0])
    fixes = {'statistics': statistics, 'ranges': ranges}
    for policy in (Policy(3, 32, (('cells.0.*', TERNARY, 32),)), Policy(32, 3, (('cells.0.*', 32, 1),))):
        logits = runner.logits(RunnableNetwork(flat, tables, None, fixed), program.bits(layout, policy), x)
        apply = quick(functools.partial(apply_reference, spec, policy=policy, scheme=scheme))
        assert relative_error(logits, apply(params, x, **fixes)) < 1e-9, policy


def test_what_is_wanted_is_as_if_all_were_and_what_is_not_is_0(runner):
    layout, network, _ = predicted(runner.program, SPECS[0], ACTIVATIONS)
    bounds = np.tile([-2, 2.0], (runner.program.capacity.tensors, 1))
    all_of_it, _ = runner.measure(layout, network, everything(runner.program, bounds))
    noted = {**all_of_it.activations._asdict(), **all_of_it.moments._asdict()}
    assert all(np.any(values != 0) for values in noted.values())
    size = {'lo', 'hi', 'signal', 'count'}
    for wish, fields in (
        ({}, set()),
        ({'moments': True}, {'mean', 'variance'}),
        ({'activations': True}, size),
        ({'activations': True, 'noise': True}, size | {'noise'}),
        ({'activations': True, 'bounds': bounds}, size | {'histogram'}),
    ):
        wanted = observer.make_wanted(runner.program, **wish)
        measured, _ = runner.measure(layout, network, wanted)
        for name, values in {**measured.activations._asdict(), **measured.moments._asdict()}.items():
            expected = noted[name] if name in fields else np.zeros_like(noted[name])
            np.testing.assert_array_equal(values, expected, f'{name} of {sorted(wish)}')


class Wasteful:
    """Measures everything, whatever is wanted."""

    def __init__(self, runner):
        self.runner, self.program, self.scheme = runner, runner.program, runner.scheme

    def __call__(self, layout, network, wanted, workspace):
        return self.runner(layout, network, everything(self.program, wanted.bounds), workspace)


@pytest.mark.parametrize(
    'fields',
    [
        {'batch_norm': 'corrected', 'ranges': 'calibrated'},
        {'batch_norm': 'calibrated', 'ranges': 'calibrated', 'range_rule': 'percentile'},
        {'ranges': 'calibrated'},
        {'sqnr': True},
    ],
    ids=lambda fields: '-'.join(map(str, fields.values())),
)
def test_a_protocol_wants_all_that_it_uses(runner, fields):
    layout, network, _ = predicted(runner.program, SPECS[0], Policy(4, 4))
    how, both = protocol.Protocol(**fields), []
    for measure in (runner, Wasteful(runner)):
        moments, _ = protocol.statistics(how, measure, layout, network, None)
        fixed, sqnr, _ = protocol.prepare(how, measure, layout, network, moments, None)
        both.append((moments, fixed, sqnr))
    jax.tree.map(np.testing.assert_array_equal, *both)


@pytest.mark.parametrize('spec', SPECS[::2], ids=lambda s: s.name)
def test_normalisations_fixed_by_a_batch_are_those_of_the_batch(runner, spec):
    layout, network, _ = predicted(runner.program, spec)
    bits, images = network.bits, pixels(4, 1)
    x = normalised(images[0])
    expected = runner.logits(network, bits, x)
    measured, _ = runner.measure(
        layout, network, everything(runner.program), images=np.repeat(images, BATCHES, 0)
    )
    moments = calibration.pooled(measured.moments)
    for fixed in (calibration.fix, calibration.fold):
        flat, tables = fixed(layout, network.weights, moments)
        assert relative_error(runner.logits(RunnableNetwork(flat, tables, None), bits, x), expected) < 1e-9


@pytest.mark.parametrize('policy', [ACTIVATIONS, WEIGHTS, Policy()], ids=str)
def test_with_corrected_statistics_of_a_batch_a_rounded_network_is_what_it_is_by_that_batch(runner, policy):
    """Its weights are on the grids that they have in training: folded ones would be on others."""
    spec = SPECS[0]
    layout, network, _ = predicted(runner.program, spec, policy)
    images = pixels(4, 1)
    x = normalised(images[0])
    measure = lambda *of: runner.measure(*of, images=np.repeat(images, BATCHES, 0))
    measure.program = runner.program
    logits = {'batch': runner.logits(network, network.bits, x)}
    for how in ('calibrated', 'corrected'):
        fixing = protocol.Protocol(batch_norm=how)
        moments, _ = protocol.statistics(fixing, measure, layout, network, None)
        fixed, _, _ = protocol.prepare(fixing, measure, layout, network, moments, None)
        logits[how] = runner.logits(fixed, network.bits, x)
    assert relative_error(logits['corrected'], logits['batch']) < 1e-9
    if policy != Policy():
        assert relative_error(logits['calibrated'], logits['batch']) > 1e-2


def test_noise_is_that_of_rounding_layer_by_layer(runner):
    spec, policy = SPECS[0], Policy(3, 3)
    layout, network, params = predicted(runner.program, spec, policy)
    how = protocol.Protocol(sqnr=True)
    _, sqnr, _ = protocol.prepare(how, runner, layout, network, None, None)
    assert sqnr.keys() == layout.tensors.keys()

    def decibels(x, rounded):
        return 10 * np.log10(np.sum(x**2) / np.sum((rounded - x) ** 2))

    for name, (weight, activation) in sqnr.items():
        w = params[name]
        rounded = fake_quantize(jnp.asarray(w), min(0, w.min()), max(0, w.max()), 3)
        assert weight == pytest.approx(decibels(w, rounded), abs=0.006)
        assert (activation is None) == ('conv_2' in name)
        assert activation is None or 5 < activation < 25
    x = normalised(pixels(1))
    rounded = np.stack([fake_quantize(jnp.asarray(b), b.min(), b.max(), 3) for b in x])
    assert sqnr['stem0.0.weight'][1] == pytest.approx(decibels(x, rounded), abs=0.006)
    # Where nothing is rounded there is no noise.
    network = network._replace(bits=runner.program.bits(layout, Policy(3, 32)))
    _, one_sided, _ = protocol.prepare(how, runner, layout, network, None, None)
    assert all(a is None and w is not None for w, a in one_sided.values())


@pytest.mark.slow
def test_so_is_that_of_another_scheme(program, other_runner, monkeypatch):
    """Its ranges are those of standard deviations; what the reference's layers read, and make of it."""
    spec, policy = SPECS[0], Policy(32, 3)
    layout, network, params = predicted(program, spec, policy)
    _, sqnr, _ = protocol.prepare(protocol.Protocol(sqnr=True), other_runner, layout, network, None, None)
    squares = {}
    quantize = reference.Layers.quantize_activation

    def spy(self, name, x):
        rounded = quantize(self, name, x)
        squares[f'{name}.weight'] = np.array([np.sum(x**2), np.sum((rounded - x) ** 2)])
        return rounded

    monkeypatch.setattr(reference.Layers, 'quantize_activation', spy)
    total = {}
    for x in pixels(1):
        apply_reference(spec, params, normalised(x), policy=policy, scheme=OTHER)
        total = {name: total.get(name, 0) + both for name, both in squares.items()}
    measured = {name: activation for name, (_, activation) in sqnr.items() if activation is not None}
    assert measured.keys() == total.keys()
    for name, (signal, noise) in total.items():
        assert measured[name] == pytest.approx(10 * np.log10(signal / noise), abs=0.006), name


def test_pooled_moments_are_those_of_all_images_together():
    x = np.random.default_rng(0).normal(size=(5, 40, 2, 3)) * [1, 2, 3] + np.arange(5)[:, None, None, None]
    pooled = calibration.pooled(RowMoments(x.mean(1), x.var(1)))
    np.testing.assert_allclose(pooled.mean, x.mean((0, 1)))
    np.testing.assert_allclose(pooled.variance, x.var((0, 1)))


@pytest.mark.slow
def test_ranges_of_one_batch_round_it_as_its_own_do(program, other_runner):
    spec, runner = SPECS[0], other_runner
    layout, network, _ = predicted(program, spec, Policy(32, 2))
    bits, batch = network.bits, pixels(4, 1)

    def measure(*given):
        return runner.measure(*given, images=np.repeat(batch, BATCHES, 0))

    measure.program, measure.scheme = program, OTHER
    how = protocol.Protocol(ranges='calibrated')
    fixed, _, _ = protocol.prepare(how, measure, layout, network, None, None)
    x = normalised(batch[0])
    assert relative_error(runner.logits(fixed, bits, x), runner.logits(network, bits, x)) < 1e-5
